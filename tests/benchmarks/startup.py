"""What a command costs before and after its work: --help of each, and a short run beside its work.

python tests/benchmarks/startup.py [--rounds 7] [--runs 3] [key=value ...]

Every round starts each command once with --help, and one with a configuration that is refused, in
turn with `python -c pass`, below which no command can come, and with `python -c "import torch"`,
which all that asks for rules or works with a model has to pay. Ratios are to those of the same
round: the median and the quartiles.

Then the README's default run, with 2 steps and 20 problems unless key=value says otherwise, by the
launcher and without it, in turn: seconds from the command to the table, how many of them are
evaluation and training (summary.json), the others' share, and seconds from the table to the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PASS, TORCH = "python -c pass", 'python -c "import torch"'
LAUNCHER = str(Path(sys.executable).with_name("deepspeed"))


def measured(*command: str) -> float:
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode in (0, 2), done.stderr
    return time.monotonic() - start


def idle(rounds: int) -> list[list[str]]:
    """Seconds of each command that does nothing, and in units of the two bounds."""
    commands = {PASS: ["-c", "pass"], TORCH: ["-c", "import torch"]}
    scripts = sorted((ROOT / "launch").glob("*.py"))
    commands |= {f"{x.name} --help": [str(x), "--help"] for x in scripts}
    refused = ["launch/train.py", "--config", "configs/pcgrad.yaml", "train.lr=0"]
    commands["train.py, refused"] = refused
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(rounds + 1):
        for name, command in commands.items():
            taken = measured(sys.executable, *command)
            if i:  # the first one fills the file cache
                seconds[name].append(taken)
    return [
        [name, spread(own), *(spread(ratios(own, seconds[bound])) for bound in (PASS, TORCH))]
        for name, own in seconds.items()
    ]


def runs(count: int, overrides: Sequence[str]) -> list[list[str]]:
    """Whole runs, with the launcher and without it."""
    commands = {"deepspeed launch/train.py": [LAUNCHER], "python launch/train.py": [sys.executable]}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for i in range(count + 1):
        for name, start in commands.items():
            taken = run(start, overrides)
            if i:  # the first one may have to train the base
                found[name].append(taken)
    rows = []
    for name, own in found.items():
        table, work, end = zip(*own, strict=True)
        rest = [1 - x for x in ratios(work, table)]
        rows.append([name, *map(spread, (table, work, rest, end))])
    return rows


def run(start: Sequence[str], overrides: Sequence[str]) -> tuple[float, float, float]:
    """Seconds to the table, of evaluation and training, and from the table to the end."""
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"run.dir={folder}/run", "train.steps=2", "eval.problems=20", *overrides]
        command = [*start, "launch/train.py", "--config", "configs/pcgrad.yaml", *keys]
        began = time.monotonic()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout
            (table,) = [time.monotonic() for line in process.stdout if line.startswith("Curves")]
        end = time.monotonic()
        work = json.loads(Path(folder, "run", "summary.json").read_text())["seconds"]
        return table - began, work, end - table


def ratios(own: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(own, others, strict=True)]


def spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 2, or 0")
    parser.add_argument("--runs", type=int, default=3, help="at least 2, or 0")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    from eval.report.tables import table

    if arguments.rounds:
        header = ["", "seconds", f"/ {PASS}", f"/ {TORCH}"]
        print(table(header, idle(arguments.rounds)))
    if arguments.runs:
        header = ["run by", "seconds to the table", "of them work", "others' share", "to the end"]
        print(f"\n{table(header, runs(arguments.runs, arguments.overrides))}")


if __name__ == "__main__":
    main()
