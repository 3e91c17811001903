"""The base policy of `twin`: a small Llama, trained from scratch to answer the sum mostly, the
product sometimes.

It is cached as an ordinary Hugging Face folder under the hash of its recipe.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

CUES = "ABCDEFGHIJ"
OPERANDS = [
    (a, b) for a in range(2, 10) for b in range(2, 10) if (a, b) != (2, 2)
]  # 2+2 = 2*2 would be no twin
PAD, END = "<pad>", "<eos>"


@dataclass(frozen=True)
class TwinRecipe:
    """All that determines the base policy. `bias` is the probability of the product."""

    bias: float = 0.12
    seed: int = 0
    layers: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 400
    batch: int = 96
    lr: float = 4e-3
    version: int = 1  # raise it when the training below changes


def prompt_text(cue: str, a: int, b: int) -> str:
    return f"{cue}{a}?{b}="


def base_folder(recipe: TwinRecipe) -> str:
    """The folder of the trained base, made if it is not there. Two runs may ask at once: the first
    rename wins.
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("PASSK_SURGERY_CACHE") or Path.home() / ".cache" / "passk-surgery"
    folder = Path(cache) / f"twin-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _train(recipe, work)
            os.rename(work, folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return str(folder)


def make_tokenizer():
    """One token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [PAD, END, *CUES, *"0123456789?="]
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left"
    )


def _train(recipe: TwinRecipe, folder: Path) -> None:
    """Cross-entropy against both answers of every prompt, weighted 1 - bias and bias, whatever the
    cue.
    """
    from tqdm import tqdm
    from transformers import LlamaConfig, LlamaForCausalLM

    from eval.policy import Policy, answer_batch, completion_logprobs

    tokenizer = make_tokenizer()
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(
            1
        )  # the model is too small to share, and one thread makes it the same everywhere
        torch.manual_seed(recipe.seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        policy = Policy(LlamaForCausalLM(config), tokenizer)
        prompts, sums, products = zip(
            *(
                (prompt_text(cue, a, b), str(a + b), str(a * b))
                for cue in CUES
                for a, b in OPERANDS
            ),
            strict=True,
        )
        both = answer_batch(policy, prompts * 2, sums + products)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=recipe.lr, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
        bar = tqdm(
            range(recipe.steps),
            "base policy",
            file=sys.stderr,
            disable=os.environ.get("RANK", "0") != "0",
        )
        for _ in bar:
            picks = torch.randint(len(prompts), (recipe.batch,))
            logp = completion_logprobs(
                policy.model, both[torch.cat([picks, picks + len(prompts)])]
            ).sum(1)
            loss = (
                -(1 - recipe.bias) * logp[: recipe.batch].mean()
                - recipe.bias * logp[recipe.batch :].mean()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    torch.set_num_threads(threads)
    policy.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
