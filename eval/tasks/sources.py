"""Rows of a dataset as problems, from files, folders and the hub, read by `datasets`.

A row's gold is its answer, or the answer in its solution: the last box, or the text after ####. The
answer may be a solution itself, as in GSM8K.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import value_at
from eval.tasks.task import TaskError
from eval.verify import answers

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

FIELDS = {  # the fields of a row, and their usual names in data
    "id": ("id", "unique_id"),
    "problem": ("problem", "question", "prompt"),
    "answer": ("answer", "gold", "final_answer"),
    "solution": ("solution",),
    "level": ("level",),
    "subject": ("subject", "type"),
}


@dataclass(frozen=True)
class Source:
    """One split of a dataset; its keys start with `option`, "task." or "task.eval_"."""

    path: str
    subset: str | None
    split: str
    option: str = "task."

    def refusal(self, key: str, why: str) -> TaskError:
        value = getattr(self, key)
        return TaskError(f"{self.option}{key} = {'null' if value is None else value}: {why}")

    def rows(self) -> list[dict[str, Any]]:
        import datasets
        import huggingface_hub

        huggingface_hub.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        path = Path(self.path).expanduser()
        if path.suffix in BUILDERS and not path.is_file():
            raise self.refusal("path", "no such file")
        if path.is_file() and path.suffix not in BUILDERS:
            raise self.refusal("path", f"must be a folder, or end in {', '.join(BUILDERS)}")
        place: dict[str, Any] = {"path": str(path) if path.exists() else self.path}
        if path.is_file() and not path.stat().st_size:
            raise self.refusal("path", "is empty; it needs one row per problem")
        if path.is_file():  # a file counts as any split
            files = {self.split.partition("[")[0]: str(path)}
            place = {"path": BUILDERS[path.suffix], "data_files": files}
        try:
            dataset = datasets.load_dataset(**place, name=self.subset, split=self.split)
        except StopIteration:
            raise self.refusal("path", "is empty; it needs one row per problem") from None
        except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            why = " ".join(str(error.__cause__ or error).split()).rstrip(".")
            remedy = f"correct {self.option}path, {self.option}split or {self.option}subset"
            raise self.refusal("path", f"gives no split {self.split} ({why}); {remedy}") from None
        if not len(dataset):
            raise self.refusal("split", f"holds no row of {self.path}; name another")
        return dataset.to_list()


@dataclass(frozen=True)
class Item:
    """A problem as in the data, without a prompt around it."""

    id: str
    text: str
    gold: str
    level: str
    subject: str


def items(source: Source, names: Mapping[str, str], own: bool) -> tuple[list[Item], int]:
    """Return the problems of a source in its order, and the number of skipped rows.

    A row is skipped if it has no problem, no gold or an id of an earlier row. A row without an id
    gets an id from its text. `names` are the data's own names of `FIELDS`. With `own` each of them
    must be there; the evaluation may have other columns, and then the usual names serve too.
    """
    rows = source.rows()
    columns = list(rows[0])
    where = {field: _column(field, names, columns, own, source) for field in FIELDS}
    for needed in (("problem",), ("answer", "solution")):
        if not any(where[field] for field in needed):
            usual = ", ".join(name for field in needed for name in FIELDS[field])
            raise source.refusal(
                "path",
                f"has no field {usual}, but {', '.join(columns)}; name it with "
                f"task.fields.{needed[0]}=...",
            )
    problems: dict[str, Item] = {}
    for row in rows:
        values = {field: value_at(row, name) if name else None for field, name in where.items()}
        gold, text = _gold(values), _text(values["problem"])
        if gold and text:
            name = _text(values["id"]) or hashlib.sha256(text.encode()).hexdigest()[:12]
            level = _text(values["level"]).removeprefix("Level ")
            problems.setdefault(name, Item(name, text, gold, level, _text(values["subject"])))
    if not problems:
        raise source.refusal("path", "no row has a problem and a gold answer; see task.fields")
    return list(problems.values()), len(rows) - len(problems)


def _column(
    field: str, names: Mapping[str, str], columns: list[str], own: bool, source: Source
) -> str | None:
    given = names.get(field)
    if given and (given in columns or given.partition(".")[0] in columns):
        return given
    if given and own:
        why = f"{source.path} has no such field, but {', '.join(columns)}"
        raise TaskError(f"task.fields.{field} = {given}: {why}")
    return next((name for name in FIELDS[field] if name in columns), None)


def _gold(values: Mapping[str, Any]) -> str:
    answer = _text(values["answer"])
    return answers.gold(answer) or answer or answers.gold(_text(values["solution"])) or ""


def _text(value: Any) -> str:
    """Return a value as text; a list of values, as in some datasets, is joined with commas."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return "" if value is None else unicodedata.normalize("NFC", str(value)).strip()
