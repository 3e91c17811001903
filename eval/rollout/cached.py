"""The sampler `cached`: each prompt is read once, and rows that ended stop costing.

The cache of a prompt serves its n completions. Randomness is counter-based: the draw of token t of
completion j of problem i is a pure function of (seed, i, j, t). Whatever the micro-batches and
however many ranks share the work, the draws are the same.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from eval.policy.logprobs import entropies, log_softmax, pad_batch
from eval.policy.policy import Policy, reading
from eval.policy.streams import uniform
from eval.rollout.rollout import Decoding, Drawn, Order, Readings
from eval.rollout.sampler import Sampler
from eval.rollout.taps import Tap, tapped

OWN = 0.9  # share of distinct prefixes beyond which it does not pay to look for equal ones


LOOK = {"cpu": 1, "cuda": 8}  # tokens between looks for rows that ended, which hold a GPU up


class Cached(Sampler):
    name: ClassVar[str] = "cached"

    def draw(self, policy: Policy, order: Order) -> Drawn:
        rows = torch.tensor(order.names)[:, None] * order.n + torch.arange(order.n)
        names = rows.to(policy.device)
        places = [len(x) + order.decoding.max_new_tokens for x in order.prompts]
        parts = [
            _Drawing(policy, order.prompts[chunk], names[chunk], order).drawn()
            for chunk in order.decoding.chunks(places, order.n)
        ]
        tokens, logprobs, entropy, features = (torch.cat(x) for x in zip(*parts, strict=True))
        lengths = (tokens >= 0).sum(1).tolist()
        completions = [x[:length] for x, length in zip(tokens.tolist(), lengths, strict=True)]
        taken = features if order.decoding.features else None
        return Drawn(completions, Readings(logprobs, entropy, taken))


class _Drawing:
    """The rows of one batch while they are drawn, one token of each at a time.

    `names` [prompts, n] are the rows' names in the random stream. A prefix that several rows share
    is read once: the prompts to begin with, and their completions for as long as they are equal.
    """

    def __init__(self, policy: Policy, prompts: list[list[int]], names: Tensor, order: Order):
        self.policy, self.decoding, self.seed = policy, order.decoding, order.seed
        device, total = policy.device, names.numel()
        # of all rows
        self.names = names.flatten()
        self.tokens = torch.full((total, self.decoding.max_new_tokens), -1, device=device)
        self.logprobs, self.entropy = torch.zeros(2, total, device=device)
        self.features = torch.zeros(total, 0, device=device)
        # of the rows at hand
        self.live = torch.arange(total, device=device)
        self.going = torch.ones(total, dtype=torch.bool, device=device)  # false: ended
        self.prefix = self.live // names.shape[1]  # the place of each row's prefix
        self.shared = True  # whether any prefix is that of several rows
        # of the prefixes: the tokens that the model reads next, the columns that it has by then
        first = pad_batch(prompts, [[]] * len(prompts), policy.pad_id, device)
        self.inputs, self.mask = first.input_ids, first.attention_mask
        self.positions = first.position_ids

    def drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens (-1 after the end), log-probability, entropy and features of each row."""
        features, look = self.decoding.features, LOOK[self.policy.device.type]
        ends = torch.tensor(self.policy.end_ids, device=self.policy.device)
        with reading(self.policy.model) as cache, tapped(self.policy, features) as tap:
            for t in range(self.decoding.max_new_tokens):
                tap.rows = self.prefix
                logits = self._read(cache)
                token = self._draw(logits, tap, t)
                self.going &= ~torch.isin(token, ends)
                if self.shared or (t + 1) % look == 0:
                    kept = self.going.nonzero().squeeze(1)
                    if not len(kept):
                        break
                    if self.shared or len(kept) < len(self.live):
                        token = self._keep(kept, token, logits.shape[-1], cache)
                self._append(token)
        return self.tokens, self.logprobs, self.entropy / (self.tokens >= 0).sum(1), self.features

    def _read(self, cache: Any) -> Tensor:
        """The logits of the next token of each row."""
        with torch.no_grad():  # for features, the tap turns gradients on behind the last layer
            return self.policy.model(
                input_ids=self.inputs,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def _draw(self, logits: Tensor, tap: Tap, t: int) -> Tensor:
        """Draw token t of each row, and add what it says to the row's numbers."""
        decoding, live, going = self.decoding, self.live, self.going
        logp = log_softmax(logits, decoding.temperature or 1.0, decoding.top_p)
        token = next_token(logp.detach(), decoding, uniform(self.seed, self.names[live], t))
        chosen = logp.gather(1, token[:, None]).squeeze(1)
        if decoding.features:
            (gradient,) = torch.autograd.grad(chosen.sum(), tap.hidden)
            if t == 0:
                self.features = self.features.new_zeros(len(self.names), gradient.shape[-1])
            self.features[live] += gradient[:, -1].float().where(going[:, None], 0.0)
            logp, chosen = logp.detach(), chosen.detach()
        self.tokens[live, t] = token.where(going, -1)
        self.logprobs[live] += chosen.where(going, 0.0)
        self.entropy[live] += entropies(logp).where(going, 0.0)
        return token

    def _keep(self, kept: Tensor, token: Tensor, vocabulary: int, cache: Any) -> Tensor:
        """Keep these rows at hand, and their prefixes; returns the next token of each prefix."""
        self.live, self.going = self.live[kept], self.going[kept]
        grown = _grown(self.prefix[kept], token[kept], vocabulary, self.shared)
        parent, token, self.prefix, self.shared = grown
        if not torch.equal(parent, torch.arange(len(self.mask), device=parent.device)):
            cache.batch_select_indices(parent)
            self.mask, self.positions = self.mask[parent], self.positions[parent]
        return token

    def _append(self, token: Tensor) -> None:
        """Each prefix grows by its token, which the model reads next."""
        self.inputs = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.positions = self.positions[:, -1:] + 1


def _grown(
    prefix: Tensor, token: Tensor, vocabulary: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Prefixes that grew by a token, each once: its parent, its token, its rows, and `shared`.

    The rows are given by the place of each one's prefix. Where few prefixes are shared, each row
    gets its own, for good.
    """
    own = torch.arange(len(prefix), device=prefix.device)
    if not shared:
        return prefix, token, own, False
    pairs, place = torch.unique(prefix * vocabulary + token, return_inverse=True)
    if len(pairs) > OWN * len(prefix):
        return prefix, token, own, False
    return pairs // vocabulary, pairs % vocabulary, place, True


def next_token(logp: Tensor, decoding: Decoding, u: Tensor) -> Tensor:
    """One token a row, by inversion of the cumulative distribution at u.

    No token of probability 0 is drawn. Where logits are not finite it is the last one.
    """
    if decoding.temperature == 0:
        return logp.argmax(1)
    levels = logp.double().exp().cumsum(1)
    u = u.clamp(max=1 - 2**-52)  # no rounding takes it to the last level, behind which nothing is
    token = torch.searchsorted(levels, u[:, None] * levels[:, -1:], right=True).squeeze(1)
    return token.clamp(max=levels.shape[1] - 1)
