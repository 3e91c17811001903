"""The base policy of `chain`: a Llama trained from scratch on worked solutions.

The solutions come in many wordings, and most of them use the easy reading of the story.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from eval.policy.logprobs import answer_batch, completion_logprobs
from eval.policy.policy import Policy
from eval.tasks import embedded

NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon"]  # the cue
THINGS = ["pears", "plums", "coins", "cards"]
GAINS, LOSSES = ["finds", "buys"], ["loses", "sells"]
FACTORS = {"twice": 2, "thrice": 3}
LARGEST = 99

Step = tuple[str, int]  # a verb with its number, or one of FACTORS with its factor


@dataclass(frozen=True)
class Size:
    """`plain`, the steps of a story beside the ambiguous one, and the shape of the base."""

    plain: int
    layers: int
    width: int
    heads: int
    steps: int
    batch: int
    lr: float

    @property
    def max_new_tokens(self) -> int:
        """The limit: six tokens per line, two lines for the ambiguous step, four for the answer."""
        return 6 * self.plain + 2 * 6 + 4


SIZES = {
    "small": Size(plain=2, layers=2, width=96, heads=4, steps=1400, batch=64, lr=4e-3),
    "large": Size(plain=28, layers=11, width=512, heads=8, steps=2500, batch=128, lr=6e-4),
}


@dataclass(frozen=True)
class ChainRecipe(Size):
    """All settings of the base policy; `bias` is the probability of the hard reading."""

    bias: float = 0.12
    seed: int = 0
    version: int = 1  # raise it when the training below changes


@dataclass(frozen=True)
class Story:
    name: str
    thing: str
    start: int
    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        events = [
            f"gets {verb} as many more" if verb in FACTORS else f"{verb} {number}"
            for verb, number in self.steps
        ]
        return f"{self.name} has {self.start} {self.thing}, {', '.join(events)}.\n"

    def answer(self, hard: bool) -> int:
        x = self.start
        for step in self.steps:
            x = after(x, step, hard)
        return x


def after(x: int, step: Step, hard: bool) -> int:
    """Return x after a step; "twice as many more" is 2 x (easy reading) or x + 2 x (hard)."""
    verb, number = step
    if verb in FACTORS:
        return x * (number + hard)
    return x + number if verb in GAINS else x - number


def draw_story(rng: random.Random, name: str, plain: int) -> Story:
    """Return a story of `plain` steps around the ambiguous one.

    Its numbers stay within 1..LARGEST in both readings.
    """
    start, place = rng.randint(2, 9), rng.randint(0, plain)
    steps: list[Step] = []
    reached = [start, start]  # in the easy and the hard reading
    while len(steps) <= plain:
        step = (rng.choice(GAINS + LOSSES), rng.randint(2, 9))
        if len(steps) == place:
            step = rng.choice(list(FACTORS.items()))
        # before the ambiguous step the numbers must leave room for it
        limit = LARGEST // (1 + max(FACTORS.values())) if len(steps) < place else LARGEST
        then = [after(x, step, hard) for x, hard in zip(reached, (False, True), strict=True)]
        if min(then) >= 1 and max(then) <= limit:
            steps.append(step)
            reached = then
    return Story(name, rng.choice(THINGS), start, tuple(steps))


def solution(story: Story, hard: bool, rng: random.Random) -> str:
    """Return a worked solution in one reading: lines in random wordings and the boxed answer.

    Two neighbouring plain steps sometimes change places.
    """
    x, lines, left = story.start, [], list(story.steps)
    while left:
        swap = rng.random() < 0.5 and not FACTORS.keys() & {verb for verb, _ in left[:2]}
        swap = swap and len(left) > 1 and 1 <= after(x, left[1], hard) <= LARGEST
        step = left.pop(int(swap))
        y = after(x, step, hard)
        lines.append(rng.choice(wordings(x, step, y, hard)))
        x = y
    return "\n".join([*lines, f"\\boxed{{{x}}}"])


def wordings(x: int, step: Step, y: int, hard: bool) -> list[str]:
    verb, number = step
    if verb not in FACTORS:
        sums = [f"{x}+{number}={y}", f"{number}+{x}={y}"] if y > x else [f"{x}-{number}={y}"]
        return [*sums, f"{verb} {number}, now {y}"]
    more = f"{number}*{x}={number * x}"
    if not hard:
        return [more, f"{x}*{number}={y}"]
    return [
        f"{more}\n{x}+{number * x}={y}",
        f"{more}\n{number * x}+{x}={y}",
        f"{number + 1}*{x}={y}",
    ]


def make_tokenizer():
    """Return a tokenizer with one token per number and one per word with blanks and commas."""
    words = [f"{name} " for name in NAMES] + [f" {thing}" for thing in THINGS]
    words += ["has ", ", gets ", *(f"{x} " for x in FACTORS), "as ", "many ", "more", ", now "]
    words += [f"{lead}{verb} " for lead in ("", ", ") for verb in GAINS + LOSSES]
    numbers = [str(x) for x in range(LARGEST + 1)]
    pattern = r"\d+|\\boxed\{|,? ?[A-Za-z]+ ?|\.\n|."
    return embedded.word_level(pattern, [*words, *numbers, ".\n", "\n", *"+-*=}", "\\boxed{"])


def base_folder(recipe: ChainRecipe) -> str:
    return embedded.base_folder("chain", recipe, make_tokenizer(), _losses)


def _losses(policy: Policy, recipe: ChainRecipe) -> Iterator[Tensor]:
    """Yield cross-entropies of solutions to new stories; the reading does not depend on the cue."""
    rng = random.Random(recipe.seed)
    while True:
        stories = [draw_story(rng, rng.choice(NAMES), recipe.plain) for _ in range(recipe.batch)]
        worked = [solution(x, rng.random() < recipe.bias, rng) for x in stories]
        batch = answer_batch(policy, [x.prompt for x in stories], worked)
        yield -completion_logprobs(policy.model, batch).sum() / batch.completion_mask.sum()
