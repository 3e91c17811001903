"""A tap on the output head, which gives the sampler the features of each token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from eval.policy.policy import Policy


class Tap:
    """The rows to give to the head, and the hidden states that it got."""

    rows: Tensor | None = None
    hidden: Tensor


@contextmanager
def tapped(policy: Policy, features: bool) -> Iterator[Tap]:
    """Puts a tap on the output head, which for features starts a graph there.

    The head gets the hidden states of `rows` (None: each once). The graph runs through all that
    the model does after the hidden state, soft-capping included.
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
