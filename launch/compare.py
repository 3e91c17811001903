"""Compare runs side by side, grouped over seeds.

python launch/compare.py RUN [RUN ...] [--out DIR] [--margin 0.005] [--curves NAME,NAME-NAME,...]

The command writes compare.md, compare.csv, compare.json, the pictures, and compare.html, a page
with all of these, into DIR. --curves adds curves.png: scalars of metrics.jsonl, or differences of
two scalars, over training.
"""

import sys
from argparse import Namespace
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import command_line


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, or of several runs"
    )
    parser.add_argument("--out", type=Path, help="folder for the tables, the pictures and the page")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="smaller changes count as no change (default 0)"
    )
    parser.add_argument(
        "--curves", default="", help="scalars to draw over training, separated by commas"
    )
    arguments = parser.parse_args()

    from trainers.commands.main import attempt

    return attempt(lambda: show(arguments))


def show(arguments: Namespace) -> None:
    """Print the runs side by side; with --out also write the tables, the pictures and the page."""
    from eval.errors import Refusal
    from eval.report.compare import compare, render
    from eval.report.notes import notes
    from eval.report.runs import find_runs, grouped
    from eval.report.tables import terminal_width
    from trainers.config.values import DEFAULTS

    out, margin = arguments.out, arguments.margin
    absent = [x for x in arguments.runs if not x.exists()]
    if absent:
        raise Refusal(f"RUN = {absent[0]}: there is no such folder")
    empty = [x for x in arguments.runs if not find_runs([x])]
    runs = find_runs(arguments.runs, DEFAULTS)
    if empty:
        raise Refusal(f"RUN = {empty[0]}: holds no finished run; name a run's folder")
    if not margin >= 0:
        raise Refusal(f"--margin = {margin}: must be at least 0")
    if arguments.curves and not out:
        raise Refusal(f"--curves = {arguments.curves}: is a picture; add --out DIR")
    if out:
        from eval.report import page

        scalars = [x for x in arguments.curves.split(",") if x]
        rows = page.write(runs, out, margin, scalars)
    else:
        rows = compare(runs, margin)
    print(f"{render(rows, width=terminal_width())}\n")
    print("\n".join(notes(rows, grouped(runs), margin)))
    if out:
        print(f"\nPictures and all of this on one page: {out / 'compare.html'}")


if __name__ == "__main__":
    sys.exit(main())
