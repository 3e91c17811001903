"""Run many configurations on many seeds, then compare them.

python launch/ablate.py --configs configs/*.yaml --seeds 0 1 2 [--jobs N] [--out DIR] [key=a,b ...]
                        [--curves NAME,NAME-NAME,...]

Every combination becomes one run in DIR/<configuration>[,key=value]/seed<seed>. The command skips
finished runs, resumes interrupted ones, and reports a run that fails without stopping the others.
Runs with the same base share its evaluation. At the end the command compares all finished runs in
DIR. --dry-run only prints the plan and an estimate of the time.
"""

import signal
import sys
from argparse import Namespace
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import CONFIG, add_keys, apart, command_line, find_config


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--configs", nargs="+", required=True, type=find_config, help=CONFIG)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--margin", type=float, default=0.0, help="as in compare.py")
    parser.add_argument("--curves", default="", help="as in compare.py")
    parser.add_argument("--dry-run", action="store_true", help="only print the plan")
    add_keys(parser, "one run for each value", "key=a,b")
    arguments = parser.parse_intermixed_args()

    from trainers.commands.main import attempt

    interrupted = "interrupted; the same command goes on"
    return attempt(lambda: ablate(arguments), interrupted=interrupted)


def ablate(arguments: Namespace) -> int:
    """Run all combinations, then compare the finished runs; return 1 if a run has failed."""
    from eval.report import page
    from eval.report.compare import render
    from eval.report.notes import notes
    from eval.report.runs import find_runs, grouped
    from eval.report.tables import terminal_width
    from trainers.commands.ablate import (
        Ablation,
        apart_from_roots,
        check,
        combinations,
        left_out,
        plan,
    )
    from trainers.config.values import DEFAULTS

    out, jobs = arguments.out, arguments.jobs
    named, more = apart(arguments.configs)
    configs, roots = apart_from_roots(named)
    runs = combinations(configs, arguments.seeds, [*arguments.overrides, *more], out, jobs)
    check(runs, jobs)
    if roots:
        print(left_out(roots))
    if arguments.dry_run:
        print("\n".join(plan(runs, jobs)))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = Ablation(runs, jobs)()
    finished = find_runs([out], DEFAULTS)
    if finished:
        scalars = [x for x in arguments.curves.split(",") if x]
        rows = page.write(finished, out, arguments.margin, scalars)
        print(f"\n{render(rows, width=terminal_width())}")
        print("\n" + "\n".join(notes(rows, grouped(finished), arguments.margin)))
        print(f"\nPictures and more: {out / 'compare.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
