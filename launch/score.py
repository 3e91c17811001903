"""Evaluate one model, or score generations made elsewhere.

python launch/score.py --model DIR --config FILE [--out DIR] [key=value ...]
python launch/score.py --responses FILE.jsonl [--verifier math] [--out DIR]

Without --model it is the configuration's own. DIR gets summary.json and problems.jsonl.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config import ConfigError, load_config


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model's folder or hub id")
    parser.add_argument("--config", help="task and evaluation, as in training")
    parser.add_argument("--responses", type=Path, help='lines of {"id", "gold", "responses"}')
    parser.add_argument("--verifier", default="math", help="of --responses: exact, math, file.py:f")
    parser.add_argument("--out", type=Path, help="a new or empty folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.out and arguments.out.exists() and any(arguments.out.iterdir()):
            raise ConfigError(f"--out = {arguments.out}: holds files already; name a new folder")
        if bool(arguments.responses) == bool(arguments.config):
            raise ConfigError("give either --responses, or --config with or without --model")
        records, ks, how = _of_file(arguments) if arguments.responses else _of_model(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    _report(records, ks, how, arguments.out)
    return 0


def _of_file(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[int], str]:
    from eval.passk import ladder
    from eval.responses import BadResponses, score_responses
    from eval.verifier import Verifier, VerifierFailed

    if not arguments.responses.is_file():
        raise ConfigError(f"--responses = {arguments.responses}: no such file")
    if arguments.verifier not in ("exact", "math") and ":" not in arguments.verifier:
        raise ConfigError(f"--verifier = {arguments.verifier}: must be exact, math or file.py:f")
    try:
        with Verifier(arguments.verifier) as verifier:
            records = score_responses(arguments.responses, verifier)
    except (BadResponses, VerifierFailed) as error:
        raise ConfigError(f"--responses = {error}") from None
    return records, ladder(min(x["n"] for x in records)), f"verifier {arguments.verifier}"


def _of_model(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[int], str]:
    model = [f"model.path={arguments.model}"] if arguments.model else []
    config = load_config(arguments.config, [*arguments.overrides, *model])

    from eval.harness import evaluate
    from eval.passk import ladder
    from eval.policy import ModelError, load_policy
    from eval.sampling import derive_seed
    from eval.tasks import build_task
    from eval.verifier import Verifier
    from trainers.evaluation import decoding

    task, options = build_task({**vars(config.task), **config.task.options}), config.eval
    path = task.base_model() if config.model.path == "base" else config.model.path
    try:
        policy = load_policy(path, config.model.dtype, config.model.attention)
    except ModelError as error:
        raise ConfigError(str(error)) from None
    drawing = decoding(config, task, options.temperature, options.top_p)
    mode = config.task.verifier or task.verifier
    with Verifier(mode, config.task.verify_workers, config.task.verify_seconds) as verifier:
        problems = task.evaluation(options.problems)
        records = evaluate(
            policy, verifier, problems, options.samples, drawing, derive_seed("eval")
        )
    how = f"T {drawing.temperature}, top-p {drawing.top_p}, at most {drawing.max_new_tokens} tokens"
    assert options.k is not None
    return records, ladder(options.k), f"{how}, verifier {mode}"


def _report(
    records: Sequence[Mapping[str, Any]], ks: Sequence[int], how: str, out: Path | None
) -> None:
    from eval.passk import scores
    from eval.report import spread, table
    from trainers.run import write_json, write_lines

    found = scores(records, ks)
    n = min(x["n"] for x in records)
    undecided = sum(x["undecided"] for x in records)
    print(f"{len(records)} problems, n = {n}, {how}, {undecided} undecided verdicts\n")
    print(table(["", "score"], [[name, spread(x)] for name, x in found.items()]))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_lines(out / "problems.jsonl", records)
        write_json(out / "summary.json", {"scores": found, "n": n, "problems": len(records)})


if __name__ == "__main__":
    sys.exit(main())
