"""Runs side by side, grouped over seeds.

python launch/compare.py RUN [RUN ...] [--out DIR] [--margin 0.005] [--curves NAME,NAME-NAME,...]

DIR gets compare.md, compare.csv, compare.json, the pictures, and compare.html with all of it. With
--curves also curves.png: any scalars of metrics.jsonl, or differences of two, over training.
"""

import argparse
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
    parser.add_argument("--out", type=Path, help="folder for tables, pictures and the page")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="a change within it is no change (default 0)"
    )
    parser.add_argument(
        "--curves", default="", help="scalars to draw over training, with commas between"
    )
    arguments = parser.parse_args()

    from eval.files import BadFile
    from eval.report.compare import compare, notes, render
    from eval.report.runs import BadRuns, find_runs

    try:
        empty = [x for x in arguments.runs if not find_runs([x])]
        runs = find_runs(arguments.runs)
    except BadFile as error:
        print(error, file=sys.stderr)
        return 2
    if empty:
        print(f"RUN = {empty[0]}: holds no finished run; name a run's folder", file=sys.stderr)
        return 2
    if not arguments.margin >= 0:
        print(f"--margin = {arguments.margin}: must be at least 0", file=sys.stderr)
        return 2
    if arguments.curves and not arguments.out:
        print(f"--curves = {arguments.curves}: is a picture; add --out DIR", file=sys.stderr)
        return 2
    try:
        if arguments.out:
            from eval.report import page

            scalars = [x for x in arguments.curves.split(",") if x]
            rows = page.write(runs, arguments.out, arguments.margin, scalars)
        else:
            rows = compare(runs, arguments.margin)
    except (BadRuns, BadFile) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{render(rows)}\n")
    print("\n".join(notes(rows, arguments.margin)))
    if arguments.out:
        print(f"\nPictures and all of this on one page: {arguments.out / 'compare.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
