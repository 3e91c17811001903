"""The logs of a running run: TensorBoard, the same scalars in metrics.jsonl, and some rollouts."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from eval.files import append_lines, sync, whole_lines, write_lines
from trainers.config.schema import Config
from trainers.config.values import flatten
from trainers.train.board import card, charts, layout
from trainers.train.schedules import due
from trainers.train.step_log import StepLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGS = ("metrics.jsonl", "rollouts.jsonl")


class Metrics:
    """The writer of a run folder, which only rank 0 has.

    It drops lines after `step`: an interrupted run wrote them after its last checkpoint.
    """

    def __init__(self, folder: Path, config: Config, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.config, self.logging = folder, config, config.logging
        for path in map(folder.joinpath, LOGS):
            if path.exists():  # a run that starts again from step 0 keeps no lines
                kept = (x for x in steps_of(path) if step and x["step"] <= step)
                write_lines(path, kept)
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)
        if not step:
            rows = "\n".join(f"|{key}|{value}|" for key, value in flatten(config).items())
            self._writer.add_text("config", f"|key|value|\n|-|-|\n{rows}", 0)

    def begin(self, scalars: Mapping[str, float]) -> None:
        """Log the evaluation before training, and lay out the charts that the run will fill."""
        shown = charts(self.config, scalars)
        self._writer.add_custom_scalars(layout(shown))
        self._writer.add_text("How to read", card(shown), 0)
        self.log(0, scalars)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the finite scalars; JSON has no notation for the others."""
        scalars = {name: x for name, x in scalars.items() if math.isfinite(x)}
        append_lines(self.folder / "metrics.jsonl", [{"step": step, **scalars}])
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def step(self, log: StepLog) -> None:
        """Log a step: its scalars always, its histograms, pictures and rollouts periodically."""
        self.log(log.step, log.scalars)
        if due(log.step, self.logging.histograms_every):
            self._writer.add_histogram("surgery/weights", log.weights, log.step)
            if log.agreement is not None:
                self._writer.add_histogram("surgery/agreements", log.agreement, log.step)
        if due(log.step, self.logging.images_every) and log.agreement is not None:
            figure = scatter(log.weights, log.agreement, log.rate)
            self._writer.add_figure("surgery/weight_against_agreement", figure, log.step)
        if due(log.step, self.logging.rollouts_every):
            append_lines(self.folder / "rollouts.jsonl", log.looks)

    def flush(self) -> None:
        """Write all logs to disk, before a checkpoint records that these steps are done."""
        self._writer.flush()
        for path in self.folder.glob("*"):
            if path.is_file():
                sync(path)

    def close(self, config: Config, summary: Mapping[str, Any]) -> None:
        """Write the HParams record, the hyper-parameters beside the run's results, and close."""
        from torch.utils.tensorboard.summary import hparams

        results = {f"result/{name}": x["value"] for name, x in summary["after"].items()}
        results |= {f"result/change_{name}": x["value"] for name, x in summary["change"].items()}
        exact = summary.get("exact", {})
        results |= {f"result/exact_{name}": x for name, x in exact.get("after", {}).items()}
        for name in ("lowest_pass@1", "frontier_share"):
            if exact.get(name) is not None:
                results[f"result/{name}"] = exact[name]
        settings = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in flatten(config).items()
            if not key.startswith(("run.", "logging.", "diagnose."))  # without effect on results
        }
        # without an experiment's record TensorBoard itself determines how the runs differ
        _, *records = hparams(settings, results)
        for record in records:
            self._writer._get_file_writer().add_summary(record)
        for name, value in results.items():
            # one step later, so that a longer run replaces them
            self._writer.add_scalar(name, value, config.train.steps + 1)
        self._writer.close()


def scatter(weights: Tensor, agreements: Tensor, rate: Tensor) -> "Figure":
    """Plot weight against agreement, coloured by the rate of correct answers.

    Prompts left of 0 disagree.
    """
    from eval.report import plots

    figure = plots.figure(6, 4)
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    dots = axes.scatter(agreements, weights, c=rate, s=18, **plots.RATES)
    figure.colorbar(dots, label="share of correct answers")
    axes.set_xlabel("agreement with the pass@1 gradient")
    axes.set_ylabel("pass@k weight")
    return figure


def steps_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a log; a damaged log is refused."""
    return whole_lines(path, {"step": int}, "restore it from a copy, or remove that line")
