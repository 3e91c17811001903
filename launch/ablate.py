"""Run many configurations on many seeds, then compare them.

python launch/ablate.py --configs configs/*.yaml --seeds 0 1 2 [--jobs N] [--out DIR] [key=a,b ...]

Every combination becomes one run in DIR/<configuration>[,key=value]/seed<seed>. What is finished is
skipped, what was interrupted is resumed, and what fails is told and does not stop the others.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from trainers.config import ConfigError, differences, load_config


@dataclass(frozen=True)
class Run:
    config: str
    fixed: tuple[str, ...]  # overrides of all runs
    swept: tuple[str, ...]  # and this one's
    seed: int

    @property
    def name(self) -> str:
        swept = (f"{key.rpartition('.')[2]}={value}" for key, value in _pairs(self.swept))
        return ",".join([Path(self.config).stem, *swept]).replace("/", "_")

    def arguments(self, out: Path, threads: int) -> list[str]:
        own = [f"seed={self.seed}", f"run.dir={self.folder(out)}", f"run.threads={threads}"]
        return ["--config", self.config, *self.fixed, *self.swept, *own]

    def folder(self, out: Path) -> Path:
        return out / self.name / f"seed{self.seed}"


def _pairs(overrides: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (x.partition("=") for x in overrides)]


def combinations(configs: list[str], seeds: list[int], sweeps: list[str]) -> list[Run]:
    """Seeds vary slowest, so that a table over all configurations exists early."""
    axes: list[list[str]] = []
    fixed: list[list[str]] = []
    for key, value in _pairs(tuple(sweeps)):
        whole = value[:1] in "'\"[{" or not value  # a quoted value or a list is one value
        values = [value] if whole else value.split(",")
        (axes if len(values) > 1 else fixed).append([f"{key}={x}" for x in values])
    same = tuple(x for (x,) in fixed)
    grid = itertools.product(seeds, configs, itertools.product(*axes))
    return [Run(config, same, swept, seed) for seed, config, swept in grid]


running: list[subprocess.Popen] = []


def is_finished(run: Run, out: Path, threads: int) -> bool:
    """Done, and under the same configuration; a changed one is left to the run itself to refuse."""
    summary, saved = (run.folder(out) / name for name in ("summary.json", "config.yaml"))
    if not summary.exists():
        return False
    config = load_config(run.config, run.arguments(out, threads)[2:])
    steps = json.loads(summary.read_text())["steps"]
    return steps == config.train.steps and not differences(config, saved)


def execute(run: Run, out: Path, threads: int) -> str:
    """Run it to its end, its output in a log beside its folder. Returns what became of it."""
    if is_finished(run, out, threads):
        return "was finished"
    with socket.socket() as free:  # two launches at once would meet on the launcher's own port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--master_port", str(port)]
    command = [*launcher, str(ROOT / "launch" / "train.py"), *run.arguments(out, threads)]
    log = run.folder(out).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        running.append(process)
        code = process.wait()
    seconds = f"{time.monotonic() - start:.0f} s"
    return f"done in {seconds}" if code == 0 else f"FAILED with exit code {code}; see {log}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("sweeps", nargs="*", metavar="key=a,b", help="one run for each value")
    arguments = parser.parse_intermixed_args()
    # the overrides that follow --configs or --seeds are taken for theirs
    sweeps = [*arguments.sweeps, *(x for x in arguments.configs if "=" in x)]
    configs = [x for x in arguments.configs if "=" not in x]
    if len(configs) > 1:  # configs/*.yaml holds the root that the others extend
        configs = [x for x in configs if Path(x).stem != "base"]
    runs = combinations(configs, arguments.seeds, sweeps)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    stems = [Path(x).stem for x in configs]
    if len(set(stems)) < len(stems):
        twice = next(x for x in stems if stems.count(x) > 1)
        print(f"--configs = {twice}: named twice; runs are told by file name", file=sys.stderr)
        return 2
    try:
        for run in runs:
            load_config(run.config, run.arguments(arguments.out, threads)[2:])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failed = 0
    pool = ThreadPoolExecutor(arguments.jobs)
    try:
        outcomes = pool.map(lambda run: execute(run, arguments.out, threads), runs)
        for i, (run, outcome) in enumerate(zip(runs, outcomes, strict=True), 1):
            print(f"[{i}/{len(runs)}] {run.name} seed {run.seed}: {outcome}", flush=True)
            failed += "FAILED" in outcome
    finally:  # on Ctrl-C or SIGTERM the runs end too; the same command goes on
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()

    from eval.compare import compare, find_summaries, render

    rows = compare(find_summaries(dict.fromkeys(run.folder(arguments.out).parent for run in runs)))
    if rows:
        print(f"\n{render(rows)}")
        (arguments.out / "compare.md").write_text(render(rows, markdown=True) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
