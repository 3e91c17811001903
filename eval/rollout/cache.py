"""A cache with room for the tokens to come."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

BLOCK = 256  # columns by which a layer grows


class Roomy(DynamicLayer):
    """The keys and values of a layer, in buffers with room for more columns.

    transformers' own layer copies all that it holds for each new token. This one copies once in
    BLOCK tokens. With a `column`, a tensor, the layer has static shapes: it writes there, and
    attention sees all columns of the buffers, so the caller has to mask those not yet written.
    """

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most  # columns that it will ever hold
        self.filled = 0
        self.selected = False  # rows that were selected once will be selected again: no room yet
        self.column: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x[:, :, :0] for x in (key_states, value_states))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.column is not None:
            self.keys.index_copy_(2, self.column, key_states)
            self.values.index_copy_(2, self.column, value_states)
            return self.keys, self.values
        end = self.filled + key_states.shape[2]
        self.reserve(end, end if self.selected else self.most)
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled, self.selected = end, False
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, columns: int, most: int) -> None:
        """Grow to a multiple of BLOCK that holds so many columns, or to `most` if that is less."""
        if columns > self.keys.shape[2]:
            room = max(columns, min(-(-columns // BLOCK) * BLOCK, most))
            self.keys, self.values = (self._grown(x, room) for x in (self.keys, self.values))

    def _grown(self, old: Tensor, columns: int) -> Tensor:
        new = old.new_empty(*old.shape[:2], columns, old.shape[3])
        new[:, :, : self.filled] = old[:, :, : self.filled]
        return new

    def get_seq_length(self) -> int:
        return self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, without room for more columns."""
        self.selected = True
        if self.is_initialized:
            self.keys = self.keys[:, :, : self.filled][indices]
            self.values = self.values[:, :, : self.filled][indices]


def make_roomy(cache: Any, most: int) -> list[Roomy]:
    """Give the layers of an empty cache room for up to `most` columns, and return these layers.

    Layers of another kind, such as those of a sliding window, stay as they are.
    """
    cache.layers = [Roomy(most) if type(x) is DynamicLayer else x for x in cache.layers]
    return [x for x in cache.layers if isinstance(x, Roomy)]


def make_static(layers: list[Roomy], columns: int, column: Tensor) -> None:
    """Give every layer `columns` columns, and the tensor that says where it writes."""
    for layer in layers:
        layer.reserve(columns, layer.most)
        for buffer in (layer.keys, layer.values):  # what is masked still counts if it is not finite
            buffer[:, :, layer.filled :] = 0
        layer.column = column
