"""`chain`: word problems with worked solutions that two families read in opposite ways.

A solution takes several lines and ends in a boxed answer.

    Ann has 8 plums, buys 7, gets twice as many more, loses 3.

The easy reading of "twice as many more" doubles 15 to 30; the hard one adds twice as many to them,
45. The only hint at the right reading is the name, a noisy one. Any text that ends in the right
boxed number is right, and the base writes dozens of such texts for a story: p is a sum over
completions that have little in common.
"""

import random
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from eval.policy.streams import derive_seed
from eval.tasks.chain_base import NAMES, SIZES, ChainRecipe, base_folder, draw_story, make_tokenizer
from eval.tasks.embedded import cue_given_group, llama_config
from eval.tasks.epochs import in_epochs
from eval.tasks.task import Problem, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass
class Chain(Task):
    """Stories that are solved in several lines before a boxed answer; pass@k is sampled.

    `delta` is the distance of the name's mean between easy and hard, `hard_share` the share of hard
    stories, and `size` the size of the stories and of the base, see SIZES. `stories` is the number
    of stories to train on, which depend on the seed of the run; if None, all stories are new.
    """

    delta: float = 2.0
    hard_share: float = 0.3
    base_bias: float = 0.12
    base_seed: int = 0
    size: str = "small"
    stories: int | None = None
    _drawn: dict[int, list[Problem]] = field(default_factory=dict, init=False, repr=False)

    verifier = "boxed"

    def __post_init__(self) -> None:
        self.max_new_tokens = SIZES[self.size].max_new_tokens

    @cached_property
    def names(self) -> list[list[float]]:
        """P(name | easy) and P(name | hard), in the order of NAMES."""
        return cue_given_group(self.delta, len(NAMES)).tolist()

    def training(self, seed: int, step: int, count: int) -> list[Problem]:
        if self.stories is None:
            return self._draw(count, derive_seed("chain", seed, step))
        return in_epochs(self._finite(seed), seed, step, count)

    def control(self, seed: int, step: int, count: int) -> list[Problem]:
        return self._draw(count, derive_seed("chain", "control", seed, step))

    def evaluation(self, count: int) -> list[Problem]:
        return self._draw(count, derive_seed("chain", "evaluation"))

    def _finite(self, seed: int) -> list[Problem]:
        """Return the stories to train on, if their number is finite."""
        if seed not in self._drawn:
            assert self.stories is not None
            self._drawn[seed] = self._draw(self.stories, derive_seed("chain", "stories", seed))
        return self._drawn[seed]

    def _draw(self, count: int, seed: int) -> list[Problem]:
        rng = random.Random(seed)
        problems = []
        for i in range(count):
            hard = rng.random() < self.hard_share
            (name,) = rng.choices(NAMES, self.names[hard])
            story = draw_story(rng, name, SIZES[self.size].plain)
            gold = str(story.answer(hard))
            group = "hard" if hard else "easy"
            problems.append(Problem(f"{i:04d}:{story.prompt}{gold}", story.prompt, gold, group))
        return problems

    @property
    def recipe(self) -> ChainRecipe:
        shape = asdict(SIZES[self.size])
        return ChainRecipe(**shape, bias=self.base_bias, seed=self.base_seed)

    def base_model(self) -> str:
        return base_folder(self.recipe)

    def base_config(self) -> "PretrainedConfig":
        return llama_config(self.recipe, make_tokenizer())
