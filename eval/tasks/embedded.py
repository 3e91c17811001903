"""The common parts of `twin` and `chain`: a noisy cue to a hidden label, and a trained base.

The base policy is trained from scratch and cached as an ordinary Hugging Face folder. The hash of
its recipe is in the name of the folder.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.files import usual_permissions
from eval.policy.policy import Policy
from eval.progress import progress
from eval.tasks.task import TaskError

PAD, END = "<pad>", "<eos>"
OWN_GPU = 256  # a base of this width or more is trained on a GPU, if there is one

Losses = Callable[[Policy, Any], Iterator[Tensor]]  # (policy, recipe) -> the loss of each step


def cue_given_group(delta: float, cues: int) -> Tensor:
    """Return P(cue | easy), P(cue | hard) as [2, cues].

    cue = clamp(floor(2 s + cues/2), 0, cues - 1), s ~ N(-+delta/2, 1).
    """
    edges = torch.arange(1, cues, dtype=torch.float64) / 2 - cues / 4
    means = torch.tensor([[-delta / 2], [delta / 2]], dtype=torch.float64)
    below = torch.special.ndtr(edges - means)
    return torch.diff(below, dim=1, prepend=torch.zeros(2, 1), append=torch.ones(2, 1).double())


def word_level(pattern: str, symbols: list[str]) -> Any:
    """Return a tokenizer whose tokens are the matches of `pattern`; they join to the text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate([PAD, END, *symbols])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left"
    )


def base_folder(name: str, recipe: Any, tokenizer: Any, losses: Losses) -> str:
    """Return the folder of the trained base; train it if it is not there.

    If two runs train it at once, the first rename wins. `recipe` is a dataclass with all settings
    of the base: seed, layers, width, heads, steps, lr, and the task's own.
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("PASSK_SURGERY_CACHE") or Path.home() / ".cache" / "passk-surgery"
    folder = Path(cache) / f"{name}-{digest}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            remedy = "the base cannot be saved there; name a writable folder"
            raise TaskError(f"PASSK_SURGERY_CACHE = {cache}: {error.strerror}: {remedy}") from None
        try:
            _train(recipe, tokenizer, losses).model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            usual_permissions(work)
            os.rename(work, folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return str(folder)


def _train(recipe: Any, tokenizer: Any, losses: Losses) -> Policy:
    """Train a small Llama with AdamW and a one-cycle learning rate.

    On a CPU one thread trains: the model is too small for several, and the result is then the same
    on every machine.
    """
    threads = torch.get_num_threads()
    on_gpu = recipe.width >= OWN_GPU and torch.cuda.is_available()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads if on_gpu else 1)
        torch.manual_seed(recipe.seed)
        policy = Policy(new_llama(recipe, tokenizer).to("cuda" if on_gpu else "cpu"), tokenizer)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=recipe.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
        quiet = os.environ.get("RANK", "0") != "0"
        with progress(recipe.steps, 0, "base policy", quiet) as bar:
            for _, loss in zip(range(recipe.steps), losses(policy, recipe), strict=False):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    torch.set_num_threads(threads)
    return policy


def new_llama(recipe: Any, tokenizer: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(recipe, tokenizer))


def llama_config(recipe: Any, tokenizer: Any) -> Any:
    """Return the shape of the base, which is known before its training."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
