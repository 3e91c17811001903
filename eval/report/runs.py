"""Finished runs on disk, and their values step by step."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eval.errors import Refusal
from eval.files import leaves, read_json, read_lines
from eval.records import Record, read_records

# keys that may differ within a group; train.top_p could only be 1 and is no longer a key
NOT_COMPARED = ("seed", "run.", "logging.", "diagnose.", "eval.every", "train.top_p")

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
    group: str  # runs of one group differ only in the seed
    folder: Path
    summary: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as {"train.lr": 3e-4, ...}."""
        return dict(leaves(OmegaConf.to_container(OmegaConf.load(self.folder / "config.yaml"))))  # type: ignore[arg-type]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl", {"step": int}, OTHERS)

    def records(self, when: str) -> list[Record]:
        """Return one record per problem, `before` or `after`."""
        return read_records(self.folder / "eval" / f"{when}.jsonl", OTHERS)

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


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Return every finished run in the folders or below them.

    Runs form one group if they are in the same folder, such as seed0, seed1, ...
    """
    paths = sorted({path.resolve() for x in folders for path in x.rglob("summary.json")})
    paths = [path for path in paths if (path.parent / "config.yaml").exists()]
    runs = [Run(x["run"], path.parent, x) for path in paths for x in [read_summary(path)]]
    places = {(run.folder.parent, run.group) for run in runs}
    twice = {name for name, n in Counter(name for _, name in places).items() if n > 1}
    if not twice:
        return runs
    top = os.path.commonpath([run.folder.parent for run in runs])  # the paths differ below it
    return [
        replace(run, group=os.path.relpath(run.folder.parent, top)) if run.group in twice else run
        for run in runs
    ]


class BadRuns(Refusal):
    """The runs cannot be compared; the message is one line."""


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each group, by seed."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.summary["seed"]):
        groups.setdefault(run.group, []).append(run)
    for first, *others in groups.values():
        for run in others:
            for key in first.config.keys() | run.config.keys():
                values = first.config.get(key), run.config.get(key)
                if values[0] != values[1] and not key.startswith(NOT_COMPARED):
                    differs = f"{key} = {values[1]}, but {values[0]} in {first.folder}"
                    remedy = "runs in one folder may differ only in the seed: move one of them"
                    raise BadRuns(f"{run.folder}: {differs}; {remedy}")
    return {name: groups[name] for name in dict.fromkeys(run.group for run in runs)}
