"""Log-probabilities of completions under a policy, and the padded rows that a forward takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from eval.policy.policy import ModelError, Policy


@dataclass(frozen=True)
class Rows:
    """Prompts padded on the left, completions on the right: all completions start at column
    `prompt_width`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    completion_mask: Tensor  # [rows, completion columns]

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
        """Into how many runs of columns of at most `chunk` positions (at least one column) the
        completions fall; 1 where chunk is 0.
        """
        rows, columns = self.completion_mask.shape
        return -(-columns // max(1, chunk // rows)) if chunk else 1


def pad_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device
) -> Rows:
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


def log_softmax(
    logits: Tensor, temperature: float, top_p: float = 1.0, drawn: Tensor | None = None
) -> Tensor:
    """log pi over the vocabulary at a temperature, in float32 at least.

    Below top_p = 1 it is that of the distribution that is sampled: the smallest set of the
    likeliest tokens that reaches top_p, renormalised; -inf outside. Its gradient takes the set as
    given, as it is almost everywhere. A `drawn` token counts as inside: rounding may move the edge.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(wide / temperature, dim=-1)
    if top_p == 1:
        return logp
    ordered, order = logp.detach().double().exp().sort(dim=-1, descending=True)
    outside = (ordered.cumsum(-1) - ordered >= top_p).gather(-1, order.argsort(-1))
    if drawn is not None:
        outside = outside.scatter(-1, drawn[..., None], False)
    return torch.log_softmax(logp.masked_fill(outside, -torch.inf), dim=-1)


def completion_logprobs(
    model, batch: Rows, temperature: float = 1.0, top_p: float = 1.0, pieces: int = 1
) -> Tensor:
    """[rows, completion columns] log pi(token | all before) under the distribution that is sampled;
    0 at padding.

    Logits of a large vocabulary outweigh the model. In several `pieces` (see `Rows.pieces`) only
    those of one piece exist at once, in backward as well, which makes them again from the last
    hidden states. The head is called once for each piece, more pieces than columns included:
    under ZeRO-3 all ranks must call it equally often.
    """
    columns = batch.completion_mask.shape[1]
    tokens = batch.input_ids[:, batch.prompt_width :]
    inputs = {  # nothing follows the last column
        "input_ids": batch.input_ids[:, :-1],
        "attention_mask": batch.attention_mask[:, :-1],
        "position_ids": batch.position_ids[:, :-1],
        "use_cache": False,
    }

    def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
        logp = log_softmax(logits, temperature, top_p, tokens)
        return logp.gather(-1, tokens[..., None]).squeeze(-1)

    if pieces == 1:
        logp = of_tokens(model(**inputs, logits_to_keep=columns).logits, tokens)
        return logp.where(batch.completion_mask, 0.0)

    output = model.base_model(**inputs)
    hidden = output.last_hidden_state[:, -columns:]

    def of_hidden(hidden: Tensor, tokens: Tensor) -> Tensor:
        with _given(model, replace(output, last_hidden_state=hidden)):
            # not model(...), whose hooks are those of a whole forward
            return of_tokens(model.forward(use_cache=False).logits, tokens)

    parts = zip(*(x.tensor_split(pieces, 1) for x in (hidden, tokens)), strict=True)
    logp = torch.cat(
        [checkpoint(of_hidden, *x, use_reentrant=False, preserve_rng_state=False) for x in parts], 1
    )
    return logp.where(batch.completion_mask, 0.0)


@contextmanager
def in_eval_mode(model) -> Iterator[None]:
    """Puts every module into eval mode, and afterwards back into its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def reading(model) -> Iterator[Any]:
    """An empty cache, and the model in eval mode: in train mode gradient checkpointing drops the
    cache without a word, and each token is read as if nothing came before it.
    """
    from transformers import DynamicCache

    with in_eval_mode(model):
        yield DynamicCache(config=model.config)


@torch.no_grad()
def answers_logprobs(model, batch: Rows, answers: int, temperature: float = 1.0) -> Tensor:
    """`completion_logprobs` where each prompt has as many `answers`, one row after the other: the
    prompt is read once for all of them.
    """
    width = batch.prompt_width

    def logits(rows: slice, columns: slice, cache: Any, **more: Any) -> Tensor:
        return model(
            input_ids=batch.input_ids[rows, columns],
            attention_mask=batch.attention_mask[rows, : columns.stop],
            position_ids=batch.position_ids[rows, columns],
            past_key_values=cache,
            use_cache=True,
            **more,
        ).logits

    with reading(model) as cache:
        first = logits(slice(None, None, answers), slice(0, width), cache, logits_to_keep=1)
        cache.batch_repeat_interleave(answers)
        later = logits(slice(None), slice(width, batch.input_ids.shape[1] - 1), cache)
    whole = torch.cat([first.repeat_interleave(answers, 0), later], 1)
    tokens = batch.input_ids[:, width:]
    logp = log_softmax(whole, temperature).gather(-1, tokens[..., None]).squeeze(-1)
    return logp.where(batch.completion_mask, 0.0)


class _Given(torch.nn.Module):
    """Stands for a model's body and gives what that is known to give."""

    def __init__(self, output: Any):
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


@contextmanager
def _given(model, output: Any) -> Iterator[None]:
    """The model with its body replaced: its forward then runs only what comes after the last hidden
    state, as it is, with whatever scaling or soft-capping.
    """
    body = model.base_model
    setattr(model, model.base_model_prefix, _Given(output))
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, body)


@torch.no_grad()
def check_chunks(policy: Policy) -> None:
    """Refuse a model whose logits are not made position by position from its body's last hidden
    states: those of two positions are made at once and one by one.
    """
    model, ids = policy.model, policy.end_ids[:1] * 2
    batch = pad_batch([ids], [ids], policy.pad_id, policy.device)
    why = None
    if model.base_model is model:
        why = "has no body apart from its head"
    else:
        try:
            whole, parts = (completion_logprobs(model, batch, pieces=x) for x in (1, 2))
            rounding = 16 * torch.finfo(model.dtype).eps * (1 + whole.abs())
            if not ((parts - whole).abs() <= rounding).all():
                why = "computes its logits in another way than position by position"
        except (AttributeError, TypeError) as error:
            why = f"cannot be taken apart ({error})"
    if why:
        raise ModelError(f"train.logprob_chunk: {type(model).__name__} {why}; set it to 0")


def answer_batch(policy: Policy, prompts: Sequence[str], answers: Sequence[str]) -> Rows:
    """Each prompt with its answer and the end of text."""
    end = policy.end_ids[0]
    completions = [[*ids, end] for ids in policy.encode(answers, special=False)]
    return pad_batch(policy.encode(prompts), completions, policy.pad_id, policy.device)
