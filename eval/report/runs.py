"""Finished runs on disk, and their values step by step."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eval.errors import Refusal
from eval.files import leaves, read_json, read_lines
from eval.records import Record, read_records
from eval.report.labels import NOT_COMPARED, labels

OTHERS = "restore it from a copy, or leave the run out"

NUMBER = int | float
INTERVAL = {"value": NUMBER, "low": NUMBER | None, "high": NUMBER | None}
SUMMARY = {
    **{"run": str, "seed": int, "k": int, "steps": int, "seconds": NUMBER},
    **{"before": {"*": INTERVAL}, "after": {"*": INTERVAL}, "change?": {"*": INTERVAL}},
    "exact?": {
        **{"before": {"*": NUMBER}, "after": {"*": NUMBER}},
        **{"lowest_pass@1": NUMBER, "frontier_share": NUMBER | None},
    },
}


def read_summary(path: Path, remedy: str = OTHERS) -> dict[str, Any]:
    """Return a run's summary.json after a check of all keys that are read."""
    k = read_json(path, SUMMARY, remedy)["k"]
    names = ("pass@1", f"pass@{k}")
    ends = {when: dict.fromkeys(names, INTERVAL) for when in ("before", "after", "change?")}
    true = {when: dict.fromkeys(names, NUMBER) for when in ("before", "after")}
    return read_json(path, ends | {"exact?": true}, remedy)


@dataclass(frozen=True)
class Run:
    folder: Path
    summary: dict[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as {"train.lr": 3e-4, ...}; keys that it lacks have their defaults."""
        saved = OmegaConf.to_container(OmegaConf.load(self.folder / "config.yaml"))
        return {**self.defaults, **dict(leaves(saved))}  # type: ignore[arg-type]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl", {"step": int}, OTHERS)

    def records(self, when: str) -> list[Record]:
        """Return one record per problem, `before` or `after`."""
        return read_records(self.folder / "eval" / f"{when}.jsonl", OTHERS)

    @property
    def place(self) -> Path:
        """The folder of the run and its other seeds, or that of the run if it stands alone."""
        return self.folder.parent if self.folder.name.startswith("seed") else self.folder

    @property
    def k(self) -> str:
        return f"pass@{self.summary['k']}"

    @property
    def exact(self) -> bool:
        """True if the exact values of pass@k are known."""
        return bool(self.summary.get("exact"))

    def value(self, when: str, metric: str, exact: bool) -> float:
        if exact:
            return self.summary["exact"][when][metric]
        return self.summary[when][metric]["value"]

    def path(self, metric: str, exact: bool) -> list[tuple[int, float]]:
        """Return (step, value) from start to end."""
        name = f"{'exact' if exact else 'eval'}/{metric}"
        return [(x["step"], x[name]) for x in self.history if name in x]

    def scalar(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a scalar of metrics.jsonl, or of a difference "a-b"."""
        first, *others = name.split("-")
        return [
            (x["step"], x[first] - sum(x[other] for other in others))
            for x in self.history
            if x.keys() >= {first, *others}
        ]


def find_runs(folders: Iterable[Path], defaults: Mapping[str, Any] | None = None) -> list[Run]:
    """Return every finished run in the folders or below them.

    The `defaults` are those of keys that are newer than a run.
    """
    paths = sorted({path.resolve() for x in folders for path in x.rglob("summary.json")})
    paths = [path for path in paths if (path.parent / "config.yaml").exists()]
    return [Run(path.parent, read_summary(path), defaults or {}) for path in paths]


class BadRuns(Refusal):
    """The runs cannot be compared; the message is one line."""


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return groups of runs by their labels; runs of one group differ only in the seed.

    Runs form one group if they are in the same folder, such as seed0, seed1, ...
    """
    groups: dict[Path, list[Run]] = {run.place: [] for run in runs}
    for run in sorted(runs, key=lambda run: run.summary["seed"]):
        groups[run.place].append(run)
    for first, *others in groups.values():
        for run in others:
            for key in first.config.keys() | run.config.keys():
                values = first.config.get(key), run.config.get(key)
                if values[0] != values[1] and not key.startswith(NOT_COMPARED):
                    differs = f"{key} = {values[1]}, but {values[0]} in {first.folder}"
                    remedy = "runs in one folder may differ only in the seed: move one of them"
                    raise BadRuns(f"{run.folder}: {differs}; {remedy}")
    return dict(zip(_names(list(groups.values())), groups.values(), strict=True))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the labels of the groups; groups of one label also have their folders."""
    names = labels([runs[0].config for runs in groups])
    places = {
        name: [runs[0].place for runs, other in zip(groups, names, strict=True) if other == name]
        for name in names
    }
    return [
        name
        if len(places[name]) == 1
        else f"{name} ({os.path.relpath(runs[0].place, os.path.commonpath(places[name]))})"
        for runs, name in zip(groups, names, strict=True)
    ]
