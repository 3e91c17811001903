"""What can be set: typed sections with their defaults and the range of each key."""

from dataclasses import dataclass, field
from typing import Any


def at_least(low: float, default: Any) -> Any:
    return field(default=default, metadata={"at least": low})


def above(low: float, default: Any) -> Any:
    return field(default=default, metadata={"above": low})


def between(low: float, high: float, default: Any) -> Any:
    return field(default=default, metadata={"at least": low, "at most": high})


def one_of(*choices: str) -> Any:
    """The first is the default."""
    return field(default=choices[0], metadata={"one of": choices})


@dataclass
class ModelConfig:
    path: str = "base"  # "base" is the task's own base policy; or a folder, or a hub id
    dtype: str = one_of("float32", "bfloat16")
    attention: str = one_of("sdpa", "eager", "flash_attention_2")
    gradient_checkpointing: bool = False
    lora_rank: int = at_least(0, 0)  # of an adapter that is trained instead of the model; 0: none
    lora_alpha: int = at_least(1, 16)  # the adapter's part is scaled by lora_alpha / lora_rank
    lora_targets: str | None = None  # names of layers, such as q_proj,v_proj; null: all linear ones


@dataclass
class TaskConfig:
    name: str = "twin"  # a name in eval/tasks/, or file.py:Class
    verifier: str | None = None  # null: the task's own; exact, math, boxed, or file.py:function
    verify_workers: int = at_least(1, 2)
    verify_seconds: float = above(
        0, 5.0
    )  # a judge that takes longer is ended, its verdict is undecided
    size: str = one_of("small", "large")  # chain: of its stories and its base
    delta: float = at_least(0, 2.0)  # twin, chain: how far the cue tells easy from hard
    hard_share: float = between(0, 1, 0.3)  # twin, chain: share of hard prompts
    base_bias: float = between(0, 1, 0.12)  # twin, chain: how often the base gives the hard answer
    base_seed: int = at_least(0, 0)  # twin, chain: seed of the base's own training
    # gsm8k, math, data: a hub id, a folder in the hub's format, or a .jsonl, .json, .parquet file;
    # null: the task's own on the hub, and for the evaluation the same as for training
    path: str | None = None
    subset: str | None = None  # the hub's name of a configuration; null: the only or default one
    split: str = "train"  # slices too, such as train[500:]
    eval_path: str | None = None
    eval_subset: str | None = None
    eval_split: str = "test"
    # the data's own names, dots reaching inside: {problem: question, answer: key.text}
    fields: dict[str, str] = field(default_factory=dict)
    template: str = one_of("chat", "plain")  # chat: the tokenizer's own
    prompt: str | None = None  # the text around {problem}; null: one that asks for a boxed answer
    levels: list[str] = field(default_factory=list)  # train on these; none named: on all
    rates: str | None = None  # records of the base on training problems: of score.py, or a run
    easy_above: float | None = between(0, 1, None)  # train on what the base solves more often ..
    hard_below: float | None = between(0, 1, None)  # .. or less often than this; null: on none such
    decontaminate: bool = True  # leave out training problems that the evaluation has too
    options: dict[str, Any] = field(default_factory=dict)  # of a task of your own


@dataclass
class ObjectiveConfig:
    k: int = at_least(1, 8)
    k_schedule: str | None = None  # such as 4@50,1@100: k is 4 from step 50 on, 1 from 100 on
    estimator: str = "loo"
    beta: float = above(0, 4.0)  # estimator risk
    alpha: float = above(0, 0.5)  # estimator power
    epsilon: float = above(0, 1e-6)  # estimator grpo


@dataclass
class SurgeryConfig:
    rule: str = "none"  # a name in surgery/rules.py, or file.py:function
    measure: str = one_of("last_layer", "ghost", "none")
    statistic: str = one_of("loo", "naive")
    metric: str = one_of(
        "euclid", "adam"
    )  # adam: products in the optimiser's metric, by ghost only
    ema: float = between(0, 0.999, 0.9)  # smoothing of the measured products; 0 is none
    every: int = at_least(1, 1)  # measure every so many steps; the products hold in between
    modules: str | None = None  # ghost: a regular expression of parameter names; null is all
    min_coverage: float = between(0, 1, 1.0)  # ghost: refuse to measure less of the parameters
    realised_every: int = at_least(0, 10)  # steps between looks at the step really taken; 0: never
    mix: float = at_least(0, 0.5)  # mix: weight of pass@1 beside pass@k
    margin: float = at_least(0, 0.0)  # pcgrad: <update, J_1> >= margin |J_1|^2 at the floor
    cap: float = above(0, 10.0)  # the largest coefficient of all rules that measure one
    cosine: float = between(0, 0.999, 0.0)  # gradvac: the least cosine of update and J_1
    radius: float = between(0, 1, 0.5)  # cagrad: how far from the mean gradient
    tau: float = at_least(0, 1.0)  # agreement_*: the weight that is given instead
    softness: float = at_least(0, 1.0)  # agreement_soft: 0 is agreement_clip
    # floor, pcgrad: how far pass@1 may fall below the base; negative: how far above it is held
    tolerance: float = between(-1, 1, 0.0)
    gain: float = at_least(0, 20.0)  # floor, pcgrad: weight of pass@1 for each unit of the gap
    rate_ema: float = between(0, 0.999, 0.8)  # floor, pcgrad: smoothing of the batch's pass@1
    start: float = at_least(0, 2.0)  # floor: weight of pass@1 to begin with
    lead: float = at_least(0, 2.0)  # pcgrad: steps ahead at which the gap is read
    integral_gain: float = at_least(0, 1.0)  # floor
    options: dict[str, Any] = field(default_factory=dict)  # of a rule of your own


@dataclass
class TrainConfig:
    steps: int = at_least(1, 150)
    prompts: int = at_least(1, 128)  # per step, over all ranks
    samples: int = at_least(2, 16)  # completions per prompt
    temperature: float = above(
        0, 1.0
    )  # scales the logits in sampling and in log-probabilities alike
    entropy_coef: float = at_least(0, 0.0)  # weight of the completions' entropy beside the rewards
    kl_coef: float = at_least(0, 0.0)  # weight of the completions' KL to the base
    updates: int = at_least(1, 1)  # optimiser steps for each batch of rollouts
    ratio_clip: float = above(0, 0.2)  # PPO's, of all updates but the first
    top_p: float = 1.0
    rollouts: str = one_of("cached", "continuous")  # what samples, in evaluation too
    max_new_tokens: int | None = at_least(1, None)  # null: what the task needs
    lr: float = above(0, 6e-4)
    schedule: str = one_of(
        "linear", "constant", "cosine"
    )  # after the warm-up; linear and cosine fall towards 0
    warmup_steps: int | None = at_least(0, None)  # null: a third of train.steps
    beta_1: float = between(0, 0.9999, 0.9)
    beta_2: float = between(0, 0.99999, 0.95)
    epsilon: float = above(0, 1e-8)
    weight_decay: float = at_least(0, 0.0)
    grad_clip: float = at_least(0, 1.0)  # largest gradient norm; 0 is no clipping
    zero_stage: int = between(0, 3, 0)
    offload: str = one_of("none", "optimizer", "all")  # to CPU memory; all: the weights too
    logprob_chunk: int = at_least(0, 0)  # positions whose logits exist at once; 0: all
    micro_batch_tokens: int = at_least(1, 65536)  # rows times columns of one forward and backward
    max_bad_steps: int = at_least(1, 5)  # stop after so many non-finite gradients in a row
    save_every: int = at_least(0, 50)  # steps between checkpoints; 0: only at the end
    keep: int = at_least(1, 2)  # newest checkpoints to keep; the best one is kept besides
    best_metric: str = "eval/pass@1"  # the evaluation's scalar that names the best checkpoint
    best_constraint: str | None = None  # such as eval/pass@8>=0.9


@dataclass
class EvalConfig:
    every: int = at_least(
        0, 25
    )  # steps between evaluations during the run; 0: only before and after
    k: int | None = at_least(1, None)  # largest k; null: objective.k
    problems: int = at_least(2, 500)
    samples: int = at_least(1, 32)
    temperature: float = at_least(0, 1.0)
    top_p: float = field(default=1.0, metadata={"above": 0, "at most": 1})
    seed: int = at_least(0, 0)  # of the answers' random stream: the same before and after


@dataclass
class DiagnoseConfig:
    """Of launch/diagnose.py; the defaults are those of arXiv 2602.21189."""

    prompts: int = at_least(4, 500)  # drawn as in training
    samples: int = at_least(2, 32)  # completions per prompt
    k: int | None = at_least(2, None)  # null: diagnose.samples
    temperature: float = above(0, 0.7)
    top_p: float = field(default=0.95, metadata={"above": 0, "at most": 1})
    measure: str = one_of("ghost", "last_layer")  # ghost measures both, and compares them
    seed: int = at_least(0, 0)  # of the prompts and of the answers


@dataclass
class RunConfig:
    dir: str | None = None  # null: runs/<name of the configuration>/seed<seed>
    base: str | None = None  # folder of a run from the same base, whose eval/before.jsonl is taken
    threads: int = at_least(0, 0)  # CPU threads of a rank; 0: the cores shared out among the ranks


@dataclass
class LoggingConfig:
    rollouts_every: int = at_least(0, 10)  # steps between looks into the rollouts; 0: never
    kl_every: int = at_least(
        0, 10
    )  # steps between estimates of the KL to the base (holds a second model); 0: never
    histograms_every: int = at_least(0, 10)
    images_every: int = at_least(0, 50)  # steps between scatter plots of weight against agreement


@dataclass
class Config:
    seed: int = at_least(0, 0)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    run: RunConfig = field(default_factory=RunConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
