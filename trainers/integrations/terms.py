"""The settings of TRL's GRPOConfig under which its update is ours, and those that change it.

The update of this project is the mean over prompts of the sum of advantage * grad log pi over a
prompt's completions, with log pi summed over tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

from trainers.config.values import ConfigError

# the factor that makes TRL's loss, with advantages of ours, that update; `tokens` are those of the
# batch whose completions were sampled together, over all processes
SCALES: dict[str, Callable[[Any, float], float]] = {
    "dapo": lambda args, tokens: tokens * args.num_generations / args.generation_batch_size,
    "dr_grpo": lambda args, tokens: args.num_generations * args.max_completion_length,
    "luspo": lambda args, tokens: args.num_generations,
}

Terms = dict[str, tuple[Callable[[Any], bool], str]]

REFUSED: Terms = {
    "scale_rewards": (
        lambda args: args.scale_rewards != "none",
        "objective.estimator makes the advantages, and no scaling would reach them; set 'none' "
        "(the estimator grpo divides by the standard deviation)",
    ),
    "multi_objective_aggregation": (
        lambda args: args.multi_objective_aggregation != "sum_then_normalize",
        "rewards must add up to verdicts of 0 and 1; set 'sum_then_normalize'",
    ),
    "loss_type": (
        lambda args: args.loss_type not in SCALES,
        f"does not weigh all tokens of a batch alike; set one of {', '.join(SCALES)}",
    ),
    "mask_truncated_completions": (
        lambda args: args.mask_truncated_completions,
        "leaves out completions that the advantages of the others count; set False",
    ),
    "top_entropy_quantile": (
        lambda args: args.top_entropy_quantile < 1,
        "leaves out tokens, and the rest is not the gradient of pass@k; set 1.0",
    ),
}

OTHERWISE: Terms = {
    "beta": (lambda args: args.beta != 0, "adds a KL, which no rule measures"),
    "entropy_coef": (
        lambda args: args.entropy_coef != 0 or args.use_adaptive_entropy,
        "adds an entropy, which no rule measures",
    ),
    "num_iterations, steps_per_generation": (
        lambda args: (
            args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations)
        ),
        "only the first update of a sampled batch is the measured one, the others are clipped",
    ),
    "delta": (lambda args: args.delta is not None, "clips ratios once more"),
    "off_policy_mask_threshold": (
        lambda args: args.off_policy_mask_threshold is not None,
        "leaves out completions",
    ),
    "vllm_importance_sampling_correction": (
        lambda args: args.use_vllm and args.vllm_importance_sampling_correction,
        "weighs completions by pi / pi_vllm, after the rule has decided",
    ),
    "top_p, top_k, min_p, repetition_penalty": (
        lambda args: (
            (args.top_p, args.top_k or 0, args.min_p or 0, args.repetition_penalty) != (1, 0, 0, 1)
        ),
        "completions come from another distribution than the one that is trained",
    ),
}


def check(args: Any) -> None:
    """Refuse settings of GRPOConfig under which the update would be another one."""
    lines = [f"GRPOConfig.{name}: {why}" for name, why in _holding(REFUSED, args)]
    if lines:
        raise ConfigError("\n".join(lines))


def departures(args: Any) -> list[str]:
    """Return a phrase for each setting that changes the update and that a user may want."""
    return [f"{name} {why}" for name, why in _holding(OTHERWISE, args)]


def _holding(terms: Terms, args: Any) -> Iterator[tuple[str, str]]:
    for name, (holds, why) in terms.items():
        if holds(args):
            values = ", ".join(repr(getattr(args, x)) for x in name.split(", "))
            yield f"{name} = {values}", why
