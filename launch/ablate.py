"""Run many configurations on many seeds, then compare them.

python launch/ablate.py --configs configs/*.yaml --seeds 0 1 2 [--jobs N] [--out DIR] [key=a,b ...]
                        [--curves NAME,NAME-NAME,...]

Every combination becomes one run in DIR/<configuration>[,key=value]/seed<seed>. What is finished is
skipped, what was interrupted is resumed, and what fails is told and does not stop the others. The
base that runs share is evaluated once. In the end all finished runs in DIR are compared. --dry-run
says what would be done, and how long it may take.
"""

import argparse
import signal
import sys
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--margin", type=float, default=0.0, help="as of compare.py")
    parser.add_argument("--curves", default="", help="as of compare.py")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("sweeps", nargs="*", metavar="key=a,b", help="one run for each value")
    arguments = parser.parse_intermixed_args()

    from eval.files import BadFile
    from trainers.commands.ablate import Ablation, combinations, plan
    from trainers.config.values import ConfigError

    try:
        if arguments.jobs < 1:
            raise ConfigError(f"--jobs = {arguments.jobs}: must be at least 1")
        runs = combinations(arguments)
        for run in runs:  # a mistake in any of them is told before the first one runs
            try:
                assert run.settings
            except ConfigError as error:
                raise ConfigError(f"{run.config}: {error}") from None
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.dry_run:
        try:
            print("\n".join(plan(runs, arguments.jobs)))
        except (BadFile, ConfigError) as error:
            print(error, file=sys.stderr)
            return 2
        return 0

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = Ablation(runs, arguments.jobs)()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130

    from eval.report import page
    from eval.report.compare import render
    from eval.report.runs import BadRuns, find_runs

    try:
        finished = find_runs([arguments.out])
        if finished:
            scalars = [x for x in arguments.curves.split(",") if x]
            rows = page.write(finished, arguments.out, arguments.margin, scalars)
            print(f"\n{render(rows)}")
            print(f"\nPictures and more: {arguments.out / 'compare.html'}")
    except (BadRuns, BadFile) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
