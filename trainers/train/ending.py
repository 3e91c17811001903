"""The last lines of a finished run: its model, where the time went, a warning, the next command."""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.errors import Refusal
from eval.files import read_lines
from eval.report.labels import MEASURED, NOT_COMPARED
from eval.scores.passk import moved
from trainers.config.load import differences
from trainers.config.schema import Config
from trainers.config.values import holds_pass_1

# weight of pass@1 beside pass@k; a complete run of the built-in task ends at 0.2
STILL_PAYING = 0.5


def ending(config: Config, summary: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the lines after the table of a run; `words` are the command line that began it."""
    folder = Path(str(config.run.dir))
    history = read_lines(folder / "metrics.jsonl")
    note = too_short(config, history, summary)
    return "\n".join(
        [
            f"Model:  {folder / 'model'}",
            f"Time:   {time_spent(history, summary['seconds'])}",
            f"Curves: tensorboard --logdir {folder}, page Custom Scalars",
            *([f"Note:   {note}"] if note else []),
            f"Next:   {next_command(config, summary, words)}",
        ]
    )


def too_short(
    config: Config, history: Sequence[Mapping[str, float]], summary: Mapping[str, Any]
) -> str | None:
    """Return a sentence if pass@k fell while the rule still paid for pass@1 at the end of the run.

    A rule that holds pass@1 pays most at the beginning, when the conflict is at its worst: the
    first steps alone tell nothing about a complete run.
    """
    name = f"pass@{summary['k']}"
    paid = [x["surgery/lambda"] for x in history if "surgery/lambda" in x]
    if not (paid and holds_pass_1(config) and moved(summary["change"][name]) == "fell"):
        return None
    at_the_end = fmean(paid[-max(1, len(paid) // 4) :])
    if at_the_end < STILL_PAYING:
        return None
    return (
        f"{name} fell, and {config.surgery.rule} gave pass@1 the weight {at_the_end:.1f} in the "
        f"last quarter of the {len(paid)} steps. It gives most at the beginning of a run, so that "
        "a short run says little: raise train.steps until surgery/lambda sinks."
    )


def time_spent(history: Iterable[Mapping[str, float]], seconds: float) -> str:
    """Return the wall time with the share of each part, such as "71 s: sample 40 %, other 60 %".

    Saving and whatever else has no scalar `time/` of its own is the part "other".
    """
    parts = defaultdict[str, float](float)
    for line in history:
        for name, x in line.items():
            if name.startswith("time/") and name != "time/step":  # the step is a sum of parts
                parts[name.removeprefix("time/")] += x
    parts["other"] = max(0.0, seconds - sum(parts.values()))
    largest_first = sorted(parts.items(), key=lambda part: -part[1])
    shares = {name: round(100 * x / max(seconds, 1e-9)) for name, x in largest_first}
    return f"{duration(seconds)}: " + ", ".join(f"{name} {x} %" for name, x in shares.items() if x)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def next_command(config: Config, summary: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the comparison with a run like this one, or the command that makes such a run."""
    folder = Path(str(config.run.dir))
    group = folder.parent if folder.name.startswith("seed") else folder
    other = _like(config, group, summary)
    if other or config.objective.k == 1:
        return shlex.join(["python", "launch/compare.py", *map(str, filter(None, [group, other]))])
    rule = "pcgrad" if config.surgery.rule == "none" else "none"
    changes = [f"surgery.rule={rule}", f"run.dir={group},rule={rule}/seed{config.seed}"]
    gone = ("--local_rank", *(f"{x.partition('=')[0]}=" for x in changes))
    again = [x for x in words if not x.startswith(gone)]
    start = "deepspeed" if summary["world_size"] > 1 else "python"
    return f"{shlex.join([start, *again, *changes])}  # to compare with"


def _like(config: Config, group: Path, summary: Mapping[str, Any]) -> Path | None:
    """Return the folder of the newest run beside this one with the same work.

    Both have the same k and steps, and the same settings of model, task and evaluation.
    """

    def is_like(path: Path) -> bool:
        with suppress(OSError, ValueError, Refusal):
            other = json.loads(path.read_text())
            about = {x: summary[x] for x in ("task", "k", "steps")}
            if path.parent.parent != group and isinstance(other, dict):
                differs = differences(config, path.with_name("config.yaml"), MEASURED)
                same = all(x.startswith(NOT_COMPARED) for x in differs)
                return same and other.items() >= about.items()
        return False

    others = [x for x in group.parent.glob("*/seed*/summary.json") if is_like(x)]
    return max(others, key=lambda x: x.stat().st_mtime).parent.parent if others else None
