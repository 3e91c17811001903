"""What measuring and ruling cost: the step of each rule under each surgery.measure against a step
that does neither, interleaved in one process.

python tests/benchmarks/steps.py [--rounds 40] [--rules pcgrad mix ...] [key=value ...]

Every variant takes the same step in turn, from the same policy (the learning rate is next to 0), so
that the ratios compare like with like. Prints the median and the quartiles of the ratios. Rules
that add pass@1 update more rows, as mix not measured shows: none gives easy prompts the weight 0,
which costs nothing. A dash is what the configuration refuses.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MEASURES = {
    "not measured": ["surgery.measure=none"],
    "last_layer": ["surgery.measure=last_layer"],
    "ghost": ["surgery.measure=ghost"],
    "ghost every 4": ["surgery.measure=ghost", "surgery.every=4"],
}
BASIS = ("none", "not measured")
QUIET = ["surgery.realised_every=0", "logging.kl_every=0", "train.lr=1e-12"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rules", nargs="+", help="all, if none is named")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    from eval.report.tables import table
    from surgery.rules import RULES
    from tests.benchmarks.measuring import in_turn, ratios
    from trainers.config.load import load_config
    from trainers.config.values import ConfigError
    from trainers.engine.launcher import start_ranks
    from trainers.train.trainer import Trainer

    start_ranks(threads=0)
    rules = list(dict.fromkeys(["none", *(arguments.rules or RULES)]))
    trainers: dict[tuple[str, str], Trainer] = {}
    for rule in rules:
        for measure, own in MEASURES.items():
            overrides = [f"surgery.rule={rule}", *own, *QUIET, *arguments.overrides]
            try:
                config = load_config(ROOT / "configs" / "passk.yaml", overrides)
            except ConfigError:
                continue
            trainers[rule, measure] = Trainer(config, None)
            trainers[rule, measure].step.rule_state["base_pass@1"] = 0.65

    def work(trainer: Trainer) -> Callable[[], object]:
        steps = itertools.count(1)
        return lambda: trainer.step(next(steps))

    works = {name: work(trainer) for name, trainer in trainers.items()}
    seconds = in_turn(works, arguments.rounds, warm=4)
    # a block of four steps is the period of the rarest measurement
    blocks = {
        name: [sum(x[i : i + 4]) for i in range(0, len(x) - 3, 4)] for name, x in seconds.items()
    }

    def cell(name: tuple[str, str]) -> str:
        if name not in blocks:
            return "–"
        median, quartiles = ratios(blocks[name], blocks[BASIS])
        return f"{median} ({quartiles})"

    print("step / step of none, not measured: median (quartiles)\n")
    print(table(["", *MEASURES], [[x, *(cell((x, y)) for y in MEASURES)] for x in rules]))


if __name__ == "__main__":
    main()
