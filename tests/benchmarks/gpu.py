"""Everything that is to be measured on a GPU, by one command.

.ci/gpu [--tiny] [--parts correctness smoke ...]

Each part is a process with a time limit of its own, the most valuable first; a part that fails or
overruns costs its own later rows alone. Together they take less than ten minutes. Prints a markdown
table, and ends with 1 if correctness or a smoke run has failed. With --tiny, and where there is no
GPU, all shapes are tiny: that tries the script, and measures nothing.
"""

import argparse
import json
import os
import platform
import random
import signal
import string
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eval.tasks.task import Problem, Task

ROOT = Path(__file__).resolve().parents[2]
Row = tuple[str, str, bool]  # case, result, whether it is as it should be


@dataclass(frozen=True)
class Part:
    """A function of gpu_parts.py, and the seconds that it may take."""

    limit: int
    required: bool = False  # the command fails with it


PARTS = {
    "correctness": Part(60, required=True),
    "smoke": Part(150, required=True),
    "sampling": Part(140),
    "update": Part(75),
    "step": Part(140),
}


# -- what the steps train on ----------------------------------------------------------------------


@dataclass
class Letters(Task):
    """Prompts of random letters, each of which is a token."""

    length: int = 8

    verifier = f"{Path(__file__).resolve()}:every_other"
    max_new_tokens = 8

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        return self._drawn(f"{seed} {step}", count)

    def evaluation(self, count: int) -> list[Problem]:
        return self._drawn("evaluation", count)

    def _drawn(self, seed: str, count: int) -> list[Problem]:
        dice = random.Random(seed)
        texts = ["".join(dice.choices(string.ascii_lowercase, k=self.length)) for _ in range(count)]
        return [Problem(f"{i} {x}", x, "") for i, x in enumerate(texts)]


def every_other(response: str, gold: str) -> bool:
    """Judge half of all responses right, by their text alone."""
    return zlib.crc32(response.encode()) % 2 == 0


# -- the parts, each in a process -----------------------------------------------------------------


def collect(command: Sequence[str], into: Path, limit: float) -> tuple[list[Row], str | None]:
    """Run a command that appends rows to a file: (its rows, why there are no more of them)."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # what it has started as well, however this ends
            end(process)
        said.seek(0)
        lines = [x.strip() for x in said if x.strip()]
    rows = [_row(x) for x in into.read_text().splitlines()] if into.exists() else []
    if code == 0:
        return rows, None
    if code is None:
        return rows, f"cut off after {limit:.0f} s"
    return rows, f"ended with {code}: {lines[-1][:200] if lines else 'no message'}"


def end(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _row(line: str) -> Row:
    case, result, good = json.loads(line)
    return case, result, good


def judged(part: Part, rows: Sequence[Row], trouble: str | None) -> tuple[list[Row], bool]:
    """The rows of a part with one for its trouble, and whether the command may still succeed."""
    shown = [(case, result if good else f"**{result}**", good) for case, result, good in rows]
    if trouble:
        shown.append(("", f"**failed: {trouble}**", False))
    elif not rows:
        shown.append(("", "**failed: measured nothing**", False))
    return shown, not part.required or all(good for *_, good in shown)


def markdown(results: Iterable[tuple[str, Sequence[Row]]]) -> str:
    """The table: a line for each row, with its part in the first."""
    from eval.report.tables import markdown_table

    lines = [
        [name if i == 0 else "", *(x.replace("|", "/") for x in row[:2])]
        for name, rows in results
        for i, row in enumerate(rows)
    ]
    return markdown_table(["", "case", "result"], lines, aligned=False)


def heading(tiny: bool) -> str:
    """The line above the table: date, device and versions."""
    import torch

    device = f"CPU ({platform.machine()})"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        device = f"{torch.cuda.get_device_name()} ({memory:.1f} GiB), CUDA {torch.version.cuda}"
    versions = [f"{x} {version(x)}" for x in ("torch", "transformers", "deepspeed")]
    versions.append(f"Python {platform.python_version()}")
    kind = "Tiny shapes, a trial of the script" if tiny else "Measured"
    return f"{kind} by `.ci/gpu` on {time.strftime('%Y-%m-%d')}: {', '.join([device, *versions])}."


def run(names: Iterable[str], tiny: bool) -> int:
    """Run the parts and print their table; the exit code."""
    results, good = [], True
    with tempfile.TemporaryDirectory(prefix="passk-surgery-gpu-") as folder:
        for name in names:
            into, part = Path(folder) / f"{name}.jsonl", PARTS[name]
            command = [sys.executable, __file__, "--part", name, "--into", str(into)]
            # a CPU starts slowly, and owes nobody ten minutes
            limit = 4 * part.limit if tiny else part.limit
            start = time.monotonic()
            measured = collect([*command, *["--tiny"] * tiny], into, limit)
            rows, fine = judged(part, *measured)
            results.append((name, rows))
            good &= fine
            print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{heading(tiny)}\n\n{markdown(results)}")
    return 0 if good else 1


def measure(name: str, into: Path, tiny: bool) -> None:
    """Write the rows of one part, each as soon as it is measured."""
    from tests.benchmarks import gpu_parts

    scale = gpu_parts.TINY if tiny else gpu_parts.FULL
    with into.open("a") as file:
        for row in getattr(gpu_parts, name)(scale, into.parent):
            print(json.dumps(row), file=file, flush=True)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, as without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    import torch

    tiny = arguments.tiny or not torch.cuda.is_available()
    if arguments.part:
        measure(arguments.part, arguments.into, tiny)
        return 0
    return run(arguments.parts, tiny)


if __name__ == "__main__":
    sys.exit(main())
