"""Checkpoints: a Hugging Face model folder, fp32 parameters and moments, and the run's numbers.

They contain no pickle, and do not depend on the number of ranks. A checkpoint is written into a
temporary folder beside its place and then renamed. If writing fails, the temporary folder is
removed, and the previous checkpoint stays.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from eval.files import read_json, sync, system_errors, usual_permissions
from trainers.engine.adapter import merged_weights
from trainers.engine.engine import STATE, Engine
from trainers.engine.ranks import share

TENSORS = "optimizer.safetensors"


NUMBERS = {"step": int, "optimizer_steps": int, "sha256": {"*": str}}


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:06d}"


def save(
    engine: Engine,
    run: Path | None,
    step: int,
    numbers: dict[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Save a checkpoint; all ranks must call it, and rank 0, which has the folder `run`, writes.

    `numbers` is plain JSON; `tensors`, by kind and name, are saved beside the engine's.
    """
    all_tensors = {**engine.state(keep=run is not None), **tensors}
    steps_taken = engine.steps_taken
    with engine.policy() as policy:
        if run is not None and not folder_of(run, step).exists():
            counts = {"step": step, "optimizer_steps": steps_taken}
            flat = {
                f"{kind}/{name}": x
                for kind, named in all_tensors.items()
                for name, x in named.items()
            }
            with _new_folder(folder_of(run, step)) as work:
                merged = merged_weights(policy.model)
                policy.model.save_pretrained(work / "model", state_dict=merged)
                policy.tokenizer.save_pretrained(work / "model")
                save_file(flat, work / TENSORS)
                files = sorted(path for path in work.rglob("*") if path.is_file())
                sums = {str(path.relative_to(work)): _sha256(path) for path in files}
                content = {**counts, **numbers, "sha256": sums}
                sums["state.json"] = _digest(content)
                (work / "state.json").write_text(json.dumps(content, indent=1))
    engine.barrier()


@contextmanager
def _new_folder(place: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `place` after all of it is on disk."""
    for left in place.parent.glob(".step_*.part"):  # left by a run that was killed
        shutil.rmtree(left)
    work = place.with_name(f".{place.name}.part")
    work.mkdir()
    try:
        with system_errors(place):
            yield work
        usual_permissions(work)
        for path in [*work.rglob("*"), work]:
            sync(path)
        work.rename(place)
        sync(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def latest(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest intact checkpoint with its numbers; rename damaged ones, with a warning."""
    for place in sorted((run / "checkpoints").glob("step_*"), reverse=True):
        try:
            numbers = read_json(place / "state.json", NUMBERS)
            own = numbers["sha256"].pop("state.json", None)  # missing in older checkpoints
            if own not in (None, _digest(numbers)):
                raise ValueError("state.json")
            sums = numbers.pop("sha256")
            damaged = [name for name, digest in sums.items() if _sha256(place / name) != digest]
        except (OSError, ValueError, KeyError) as error:
            damaged = [str(error)]
        if not damaged:
            return place, numbers
        aside = place.with_name(f"damaged_{place.name}_{time.time_ns()}")
        print(
            f"checkpoint {place} is damaged ({damaged[0]}); set aside as {aside.name}",
            file=sys.stderr,
        )
        place.rename(aside)
    return None


def publish(run: Path, step: int) -> None:
    """Publish the last checkpoint's model as run/model, by hard links if the disk allows them."""
    part, place = run / ".model.part", run / "model"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder_of(run, step) / "model", part, copy_function=_link)
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def load(engine: Engine, place: Path | None, optimizer_steps: int) -> dict[str, dict[str, Tensor]]:
    """Restore the engine, and return the tensors that were saved beside its own.

    The result is by kind and name. All ranks must call it. Rank 0, which has the `place`, reads one
    tensor at a time; the other ranks need not see its disk.
    """
    with safe_open(place / TENSORS, "pt") if place else nullcontext() as file:
        keys = [key.partition("/")[::2] for key in share(file and list(file.keys()))]

        def saved(kind: str, name: str) -> Tensor:
            return engine.broadcast(file and file.get_tensor(f"{kind}/{name}"))

        engine.restore(saved, optimizer_steps)
        beside: dict[str, dict[str, Tensor]] = {}
        for kind, name in keys:
            if kind not in STATE:
                beside.setdefault(kind, {})[name] = saved(kind, name)
    return beside


def prune(run: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints except the newest `keep` and the best one."""
    places = sorted((run / "checkpoints").glob("step_*"))
    for place in places[:-keep]:
        if best is None or place != folder_of(run, best):
            shutil.rmtree(place)


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a checkpoint's numbers, computed before the digest itself is added."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
