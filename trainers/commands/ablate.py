"""Many runs: every configuration on every seed with every value of a sweep, several at a time."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from eval.errors import Refusal
from eval.report.runs import read_summary
from trainers.config.load import OF_BASE, differences, is_root, load_config
from trainers.config.schema import Config
from trainers.config.unused import unused
from trainers.config.values import ConfigError, flatten

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    config: str
    fixed: tuple[str, ...]  # overrides of all runs
    swept: tuple[str, ...]  # overrides of this run
    seed: int
    out: Path
    threads: int

    @property
    def name(self) -> str:
        swept = (f"{key.rpartition('.')[2]}={value}" for key, value in _pairs(self.swept))
        return ",".join([Path(self.config).stem, *swept]).replace("/", "_")

    @property
    def folder(self) -> Path:
        return self.out / self.name / f"seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        own = [f"seed={self.seed}", f"run.dir={self.folder}", f"run.threads={self.threads}"]
        return [*self.fixed, *self.swept, *own]

    @cached_property
    def settings(self) -> Config:
        return load_config(self.config, self.overrides)

    @property
    def base(self) -> str:
        """Return the settings that the evaluation before training depends on, as a text."""
        return repr([x for x in flatten(self.settings).items() if x[0].startswith(OF_BASE)])

    @property
    def before(self) -> Path:
        return self.folder / "eval" / "before.jsonl"

    def is_finished(self) -> bool:
        """Return whether the run is done under the same configuration.

        The run itself refuses a changed configuration.
        """
        summary, saved = (self.folder / name for name in ("summary.json", "config.yaml"))
        if not summary.exists():
            return False
        steps = read_summary(summary)["steps"]
        return steps == self.settings.train.steps and not differences(self.settings, saved)

    def plan(self) -> tuple[str, int]:
        """Return a text that says what the run would do, and its number of training steps."""
        saved = self.folder / "config.yaml"
        steps = self.settings.train.steps
        done = [int(x.name[5:]) for x in self.folder.glob("checkpoints/step_*")]
        if self.is_finished():
            return "finished", 0
        if saved.exists() and (done or (self.folder / "metrics.jsonl").exists()):
            changed = differences(self.settings, saved)
            if changed:
                return f"would be refused: {changed[0]}", 0
        step = max(done, default=0)
        if step > steps:
            return f"would be refused: train.steps = {steps}, but {step} are done", 0
        return f"from step {step}" if step else "new", steps - step

    def last(self) -> dict[str, float]:
        """Return the newest complete line of the run's metrics."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return {"step": 0}
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**16))
            lines = file.read().split(b"\n")[:-1]
        with suppress(ValueError, IndexError, TypeError):
            return {"step": 0, **json.loads(lines[-1])}
        return {"step": 0}  # the run itself reports damage


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (x.partition("=") for x in overrides)]


def apart_from_roots(configs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split configurations: (those to run, the roots among several, which other files extend)."""
    roots = [x for x in configs if is_root(Path(x))] if len(configs) > 1 else []
    return [x for x in configs if x not in roots], roots


def left_out(roots: Sequence[str]) -> str:
    """Return the line that names the roots which a pattern such as configs/*.yaml has matched."""
    folders = {x: Path(x).with_suffix("") for x in roots}
    names = [f"{x} (variants: {y}/*.yaml)" if y.is_dir() else x for x, y in folders.items()]
    return f"Left out, as other files extend them: {', '.join(names)}. To run one, name it alone."


def combinations(
    configs: Sequence[str], seeds: Sequence[int], sweeps: Sequence[str], out: Path, jobs: int
) -> list[Run]:
    """Return a run for each configuration, seed and value of the sweeps.

    Seeds vary slowest, so that a table over all configurations exists early.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs = {jobs}: must be at least 1")
    stems = [Path(x).stem for x in configs]
    for stem in stems:
        if stems.count(stem) > 1:
            why = "named twice, but runs take their names from the files; name each file once"
            raise ConfigError(f"--configs = {stem}: {why}")
    axes: list[list[str]] = []
    fixed: list[list[str]] = []
    for key, value in _pairs(sweeps):
        single = value[:1] in "'\"[{" or not value  # a quoted value or a list is one value
        values = [value] if single else value.split(",")
        (axes if len(values) > 1 else fixed).append([f"{key}={x}" for x in values])
    same = tuple(x for (x,) in fixed)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    grid = itertools.product(seeds, configs, itertools.product(*axes))
    return [Run(config, same, swept, seed, out, threads) for seed, config, swept in grid]


def check(runs: Sequence[Run], jobs: int) -> None:
    """Refuse a mistake in any configuration, and a sweep without effect, before a run starts."""
    for run in runs:
        try:
            without_effect = unused(run.settings)
        except ConfigError as error:
            raise ConfigError(f"{run.config}: {error}") from None
        for key, value in _pairs(run.swept):
            if key in without_effect:
                remedy = "leave the key or this configuration out of the sweep"
                why = f"{without_effect[key]}, and its runs would be equal; {remedy}"
                raise ConfigError(f"{run.config}: {key} = {value}: {why}")
    served = [x.settings.rollout for x in runs if x.settings.train.rollouts == "vllm"]
    places = [place for x in served for place in (*x.urls, x.sync_dir)]
    if jobs > 1 and len(set(places)) < len(places):
        why = "runs with train.rollouts=vllm would share a server, which holds one run's weights"
        remedy = "give --jobs 1, or a command for each server, with its rollout.urls and sync_dir"
        raise ConfigError(f"--jobs = {jobs}: {why}; {remedy}")


def _command(run: Run, base: Run | None) -> list[str]:
    with socket.socket() as free:  # two launchers at once would use the same default port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(port)]
    shared = [f"run.base={base.folder}"] if base else []
    train = str(ROOT / "launch" / "train.py")
    return [*launcher, train, "--config", run.config, *run.overrides, *shared]


class Ablation:
    """The runs, several at a time, each with one line of progress."""

    def __init__(self, runs: list[Run], jobs: int):
        self.runs, self.jobs = runs, jobs
        self._running: set[subprocess.Popen] = set()
        self._first = {run.base: threading.Lock() for run in runs}
        self._lines = set(range(jobs))  # lines of the terminal that show no run
        self._ending = False

    def __call__(self) -> int:
        """Execute the runs and return the number of failed ones."""
        failed = 0
        pool = ThreadPoolExecutor(self.jobs)
        try:
            outcomes = {pool.submit(self._execute, run): run for run in self.runs}
            for i, done in enumerate(as_completed(outcomes), 1):
                run, outcome = outcomes[done], done.result()
                line = f"[{i}/{len(self.runs)}] {run.name} seed {run.seed}: {outcome}"
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
                failed += "FAILED" in outcome
        except KeyboardInterrupt:  # end the runs too, each within the launcher's 30 seconds
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._ending = True
            for process in list(self._running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
            pool.shutdown(cancel_futures=True)
            raise
        return failed

    def _execute(self, run: Run) -> str:
        """Execute a run, with its output in a log beside its folder, and return the outcome."""
        try:
            return self._run(run)
        except (OSError, ValueError, Refusal) as error:  # only this run fails, not the others
            return f"FAILED: {error}"

    def _run(self, run: Run) -> str:
        if run.is_finished():
            return "was finished"
        log = run.folder.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        first = self._first[run.base]
        first.acquire()  # wait until a run has evaluated this base
        try:
            base = next((x for x in self.runs if x is not run and _same_base(x, run)), None)
            if self._ending:
                return "not started"
            with log.open("a") as file:  # a session of its own: only our signals reach the run
                process = subprocess.Popen(
                    _command(run, base), stdout=file, stderr=file, start_new_session=True
                )
            self._running.add(process)
            while process.poll() is None and not (base or run.before.exists()):
                time.sleep(0.2)
        finally:
            first.release()
        self._show(run, process)
        self._running.discard(process)
        seconds = f"{time.monotonic() - start:.0f} s"
        if process.returncode == 0:
            return f"done in {seconds}"
        return f"FAILED with exit code {process.returncode}: {_last_words(log)}; see {log}"

    def _show(self, run: Run, process: subprocess.Popen) -> None:
        """Show the run's progress on a line of the terminal until the run ends."""
        line = self._lines.pop()
        steps, name = run.settings.train.steps, f"{run.name} seed {run.seed}"
        quiet = not sys.stderr.isatty()
        with tqdm(total=steps, desc=name, position=line, leave=False, disable=quiet) as bar:
            while process.poll() is None:
                newest = run.last()
                bar.n = int(newest["step"])
                rates = {
                    k.removeprefix("train/"): x for k, x in newest.items() if "train/pass@" in k
                }
                bar.set_postfix({name: f"{x:.3f}" for name, x in rates.items()})
                time.sleep(0.5)
        self._lines.add(line)


def _last_words(log: Path) -> str:
    """Return the last line of a log that the launcher has not written, which begins with a time."""
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return next((x for x in reversed(lines) if not re.match(r"\[\d{4}-\d\d-\d\d ", x)), "")


def _same_base(donor: Run, run: Run) -> bool:
    """Return whether the donor's folder has an evaluation of the run's base."""
    saved = donor.folder / "config.yaml"
    return donor.before.exists() and not differences(run.settings, saved, OF_BASE)


def plan(runs: list[Run], jobs: int) -> Iterator[str]:
    """Yield one line per run with its plan, and an estimate of the time from the finished runs."""
    speeds: dict[str, list[float]] = {}
    for summary in (run.folder / "summary.json" for run in runs):
        if summary.exists():
            done = read_summary(summary)
            speeds.setdefault(done["run"], []).append(done["seconds"] / done["steps"])
    all_speeds = [x for per_step in speeds.values() for x in per_step]
    total = 0.0
    for i, run in enumerate(runs, 1):
        action, steps = run.plan()
        known = speeds.get(run.name, all_speeds)
        seconds = sum(known) / len(known) * steps if known else 0.0
        total += seconds
        about = f", about {seconds:.0f} s" if seconds else ""
        yield f"[{i}/{len(runs)}] {run.name} seed {run.seed}: {action}{about}"
    if all_speeds:
        basis = "estimated from the runs so far; the start of each run takes extra time"
        yield f"about {total / jobs / 60:.0f} minutes with --jobs {jobs}, {basis}"
    else:
        yield "no run has finished here: the time that they take is not known"
