"""What measuring costs: step time of each surgery.measure against none, interleaved in one process.

python tests/benchmarks/steps.py [--rounds 30] [key=value ...]

Every variant takes the same step in turn, from the same policy (the learning rate is next to 0), so
that the ratios compare like with like. Prints the median and the quartiles of the ratios. Rules
that add
pass@1 update more rows, as mix shows: none gives easy prompts the weight 0, which costs nothing.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

VARIANTS = {
    "none": ["surgery.measure=none", "surgery.rule=none"],
    "none, last_layer measured": ["surgery.measure=last_layer"],
    "none, ghost measured": ["surgery.measure=ghost"],
    "none, ghost measured every 4": ["surgery.measure=ghost", "surgery.every=4"],
    "mix": ["surgery.measure=none", "surgery.rule=mix"],
    "pcgrad, last_layer": ["surgery.measure=last_layer", "surgery.rule=pcgrad"],
    "agreement_clip, last_layer": ["surgery.measure=last_layer", "surgery.rule=agreement_clip"],
    "pcgrad, ghost": ["surgery.measure=ghost", "surgery.rule=pcgrad"],
    "pcgrad, ghost every 4": [
        "surgery.measure=ghost",
        "surgery.rule=pcgrad",
        "surgery.every=4",
    ],
}
QUIET = ["surgery.realised_every=0", "logging.kl_every=0", "train.lr=1e-12"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()

    from eval.report import table
    from trainers.config import load_config
    from trainers.engine import start_ranks
    from trainers.trainer import Trainer

    start_ranks(threads=0)
    config = ROOT / "configs" / "passk.yaml"
    trainers = {
        name: Trainer(load_config(config, [*own, *QUIET, *arguments.overrides]), None)
        for name, own in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(1, arguments.rounds + 5):
        for name, trainer in trainers.items():
            start = time.monotonic()
            trainer.step(step)
            if step > 4:  # the first ones warm up
                seconds[name].append(time.monotonic() - start)
    # a block of four steps is the period of the rarest measurement
    blocks = {
        name: [sum(x[i : i + 4]) for i in range(0, len(x) - 3, 4)] for name, x in seconds.items()
    }
    rows = []
    for name, own in blocks.items():
        ratios = [a / b for a, b in zip(own, blocks["none"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append([name, f"{middle:.2f}", f"{low:.2f} – {high:.2f}"])
    print(table(["", "step / step of none", "quartiles"], rows))


if __name__ == "__main__":
    main()
