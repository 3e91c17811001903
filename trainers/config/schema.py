"""The keys of a configuration: typed sections with the default, range and help of each key.

A help that begins with names and a colon applies to the rules, estimators, tasks or samplers of
these names; `data:` stands for the tasks gsm8k, math and data.
"""

from dataclasses import dataclass, field
from typing import Any


def key(default: Any, text: str, **bounds: float) -> Any:
    """Return a key with its help and its bounds: at_least, above, at_most."""
    metadata = {"help": text} | {name.replace("_", " "): x for name, x in bounds.items()}
    return field(default=default, metadata=metadata)


def choice(text: str, *choices: str) -> Any:
    """Return a key with its help and its possible values; the first is the default."""
    return field(default=choices[0], metadata={"help": text, "one of": choices})


@dataclass
class ModelConfig:
    path: str = key("base", "a folder or a hub id; base: the task's own base policy")
    dtype: str = choice("type of the weights in forward and backward", "float32", "bfloat16")
    attention: str = choice("implementation of attention", "sdpa", "eager", "flash_attention_2")
    gradient_checkpointing: bool = key(False, "recompute activations instead of keeping them")
    lora_rank: int = key(
        0, "rank of a LoRA adapter, trained instead of the model; 0: no adapter", at_least=0
    )
    lora_alpha: int = key(16, "lora_alpha / lora_rank scales the adapter's part", at_least=1)
    lora_targets: str | None = key(
        None, "names of layers with an adapter, such as q_proj,v_proj; null: all linear layers"
    )


@dataclass
class TaskConfig:
    name: str = key("twin", "a name in eval/tasks/registry.py, or file.py:Class")
    verifier: str | None = key(None, "exact, math, boxed or file.py:function; null: the task's own")
    verify_workers: int = key(2, "processes that judge answers", at_least=1)
    verify_seconds: float = key(
        5.0, "seconds to judge one answer; after them it is undecided", above=0
    )
    size: str = choice("chain: size of the stories and of the base", "small", "large")
    stories: int | None = key(
        None, "chain: number of stories to train on, over and over; null: always new", at_least=2
    )
    delta: float = key(2.0, "twin, chain: distance between the cues of easy and hard", at_least=0)
    hard_share: float = key(0.3, "twin, chain: share of hard prompts", at_least=0, at_most=1)
    base_bias: float = key(
        0.12, "twin, chain: rate at which the base gives the hard answer", at_least=0, at_most=1
    )
    base_seed: int = key(0, "twin, chain: seed of the base's own training", at_least=0)
    path: str | None = key(
        None, "data: a hub id, a folder, or a .jsonl, .json, .parquet file; null: the task's own"
    )
    subset: str | None = key(
        None, "data: name of a configuration on the hub; null: the only or default one"
    )
    split: str = key("train", "data: split to train on, or a slice of it, such as train[500:]")
    eval_path: str | None = key(None, "data: like path, for the evaluation; null: the same path")
    eval_subset: str | None = key(None, "data: like subset, for the evaluation; null: the same")
    eval_split: str = key("test", "data: split of the evaluation")
    fields: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "data: field names in the data, such as {problem: question, answer: key.text}"
        },
    )
    template: str = choice("data: chat is the tokenizer's chat template", "chat", "plain")
    prompt: str | None = key(
        None, "data: text around {problem}; null: a text that asks for a boxed answer"
    )
    levels: list[str] = field(
        default_factory=list, metadata={"help": "data: levels to train on; an empty list: all"}
    )
    rates: str | None = key(
        None, "data: records of the base on training problems, from score.py or a run"
    )
    easy_above: float | None = key(
        None, "data: train on problems with a base rate above this", at_least=0, at_most=1
    )
    hard_below: float | None = key(
        None, "data: train on problems with a base rate below this", at_least=0, at_most=1
    )
    decontaminate: bool = key(True, "data: leave out training problems that the evaluation has")
    held_out: int = key(
        0, "data: training problems to set aside, for surgery.hold=control", at_least=0
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "settings of a task of your own, by name"}
    )


@dataclass
class ObjectiveConfig:
    k: int = key(8, "the k of pass@k", at_least=1)
    k_schedule: str | None = key(
        None, "later k, such as 4@50,1@100: 4 from step 50 on, 1 from step 100 on"
    )
    estimator: str = key("loo", "a name in surgery/estimators.py")
    beta: float = key(4.0, "risk: inverse temperature", above=0)
    alpha: float = key(0.5, "power: exponent", above=0)
    epsilon: float = key(1e-6, "grpo, focal: added to the standard deviation", above=0)
    gamma: float = key(1.0, "focal: exponent of the share of wrong answers", at_least=0)
    window: int = key(10, "curverl: number of earlier batches in its reference", at_least=1)
    prior_right: float = key(1.0, "posterior_passk: right answers that the prior adds", above=0)
    prior_wrong: float = key(1.0, "posterior_passk: wrong answers that the prior adds", above=0)
    filter: bool = key(
        False, "leave prompts with only right or only wrong answers out of the batch's mean"
    )


@dataclass
class SurgeryConfig:
    rule: str = key("none", "a name in surgery/rules.py, or file.py:function")
    measure: str = choice(
        "gradients of the last layer, or of all parameters (ghost)", "last_layer", "ghost", "none"
    )
    statistic: str = choice(
        "naive: keeps each prompt's product with itself, which hides conflicts", "loo", "naive"
    )
    metric: str = choice(
        "adam: products in the optimiser's metric, with ghost only", "euclid", "adam"
    )
    ema: float = key(0.9, "smoothing of the measured products; 0: none", at_least=0, at_most=0.999)
    every: int = key(1, "steps between measurements; other steps reuse the products", at_least=1)
    modules: str | None = key(
        None, "ghost: a regular expression of parameter names; null: all parameters"
    )
    min_coverage: float = key(
        1.0, "ghost: smallest allowed share of measured parameters", at_least=0, at_most=1
    )
    realised_every: int = key(
        10, "steps between measurements of <J_1, the step taken>; 0: never", at_least=0
    )
    mix: float = key(0.5, "mix: weight of pass@1 beside pass@k", at_least=0)
    margin: float = key(0.0, "pcgrad: <update, J_1> >= margin |J_1|^2 at the floor", at_least=0)
    cap: float = key(10.0, "largest weight of pass@1 in every rule that computes one", above=0)
    cosine: float = key(
        0.0, "gradvac: least cosine of the update and J_1", at_least=0, at_most=0.999
    )
    radius: float = key(
        0.5,
        "cagrad: allowed distance from the mean gradient, relative to its length",
        at_least=0,
        at_most=1,
    )
    tau: float = key(1.0, "agreement_*: weight that replaces the prompt's own", at_least=0)
    softness: float = key(1.0, "agreement_soft: width of the transition; 0: none", at_least=0)
    tolerance: float = key(
        0.0,
        "floor, pcgrad: allowed fall of pass@1 below the base; negative: required rise above it",
        at_least=-1,
        at_most=1,
    )
    gain: float = key(20.0, "floor: weight of pass@1 per unit of the gap", at_least=0)
    restore: float = key(
        40.0, "pcgrad: weight of pass@1 per unit below its floor; 0: projection alone", at_least=0
    )
    relax: float = key(
        8.0,
        "pcgrad: weight of pass@1 removed per unit above its floor, divided by the pace",
        at_least=0,
    )
    early: float = key(
        0.02,
        "pcgrad: how much higher than at the end the floor begins; sinks with the pace",
        at_least=0,
    )
    rate_ema: float = key(
        0.8, "floor, pcgrad: smoothing of the batch's pass@1", at_least=0, at_most=0.999
    )
    hold: str = choice(
        "floor, pcgrad: hold pass@1 on training prompts, or on prompts never trained on",
        "train",
        "control",
    )
    control_prompts: int = key(
        32, "hold=control: prompts that each step judges and does not train on", at_least=2
    )
    start: float = key(2.0, "floor: weight of pass@1 at the start", at_least=0)
    lead: float = key(8.0, "pcgrad: steps ahead for which the gap is predicted", at_least=0)
    integral_gain: float = key(
        1.0, "floor: weight of pass@1 per unit of the summed gap", at_least=0
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "settings of a rule of your own, by name"}
    )


@dataclass
class TrainConfig:
    steps: int = key(150, "steps of training in all", at_least=1)
    prompts: int = key(128, "prompts of a step, on all ranks together", at_least=1)
    samples: int = key(16, "completions of a prompt", at_least=2)
    sampler: str = choice(
        "choice of the prompts; informative: by the signal expected from earlier answers",
        "uniform",
        "informative",
    )
    candidates: int = key(8, "informative: problems from which each prompt is chosen", at_least=2)
    uniform_share: float = key(
        0.3,
        "informative: share of uniform choice; bounds a prompt's importance",
        above=0,
        at_most=1,
    )
    history_decay: float = key(
        0.9,
        "informative: factor on an answer's weight for each step of its age",
        above=0,
        at_most=1,
    )
    temperature: float = key(
        1.0, "temperature of the logits, in sampling and in log-probabilities", above=0
    )
    entropy_coef: float = key(
        0.0, "weight of the completions' entropy beside the rewards", at_least=0
    )
    kl_coef: float = key(0.0, "weight of the completions' KL to the base", at_least=0)
    updates: int = key(1, "optimiser steps for each batch of rollouts", at_least=1)
    ratio_clip: float = key(0.2, "PPO's clip of the ratio, in all updates but the first", above=0)
    rollouts: str = choice(
        "sampler of training, evaluation, score.py and diagnose.py", "cached", "continuous", "vllm"
    )
    rollout_tokens: int | None = key(
        None,
        "rows times columns sampled at once; null: as many as fit a GPU, 65,536 on a CPU",
        at_least=1,
    )
    cuda_graph: bool = key(True, "cached, on a GPU: run the work of one token as a CUDA graph")
    max_new_tokens: int | None = key(
        None, "tokens of the longest completion; null: as the task needs", at_least=1
    )
    lr: float = key(6e-4, "learning rate after the warm-up", above=0)
    schedule: str = choice(
        "learning rate after the warm-up; linear and cosine fall towards 0",
        "linear",
        "constant",
        "cosine",
    )
    warmup_steps: int | None = key(
        None, "steps of rising learning rate; null: a third of train.steps", at_least=0
    )
    beta_1: float = key(0.9, "decay of AdamW's first moment", at_least=0, at_most=0.9999)
    beta_2: float = key(0.95, "decay of AdamW's second moment", at_least=0, at_most=0.99999)
    epsilon: float = key(1e-8, "AdamW's addition to the denominator", above=0)
    weight_decay: float = key(0.0, "AdamW's weight decay", at_least=0)
    grad_clip: float = key(1.0, "largest gradient norm; 0: no clipping", at_least=0)
    zero_stage: int = key(0, "DeepSpeed's ZeRO stage", at_least=0, at_most=3)
    offload: str = choice(
        "parts kept in CPU memory; all: optimiser and weights", "none", "optimizer", "all"
    )
    logprob_chunk: int = key(0, "positions whose logits exist at once; 0: all", at_least=0)
    micro_batch_tokens: int = key(
        65536, "rows times columns of one forward and backward", at_least=1
    )
    max_bad_steps: int = key(5, "non-finite gradients in a row that end the run", at_least=1)
    save_every: int = key(50, "steps between checkpoints; 0: only at the end", at_least=0)
    keep: int = key(2, "number of newest checkpoints to keep, beside the best one", at_least=1)
    best_metric: str = key("eval/pass@1", "scalar that chooses the best checkpoint")
    best_constraint: str | None = key(
        None, "condition on the best checkpoint, such as eval/pass@8>=0.9"
    )


@dataclass
class RolloutConfig:
    """The section of the sampler `vllm`."""

    urls: list[str] = field(
        default_factory=list,
        metadata={"help": "vllm: servers that share the prompts, such as [http://127.0.0.1:8000]"},
    )
    sync_dir: str | None = key(
        None, "vllm: a folder, best in memory, through which the servers get this run's weights"
    )
    timeout: float = key(600.0, "vllm: seconds in which a server must answer", above=0)
    mismatch: float | None = key(
        None,
        "vllm: largest mean |log pi - log pi_served| of a token; null: 0.001, in bfloat16 0.05",
        above=0,
    )
    correction: str = choice(
        "vllm: truncate weighs each token by min(pi / pi_served, rollout.cap)", "none", "truncate"
    )
    cap: float = key(2.0, "vllm: largest weight of rollout.correction=truncate", at_least=1)


@dataclass
class EvalConfig:
    every: int = key(
        25, "steps between evaluations in the run; 0: only before and after", at_least=0
    )
    k: int | None = key(None, "largest k; null: objective.k", at_least=1)
    problems: int = key(500, "problems of an evaluation", at_least=2)
    samples: int = key(32, "answers to a problem", at_least=1)
    temperature: float = key(1.0, "temperature of the answers; 0: greedy", at_least=0)
    top_p: float = key(1.0, "share of the probability that is sampled", above=0, at_most=1)
    max_new_tokens: int | None = key(
        None, "tokens of the longest answer; null: as in training", at_least=1
    )
    seed: int = key(0, "seed of the answers, the same before and after", at_least=0)


@dataclass
class DiagnoseConfig:
    """The section of launch/diagnose.py; the defaults are those of arXiv 2602.21189."""

    prompts: int = key(500, "number of prompts, drawn as in training", at_least=4)
    samples: int = key(32, "completions of a prompt", at_least=2)
    k: int | None = key(None, "the k of pass@k; null: diagnose.samples", at_least=2)
    temperature: float = key(0.7, "temperature of the completions", above=0)
    top_p: float = key(0.95, "share of the probability that is sampled", above=0, at_most=1)
    measure: str = choice(
        "ghost: measures all parameters and, for comparison, the last layer", "ghost", "last_layer"
    )
    seed: int = key(0, "seed of the prompts and of the answers", at_least=0)


@dataclass
class RunConfig:
    dir: str | None = key(
        None, "the run's folder; null: runs/<name of the configuration>/seed<seed>"
    )
    base: str | None = key(
        None, "folder of a run from the same base; this run uses its eval/before.jsonl"
    )
    threads: int = key(0, "CPU threads of a rank; 0: an equal share of the cores", at_least=0)


@dataclass
class LoggingConfig:
    rollouts_every: int = key(10, "steps between entries of rollouts.jsonl; 0: never", at_least=0)
    kl_every: int = key(
        10, "steps between estimates of the KL to the base, a second model; 0: never", at_least=0
    )
    histograms_every: int = key(10, "steps between histograms; 0: never", at_least=0)
    images_every: int = key(
        50, "steps between scatter plots of weight against agreement; 0: never", at_least=0
    )


@dataclass
class Config:
    seed: int = key(0, "seed of the run: data, sampling, weights of adapters", at_least=0)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    surgery: SurgeryConfig = field(default_factory=SurgeryConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)
    run: RunConfig = field(default_factory=RunConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
