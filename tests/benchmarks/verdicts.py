r"""Verdicts per second of `eval.verify.verifier` against plain math-verify: parse, parse, verify.

python tests/benchmarks/verdicts.py [--rounds 15] [--workers 2]

Both judge the same pairs in turn, which each round makes anew: responses in the forms of GSM8K and
MATH, about half of them right, of these half in another form than the gold. *Distinct*: to each
pair an answer and a gold of its own, so that nothing that is kept helps. *Batch*: 16 responses to a
gold, each with a text of its own but few answers, as a step of training has them; and the same
again. *64 texts*: 2,048 responses, of which so many are distinct, again. Plain math-verify runs in
one process, and in as many at once as there are workers: what so many cores give, if they are free.
Prints medians of verdicts per second, and medians and quartiles of the ratios.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

Pair = tuple[str, str]  # a response and its gold
PAIRS = 256
AGAIN = 10  # times that what was seen before is judged in a round
STEP = "She has {} and gets {} more on each day, so $2 \\cdot {} + {}$ it is, if she keeps all.\n"
# of three numbers: a gold, the same in another form, and what it is mistaken for
GSM8K = [
    lambda a, b, c: (f"{a}", f"${a}.00", f"{a + b}"),
    lambda a, b, c: (f"{a}", f"{a} dollars", f"{b}.5"),
    lambda a, b, c: (f"{a},{100 + b}", f"{a}{100 + b}", f"{a}"),
]
MATH = [
    lambda a, b, c: (f"{a}", f"{a}.0", f"{a + b}"),
    lambda a, b, c: (f"{a}", rf"\frac{{{a * c}}}{{{c}}}", f"-{a}"),
    lambda a, b, c: (f"{a}.{b}", rf"{a}.{b}0", f"{b}.{a}"),
    lambda a, b, c: (rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}", f"{a}/{b + 1}"),
    lambda a, b, c: (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{b}\sqrt{{{a}}}"),
    lambda a, b, c: (f"({a},{b})", rf"\left({a}.0, {b}\right)", f"({b},{a})"),
    lambda a, b, c: (f"[{a},{a + b})", rf"\left[{a}.0, {a + b}\right)", f"({a},{a + b})"),
    lambda a, b, c: (f"{a}x^2+{b}x-{c}", f"{b}x-{c}+{a}x^2", f"{a}x^2+{c}x-{b}"),
    lambda a, b, c: (rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}", rf"\frac{{{b}\pi}}{{{a}}}"),
    lambda a, b, c: (f"{a}+{b}i", f"{b}i+{a}", f"{a}-{b}i"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    from eval.report.tables import table
    from eval.verify.verifier import Verifier

    count = arguments.workers
    modes = {mode: Verifier(mode, count) for mode in ("math", "boxed", "exact")}
    # of a work and a mode: verdicts per second, plain in one process, and in several
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with ProcessPoolExecutor(count) as pool, modes["math"]:
        for i in range(-1, arguments.rounds):
            for work, times, pairs in works(random.Random(f"{i}")):
                few = pairs[:PAIRS]
                one = rate(lambda few=few: plain(few), len(few))
                shares = [few[j : j + 16] for j in range(0, len(few), 16)]
                several = rate(lambda shares=shares: list(pool.map(plain, shares)), len(few))
                answers, golds = zip(*pairs, strict=True)
                for mode, verifier in modes.items():
                    own = rate(
                        lambda v=verifier, a=answers, g=golds, n=times: [v(a, g) for _ in range(n)],
                        times * len(pairs),
                    )
                    if i >= 0:  # the first round starts the workers
                        found.setdefault((work, mode), []).append((own, one, several))
    rows = []
    for (work, mode), rates in found.items():
        own, one, several = zip(*rates, strict=True)
        rows.append(
            [
                work,
                mode,
                *(f"{statistics.median(x):,.0f}" for x in (own, one, several)),
                ratios(own, one),
                ratios(own, several),
            ]
        )
    at_once = f"plain × {count} processes"
    print(table(["", "mode", "per second", "plain", at_once, "ratio", "ratio"], rows))


def works(chance: random.Random) -> Iterator[tuple[str, int, list[Pair]]]:
    """What is judged, how many times, in the order in which it must be: again is after first."""
    yield "distinct, GSM8K", 1, batch(chance, GSM8K, "#### {}", 1)
    yield "distinct, MATH", 1, batch(chance, MATH, "So it is $\\boxed{{{}}}$.", 1)
    pairs = batch(chance, MATH, "So it is $\\boxed{{{}}}$.", 16)
    yield "batch", 1, pairs
    yield "batch, again", AGAIN, pairs
    yield "64 texts, again", AGAIN, pairs[:64] * 32


def batch(chance: random.Random, forms: Sequence[Callable], ending: str, n: int) -> list[Pair]:
    """PAIRS responses, n to a gold."""
    pairs = []
    for _ in range(PAIRS // n):
        # numbers that are not met by accident again
        gold, same, other = chance.choice(forms)(*(chance.randrange(2, 900) for _ in range(3)))
        for _ in range(n):
            steps = [[chance.randrange(1_000) for _ in range(4)] for _ in range(8)]
            answer = chance.choice([gold, same, other, other])
            text = "".join(STEP.format(*x) for x in steps) + ending.format(answer)
            pairs.append((text, gold))
    return pairs


def plain(pairs: Sequence[Pair]) -> list[bool]:
    from math_verify import parse, verify

    return [verify(parse(f"${gold}$"), parse(text)) for text, gold in pairs]


def rate(judge: Callable[[], object], verdicts: int) -> float:
    start = time.perf_counter()
    judge()
    return verdicts / (time.perf_counter() - start)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    quartiles = statistics.quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    low, middle, high = (f"{x:.2f}" if x < 10 else f"{x:,.0f}" for x in quartiles)
    return f"{middle} ({low} – {high})"


if __name__ == "__main__":
    main()
