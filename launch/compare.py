"""Runs side by side, grouped over seeds.

python launch/compare.py RUN [RUN ...] [--out DIR]
"""

import argparse
import json
import sys
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one above several"
    )
    parser.add_argument("--out", type=Path, help="folder for compare.md and compare.json")
    arguments = parser.parse_args()

    from eval.compare import compare, find_summaries, render

    for folder in arguments.runs:
        if not find_summaries([folder]):
            print(f"RUN = {folder}: holds no finished run; name a run's folder", file=sys.stderr)
            return 2
    rows = compare(find_summaries(arguments.runs))
    print(render(rows))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "compare.md").write_text(render(rows, markdown=True) + "\n")
        (arguments.out / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
