"""Sampling against transformers' own, on the same prompts with the same model, interleaved.

python tests/benchmarks/sampling.py [--rounds 7] [--task twin chain] [--samples 4 16 64]
                                    [--tokens 16 64 128] [--paged]

`generate` is model.generate(num_return_sequences=n), `generate_batch` its continuous batching; both
draw from the same distribution, at temperature 1. Prints how many times as long they take, the
median and the quartiles over the rounds. Completions end where the model ends them: all write as
many tokens, but for chance; with --tokens no end is one, and all write exactly so many.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Works = dict[str, Callable[[], object]]


def works(policy: Any, prompts: list[str], n: int, limit: int, paged: bool) -> Works:
    """The same work in several ways; the first is ours."""
    from transformers import GenerationConfig

    from eval.rollout.rollout import Decoding
    from eval.rollout.sample import sample

    model, decoding = policy.model, Decoding(limit)
    taking = Decoding(limit, features=True)
    model.generation_config.eos_token_id = policy.end_ids
    how = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        num_return_sequences=n,
        eos_token_id=policy.end_ids,
        pad_token_id=policy.pad_id,
    )

    def generate() -> None:
        inputs = policy.tokenizer(prompts, return_tensors="pt", padding=True).to(policy.device)
        inputs.pop("token_type_ids", None)
        ids = model.generate(**inputs, generation_config=how)
        policy.tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :])

    def generate_batch() -> None:
        ids = policy.encode(prompts)
        model.generate_batch(ids, generation_config=how, progress_bar=False)

    found: Works = {
        "ours": lambda: sample(policy, prompts, n, decoding, seed=1),
        "with features": lambda: sample(policy, prompts, n, taking, seed=1),
        "generate": generate,
    }
    return found | ({"generate_batch": generate_batch} if paged else {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--task", nargs="+", default=["twin", "chain"])
    parser.add_argument("--samples", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", nargs="+", type=int, help="lengths; else the task's own")
    parser.add_argument("--paged", action="store_true", help="generate_batch too: slow on a CPU")
    arguments = parser.parse_args()

    import torch

    from eval.policy.policy import Policy, load_policy
    from eval.report.tables import table
    from eval.tasks.registry import build_task
    from tests.benchmarks.measuring import in_turn, ratios

    class Endless(Policy):
        end_ids = property(lambda self: [2**30])  # no token's

    rows = []
    for name in arguments.task:
        task = build_task({"name": name})
        policy = load_policy(task.base_model())
        policy.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        prompts = [str(x.prompt) for x in task.training(0, 1, arguments.prompts)]
        lengths = arguments.tokens or [task.max_new_tokens]
        if arguments.tokens:
            policy = Endless(policy.model, policy.tokenizer)
        for limit, n in itertools.product(lengths, arguments.samples):
            ways = works(policy, prompts, n, limit, arguments.paged)
            seconds = in_turn(ways, arguments.rounds)
            for x in list(ways)[1:]:
                cells = ratios(seconds[x], seconds["ours"])
                rows.append([name, str(limit), str(n), x, *cells])
    print(table(["task", "tokens", "n", "", "time / ours", "quartiles"], rows))


if __name__ == "__main__":
    main()
