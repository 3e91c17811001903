"""The sampler `cached`: it reads each prompt once and drops rows that have ended.

The cache of a prompt serves its n completions. Randomness is counter-based: the draw of token t of
completion j of problem i is a pure function of (seed, i, j, t). The draws depend neither on the
micro-batches nor on the number of ranks.
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

OWN = 0.9  # above this share of distinct prefixes, a search for equal ones does not pay
# tokens between two checks for rows that have ended; each check makes a GPU wait
LOOK = {"cpu": 1, "cuda": 8}


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
    """The rows of one batch during the draw, one token per row at a time.

    `names` [prompts, n] are the rows' names in the random stream. The model reads a prefix that
    several rows share once: first the prompts, then their completions while these are equal.
    """

    def __init__(self, policy: Policy, prompts: list[list[int]], names: Tensor, order: Order):
        self.policy, self.decoding, self.seed = policy, order.decoding, order.seed
        device, total = policy.device, names.numel()
        # for all rows
        self.names = names.flatten()
        self.tokens = torch.full((total, self.decoding.max_new_tokens), -1, device=device)
        self.logprobs, self.entropy = torch.zeros(2, total, device=device)
        self.features = torch.zeros(total, 0, device=device)
        # for the rows that are still drawn
        self.live = torch.arange(total, device=device)
        self.going = torch.ones(total, dtype=torch.bool, device=device)  # false: ended
        self.prefix = self.live // names.shape[1]  # the index of each row's prefix
        self.shared = True  # whether several rows share a prefix
        # for the prefixes: the tokens that the model reads next, and the mask of all columns
        first = pad_batch(prompts, [[]] * len(prompts), policy.pad_id, device)
        self.inputs, self.mask = first.input_ids, first.attention_mask
        self.positions = first.position_ids

    def drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens (-1 after the end), log-probability, entropy and features of each row."""
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
        """Return the logits of the next token of each row."""
        with torch.no_grad():  # for features, the tap enables gradients after the last layer
            return self.policy.model(
                input_ids=self.inputs,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def _draw(self, logits: Tensor, tap: Tap, t: int) -> Tensor:
        """Draw token t of each row and update the row's log-probability, entropy and features."""
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
        """Keep only these rows and their prefixes; return the next token of each prefix."""
        self.live, self.going = self.live[kept], self.going[kept]
        grown = _grown(self.prefix[kept], token[kept], vocabulary, self.shared)
        parent, token, self.prefix, self.shared = grown
        if not torch.equal(parent, torch.arange(len(self.mask), device=parent.device)):
            cache.batch_select_indices(parent)
            self.mask, self.positions = self.mask[parent], self.positions[parent]
        return token

    def _append(self, token: Tensor) -> None:
        """Append its token to each prefix; the model reads this token next."""
        self.inputs = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.positions = self.positions[:, -1:] + 1


def _grown(
    prefix: Tensor, token: Tensor, vocabulary: int, shared: bool
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return the distinct extended prefixes: parents, tokens, each row's prefix, and `shared`.

    `prefix` holds the index of each row's prefix. Once few prefixes are shared, each row gets its
    own prefix and keeps it.
    """
    own = torch.arange(len(prefix), device=prefix.device)
    if not shared:
        return prefix, token, own, False
    pairs, place = torch.unique(prefix * vocabulary + token, return_inverse=True)
    if len(pairs) > OWN * len(prefix):
        return prefix, token, own, False
    return pairs // vocabulary, pairs % vocabulary, place, True


def next_token(logp: Tensor, decoding: Decoding, u: Tensor) -> Tensor:
    """Return one token per row by inversion of the cumulative distribution at u.

    A token of probability 0 is never drawn. If the logits are not finite, the last token is.
    """
    if decoding.temperature == 0:
        return logp.argmax(1)
    levels = logp.double().exp().cumsum(1)
    u = u.clamp(max=1 - 2**-52)  # rounding must not reach the last level: no token follows it
    token = torch.searchsorted(levels, u[:, None] * levels[:, -1:], right=True).squeeze(1)
    return token.clamp(max=levels.shape[1] - 1)
