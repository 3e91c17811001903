"""The interface of a sampler, which draws the completions of an order from a policy."""

from abc import ABC, abstractmethod
from typing import ClassVar

from eval.policy.policy import ModelError, Policy, reading
from eval.rollout.rollout import Drawn, Order


class Sampler(ABC):
    """The base of samplers from the policy at the order's temperature, cut at its top_p.

    A completion is a list of token ids. It ends with the first token of `policy.end_ids` or,
    without one, after `max_new_tokens`. The same order gives the same completions again.

    A sampler that knows log-probability, entropy and features of its completions returns them as
    `Readings`. For other samplers, `sample` computes them in a separate forward.
    """

    name: ClassVar[str]  # the value of train.rollouts

    def check(self, policy: Policy) -> None:
        """Refuse a model from which this sampler would draw wrongly, before the first draw.

        No sampler supports a recurrent state: rows cannot share it as they share keys and values
        of a prefix, and padding changes it.
        """
        model = policy.model
        with reading(model) as cache:
            recurrent = any(hasattr(layer, "conv_states") for layer in cache.layers)
        names = (getattr(model.config, x, None) or () for x in ("layer_types", "block_types"))
        # older transformers name some recurrent models only here
        kinds = {kind for layers in names for kind in layers}
        if model._is_stateful or recurrent or kinds & {"conv", "recurrent"}:
            why = f"{type(model).__name__} has a recurrent state"
            raise self.refusal(f"{why}; choose a model with attention only")

    def refusal(self, why: str) -> ModelError:
        return ModelError(f"train.rollouts = {self.name}: {why}")

    @abstractmethod
    def draw(self, policy: Policy, order: Order) -> Drawn:
        """Return the completions of an order, and their readings if these cost little."""
