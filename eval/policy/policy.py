"""The policy: a causal language model with its tokenizer, its loading, and its cache."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from eval.errors import Refusal


class ModelError(Refusal):
    """The model cannot be used; the message is one line."""


class Chat(str):
    """A user's message; the policy puts it into the chat template of its tokenizer."""


@dataclass
class Policy:
    """A model, any AutoModelForCausalLM, and its tokenizer, with an end-of-text token."""

    model: Any
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_ids[0] if pad is None else pad

    @property
    def end_ids(self) -> list[int]:
        """All tokens that end a completion."""
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*([] if own is None else [own]), *ids]))

    def encode(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return token ids; `special` adds the tokens that the tokenizer puts before a prompt.

        An answer has no such tokens. A chat template writes all of them itself, so adding them
        again would repeat them.
        """
        if any(isinstance(x, Chat) for x in texts):
            texts, special = [self._in_template(x) for x in texts], False
        return self.tokenizer(list(texts), add_special_tokens=special).input_ids

    def _in_template(self, message: str) -> str:
        if not self.tokenizer.chat_template:
            why = "the model's tokenizer has no chat template"
            raise ModelError(f"task.template = chat: {why}; set task.template=plain")
        messages = [{"role": "user", "content": str(message)}]
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:  # the template comes with the model and runs in a sandbox
            why = f"the model's chat template fails ({error})"
            raise ModelError(f"task.template = chat: {why}; set task.template=plain") from None


def load_policy(
    path: str, dtype: str = "float32", attention: str = "sdpa", option: str = "model.path"
) -> Policy:
    """Return the policy with the model and tokenizer of a folder or hub id.

    Weights come from safetensors; remote code never runs. An error message names the `option` that
    holds the path.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path, option)
    with _loading(path, option):
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    policy = Policy(model, tokenizer)
    if not policy.end_ids:
        why = "its tokenizer has no end-of-text token, so no completion would end"
        raise ModelError(f"{option} = {path}: {why}; give it one")
    return policy


def load_tokenizer(path: str, option: str = "model.path") -> Any:
    """Return the tokenizer of a folder or hub id; the `option` is as in `load_policy`."""
    from transformers import AutoTokenizer

    with _loading(path, option):
        # explicit, because by default transformers asks on the terminal whether to run remote code
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def check_template(path: str, prompts: Iterable[str]) -> None:
    """Refuse a tokenizer that cannot put these prompts into a chat template; load no model."""
    first = next((x for x in prompts if isinstance(x, Chat)), None)
    if first is not None:
        Policy(None, load_tokenizer(path)).encode([first])


@contextmanager
def _loading(path: str, option: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # broken or foreign files raise any exception
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not Path(path).exists():
            why = f"there is no such folder, and as an id of the hub: {why}"
        remedy = "name a folder in the hub's format with safetensors, or an id that can be reached"
        raise ModelError(f"{option} = {path}: cannot be loaded ({why}); {remedy}") from None


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and restore its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def reading(model: nn.Module) -> Iterator[Any]:
    """Yield an empty cache, with the model in eval mode.

    In train mode, gradient checkpointing silently drops the cache, and the model reads each token
    as if no token came before it.
    """
    from transformers import DynamicCache

    config: Any = model.config
    with in_eval_mode(model):
        yield DynamicCache(config=config)


def interpolate(policy: Policy, start: Mapping[str, Tensor], toward: Policy, by: float) -> None:
    """Set the policy's weights to (1 - by) start + by toward.

    Interpolation between two models of one shape is a baseline without training (arXiv
    2109.01903).
    """
    ends = toward.model.state_dict()
    different = {n for n in start.keys() | ends.keys() if _shape(start, n) != _shape(ends, n)}
    if different:
        name = sorted(different)[0]
        shapes = f"{name} is {_shape(start, name)} here and {_shape(ends, name)} there"
        raise ModelError(f"--toward: the models differ ({shapes}); name a model of the same shape")
    between = {
        name: torch.lerp(x.double(), ends[name].double(), by).to(x.dtype)
        if x.is_floating_point()
        else x
        for name, x in start.items()
    }
    policy.model.load_state_dict(between)


def _shape(weights: Mapping[str, Tensor], name: str) -> list[int] | None:
    return list(weights[name].shape) if name in weights else None
