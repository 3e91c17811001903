"""A sampler: draws the completions of an order from a policy."""

from abc import ABC, abstractmethod
from typing import ClassVar

from eval.policy.policy import ModelError, Policy, reading
from eval.rollout.rollout import Drawn, Order


class Sampler(ABC):
    """Draws from the policy's distribution at the order's temperature, cut at its top_p.

    A completion is a list of token ids. It ends with the first token of `policy.end_ids` or,
    without one, after `max_new_tokens`. The same order draws the same completions again.

    A sampler that knows log-probability, entropy and features of its completions returns them as
    `Readings`. For any other one, `sample` computes them in a forward of their own.
    """

    name: ClassVar[str]  # the value of train.rollouts

    def check(self, policy: Policy) -> None:
        """Refuse a model from which this sampler would draw wrongly, before anything is drawn.

        No sampler takes a recurrent state: a prefix does not share it as it shares keys and values,
        and padding enters it.
        """
        model = policy.model
        with reading(model) as cache:
            recurrent = any(hasattr(layer, "conv_states") for layer in cache.layers)
        names = (getattr(model.config, x, None) or () for x in ("layer_types", "block_types"))
        kinds = {kind for some in names for kind in some}  # all that older transformers say of some
        if model._is_stateful or recurrent or kinds & {"conv", "recurrent"}:
            why = f"{type(model).__name__} has a recurrent state"
            raise self.refusal(f"{why}; choose a model of attention alone")

    def refusal(self, why: str) -> ModelError:
        return ModelError(f"train.rollouts = {self.name}: {why}")

    @abstractmethod
    def draw(self, policy: Policy, order: Order) -> Drawn:
        """The completions of an order, and their readings if they cost little on the way."""
