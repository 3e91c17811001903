"""The memory that sampling needs of a rank: the sampler's budget, and what it holds within it."""

from dataclasses import dataclass

from eval.rollout import draw
from eval.rollout.budget import CPU_TOKENS, SHARE, tokens_within
from eval.rollout.cached import PREFILL
from eval.rollout.continuous import FORWARD, PAGE
from eval.rollout.recompute import LOGITS
from trainers.engine.memory import Held
from trainers.job import Job
from trainers.plan.rehearsal import Micro, Rehearsal


@dataclass(frozen=True)
class Drawing:
    """The answers that one rank draws, all at their full length, within a budget of tokens."""

    prompts: int
    n: int  # answers to a prompt
    prompt: int  # tokens of a prompt
    new: int  # tokens of an answer
    tokens: int
    top_p: float = 1.0
    features: bool = False

    @property
    def batch(self) -> Micro:
        """The rows that are drawn at once."""
        fitting = Micro.within(self.tokens, self.prompt, self.new, self.n)
        return Micro(min(fitting.rows, self.prompts * self.n), self.prompt, self.new)


def budget(rehearsal: Rehearsal, free: int | None) -> int:
    """Return the tokens that the sampler holds at once, where `free` bytes are left on the device.

    Without train.rollout_tokens they are sized by that memory. On a device that is not known they
    are as many as on a CPU.
    """
    config = rehearsal.config
    if config.train.rollout_tokens:
        return config.train.rollout_tokens
    if free is None:
        return CPU_TOKENS
    job, (cache, _) = Job(config), rehearsal.decoding(1, 1, 1)
    row = 2 * rehearsal.vocabulary * rehearsal.sizes().element
    shortest = min(job.max_new_tokens, job.eval_tokens)
    return tokens_within(SHARE * free, cache // 2, row, shortest)


def sampling(rehearsal: Rehearsal, drawing: Drawing) -> Held:
    """Return the bytes of a batch while its last token is drawn, or while its prompts are read.

    A token takes the larger of its forward and of its draw: the logits, with their gradient where
    features are taken; and for a slice of the rows the logits, log pi, probabilities and a product
    in float32 (below top_p = 1 the sort's float64 as well). The features of all answers stay.
    Servers hold the cache of `vllm`: only the answers' own forward takes memory here.
    """
    work, sizes, vocabulary = drawing.batch, rehearsal.sizes(), rehearsal.vocabulary
    answers = drawing.prompts * drawing.n
    kept = {"features": 4 * answers * sizes.width} if drawing.features else {}
    number = 16 if drawing.top_p == 1 else 41
    rollouts = rehearsal.config.train.rollouts
    if rollouts == "vllm":
        again = _measured(rehearsal, drawing, sizes.element + number)
        return {"measuring what was drawn": again} | kept
    cache, forward = rehearsal.decoding(work.rows, work.prompt, work.completion)
    if rollouts == "continuous":
        token = cache // (work.rows * (work.prompt + work.completion))
        return _continuous(rehearsal, drawing, token, sizes.element + number) | kept
    logits = work.rows * vocabulary * sizes.element * (1 + drawing.features)
    slices = min(work.rows, max(1, draw.SLICE // vocabulary)) * vocabulary * number
    held = {"cache": cache, "drawing a token": max(forward, logits + slices)}
    read = rehearsal.reading(max(1, work.rows // drawing.n), work.prompt, PREFILL)
    if read > sum(held.values()):
        held = {"reading prompts": read}
    return held | kept


def _continuous(rehearsal: Rehearsal, drawing: Drawing, token: int, number: int) -> Held:
    """Return the bytes of a paged cache and of a token's logits of all rows in a forward.

    Where all logits of the batch that is measured afterwards take more, those are returned.
    """
    work, vocabulary = drawing.batch, rehearsal.vocabulary
    pages = max(drawing.tokens // PAGE, -(-(work.prompt + work.completion) // PAGE) + 1)
    held = {"cache": token * pages * PAGE, "drawing a token": FORWARD * vocabulary * number}
    measured = _measured(rehearsal, drawing, number)
    if measured > sum(held.values()):
        return {"measuring what was drawn": measured}
    return held


def _measured(rehearsal: Rehearsal, drawing: Drawing, number: int) -> int:
    """Return the bytes of all logits of the batch that is measured after the draw."""
    work, vocabulary = drawing.batch, rehearsal.vocabulary
    budget = min(drawing.tokens, LOGITS // vocabulary)
    answers = drawing.prompts * drawing.n
    rows = min(answers, Micro.within(budget, work.prompt, work.completion).rows)
    return rows * (work.completion + 1) * vocabulary * number
