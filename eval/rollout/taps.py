"""A hook on the output head that gives the sampler the features of each token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eval.policy.policy import Policy


class Tap:
    """The rows that the head computes, and the hidden states that it received."""

    rows: Tensor | None = None
    hidden: Tensor


@contextmanager
def tapped(policy: Policy, features: bool) -> Iterator[Tap]:
    """Put a tap on the output head; with `features`, the tap starts an autograd graph there.

    The head gets the hidden states of `rows` (None: each once). The graph covers all operations
    after the last hidden state, soft-capping included.
    """
    tap = Tap()

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0] if tap.rows is None else args[0][tap.rows]
        if features:
            torch.set_grad_enabled(True)
            hidden = hidden.detach().requires_grad_()
            tap.hidden = hidden
        return (hidden, *args[1:])

    handle = policy.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield tap
    finally:
        handle.remove()
