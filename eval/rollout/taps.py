"""A tap on the output head, which gives the sampler the features of each token."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Tap:
    rows: Tensor | None = None
    hidden: Tensor


@contextmanager
def tapped(model, features: bool) -> Iterator[Tap]:
    """A tap on the output head: gives it the hidden states of `rows` (None: each once), and for
    features starts a graph there.

    The graph runs through whatever the model does after the hidden state, soft-capping included.
    """
    tap = Tap()

    def hook(module, args):
        hidden = args[0] if tap.rows is None else args[0][tap.rows]
        if features:
            torch.set_grad_enabled(True)
            hidden = hidden.detach().requires_grad_()
            tap.hidden = hidden
        return (hidden, *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield tap
    finally:
        handle.remove()
