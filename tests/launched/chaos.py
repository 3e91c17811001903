"""A run that is killed again and again, and given again, against one that is left alone.

python tests/launched/chaos.py [--runs 5] [--kills 10] [--seed 0] [--out DIR] [key=value ...]
python tests/launched/chaos.py --at sampling:2 checkpoint:2 ...      at named places, all in one run

Every life of a run is a process of its own, forked when only imports were done, and ended by
SIGKILL at a random moment, or at the n-th passage of a place of PLACES in that life, where other
things may happen too (WHAT). The last one is left to finish. Then metrics.jsonl (but time/ and
throughput/), the steps in TensorBoard, the evaluations and the weights must be those of the run
that was left alone. Prints what it saw as JSON; exit code 1 if anything differs.
"""

import argparse
import errno
import functools
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SMALL = [
    *("train.steps=6", "train.prompts=4", "train.samples=4", "train.save_every=2"),
    *("objective.k=4", "eval.k=4", "eval.problems=4", "eval.samples=4", "eval.every=3"),
    *("logging.kl_every=2", "logging.histograms_every=2", "run.threads=1"),
]
# where a life may end: what is about to be called
PLACES = {
    "sampling": ("trainers.train.step", "sample"),
    "update": ("trainers.train.step", "micro_batches"),
    "loading": ("trainers.train.checkpoint", "latest"),
    "metrics": ("trainers.train.metrics", "append_lines"),
    "evaluation": ("trainers.train.evaluation", "evaluate"),
    "checkpoint": ("trainers.train.checkpoint", "save_file"),
    "sums": ("trainers.train.checkpoint", "_sha256"),
    "best": ("trainers.train.trainer", "write_json"),
    "pruning": ("trainers.train.checkpoint", "prune"),
    "publishing": ("trainers.train.checkpoint", "_link"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--kills", type=int, default=10, help="of each run, at random moments, until it is done"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--at", nargs="+", metavar="PLACE:N[:WHAT]", help=", ".join(PLACES))
    parser.add_argument("--out", type=Path, help="a folder for the runs that is kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    if arguments.at:  # the overrides that follow --at are taken for places
        arguments.overrides += [x for x in arguments.at if "=" in x]
        arguments.at = [x for x in arguments.at if "=" not in x]

    for name in ("deepspeed", "torch.utils.tensorboard", "transformers", "trainers.train.trainer"):
        importlib.import_module(name)  # once for all lives

    with tempfile.TemporaryDirectory() as own:
        out = (arguments.out or Path(own)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        found = chaos(out, arguments)
    print(json.dumps(found))
    return int(not found["same"])


def chaos(out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    code = live(out / "whole", arguments.overrides)
    assert code == 0, f"the run that is left alone ends with {code}"
    seconds = time.monotonic() - start
    whole, chance = result(out / "whole"), random.Random(arguments.seed)
    found: dict[str, Any] = {"seconds_of_a_run": round(seconds, 1), "lives": [], "differ": []}
    for i in range(1 if arguments.at else arguments.runs):
        folder = out / f"cut{i}"
        if arguments.at:
            ends = [functools.partial(at_place, *x.split(":")) for x in arguments.at]
        else:
            moments = [chance.uniform(0, seconds) for _ in range(arguments.kills)]
            ends = [functools.partial(after, x) for x in moments]
        codes = list[int]()
        for end in ends:
            if arguments.at or 0 not in codes:
                codes.append(live(folder, arguments.overrides, end))
        codes.append(live(folder, arguments.overrides))
        found["lives"].append(codes)
        if codes[-1] == 0:
            cut = result(folder)
            found["differ"] += [f"{folder.name}: {x}" for x in whole if whole[x] != cut[x]]
    found["same"] = not found["differ"] and all(x[-1] == 0 for x in found["lives"])
    return found


def live(folder: Path, overrides: list[str], end: Callable[[], None] | None = None) -> int:
    """One life, in a process of its own. Returns its exit code, -9 where it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            from launch.train import main as train

            config = str(ROOT / "configs" / "pcgrad.yaml")
            sys.argv = ["train.py", "--config", config, *SMALL, f"run.dir={folder}", *overrides]
            if end:
                end()
            code = train()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def after(seconds: float) -> None:
    """End this process in so many seconds, whatever it does then."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def at_place(place: str, passage: str, what: str = "kill") -> None:
    """Let something of WHAT happen when this process comes to the place for the n-th time."""
    module, name = PLACES[place]
    called = getattr(sys.modules[module], name)
    left = int(passage)

    @functools.wraps(called)
    def passed(*given: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            WHAT[what](given)
        return called(*given, **named)

    setattr(sys.modules[module], name, passed)


def kill(given: tuple[Any, ...]) -> None:
    """SIGKILL, with what was to be written half written."""
    if isinstance(given[-1], Path):
        given[-1].write_bytes(b"half")
    elif isinstance(given[0], Path) and given[0].suffix == ".jsonl":
        with given[0].open("a") as file:
            file.write('{"step": 1, "tra')
    os.kill(os.getpid(), signal.SIGKILL)


def fill(_: tuple[Any, ...]) -> None:
    """From now on no file grows beyond some kilobytes, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def refuse(given: tuple[Any, ...]) -> None:
    """What a disk says that has turned read-only."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))


def flip(given: tuple[Any, ...]) -> None:
    """One bit of the newest checkpoint of the run is another one."""
    file = max(given[0].glob("checkpoints/step_*")) / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# kill; what Ctrl-C and a launcher send; a full disk; a read-only one; a damaged checkpoint
WHAT: dict[str, Callable[[tuple[Any, ...]], None]] = {
    "kill": kill,
    "int": lambda _: signal.raise_signal(signal.SIGINT),
    "term": lambda _: signal.raise_signal(signal.SIGTERM),
    "full": fill,
    "readonly": refuse,
    "flip": flip,
}


def result(folder: Path) -> dict[str, Any]:
    """All that must not depend on how often the run was cut."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    slow = ("time/", "throughput/")
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    steps = {tag: [x.step for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    files = [*folder.glob("model/*"), *folder.glob("eval/*.jsonl")]
    files += [max(folder.glob("checkpoints/step_*")) / "optimizer.safetensors"]
    return {
        "metrics": [{k: v for k, v in x.items() if not k.startswith(slow)} for x in lines],
        "tensorboard": steps,
        "left over": [str(x.relative_to(folder)) for x in folder.rglob("*.part")],
        **{x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in files},
    }


if __name__ == "__main__":
    sys.exit(main())
