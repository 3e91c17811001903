"""Evaluate one model, or score generations made elsewhere.

python launch/score.py --model DIR --config FILE [--out DIR] [key=value ...]
python launch/score.py --model A --toward B --by 0 0.3 0.6 --config FILE  weights between two
python launch/score.py --model DIR --config FILE --temperatures 0.3 1     the same, sampled colder
python launch/score.py --responses FILE.jsonl [--fields gold=answer ...] [--out DIR]

Without --model it is the configuration's own. DIR gets settings.json, problems.jsonl with all
answers, and summary.json; the same command goes on where it was interrupted. With several values of
--by or --temperatures each gets a folder in DIR.
"""

import sys
from argparse import Namespace
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import CONFIG, add_keys, apart, command_line, find_config


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--model", help="a model's folder or hub id")
    parser.add_argument(
        "--toward", default="", metavar="MODEL", help="a second model, to interpolate weights"
    )
    parser.add_argument("--by", nargs="+", default=[], help="how far: 0 is --model, 1 is --toward")
    parser.add_argument("--temperatures", nargs="+", default=[], help="not eval.temperature alone")
    parser.add_argument("--config", default="", type=find_config, help=CONFIG)
    parser.add_argument("--responses", type=Path, help='lines of {"id", "gold", "responses"}')
    parser.add_argument(
        "--fields", nargs="+", default=[], metavar="NAME=PATH", help="the file's own field names"
    )
    parser.add_argument("--answer-after", metavar="MARK", help="judge what follows the last MARK")
    parser.add_argument(
        "--verifier", help="of --responses: math (default), boxed, exact, file.py:f"
    )
    parser.add_argument("--base", type=Path, help="records of the base, to slice by difficulty")
    parser.add_argument("--k", type=int, help="largest k; else the samples of a problem")
    parser.add_argument("--out", type=Path, help="a new folder, or one of the same evaluation")
    add_keys(parser, "as in training")
    arguments = parser.parse_intermixed_args()

    from trainers.commands.main import attempt

    interrupted = "interrupted; with --out the same command goes on"
    return attempt(lambda: evaluate(arguments), arguments.out, interrupted)


def evaluate(arguments: Namespace) -> None:
    """Evaluate what the arguments ask for, and print the report."""
    from eval.files import write_json
    from eval.report.tables import score_report, sweep_report
    from trainers.commands.score import Arguments, numbers, score

    given = dict(vars(arguments))
    for name in ("by", "temperatures"):
        texts, overrides = apart(given[name])
        given[name] = numbers(name, texts)
        given["overrides"] += overrides
    summaries = score(Arguments(**given))
    if arguments.out and len(summaries) > 1:
        write_json(arguments.out / "summary.json", {"sweep": summaries})
    print(score_report(summaries[0]) if len(summaries) == 1 else sweep_report(summaries))


if __name__ == "__main__":
    sys.exit(main())
