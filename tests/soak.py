"""A long run of short steps, watched: memory, open files, processes, checkpoints, TensorBoard.

python tests/soak.py [--steps 2000] [key=value ...]

Verdicts come from worker processes, and a checkpoint is saved every tenth step. Prints what the
process holds after each tenth of the run as JSON; exit code 1 if it still grows in the second half.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SMALL = [
    *("train.prompts=4", "train.samples=4", "train.save_every=10", "objective.k=4", "eval.k=4"),
    *("eval.problems=4", "eval.samples=4", "eval.every=20", "task.verifier=math", "run.threads=1"),
]
MEBIBYTE = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    from trainers.config.load import load_config
    from trainers.engine.launcher import start_ranks
    from trainers.train.run_folder import RunFolder
    from trainers.train.step import Step
    from trainers.train.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        options = [*SMALL, f"train.steps={arguments.steps}", f"run.dir={folder}/run"]
        config = load_config(ROOT / "configs" / "pcgrad.yaml", [*options, *arguments.overrides])
        start_ranks(config.run.threads)
        trainer = Trainer(config, RunFolder(config))
        seen, took, plain = list[dict[str, Any]](), list[float](), Step.__call__

        def step(self: Step, number: int) -> Any:
            start = time.monotonic()
            done = plain(self, number)
            took.append(time.monotonic() - start)
            if number % max(1, arguments.steps // 10) == 0:
                recent = sorted(took[-(arguments.steps // 10) :])
                held = {"step": number, **holds(Path(config.run.dir or ""))}
                seen.append(held | {"seconds_of_a_step": round(recent[len(recent) // 2], 4)})
                print(json.dumps(seen[-1]), flush=True)
            return done

        Step.__call__ = step  # type: ignore[method-assign]
        trainer.run()
        after = holds(Path(config.run.dir or ""))
        after["seconds_to_read_events"] = read_events(Path(config.run.dir or ""))
        print(json.dumps({"after the run": after}))
    half = seen[len(seen) // 2]
    grown = [x for x in ("files", "threads", "processes") if seen[-1][x] > half[x]]
    if seen[-1]["checkpoints"] > config.train.keep + 1:  # the best one besides
        grown.append("checkpoints")
    if seen[-1]["memory_MiB"] > 1.02 * half["memory_MiB"] + 4:
        grown.append("memory_MiB")
    if after["processes"]:
        grown.append("processes that are left")
    print(f"grown in the second half: {', '.join(grown) or 'nothing'}")
    return int(bool(grown))


def holds(run: Path) -> dict[str, Any]:
    """What this process and its run hold at the moment. `memory_MiB` is what is left of
    `resident_MiB` when Python has collected its garbage and the C library given it back.
    """
    me = psutil.Process(os.getpid())
    resident = me.memory_info().rss
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's
        libc.malloc_trim(0)
    return {
        "resident_MiB": round(resident / MEBIBYTE, 1),
        "memory_MiB": round(me.memory_info().rss / MEBIBYTE, 1),
        "files": me.num_fds(),
        "threads": me.num_threads(),
        "processes": len(me.children(recursive=True)),
        "checkpoints": len(list(run.glob("checkpoints/*step_*"))),
        "event_files": len(list(run.glob("events.*"))),
        "events_MiB": round(sum(x.stat().st_size for x in run.glob("events.*")) / MEBIBYTE, 2),
    }


def read_events(run: Path) -> float:
    """Seconds that TensorBoard takes to read the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    start = time.monotonic()
    EventAccumulator(str(run)).Reload()
    return round(time.monotonic() - start, 2)


if __name__ == "__main__":
    sys.exit(main())
