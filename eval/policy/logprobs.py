"""Log-probabilities of completions under a policy, and the padded rows of a forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eval.policy.policy import ModelError, Policy, reading


@dataclass(frozen=True)
class Rows:
    """The inputs of a forward: prompts padded on the left, completions padded on the right.

    All completions start at column `prompt_width`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    completion_mask: Tensor  # [rows, completion columns]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: Tensor | slice) -> "Rows":
        return Rows(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.position_ids[rows],
            self.completion_mask[rows],
        )

    @property
    def prompt_width(self) -> int:
        return self.input_ids.shape[1] - self.completion_mask.shape[1]

    def pieces(self, chunk: int) -> int:
        """Return how many runs of at most `chunk` positions the completion columns make.

        A run has at least one column; 0 means one run of all columns.
        """
        rows, columns = self.completion_mask.shape
        return -(-columns // max(1, chunk // rows)) if chunk else 1


def pad_batch(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str,
) -> Rows:
    """Return rows that each hold a prompt with its completion."""
    left = max(map(len, prompts))
    right = max(map(len, completions), default=0)
    rows = [
        [pad_id] * (left - len(x)) + [*x, *y] + [pad_id] * (right - len(y))
        for x, y in zip(prompts, completions, strict=True)
    ]
    first, end = (torch.tensor(list(map(len, x)))[:, None] for x in (prompts, completions))
    column = torch.arange(-left, right)  # 0 is where completions start
    ids, mask = torch.tensor(rows), ((column >= -first) & (column < end)).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    return Rows(ids, mask, positions, mask[:, left:].bool())


@dataclass(frozen=True)
class Likelihood:
    """The distribution of log pi, and the number of logits that exist at once."""

    temperature: float = 1.0
    top_p: float = 1.0
    chunk: int = 0  # positions whose logits exist at once; 0: all


PLAIN = Likelihood()  # the model's distribution as it is


def log_softmax(
    logits: Tensor, temperature: float, top_p: float = 1.0, drawn: Tensor | None = None
) -> Tensor:
    """Return log pi over the vocabulary at a temperature, in float32 or float64.

    Below top_p = 1, log pi belongs to the sampled distribution: the smallest set of the likeliest
    tokens that reaches top_p, renormalised; -inf outside. The gradient treats the set as constant,
    which is exact almost everywhere. A `drawn` token counts as inside, because rounding may move
    the edge.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide if temperature == 1 else wide / temperature, dim=-1)
    if top_p == 1:
        return logp
    ordered, order = logp.detach().double().exp().sort(dim=-1, descending=True)
    outside = (ordered.cumsum(-1) - ordered >= top_p).gather(-1, order.argsort(-1))
    if drawn is not None:
        outside = outside.scatter(-1, drawn[..., None], False)
    return torch.log_softmax(logp.masked_fill(outside, -torch.inf), dim=-1)


def entropies(logp: Tensor) -> Tensor:
    """Return the entropy of each distribution; tokens of probability 0 add nothing."""
    return -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)


def completion_logprobs(
    model: nn.Module, rows: Rows, likelihood: Likelihood = PLAIN, pieces: int | None = None
) -> Tensor:
    """Return log pi(token | all before) [rows, completion columns]; 0 at padding.

    The logits of a large vocabulary can take more memory than the model. With several `pieces`,
    only the logits of one piece exist at once, also in backward, which recomputes them from the
    last hidden states. By default the likelihood's chunk gives the number of pieces. A caller sets
    it under ZeRO-3, where all ranks must call the head equally often. The head is called once per
    piece, even with more pieces than columns.
    """
    pieces = rows.pieces(likelihood.chunk) if pieces is None else pieces
    columns = rows.completion_mask.shape[1]
    tokens = rows.input_ids[:, rows.prompt_width :]
    inputs = {  # the last column predicts no token
        "input_ids": rows.input_ids[:, :-1],
        "attention_mask": rows.attention_mask[:, :-1],
        "position_ids": rows.position_ids[:, :-1],
        "use_cache": False,
    }

    def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
        logp = log_softmax(logits, likelihood.temperature, likelihood.top_p, tokens)
        return logp.gather(-1, tokens[..., None]).squeeze(-1)

    if pieces == 1:
        logp = of_tokens(model(**inputs, logits_to_keep=columns).logits, tokens)
        return logp.where(rows.completion_mask, 0.0)

    body: Any = model.base_model
    output = body(**inputs)
    hidden = output.last_hidden_state[:, -columns:]

    def of_hidden(hidden: Tensor, tokens: Tensor) -> Tensor:
        with _given(model, replace(output, last_hidden_state=hidden)):
            # not model(...): its hooks expect a complete forward
            return of_tokens(model.forward(use_cache=False).logits, tokens)

    parts = zip(*(x.tensor_split(pieces, 1) for x in (hidden, tokens)), strict=True)
    logp = torch.cat(
        [checkpoint(of_hidden, *x, use_reentrant=False, preserve_rng_state=False) for x in parts], 1
    )
    return logp.where(rows.completion_mask, 0.0)


@torch.no_grad()
def answers_logprobs(
    model: nn.Module, rows: Rows, answers: int, temperature: float = 1.0
) -> Tensor:
    """Return `completion_logprobs` of rows in runs of `answers`; each run's prompt is read once."""
    width = rows.prompt_width

    def logits(chosen: slice, columns: slice, cache: Any, **more: Any) -> Tensor:
        return model(
            input_ids=rows.input_ids[chosen, columns],
            attention_mask=rows.attention_mask[chosen, : columns.stop],
            position_ids=rows.position_ids[chosen, columns],
            past_key_values=cache,
            use_cache=True,
            **more,
        ).logits

    with reading(model) as cache:
        first = logits(slice(None, None, answers), slice(0, width), cache, logits_to_keep=1)
        cache.batch_repeat_interleave(answers)
        later = logits(slice(None), slice(width, rows.input_ids.shape[1] - 1), cache)
    both = torch.cat([first.repeat_interleave(answers, 0), later], 1)
    tokens = rows.input_ids[:, width:]
    logp = log_softmax(both, temperature).gather(-1, tokens[..., None]).squeeze(-1)
    return logp.where(rows.completion_mask, 0.0)


class _Given(nn.Module):
    """A stand-in for a model's body that returns an output computed before."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


@contextmanager
def _given(model: nn.Module, output: Any) -> Iterator[None]:
    """Replace the model's body by its output.

    A forward then runs only the model's own code after the last hidden state, with any scaling or
    soft-capping.
    """
    body, name = model.base_model, str(model.base_model_prefix)
    setattr(model, name, _Given(output))
    try:
        yield
    finally:
        setattr(model, name, body)


@torch.no_grad()
def check_chunks(policy: Policy) -> None:
    """Refuse a model that does not compute logits position by position from the hidden states.

    The check computes the logits of two positions at once and one by one, and compares them.
    """
    model, ids = policy.model, policy.end_ids[:1] * 2
    rows = pad_batch([ids], [ids], policy.pad_id, policy.device)
    why = None
    if model.base_model is model:
        why = "has no body apart from its head"
    else:
        try:
            together, apart = (completion_logprobs(model, rows, pieces=x) for x in (1, 2))
            rounding = 16 * torch.finfo(model.dtype).eps * (1 + together.abs())
            if not ((apart - together).abs() <= rounding).all():
                why = "does not compute its logits position by position"
        except (AttributeError, TypeError) as error:
            why = f"cannot be taken apart ({error})"
    if why:
        raise ModelError(f"train.logprob_chunk: {type(model).__name__} {why}; set it to 0")


def answer_batch(policy: Policy, prompts: Sequence[str], answers: Sequence[str]) -> Rows:
    """Return rows that each hold a prompt, its answer and the end of text."""
    end = policy.end_ids[0]
    completions = [[*ids, end] for ids in policy.encode(answers, special=False)]
    return pad_batch(policy.encode(prompts), completions, policy.pad_id, policy.device)
