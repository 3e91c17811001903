"""The last lines of a finished run: its model, where the time went, warnings, the next command."""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.errors import Refusal
from eval.files import read_lines
from eval.report.labels import MEASURED, NOT_COMPARED
from eval.scores.passk import moved
from trainers.config.arguments import find_config
from trainers.config.load import differences, run_name
from trainers.config.schema import Config
from trainers.config.values import holds_pass_1

# weight of pass@1 beside pass@k; a complete run of the built-in task ends at 0.2
STILL_PAYING = 0.5
# shares of the training answers from which on a run says that it can hardly learn from them
UNDECIDED, TRUNCATED = 0.05, 0.5


def ending(config: Config, summary: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the lines after the table of a run; `words` are the command line that began it."""
    folder = Path(str(config.run.dir))
    history = read_lines(folder / "metrics.jsonl")
    about = filter(None, [*unread(config, history), too_short(config, history, summary)])
    return "\n".join(
        [
            f"Model:  {folder / 'model'}",
            f"Time:   {time_spent(history, summary['seconds'])}",
            f"Curves: tensorboard --logdir {folder}, page Custom Scalars",
            *(f"Rule:   {line}" for line in weights_given(config, history)),
            *(f"Note:   {note}" for note in about),
            f"Next:   {next_command(config, summary, words)}",
        ]
    )


def weights_given(config: Config, history: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yield a line on the weights of pass@1 that a rule has chosen, if it chose any."""
    given = _weights_of_pass_1(history)
    if not given or config.surgery.rule == "mix":
        return
    zero, cap = (
        100 * sum(is_at(x) for x in given) / len(given)
        for is_at in (lambda x: x == 0, lambda x: x >= config.surgery.cap)
    )
    yield (
        f"{config.surgery.rule} gave pass@1 the weight {fmean(given):.2f} on average; 0 in "
        f"{zero:.0f} % of the steps, the cap of {config.surgery.cap:g} in {cap:.0f} %"
    )


def _weights_of_pass_1(history: Sequence[Mapping[str, float]]) -> list[float]:
    return [x["surgery/lambda"] for x in history if "surgery/lambda" in x]


def unread(config: Config, history: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """Yield a sentence if many answers of the training got no verdict, or were cut short."""

    def mean(name: str) -> float:
        return fmean([x[name] for x in history if name in x] or [0.0])

    undecided, truncated = mean("train/undecided_share"), mean("train/truncated_share")
    if undecided > UNDECIDED:
        yield (
            f"{100 * undecided:.0f} % of the training answers got no verdict within "
            f"task.verify_seconds = {config.task.verify_seconds:g} and counted as wrong; raise it, "
            "or look at the verifier."
        )
    if truncated > TRUNCATED:
        yield (
            f"{100 * truncated:.0f} % of the training answers were cut at the longest allowed "
            "length; raise train.max_new_tokens, or look at the answers in rollouts.jsonl."
        )


def too_short(
    config: Config, history: Sequence[Mapping[str, float]], summary: Mapping[str, Any]
) -> str | None:
    """Return a sentence if pass@k did not rise while the rule still paid for pass@1 at the end.

    A rule that holds pass@1 pays most at the beginning, when the conflict is at its worst: the
    first steps alone tell nothing about a complete run. A run that lost pass@1 as well has another
    fault.
    """
    name, change = f"pass@{summary['k']}", summary["change"]
    paid = _weights_of_pass_1(history)
    if not paid or not holds_pass_1(config) or moved(change["pass@1"]) == "fell":
        return None
    at_the_end = fmean(paid[-max(1, len(paid) // 4) :])
    if at_the_end < STILL_PAYING or moved(change[name]) == "rose":
        return None
    return (
        f"{name} did not rise, and {config.surgery.rule} gave pass@1 the weight {at_the_end:.1f} "
        f"in the last quarter of the {len(paid)} steps. It gives most at the beginning of a run, "
        "so that a short run says little: raise train.steps until surgery/lambda sinks."
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
    place = [f"run.dir={group},rule={rule}/seed{config.seed}"]
    again = [x for x in words if not x.startswith(("--local_rank", "surgery.", "run.dir="))]
    i = again.index("--config") + 1 if "--config" in again else 0
    beside = str(Path(again[i]).with_stem("passk" if rule == "none" else rule))
    file = Path(find_config(beside))
    if i and file.is_file():  # the proper settings of the other rule
        again[i] = beside
        taken = Path("runs", run_name(file)).exists() or any("run.dir=" in x for x in words)
        place = place if taken else []
    else:
        again.append(f"surgery.rule={rule}")
    start = "deepspeed" if summary["world_size"] > 1 else "python"
    return f"{shlex.join([start, *again, *place])}  # to compare with"


def _like(config: Config, group: Path, summary: Mapping[str, Any]) -> Path | None:
    """Return the folder of the newest run beside this one with the same work.

    Both have the same k and steps, and the same settings of model, task and evaluation; another
    setting differs.
    """

    def is_like(path: Path) -> bool:
        with suppress(OSError, ValueError, Refusal):
            other = json.loads(path.read_text())
            about = {x: summary[x] for x in ("task", "k", "steps")}
            if path.parent.parent != group and isinstance(other, dict):
                lines = differences(config, path.with_name("config.yaml"))
                differs = [x for x in lines if not x.startswith(NOT_COMPARED)]
                same = not any(x.startswith(MEASURED) for x in differs)
                return bool(differs) and same and other.items() >= about.items()
        return False

    others = [x for x in group.parent.glob("*/seed*/summary.json") if is_like(x)]
    return max(others, key=lambda x: x.stat().st_mtime).parent.parent if others else None
