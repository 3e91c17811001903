"""What the tasks that come with the project share: a noisy cue to a hidden label, and a base
policy trained from scratch.

The base is cached as an ordinary Hugging Face folder under the hash of its recipe.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.files import usual_permissions
from eval.policy.policy import Policy
from eval.tasks.task import TaskError

PAD, END = "<pad>", "<eos>"
OWN_GPU = 256  # a base of this width or more is trained on a GPU, where there is one

Losses = Callable[[Policy, Any], Iterator[Tensor]]  # (policy, recipe) -> the loss of each step


def cue_given_group(delta: float, cues: int) -> Tensor:
    """[2, cues] P(cue | easy), P(cue | hard), for cue = clamp(floor(2 s + cues/2), 0, cues - 1),
    s ~ N(-+delta/2, 1).
    """
    edges = torch.arange(1, cues, dtype=torch.float64) / 2 - cues / 4
    means = torch.tensor([[-delta / 2], [delta / 2]], dtype=torch.float64)
    below = torch.special.ndtr(edges - means)
    return torch.diff(below, dim=1, prepend=torch.zeros(2, 1), append=torch.ones(2, 1).double())


def word_level(pattern: str, symbols: list[str]) -> Any:
    """A tokenizer whose tokens are the matches of `pattern`; they join to the text itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate([PAD, END, *symbols])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left"
    )


def base_folder(name: str, recipe: Any, tokenizer: Any, losses: Losses) -> str:
    """The folder of the trained base, made if it is not there. Two runs may ask at once: the first
    rename wins.

    `recipe` is a dataclass with all that determines the base: seed, layers, width, heads, steps,
    lr, and what is the task's own.
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("PASSK_SURGERY_CACHE") or Path.home() / ".cache" / "passk-surgery"
    folder = Path(cache) / f"{name}-{digest}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            remedy = "the base cannot be kept there; name a folder that can be written"
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
    """A small Llama, by AdamW under one cycle. On a CPU in one thread: the model is too small to
    share, and so it is the same everywhere.
    """
    from tqdm import tqdm

    threads = torch.get_num_threads()
    on_gpu = recipe.width >= OWN_GPU and torch.cuda.is_available()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads if on_gpu else 1)
        torch.manual_seed(recipe.seed)
        policy = Policy(new_llama(recipe, tokenizer).to("cuda" if on_gpu else "cpu"), tokenizer)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=recipe.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
        quiet = os.environ.get("RANK", "0") != "0"
        bar = tqdm(range(recipe.steps), "base policy", file=sys.stderr, disable=quiet)
        for _, loss in zip(bar, losses(policy, recipe), strict=False):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    torch.set_num_threads(threads)
    return policy


def new_llama(recipe: Any, tokenizer: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config(recipe, tokenizer))


def llama_config(recipe: Any, tokenizer: Any) -> Any:
    """The shape of the base, which is known before it is trained."""
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
