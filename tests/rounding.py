"""The rounding of float32 in log-probabilities, from forwards in float64.

A forward in float32 rounds each value that it stores. A forward in float64 can move each value at
random by as much. The spread of a token's log-probability over such forwards is the error that any
program makes in float32, whichever way it adds up: two programs need not agree more closely.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from eval.policy.policy import Policy

UNIT = 2.0**-24  # the largest relative error of one rounding in float32
FORWARDS = 16
COPIES = {"_to_copy", "_unsafe_view", "cat", "clone", "embedding", "gather", "neg"}  # round nothing


class Float64(TorchDispatchMode):
    """Keeps a model in float64 where it asks for float32; with a generator, moves each result."""

    def __init__(self, generator: torch.Generator | None = None):
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        out = func(*args, **kwargs)
        exact = func.is_view or func.overloadpacket.__name__ in COPIES
        if self.generator is None or exact or getattr(out, "dtype", None) != torch.float64:
            return out
        draw = torch.rand(out.shape, generator=self.generator, dtype=torch.float64)
        return out * (1 + UNIT * (2 * draw - 1))


def rounding(
    policy: Policy, prompts: Sequence[list[int]], completions: Sequence[list[int]]
) -> tuple[Tensor, Tensor]:
    """The exact log-probability of each token [rows, columns], and its spread by rounding.

    Rows are completions, those of one prompt consecutive; both are 0 after the end.
    """
    model = copy.deepcopy(policy.model).double().eval()
    model.config._attn_implementation = "eager"  # others do in one operation what rounds in many
    n = len(completions) // len(prompts)
    starts = [len(prompts[i // n]) for i in range(len(completions))]
    rows = [torch.tensor([*prompts[i // n], *x]) for i, x in enumerate(completions)]
    ids, back = pad_sequence(rows, batch_first=True).unique(dim=0, return_inverse=True)

    def read(generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad(), Float64(generator):
            logits = model(input_ids=ids, use_cache=False).logits
            logp = logits - logits.logsumexp(-1, keepdim=True)
        tokens = logp[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[back]
        parts = zip(tokens, starts, completions, strict=True)
        return pad_sequence([x[i - 1 : i - 1 + len(y)] for x, i, y in parts], batch_first=True)

    exact, generator = read(), torch.Generator().manual_seed(0)
    errors = torch.stack([read(generator) - exact for _ in range(FORWARDS)])
    return exact, errors.square().mean(0).sqrt()
