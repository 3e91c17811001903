"""Stand-ins and small makers that several tests share; all policies here have the tokens of `twin`.

Models as users bring them, with tokenizers of their own, are in models.py.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from omegaconf import OmegaConf

from eval.files import write_lines
from eval.policy.logprobs import Likelihood, Rows, pad_batch
from eval.policy.policy import Policy
from eval.tasks.twin_base import make_tokenizer
from surgery.rules import RULES
from trainers.config.schema import Config
from trainers.engine.engine import Engine
from trainers.engine.ranks import Ranks
from trainers.measure import ghost
from trainers.measure.probe import Probe
from trainers.step_batch import StepBatch

# -- in place of an engine ------------------------------------------------------------------------


class Alone(Ranks):
    """The only rank, without DeepSpeed; with a policy, all that a probe asks of an engine."""

    def __init__(self, policy: Policy | None = None):
        self.rank, self.world, self.device = 0, 1, torch.device("cpu")
        if policy is not None:
            self._policy, self.pad_id, self.device = policy, policy.pad_id, policy.device

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        yield self._policy

    def barrier(self):
        pass

    def total(self, x):
        return x

    def reduce(self, x, how="sum"):
        return x


def make_probe(base: Policy, needs: str = "nash", **surgery: Any) -> Probe:
    """A probe of one process that smooths nothing and measures what the rule `needs` asks for."""
    config = Config()
    for key, value in ({"ema": 0.0} | surgery).items():
        setattr(config.surgery, key, value)
    return Probe(config, Alone(base), RULES[needs].needs)


def measurable(rollout, mine, a_k, a_1, correct=None, k=4) -> StepBatch:
    """A batch as far as a probe reads it."""
    count = 0 if a_1 is None else len(a_1)
    ones = torch.ones(count, dtype=torch.float64)
    batch = StepBatch(1, 0, k=k, weight_k=k, pace=1.0, problems=[], importance=ones, mine=mine)
    batch.change = 0.0
    batch.rollout, batch.correct, batch.a_k, batch.a_1 = rollout, correct, a_k, a_1
    return batch


class Still:
    """What a checkpoint asks of an engine, without training."""

    def __init__(self):
        self.trained, self.steps_taken = fresh_policy(), 0

    def state(self, keep):
        named = self.trained.model.named_parameters()
        whole = {name: p.detach().clone() + self.steps_taken for name, p in named}
        return {"parameters": whole}

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        yield Policy(self.trained.model, self.trained.tokenizer)

    def barrier(self):
        pass


# -- policies to sample from ----------------------------------------------------------------------

PROMPTS = ["A2?3=", "J9?", "=", "D5?5=4"]  # ragged, so that padding matters
TEXTS = [f"D{a}?{b}={a + b}" for a in range(2, 10) for b in range(2, 10)]


def random_policy(kind: str, seed: int = 0) -> Policy:
    """A `gpt2`, or else a `llama`, with random weights, in eval mode."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ends["bos_token_id"] = tokenizer.eos_token_id
    size = {"vocab_size": len(tokenizer)}
    if kind == "gpt2":
        config = hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **size, **ends)
        model = hf.GPT2LMHeadModel(config)
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**heads, **shape, **size, **ends))
    for p in model.parameters():
        p.data.mul_(3)  # peaked distributions, far from uniform
    return Policy(model.eval(), tokenizer)


# -- models whose gradients autograd gives, completion by completion -------------------------------

SIZE = {
    "vocab_size": len(make_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GQA = SIZE | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": SIZE["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 4}
BIASED = GQA | {"attention_bias": True, "mlp_bias": True}
GEMMA = GQA | {"head_dim": 8, "pad_token_id": 0}
GEMMA2 = GEMMA | {"sliding_window": 64, "final_logit_softcapping": 3.0}
MODELS = {  # (class, configuration, shape, and how far from autograd its arithmetic may be)
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA, 1e-10),
    "llama, biases": ("LlamaForCausalLM", "LlamaConfig", BIASED, 1e-10),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA, 1e-10),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GQA | {"head_dim": 8}, 1e-10),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA, 1e-10),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, 1e-10),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZE, 1e-10),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GQA | {"pad_token_id": 0}, 1e-10),
    # float32 inside: the norms of Gemma, and the softmax of eager attention
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GEMMA, 1e-6),
    "gemma2, eager": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA2, 1e-6),
    "llama, eager": ("LlamaForCausalLM", "LlamaConfig", GQA, 1e-6),
    "gpt2, eager": ("GPT2LMHeadModel", "GPT2Config", GPT2, 1e-6),
}
PROMPT_IDS = [[5, 15, 22, 16, 23], [5, 22], [9], [7, 15, 22, 16, 23]] * 2  # ragged: left padding
COMPLETIONS = [[13, 1], [12, 14, 15, 1], [3, 1], [2, 8, 1], [4, 4], [1], [12, 13, 1], [9, 9, 9, 1]]


def make_model(kind: str, **more: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    cls, cls_of_config, shape, _ = MODELS[kind]
    attention = "eager" if "eager" in kind else "sdpa"
    config = getattr(hf, cls_of_config)(**shape, **more, attn_implementation=attention)
    model = getattr(hf, cls)(config).double().eval()
    for p in model.parameters():  # norms that are not 1, biases that are not 0
        p.data.add_(0.1 * torch.randn_like(p))
    return model


def rows(kind: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions for a model of MODELS.

    Eager attention in float64 turns rows that are all padding into NaN, which no layer survives:
    transformers computes its softmax in float32. There, prompts are of equal length.
    """
    prompts = [PROMPT_IDS[0], PROMPT_IDS[3]] * 4 if "eager" in kind else PROMPT_IDS
    return prompts, COMPLETIONS


def batch(kind: str = "") -> Rows:
    return pad_batch(*rows(kind), 0, "cpu")


def by_autograd(
    model: torch.nn.Module, v: Mapping[str, torch.Tensor], kind: str = "", temperature=0.7
) -> torch.Tensor:
    """The products of `rows` with v by one backward for each, alone and without padding."""
    values = []
    for prompt, completion in zip(*rows(kind), strict=True):
        one = pad_batch([prompt], [completion], 0, "cpu")
        grads = ghost.gradient(model, [one], [torch.ones(1)], Likelihood(temperature))
        values.append(sum(float((grads[name] * v[name]).sum()) for name in v))
    return torch.tensor(values, dtype=torch.float64)


def directions(model: torch.nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# -- work for an engine under the launcher --------------------------------------------------------

QUESTIONS = ["D3?4=", "A2?3", "B9?9=", "C4?5=", "D6?7="]
ANSWERS = ["7", "6", "81", "9", "13"]
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 0.3, 0.7])
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def fresh_policy(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = hf.LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **shape)
    return Policy(hf.LlamaForCausalLM(config), tokenizer)


def model_config() -> hf.PretrainedConfig:
    """A model whose states outweigh what DeepSpeed holds beside them."""
    return hf.LlamaConfig(vocab_size=len(make_tokenizer()), num_attention_heads=4, **WIDE)


def reduced_gradient(engine: Engine) -> dict[str, torch.Tensor]:
    """The reduced gradient of every parameter, whole."""
    from deepspeed.utils import safe_get_full_grad

    named = engine.model.named_parameters()
    return {
        name: safe_get_full_grad(p).reshape(getattr(p, "ds_shape", p.shape)).clone()
        for name, p in named
    }


def shares(world: int) -> list[list[list[int]]]:
    """QUESTIONS of each rank: uneven, and with unequal numbers of micro-batches."""
    return [[[0, 2], [1], [3], [4]]] if world == 1 else [[[0, 2], [1], [3]], [[4]]]


def idle(batch: Rows) -> Rows:
    return batch[:1]


def same(a, b) -> bool:
    """Whether two states of an engine are equal in all that the first has."""
    return all(torch.equal(a[kind][name], b[kind][name]) for kind in a for name in a[kind])


# -- a run's folder -------------------------------------------------------------------------------

PROBLEMS = 40
SETTINGS = {
    "seed": 0,
    "model.path": "base",
    "task.name": "mine.py:Task",
    "objective.k": 8,
    "objective.k_schedule": None,
    "objective.estimator": "loo",
    "surgery.rule": "none",
    "surgery.mix": 0.5,
    "train.steps": 10,
    "train.prompts": 4,
    "train.samples": 8,
    "train.lr": 1e-3,
}


def make_run(
    folder: Path,
    after: tuple[float, float],
    seed: int = 0,
    exact: bool = True,
    summary: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """A finished run that went from (.5, .8) to `after`; counts are those of sampled answers."""
    (folder / "eval").mkdir(parents=True)
    config = OmegaConf.create({})
    for key, value in (SETTINGS | {"seed": seed} | overrides).items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, folder / "config.yaml")
    ends = {"before": (0.5, 0.8), "after": after}
    kinds = ("exact", "eval") if exact else ("eval",)
    path = ((0, (0.5, 0.8)), (5, (after[0] - 0.1, 0.85)), (10, after))
    write_lines(
        folder / "metrics.jsonl",
        [
            {"step": step}
            | {f"{kind}/pass@1": one for kind in kinds}
            | {f"{kind}/pass@8": eight for kind in kinds}
            for step, (one, eight) in path
        ],
    )
    found = {"run": folder.parent.name, "seed": seed, "k": 8, "steps": 10, "seconds": 10.0}
    for when, values in ends.items():
        counts = [min(8, round(8 * values[0] * 2 * (i % 2))) for i in range(PROBLEMS)]
        write_lines(
            folder / "eval" / f"{when}.jsonl",
            [
                {"id": str(i), "n": 8, "c": c, "verdicts": [j < c for j in range(8)]}
                for i, c in enumerate(counts)
            ],
        )
        found[when] = {
            name: {"value": x, "low": x - 0.01, "high": x + 0.01}
            for name, x in zip(("pass@1", "pass@8"), values, strict=True)
        }
    if exact:
        values = {when: dict(zip(("pass@1", "pass@8"), x, strict=True)) for when, x in ends.items()}
        found["exact"] = {**values, "lowest_pass@1": 0.4, "frontier_share": 0.5}
    (folder / "summary.json").write_text(json.dumps(found | (summary or {})))


def surprise(completions, exact, least=10):
    """Chi-square over whole completions as a standard normal (Wilson-Hilferty): above 3.72 by
    chance once in 10,000. It needs more than `least` cells.
    """
    n, seen = len(completions), dict.fromkeys(exact, 0)
    for completion in completions:
        seen[tuple(completion)] += 1  # one that cannot be is a KeyError
    common = [key for key, p in exact.items() if p * n >= 10]
    rest = n - sum(seen[key] for key in common), n * (1 - sum(exact[key] for key in common))
    cells = [(seen[key], n * exact[key]) for key in common] + ([rest] if rest[1] >= 5 else [])
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    freedom = len(cells) - 1
    assert len(cells) > least
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / 9 / freedom)) / (2 / 9 / freedom) ** 0.5
