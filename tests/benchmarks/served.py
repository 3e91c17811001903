"""Tokens a second of all samplers, interleaved: the project's own, transformers' and vLLM's.

OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/served.py --python VENV/bin/python
    [--rounds 5] [--models twin chain large]

VENV is an environment with vLLM, whose server runs beside this process, under the same limits. The
models have random weights in the shapes of `twin`, `chain` and its large base of 46 M parameters,
with heads that vLLM takes on a CPU. Each sampler draws, and the policy gives log-probabilities.
Prints medians and quartiles over the rounds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# task, its options, its prompts and samples, heads
MODELS: dict[str, tuple[str, dict[str, str], int, int, int]] = {
    "twin": ("twin", {}, 64, 16, 2),
    "chain": ("chain", {"size": "small"}, 64, 16, 3),
    "large": ("chain", {"size": "large"}, 8, 8, 8),
}


def save(name: str, folder: Path) -> Any:
    """Write a model with its tokenizer; return its task."""
    import torch
    from transformers import LlamaForCausalLM

    from eval.tasks import chain_base, twin_base
    from eval.tasks.registry import build_task

    of_task, options, _, _, heads = MODELS[name]
    task = build_task({"name": of_task, **options})
    shape = task.base_config()
    shape.num_attention_heads = shape.num_key_value_heads = heads
    shape.head_dim = shape.hidden_size // heads
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)
    source = twin_base if of_task == "twin" else chain_base
    source.make_tokenizer().save_pretrained(folder)
    return task


def speeds(name: str, python: str, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each sampler in each round."""
    from eval.policy.policy import load_policy
    from eval.rollout.rollout import Decoding, Servers
    from eval.rollout.sample import sample
    from tests.benchmarks.measuring import in_turn
    from tests.commands import free_port, serving
    from trainers.engine.sync import Sync

    of_task, options, count, n, _ = MODELS[name]
    with tempfile.TemporaryDirectory() as place:
        task = save(name, Path(place) / "model")
        policy = load_policy(f"{place}/model")
        policy.model.eval()
        prompts = [x.prompt for x in task.training(0, 1, count)]
        keys = [f"task.{key}={x}" for key, x in ({"name": of_task} | options).items()]
        own = ["--python", python, "--port", free_port(), f"model.path={place}/model", *keys]
        with serving(Path(place), str(ROOT / "configs" / "base.yaml"), *own) as (found, _):
            servers = Servers((found[1].partition("[")[2].rstrip("]"),), 600.0, 1e-3)
            Sync(servers, Path(place) / "sync", None)(policy, 0)
            how = {
                x: Decoding(task.max_new_tokens, sampler=x, token_budget=65_536, servers=servers)
                for x in ("cached", "continuous", "vllm")
            }
            works = {x: lambda x=x: sample(policy, prompts, n, how[x], seed=1) for x in how}
            tokens = {x: int(works[x]().lengths.sum()) for x in works}
            seconds = in_turn(works, rounds)
    return {x: [tokens[x] / spent for spent in seconds[x]] for x in works}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="python of an environment with vLLM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()

    import torch

    from eval.report.tables import table

    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        for sampler, values in speeds(name, arguments.python, arguments.rounds).items():
            low, middle, high = statistics.quantiles(values, n=4)
            rows.append([name, sampler, f"{middle:,.0f}", f"{low:,.0f} – {high:,.0f}"])
    print(table(["model", "sampler", "tokens / s", "quartiles"], rows))


if __name__ == "__main__":
    main()
