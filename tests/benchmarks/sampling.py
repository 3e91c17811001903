"""Sampling against transformers' own, on the same prompts with the same model, interleaved.

python tests/benchmarks/sampling.py [--rounds 7] [--task twin chain] [--samples 4 16 64] [--tokens N]

`generate` is model.generate(num_return_sequences=n), `generate_batch` its continuous batching; both
draw from the same distribution, at temperature 1. Prints how many times as long they take, the
median and the quartiles over the rounds. Completions end where the model ends them: all three write
as many tokens, but for chance. --tokens cuts them all at that many.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--task", nargs="+", default=["twin", "chain"])
    parser.add_argument("--samples", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, help="the limit; without it the task's own")
    parser.add_argument("--paged", action="store_true", help="generate_batch too: slow on a CPU")
    arguments = parser.parse_args()

    import torch
    from transformers import GenerationConfig

    from eval.policy import load_policy
    from eval.report import table
    from eval.sampling import Decoding, sample
    from eval.tasks import build_task

    def clock(work: Callable[[], object]) -> float:
        start = time.monotonic()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic() - start

    rows = []
    for name in arguments.task:
        task = build_task({"name": name})
        policy = load_policy(task.base_model())
        policy.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        tokenizer, limit = policy.tokenizer, arguments.tokens or task.max_new_tokens
        prompts = [x.prompt for x in task.training(0, 1, arguments.prompts)]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(policy.device)
        inputs.pop("token_type_ids", None)
        for n in arguments.samples:
            how = GenerationConfig(
                max_new_tokens=limit,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                num_return_sequences=n,
                eos_token_id=policy.end_ids,
                pad_token_id=policy.pad_id,
            )
            works: dict[str, Callable[[], object]] = {
                "ours": lambda: sample(policy, prompts, n, Decoding(limit), seed=1),
                "with features": lambda: sample(
                    policy, prompts, n, Decoding(limit), seed=1, features=True
                ),
                "generate": lambda: policy.model.generate(**inputs, generation_config=how),
            }
            if arguments.paged:
                ids = policy.encode(prompts)
                works["generate_batch"] = lambda: policy.model.generate_batch(
                    ids, generation_config=how, progress_bar=False
                )
            seconds: dict[str, list[float]] = {x: [] for x in works}
            for turn in range(arguments.rounds + 1):
                for x, work in works.items():
                    spent = clock(work)
                    if turn:  # the first warms up
                        seconds[x].append(spent)
            for x in list(works)[1:]:
                ratios = [b / a for a, b in zip(seconds["ours"], seconds[x], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                rows.append([name, str(n), x, f"{middle:.2f}", f"{low:.2f} – {high:.2f}"])
    print(table(["task", "n", "", "time / ours", "quartiles"], rows))


if __name__ == "__main__":
    main()
