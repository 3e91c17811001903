"""The run folder: its lock, whether a run begins, resumes or is done, and its results."""

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.records import Record, read_records
from eval.report.runs import read_summary
from trainers.config.load import OF_BASE, differences, save_config
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.train.metrics import LOGS, steps_of

RESTORE = "restore it from a copy, or choose another run.dir"


class RunFolder:
    """The folder of a run; rank 0 opens it before the ranks join, so that a refusal is quick."""

    def __init__(self, config: Config):
        assert config.run.dir is not None
        self.path = path = Path(config.run.dir)
        saved = path / "config.yaml"
        self._is_new = not path.exists()
        if path.exists() and not path.is_dir():
            raise self._refusal("is a file; name a folder")
        if saved.exists():
            self.summary()  # refuses a damaged summary
            if self._begun():
                self._compare(config, saved)
        elif path.exists() and {x.name for x in path.iterdir()} - {".lock", "eval", "checkpoints"}:
            raise self._refusal("holds files but no run; choose an empty or new folder")
        shares = not self._begun()
        self.base_records = _base_records(config, "before") if shares else None
        self.base_reference = _base_records(config, "reference") if shares else None
        try:
            (path / "eval").mkdir(parents=True, exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            self._lock = (path / ".lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            save_config(config, saved)  # keys that may change: train.steps, run.*, logging.*
        except BlockingIOError:
            raise self._refusal(
                "another process writes this run; wait, or choose another"
            ) from None
        except OSError as error:
            raise self._refusal(f"cannot be written ({error.strerror}); choose another") from None

    def withdraw(self) -> None:
        """Remove the folder of a refused run if this run made it and it has no results yet."""
        self._lock.close()
        files, folders = (".lock", "config.yaml"), ("eval", "checkpoints")
        others = {str(x.relative_to(self.path)) for x in self.path.rglob("*")}
        if self._is_new and others <= {*files, *folders}:
            with suppress(OSError):  # somebody else may have moved it
                for name in files:
                    (self.path / name).unlink()
                for name in folders:
                    (self.path / name).rmdir()
                self.path.rmdir()

    def _begun(self) -> bool:
        """Return whether the folder holds logs or checkpoints; a failed start leaves neither."""
        return (self.path / "metrics.jsonl").exists() or any(self.path.glob("checkpoints/*"))

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"run.dir = {self.path}: {why}")

    def _compare(self, config: Config, saved: Path) -> None:
        """Refuse to resume under a configuration other than the one that began the run."""
        changed = differences(config, saved)
        if changed:
            remedy = f"{self.path} holds a run with another value; choose another run.dir"
            raise ConfigError("\n".join(f"{line}: {remedy}" for line in changed))
        self._check_files()
        summary = self.summary()
        done = [int(x.name[5:]) for x in (self.path / "checkpoints").glob("step_*")]
        done += [summary["steps"]] if summary else []
        if max(done, default=0) > config.train.steps:
            steps = f"train.steps = {config.train.steps}: the run in {self.path} has done"
            raise ConfigError(f"{steps} {max(done)}; give at least as many, or another run.dir")

    def summary(self) -> dict[str, Any] | None:
        path = self.path / "summary.json"
        return read_summary(path, RESTORE) if path.exists() else None

    def _check_files(self) -> None:
        """Read the files that the run needs at its end, before a model is loaded."""
        for name in LOGS:
            for _ in steps_of(self.path / name):
                pass
        for name in ("before", "reference"):
            read_records(self.path / "eval" / f"{name}.jsonl", RESTORE)

    def outlook(self) -> str:
        """Return a text that says how the same command goes on from the complete checkpoints."""
        saved = [int(x.name[5:]) for x in (self.path / "checkpoints").glob("step_*")]
        return f"goes on from step {max(saved)}" if saved else "starts again, as nothing was saved"

    def finished(self, config: Config) -> bool:
        done = self.summary()
        return done is not None and done["steps"] == config.train.steps

    def set_aside(self) -> None:
        """Before a finished run is lengthened, keep its results under the number of its steps."""
        done = self.summary()
        if done:
            for path in (self.path / "eval" / "after.jsonl", self.path / "summary.json"):
                if path.exists():
                    name = f"{path.stem}_step_{done['steps']:06d}{path.suffix}"
                    path.rename(path.with_name(name))


def _base_records(config: Config, name: str) -> list[Record] | None:
    """Return an evaluation before training of the run that run.base names, which has this base."""
    if config.run.base is None:
        return None
    run = Path(config.run.base)
    before, saved = run / "eval" / "before.jsonl", run / "config.yaml"
    if not (before.exists() and saved.exists()):
        raise ConfigError(f"run.base = {run}: has no eval/before.jsonl; name a run's folder")
    for line in differences(config, saved, OF_BASE):
        raise ConfigError(f"{line}: run.base = {run} has another base; leave run.base out")
    remedy = "restore it from a copy, or leave run.base out"
    return read_records(run / "eval" / f"{name}.jsonl", remedy)
