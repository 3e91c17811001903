"""Make a policy trainable: all its weights, or a LoRA adapter (arXiv 2106.09685).

The adapter is injected into the model itself, so that the rest of the code need not treat it
separately: its layers are linear, and its parameters are the only ones that train.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eval.policy.policy import ModelError, Policy
from eval.policy.streams import derive_seed
from trainers.config.schema import Config


def make_trainable(policy: Policy, config: Config) -> None:
    """Prepare the policy for backward: adapter and checkpointing as configured, no dropout."""
    if config.model.lora_rank:
        _add_adapter(policy.model, config)
    if config.model.gradient_checkpointing:
        _checkpoint(policy.model)
    _disable_dropout(policy.model)
    policy.model.train()


def _checkpoint(model: Any) -> None:
    if not model.supports_gradient_checkpointing:
        why = f"{type(model).__name__} does not support it; set it to false"
        raise ModelError(f"model.gradient_checkpointing = true: {why}")
    new = "activation_checkpointing_enable"  # the method's name from transformers 5.23 on
    enable = getattr(model, new, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _add_adapter(model: Any, config: Config) -> None:
    """Freeze the model and add (alpha/rank) B A to its layers W, with B = 0 at the start."""
    from peft import LoraConfig, inject_adapter_in_model

    options = config.model
    targets = options.lora_targets.split(",") if options.lora_targets else []
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name.rpartition(".")[2] for name, x in model.named_modules() if x in ends}
    if model.config.tie_word_embeddings and names & set(targets):
        why = "embeddings and head are one matrix in this model, an adapter would part them"
        raise ModelError(f"model.lora_targets = {options.lora_targets}: {why}; leave them out")
    adapter = LoraConfig(
        r=options.lora_rank, lora_alpha=options.lora_alpha, target_modules=targets or "all-linear"
    )
    try:
        with torch.random.fork_rng(devices=[]):  # A is random, but the same on all ranks
            torch.manual_seed(derive_seed(config.seed, "adapter"))
            inject_adapter_in_model(adapter, model)
    except ValueError as error:
        why = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.lora_targets = {options.lora_targets}: {why}; name layers of this model"
        ) from None


def _adapted(model: nn.Module) -> list[Any]:
    """Return the layers with an adapter."""
    from peft.tuners.lora import LoraLayer

    return [x for x in model.modules() if isinstance(x, LoraLayer)]


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off, so that the model is the base."""
    layers = _adapted(model)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights with the adapter merged in: W + (alpha/rank) B A.

    They have the names of a model without an adapter. The sum is computed in float32 and rounded to
    the model's dtype.
    """
    weights = {}
    for name, x in model.state_dict().items():
        owner, adapted, leaf = name.rpartition(".base_layer.")
        if adapted and leaf == "weight":
            layer: Any = model.get_submodule(owner)
            x = (x.float() + layer.get_delta_weight("default").float()).to(x.dtype).cpu()
        if ".lora_" not in name:
            weights[f"{owner}.{leaf}" if adapted else name] = x
    return weights


def _disable_dropout(model: nn.Module) -> None:
    """Set all dropout to 0: samples and log-probabilities must come from one distribution."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            rate = name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)
            if isinstance(value, float) and (rate or "drop" in name):
                setattr(module, name, 0.0)
