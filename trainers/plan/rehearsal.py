"""A model and its micro-batch rehearsed before anything is loaded.

The real code runs on tensors that have shapes but no content, and every byte of them is counted as
it comes and goes. The shapes come from config.json alone. The count is that of torch on the CPU for
the same calls, byte for byte. A GPU's kernels save the same tensors; their own scratch space, and
what its allocator loses between blocks, come on top.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from eval.policy.logprobs import Likelihood, Rows, completion_logprobs
from eval.policy.policy import ModelError, Policy, reading
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.engine.memory import Sizes
from trainers.measure import ghost


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make under it: now, and the maximum.

    `vocabulary` tells logits, whose last axis has that size, from the rest.
    """

    def __init__(self, vocabulary: int | None = None):
        super().__init__()
        self.vocabulary = vocabulary
        self.now = self.peak = self.logits = self.logits_at_peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def known(self, tensor: Tensor) -> None:
        """Leave out a tensor that existed before, with its views."""
        self._seen.add(tensor.untyped_storage())

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._enter, result)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        logits = size if tensor.dim() and tensor.shape[-1] == self.vocabulary else 0
        self.now, self.logits = self.now + size, self.logits + logits
        if self.now > self.peak:
            self.peak, self.logits_at_peak = self.now, self.logits
        weakref.finalize(storage, self._leave, size, logits)

    def _leave(self, size: int, logits: int) -> None:
        self.now, self.logits = self.now - size, self.logits - logits


@dataclass(frozen=True)
class Cost:
    """The most bytes that exist at once in a forward and backward, without the parameters."""

    activations: int
    logits: int


@dataclass(frozen=True)
class Micro:
    """The shapes of one rank's work."""

    rows: int
    prompt: int
    completion: int

    @classmethod
    def within(cls, budget: int, prompt: int, completion: int, least: int = 1) -> "Micro":
        """Return as many rows as fit a budget of tokens, in multiples of `least`, and no fewer."""
        count = max(1, budget // (least * (prompt + completion)))
        return cls(least * count, prompt, completion)


class Rehearsal:
    """The model of a configuration, without its weights."""

    def __init__(self, config: Config, model: Any):
        """`model` is a folder or hub id with a config.json, or the contents of such a file."""
        import huggingface_hub
        from transformers import AutoConfig, AutoModelForCausalLM

        huggingface_hub.logging.set_verbosity_error()  # of its retries: what fails is said below
        self.config, self.fake = config, FakeTensorMode()
        try:
            shape = model
            if isinstance(model, str):
                shape = AutoConfig.from_pretrained(model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            remedy = "name a folder that holds one, or an id that can be reached"
            raise ModelError(
                f"model.path = {model}: its config.json cannot be read ({why}); {remedy}"
            ) from None
        # flash attention has to be installed, and holds what sdpa's kernels hold
        attention = config.model.attention.replace("flash_attention_2", "sdpa")
        dtype = getattr(torch, config.model.dtype)
        with self.fake:
            self.model = AutoModelForCausalLM.from_config(
                shape, dtype=dtype, attn_implementation=attention
            )
            with _moving_parameters():
                make_trainable(Policy(self.model, None), config)

    @property
    def vocabulary(self) -> int:
        return self.model.get_output_embeddings().weight.shape[0]

    def sizes(self, threshold: int = 0) -> Sizes:
        """Return the model's sizes; ZeRO-3 keeps parameters smaller than `threshold` whole."""
        parameters = list(self.model.parameters())
        numbers = [p.numel() for p in parameters]
        chosen = ghost.chosen(self.model, self.config.surgery.modules).values()
        return Sizes(
            parameters=sum(numbers),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            chosen=sum(p.numel() for p in chosen),
            small=sum(x for x in numbers if x < threshold),
            element=self.model.dtype.itemsize,
            width=self.model.get_output_embeddings().weight.shape[1],
        )

    def micro_batch(
        self, rows: int, prompt: int, completion: int, temperature: float, top_p: float = 1.0
    ) -> Cost:
        """Return the cost of the log-probabilities of `rows` completions and of their backward."""
        with self.fake, self._without_gradients():
            ids = torch.zeros(rows, prompt + completion, dtype=torch.long)
            mask = torch.ones_like(ids)
            padded = Rows(ids, mask, mask.cumsum(1) - 1, mask[:, prompt:].bool())
            likelihood = Likelihood(temperature, top_p, self.config.train.logprob_chunk)
            ledger = Ledger(self.vocabulary)
            self._know(ledger)
            for tensor in vars(padded).values():
                ledger.known(tensor)
            with ledger:
                logp = completion_logprobs(self.model, padded, likelihood)
                logp.sum().backward()
                del logp
        return Cost(ledger.peak - ledger.logits_at_peak, ledger.logits_at_peak)

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Drop each parameter's gradient as soon as it exists: the plan counts gradients itself."""

        def drop(p: Tensor) -> None:
            p.grad = None

        trainable = [p for p in self.model.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(drop) for p in trainable]
        yield
        for hook in hooks:
            hook.remove()

    def decoding(self, rows: int, prompt: int, completion: int) -> tuple[int, int]:
        """Return the bytes of the cache of `rows` completions, and the most beside it, at the end.

        The cache holds the completions at their full length.
        """
        length = prompt + completion
        with self.fake, torch.no_grad(), reading(self.model) as cache:
            self._read(cache, torch.zeros(1, length - 1, dtype=torch.long), length - 1)
            with Ledger() as ledger:
                self._know(ledger)
                cache.batch_repeat_interleave(rows)
                ledger.peak = ledger.now
                self._read(cache, torch.zeros(rows, 1, dtype=torch.long), length)
        held = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
        return held, ledger.peak - held

    def reading(self, prompts: int, prompt: int, most: int) -> int:
        """Return the most bytes while prompts are read, at most so many tokens in a forward."""
        columns = min(prompt, max(1, most // prompts))
        with self.fake, torch.no_grad(), reading(self.model) as cache:
            with Ledger() as ledger:
                self._know(ledger)
                for end in range(columns, prompt + columns, columns):
                    new = min(columns, prompt - end + columns)
                    ids = torch.zeros(prompts, new, dtype=torch.long)
                    self._read(cache, ids, min(end, prompt))
            return ledger.peak

    def _read(self, cache: Any, tokens: Tensor, length: int) -> None:
        rows, new = tokens.shape
        self.model(
            input_ids=tokens,
            attention_mask=torch.ones(rows, length, dtype=torch.long),
            position_ids=torch.arange(length - new, length).expand(rows, new),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _know(self, ledger: Ledger) -> None:
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            ledger.known(tensor)


@contextmanager
def _moving_parameters() -> Iterator[None]:
    """Let `Module.to` put new parameters in place of the old ones.

    An adapter is moved to the dtype of its layer. torch would exchange the contents of the tensors,
    and those of tensors without content it cannot exchange.
    """
    moved: Any = nn.Module.to

    def replace(module: nn.Module, *where: Any, **named: Any) -> nn.Module:
        for owner in module.modules():
            for name, p in owner.named_parameters(recurse=False):
                setattr(owner, name, nn.Parameter(p.detach().to(*where, **named), p.requires_grad))
        return module

    nn.Module.to = replace  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.to = moved  # type: ignore[method-assign]
