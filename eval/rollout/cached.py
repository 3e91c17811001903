"""The sampler `cached`: it reads each prompt once and drops rows that have ended.

The cache of a prompt serves its n completions. Randomness is counter-based: the draw of token t of
completion j of problem i is a pure function of (seed, i, j, t). The draws depend neither on the
micro-batches nor on the number of ranks.

On a GPU the tensors of a token keep their shapes and addresses over many tokens. One token is then
a CUDA graph, and the host waits for the device once in LOOK tokens, to see which rows have ended.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from eval.policy.logprobs import pad_batch
from eval.policy.policy import Policy, reading
from eval.policy.streams import uniform
from eval.rollout.cache import make_roomy, make_static
from eval.rollout.draw import draw
from eval.rollout.graph import Step, captured
from eval.rollout.rollout import Decoding, Drawn, Order, Readings
from eval.rollout.sampler import Sampler
from eval.rollout.taps import tapped

OWN = 0.9  # from this share of distinct prefixes on, a search for equal ones does not pay


DENSE = 7 / 8  # below this share of rows that go on, the cache drops those that have ended


# tokens between two checks for rows that have ended; each check makes a GPU wait
LOOK = {"cpu": 1, "cuda": 16}


WORTH = 8  # tokens that are left to draw where a capture is worth its time


PREFILL = 2**16  # tokens of the prompts that one forward reads


STATIC: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # see `can_be_static`


class Cached(Sampler):
    """The project's own sampler, with a cache that the completions of a prompt share."""

    name: ClassVar[str] = "cached"

    def draw(self, policy: Policy, order: Order) -> Drawn:
        rows = torch.tensor(order.names)[:, None] * order.n + torch.arange(order.n)
        names = rows.to(policy.device)
        places = [len(x) + order.decoding.max_new_tokens for x in order.prompts]
        # a graph differentiates only the head, and else nothing is differentiated
        mode = torch.no_grad if order.decoding.features else torch.inference_mode
        parts = []
        for chunk in order.decoding.chunks(places, order.n):
            # a prompt has a chunk of its own where its answers exceed the budget
            answers = max(1, order.decoding.token_budget // max(places[chunk]))
            for some in names[chunk].split(answers, 1):
                with mode():
                    drawn = _Drawing(policy, order.prompts[chunk], some, order).drawn()
                parts.append([x.clone() for x in drawn])  # ordinary tensors, outside of `mode`
        tokens, logprobs, entropy, features = (torch.cat(x) for x in zip(*parts, strict=True))
        lengths = (tokens >= 0).sum(1).tolist()
        completions = [x[:length] for x, length in zip(tokens.tolist(), lengths, strict=True)]
        taken = features if order.decoding.features else None
        return Drawn(completions, Readings(logprobs, entropy, taken))


class _Drawing:
    """The rows of one batch during the draw, one token per row at a time.

    `names` [prompts, n] are the rows' names in the random stream. The model reads a prefix that
    several rows share once: first the prompts, then, on a CPU, their completions while these are
    equal.
    """

    def __init__(self, policy: Policy, prompts: list[list[int]], names: Tensor, order: Order):
        self.policy, self.decoding, self.seed = policy, order.decoding, order.seed
        device, total, limit = policy.device, names.numel(), order.decoding.max_new_tokens
        # for all rows
        self.names = names.flatten()
        self.tokens = torch.full((total, limit), -1, device=device)
        self.logprobs, self.entropy = torch.zeros(2, total, device=device)
        self.features = torch.zeros(total, 0, device=device)
        # for the rows that are still drawn
        self.live = torch.arange(total, device=device)
        self.going = torch.ones(total, dtype=torch.bool, device=device)  # false: ended
        self.prefix = self.live // names.shape[1]  # the index of each row's prefix
        # for the prefixes: the tokens that the model reads next, and the mask of all columns
        first = pad_batch(prompts, [[]] * len(prompts), policy.pad_id, device)
        self.inputs, self.positions = first.input_ids, first.position_ids
        self.width = first.prompt_width
        self.mask = torch.nn.functional.pad(first.attention_mask, (0, limit), value=1)
        self.columns = torch.arange(self.width + limit, device=device)
        self.column = torch.tensor([self.width - 1], device=device)  # of the last token to read
        self.ends = torch.tensor(policy.end_ids, device=device)
        self.done, self.look = 0, LOOK[device.type]  # tokens drawn; tokens between looks
        self.static: Tensor | None = None  # with fixed shapes, the mask of all columns
        self.step: Step | None = None  # a graph of `_token`

    def drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens (-1 after the end), log-probability, entropy and features of each row."""
        limit, fixed = self.decoding.max_new_tokens, self.look > 1 and can_be_static(self.policy)
        with self._reading():
            self._advance(1)
            while self._look() and self.done < limit:
                end = min(self.done + self.look, limit)
                if fixed:
                    self._fix(end)
                self._advance(end - self.done)
        return self.tokens, self.logprobs, self.entropy / (self.tokens >= 0).sum(1), self.features

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Provide the cache, and the tap on the output head."""
        model, most = self.policy.model, self.width + self.decoding.max_new_tokens
        with reading(model) as self.cache, tapped(self.policy, self.decoding.features) as self.tap:
            self.layers = make_roomy(self.cache, most)
            yield

    def _fix(self, end: int) -> None:
        """Give all tokens up to `end` fixed shapes and addresses, and capture one of them."""
        if self.static is None or self.width + end - 1 > self.static.shape[-1]:
            self._release()
            self._make_static(end)
            if self.decoding.cuda_graph and self.decoding.max_new_tokens - self.done >= WORTH:
                self.step = captured(self._token, type(self.policy.model).__name__)
                self.done += 1

    def _make_static(self, end: int) -> None:
        make_static(self.layers, self.width + end - 1, self.column)
        self.static = self.mask[:, None, None, : self.layers[0].keys.shape[2]].bool()

    def _release(self) -> None:
        """Let shapes change again."""
        if self.static is not None:
            self.static = self.step = None
            for layer in self.layers:
                layer.filled, layer.column = self.width + self.done - 1, None

    def _advance(self, count: int) -> None:
        """Draw `count` tokens of each row."""
        for _ in range(count):
            (self.step or self._token)()
            self.done += 1

    def _token(self) -> None:
        """Draw the next token of each row and update the row's numbers."""
        live, going = self.live, self.going
        t = self.column - (self.width - 1)
        logits = self._read()
        drawn = draw(logits.detach(), self.decoding, uniform(self.seed, self.names[live], t))
        if self.decoding.features:
            (gradient,) = torch.autograd.grad(logits, self.tap.hidden, drawn.gradient)
            if self.done == 0:
                self.features = self.features.new_zeros(len(self.names), gradient.shape[-1])
            self.features[live] += gradient[:, -1].float().where(going[:, None], 0.0)
        self.tokens[live, t] = drawn.token.where(going, -1)
        self.logprobs[live] += drawn.logprob.where(going, 0.0)
        self.entropy[live] += drawn.entropy.where(going, 0.0)
        going &= (drawn.token[:, None] != self.ends).all(1)
        self._append(drawn.token)

    def _read(self) -> Tensor:
        """Return the logits of the next token of each row."""
        self.tap.rows = None if len(self.inputs) == len(self.live) else self.prefix
        if self.static is not None:
            written = self.columns[: self.static.shape[-1]] <= self.column
            return self._forward(self.inputs, self.positions, self.static & written)
        end = self.width + self.done - self.inputs.shape[1]
        parts = (x.split(max(1, PREFILL // len(x)), 1) for x in (self.inputs, self.positions))
        for ids, positions in zip(*parts, strict=True):
            end += ids.shape[1]
            logits = self._forward(ids, positions, self.mask[:, :end])
        return logits

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():  # for features, the tap enables gradients after the last layer
            return self.policy.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def _append(self, token: Tensor) -> None:
        """Let the model read this token of each row next."""
        self.column += 1
        if self.static is not None:
            self.inputs.copy_(token[:, None])
            self.positions += 1
        else:
            self.inputs, self.positions = token[:, None], self.positions[:, -1:] + 1

    def _look(self) -> bool:
        """Drop rows that ended, where that pays; return whether any row goes on."""
        kept = self.going.nonzero().squeeze(1)
        sharing = len(self.positions) < len(self.live)
        if len(kept) and (sharing or len(kept) < DENSE * len(self.live)):
            self._keep(kept, sharing and self.look == 1)
        return len(kept) > 0

    def _keep(self, kept: Tensor, sharing: bool) -> None:
        """Keep only these rows and their prefixes."""
        self._release()
        token = self.inputs[kept, 0]
        self.live, self.going = self.live[kept], self.going[kept]
        parent, token, self.prefix = _grown(self.prefix[kept], token, sharing)
        self.inputs = token[:, None]
        # on a GPU a comparison costs more than a copy that is seldom
        if self.look > 1 or not torch.equal(parent, torch.arange(len(self.mask))):
            self.cache.batch_select_indices(parent)
            self.mask, self.positions = self.mask[parent], self.positions[parent]

    def static_error(self) -> float:
        """Return how far fixed shapes move the logits of a token, in units of rounding."""
        with self._reading():
            if len(self.layers) < len(self.cache.layers):
                raise TypeError("its cache has layers of a window")
            self._advance(1)
            growing = self._read().float()
            for layer in self.layers:
                layer.filled -= 1
            self._make_static(self.done + 1)
            fixed = self._read().float()
        # a token that the model never says has the logit -inf in both
        error = ((fixed - growing).abs() / (1 + growing.abs())).where(fixed != growing, 0.0)
        return float(error.max()) / torch.finfo(self.policy.model.dtype).eps


@torch.no_grad()
def can_be_static(policy: Policy) -> bool:
    """Whether the model draws the same with fixed shapes; if not, say so once.

    It needs an attention that takes a mask of all rows and columns, and layers that hold all
    columns, as those of a sliding window do not.
    """
    model = policy.model
    if model not in STATIC:
        why = _why_not_static(policy)
        STATIC[model] = why is None
        if why:
            name = type(model).__name__
            print(f"train.cuda_graph: {name} {why}; tokens are drawn more slowly", file=sys.stderr)
    return STATIC[model]


def _why_not_static(policy: Policy) -> str | None:
    attention = policy.model.config._attn_implementation
    if attention != "sdpa":
        return f"attends by {attention}, which takes no such mask"
    order = Order([[0], [0, 0, 0]], [0, 1], 1, Decoding(2), 0)
    drawing = _Drawing(policy, order.prompts, torch.tensor([[0], [1]], device=policy.device), order)
    try:
        if drawing.static_error() <= 16:
            return None
        return "computes other logits with fixed shapes"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever its code does with such a mask
        return f"takes no fixed shapes ({(str(error).strip() or repr(error)).splitlines()[0]})"


def _grown(prefix: Tensor, token: Tensor, sharing: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct extended prefixes: parents, tokens, and each row's prefix.

    `prefix` holds the index of each row's prefix. Once few prefixes are shared, each row gets its
    own prefix and keeps it.
    """
    own = torch.arange(len(prefix), device=prefix.device)
    if not sharing:
        return prefix, token, own
    pairs, place = torch.unique(prefix * 2**32 + token, return_inverse=True)
    if len(pairs) >= OWN * len(prefix):
        return prefix, token, own
    return pairs // 2**32, pairs % 2**32, place
