"""The measurements of a diagnosis on disk: parts of the prompts, and one file per direction."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.files import read_json, system_errors, usual_permissions, write_json
from eval.records import RECORD, Record
from eval.scores.folder import claim, fingerprint
from surgery.interference import Group, Level
from trainers.config.schema import Config
from trainers.job import Job

AFTER_SAMPLING = ("k", "measure")


PART = RECORD | {"prompt": str, "gold": str, "tokens": list}


REMEDY = "remove it, to have it made again"


Request = tuple[Level, Group]


class Folder:
    """The folder of a diagnosis, which only rank 0 opens, reads and writes."""

    def __init__(self, path: Path, config: Config):
        """Claim the folder; refuse one that was begun with other settings."""
        self.path = path
        begun = any(path.glob("parts/*.json"))
        self.settings = _settings(config)
        self._lock = claim(path, self.settings, begun)
        for name in ("parts", "probes"):
            (path / name).mkdir(exist_ok=True)

    def close(self) -> None:
        """Release the folder, so that others may write into it."""
        self._lock.close()

    def has_part(self, start: int) -> bool:
        return self._place("parts", start, "json").exists()

    def write_part(self, start: int, records: Sequence[Record], sums: Tensor) -> None:
        """Write the features first: the file of records marks the part as complete."""
        self._save({"sums": sums}, self._place("parts", start, "safetensors"))
        write_json(self._place("parts", start, "json"), records)

    def records(self, start: int) -> list[Record]:
        return read_json(self._place("parts", start, "json"), [PART], REMEDY)

    def sums(self, start: int) -> Tensor:
        return load_file(self._place("parts", start, "safetensors"))["sums"]

    def probe(self, request: Request) -> dict[str, Tensor] | None:
        place = self._place("probes", _name(request), "safetensors")
        return load_file(place) if place.exists() else None

    def write_probe(self, request: Request, tensors: dict[str, Tensor]) -> None:
        place = self._place("probes", _name(request), "safetensors")
        part = place.with_suffix(".part")
        self._save(tensors, part)
        part.replace(place)

    def _save(self, tensors: dict[str, Tensor], place: Path) -> None:
        with system_errors(self.path):
            save_file(tensors, place)
        usual_permissions(place)

    def _place(self, kind: str, name: int | str, ending: str) -> Path:
        return self.path / kind / f"{name:0>6}.{ending}"


def _name(request: Request) -> str:
    (estimator, k), group = request
    return f"{estimator}_{k:g}_{''.join(map(str, sorted(group)))}"


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that the samples depend on, by the names of the keys.

    A diagnosis with another k or another measure uses the same samples.
    """
    job = Job(config)
    return {
        **{f"diagnose.{x}": y for x, y in vars(config.diagnose).items() if x not in AFTER_SAMPLING},
        "model.path": config.model.path,
        "model.dtype": config.model.dtype,
        **{f"model.{x}": y for x, y in vars(config.model).items() if x.startswith("lora_")},
        **({"seed": config.seed} if config.model.lora_rank else {}),  # seeds the adapter
        "weights": fingerprint(job.base_path()),
        **{f"task.{key}": x for key, x in vars(config.task).items()},
        "train.max_new_tokens": job.max_new_tokens,
        "train.rollouts": config.train.rollouts,
        "surgery.modules": config.surgery.modules,
    }
