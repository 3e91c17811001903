"""What a run will need of a rank's memory, moment by moment, before anything is loaded.

With P parameters, T of them trainable, b bytes a number in the model's dtype, N ranks:

                    ZeRO 0   1       2       3
    parameters      bP       bP      bP      bP/N, and those below DeepSpeed's threshold whole
    fp32 copy       –        4T/N    4T/N    4T/N
    Adam            8T       8T/N    8T/N    8T/N
    gradients       bT       4T      4T/N    4T/N

Under ZeRO gradients add up in float32. They are there at all times under ZeRO-3, and in bfloat16
under ZeRO-1; else only from the first backward of a step to its end.

These are exact, up to the padding of partitions, and so are the cache and all that is as large as
the model: directions of `ghost`, snapshots of watched steps, the reference, ZeRO-3's whole copy.
Activations and logits are rehearsed (`rehearsal.py`), at prompts of an assumed length and
completions of the full length. Buckets and the step's own copies are upper bounds. Host memory
under offload is by DeepSpeed's description; saving takes fp32 parameters, moments and the model.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from eval.report.tables import table
from eval.rollout.continuous import FORWARD, PAGE
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.job import Job
from trainers.plan.rehearsal import Cost, Rehearsal, Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Held = dict[str, int]  # bytes by what they are for


GIB = 2**30


# DeepSpeed's defaults, in numbers: a bucket of gradients; what ZeRO-3 gathers at once, and what it
# never shards
BUCKET, GATHERED, THRESHOLD = 500_000_000, 1_000_000_000, 100_000


def states(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> tuple[Held, Held]:
    """(device, host): what a rank holds at all times."""
    share = math.ceil(sizes.trainable / ranks)
    sharded = math.ceil(sizes.parameters / ranks)
    weights = {"parameters": sizes.element * sizes.parameters}
    optimizer = {"fp32 copy": 4 * share, "Adam": 8 * share}
    if stage == 0:
        return weights | {"Adam": 8 * sizes.trainable}, {}
    small = sizes.small if ranks > 1 else 0
    if stage == 3:
        weights = {"parameters": sizes.element * (sharded + small)}
    if stage == 3 or offload != "none":
        optimizer["gradients"] = 4 * share
    elif stage == 1 and sizes.element != 4:
        optimizer["gradients"] = 4 * sizes.trainable
    buckets = {"ZeRO's buckets": sizes.element * BUCKET} if stage == 3 else {}
    if offload == "none":
        return weights | optimizer | buckets, {}
    if offload == "all" and stage == 3:
        return {"parameters": sizes.element * small} | buckets, weights | optimizer
    return weights | buckets, optimizer


def backward(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> Held:
    """What accumulating and reducing gradients adds: at most a bucket, and a copy of one. ZeRO-2
    offloads the sum of bfloat16 gradients only when it is complete.
    """
    share, casts = math.ceil(sizes.trainable / ranks), sizes.element != 4
    flush = sizes.element * min(sizes.trainable, BUCKET)
    if stage == 0:
        return {"gradients": sizes.element * sizes.trainable, "ZeRO's buckets": flush}
    if stage == 3:
        gathered = min(sizes.parameters - sizes.small, GATHERED)
        return {"gathered weights": sizes.element * gathered, "ZeRO's buckets": flush}
    if stage == 1:
        return _backward_1(sizes, share, offload)
    gradients = {"gradients": 4 * share} if offload == "none" or casts else {}
    return gradients | {"ZeRO's buckets": sizes.element * BUCKET + flush}


def _backward_1(sizes: Sizes, share: int, offload: str) -> Held:
    """ZeRO-1 holds all gradients until the last backward, and reduces them in float32. In bfloat16
    those of one backward come on top, and under offload this rank's part of the sum.
    """
    whole, flush = 4 * sizes.trainable, 4 * min(sizes.trainable, BUCKET)
    if sizes.element == 4:
        return {"gradients": whole, "ZeRO's buckets": 4 * BUCKET + flush}
    one = {"one backward's gradients": sizes.element * sizes.trainable}
    if offload == "none":
        return one | {"ZeRO's buckets": flush}
    return one | {"gradients": whole + 4 * share, "ZeRO's buckets": 4 * BUCKET + flush}


def step(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> Held:
    """What the optimiser's step adds: the gradient of its part in fp32, and AdamW's square root and
    quotient.
    """
    if stage == 0:
        return {"gradients": 4 * sizes.trainable, "the step's copies": 4 * sizes.trainable}
    if offload != "none":
        return {}
    gradient = 0 if stage == 1 and sizes.element != 4 else 4  # a view of what is always there
    return {"the step's copies": (8 + gradient) * math.ceil(sizes.trainable / ranks)}


def ghost(sizes: Sizes, halves: int, adam: bool) -> dict[str, Held]:
    """What measuring by `ghost` holds: C parameters measured, in `halves` of the batch.

    J_1 of each half in fp32, while one backward's gradients are added to the last; v in the model's
    dtype while it is probed, which of two halves begins beside the second J_1; J_k likewise, beside
    J_1; in the end the means of both as well. In Adam's metric its scale, of all that is trained,
    comes on top, and every direction in use is there scaled as well.
    """
    wide, own = 4 * sizes.chosen, sizes.element * sizes.chosen
    scale, cast = 4 * sizes.trainable * adam, own * (sizes.element != 4)

    def directions(count: int) -> Held:
        return {"ghost's directions": count * wide + scale}

    v = {"v in the model's dtype": cast}
    gradients = {"one backward's gradients": own}
    early = halves == 2
    return {
        "J_1": directions(halves + adam * early) | gradients | (v if early else {}),
        "probe": directions(halves + adam) | v,
        "J_k": directions(2 * halves) | gradients,
        "products": directions(2 * halves + 2 + 3 * adam),
    }


@dataclass(frozen=True)
class Micro:
    """The shapes of one rank's work."""

    rows: int
    prompt: int
    completion: int

    @classmethod
    def within(cls, budget: int, prompt: int, completion: int, least: int = 1) -> "Micro":
        """As many rows as fit a budget of tokens, in multiples of `least`, and no fewer."""
        count = max(1, budget // (least * (prompt + completion)))
        return cls(least * count, prompt, completion)


def sampling(rehearsal: Rehearsal, work: Micro, prompts: int, n: int, top_p: float) -> Held:
    """The cache of one decoding batch; the larger of a token's forward and of drawing it: logits,
    log pi in fp32, two arrays in float64 for its sum (below top_p = 1 the sort's four and more);
    and the features of all completions of this rank, if any.
    """
    cache, forward = rehearsal.decoding(work.rows, work.prompt, work.completion)
    sizes = rehearsal.sizes()
    number = sizes.element + (20 if top_p == 1 else 41)
    drawing = work.rows * rehearsal.vocabulary * number
    features = {"features": 4 * prompts * n * sizes.width} if prompts else {}
    if rehearsal.config.train.rollouts == "continuous":
        return _continuous(rehearsal, work, cache, number) | features
    return {"cache": cache, "drawing a token": max(forward, drawing)} | features


def _continuous(rehearsal: Rehearsal, work: Micro, cache: int, number: int) -> Held:
    """A paged cache of as many tokens as a micro-batch, one row at least, and a token's logits of
    all rows in a forward; or, when it is gone, all logits of the micro-batch that is measured.
    """
    longest, budget = work.prompt + work.completion, rehearsal.config.train.micro_batch_tokens
    pages = max(budget // PAGE, -(-longest // PAGE) + 1)
    paged = cache // (work.rows * longest) * pages * PAGE
    drawing = FORWARD * rehearsal.vocabulary * number
    rows = Micro.within(budget, work.prompt, work.completion).rows
    measured = rows * (work.completion + 1) * rehearsal.vocabulary * number
    if measured > paged + drawing:
        return {"measuring what was drawn": measured}
    return {"cache": paged, "drawing a token": drawing}


def _micro_batch(cost: Cost) -> Held:
    return {"activations": cost.activations, "logits": cost.logits}


def training(
    config: Config, rehearsal: Rehearsal, ranks: int, prompt: int
) -> tuple[dict[str, Held], Held]:
    """The moments of a run with all that each of them holds, and what the host holds."""
    train, surgery, evaluation = config.train, config.surgery, config.eval
    new = Job(config).max_new_tokens
    stage, offload = train.zero_stage, train.offload
    sizes = rehearsal.sizes(THRESHOLD)
    whole = sizes.element * sizes.parameters
    micro = Micro.within(train.micro_batch_tokens, prompt, new)
    held = _micro_batch(rehearsal.micro_batch(micro.rows, prompt, new, train.temperature))
    always, host = states(sizes, stage, ranks, offload)
    host |= {"saving, on rank 0 alone": 12 * sizes.trainable + whole}
    if (config.logging.kl_every or train.kl_coef) and not config.model.lora_rank:
        always["reference model"] = whole
    policy = {"whole copy": whole} if stage == 3 else {}
    by_ghost = surgery.measure == "ghost"

    def decoded(n: int, top_p: float, prompts: int) -> Held:
        work = Micro.within(train.micro_batch_tokens, prompt, new, n)
        return policy | sampling(rehearsal, work, prompts, n, top_p)

    features = math.ceil(train.prompts / ranks) if surgery.measure == "last_layer" else 0
    moments: dict[str, Held] = {
        "evaluating": decoded(evaluation.samples, evaluation.top_p, 0),
        "sampling": decoded(train.samples, 1.0, features),
    }
    if by_ghost:
        halves = 2 if surgery.statistic == "loo" else 1
        found = ghost(sizes, halves, surgery.metric == "adam")
        moments |= {name: policy | x | held for name, x in found.items() if name != "products"}
        moments["products"] = found["products"]
    moments["backward"] = backward(sizes, stage, ranks, offload) | held
    moments["step"] = step(sizes, stage, ranks, offload)
    if surgery.realised_every:
        _watch(moments, sizes, policy | held)
    return {name: _sum(always, x) for name, x in moments.items()}, host


def _watch(moments: dict[str, Held], sizes: Sizes, held: Held) -> None:
    """A watched step: a float32 snapshot of what is trained before it, which becomes the difference
    and stays until it is held against the next J_1.
    """
    snapshot, whole = "watched step", 4 * sizes.trainable
    for name in ("sampling", "backward", "step"):
        moments[name][snapshot] = whole
    gradient = (4 + sizes.element) * sizes.trainable
    moments["realised"] = held | {snapshot: whole, "J_1 of the next batch": gradient}


def diagnosis(
    config: Config, rehearsal: Rehearsal, ranks: int, prompt: int
) -> tuple[dict[str, Held], Held]:
    """The moments of launch/diagnose.py, which holds the whole model on each rank: sampling; the
    sum J_b in fp32 while one backward's gradients are added; its products with every answer.
    """
    options, budget = config.diagnose, config.train.micro_batch_tokens
    new = Job(config).max_new_tokens
    sizes = rehearsal.sizes()
    always = {"parameters": sizes.element * sizes.parameters}
    work = Micro.within(budget, prompt, new, options.samples)
    part = math.ceil(min(64, options.prompts) / ranks)
    moments = {"sampling": sampling(rehearsal, work, part, options.samples, options.top_p)}
    if options.measure == "ghost":
        micro = Micro.within(budget, prompt, new)
        held = _micro_batch(
            rehearsal.micro_batch(micro.rows, prompt, new, options.temperature, options.top_p)
        )
        found = ghost(sizes, 1, False)
        moments |= {"direction": found["J_1"] | held, "probe": found["probe"] | held}
    return {name: _sum(always, x) for name, x in moments.items()}, {}


def _base(job: Job) -> "PretrainedConfig | str":
    """The shape of the task's own base; its folder, made now, where the task cannot tell."""
    shape = job.task.base_config() if job.config.model.path == "base" else None
    return job.base_path() if shape is None else shape


def _sum(*parts: Held) -> Held:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def render(moments: Mapping[str, Held], host: Held, device: int | None) -> str:
    """A table of GiB, its largest column, and what the device has."""
    names = [*dict.fromkeys(name for held in moments.values() for name in held)]
    rows = [
        [name, *(f"{held[name] / GIB:.2f}" if held.get(name) else "–" for held in moments.values())]
        for name in names
    ]
    totals = {moment: sum(held.values()) for moment, held in moments.items()}
    rows.append(["total", *(f"{x / GIB:.2f}" for x in totals.values())])
    worst = max(totals, key=lambda moment: totals[moment])
    peak = totals[worst]
    lines = [table(["GiB of one rank", *moments], rows), ""]
    lines.append(f"At most {peak / GIB:.1f} GiB, when {worst}.")
    if host:
        parts = ", ".join(f"{name} {x / GIB:.1f}" for name, x in host.items())
        lines.append(f"In the host's memory: {sum(host.values()) / GIB:.1f} GiB ({parts}).")
    if device:
        fits = "" if peak < device else ": too little"
        lines.append(f"The device has {device / GIB:.1f} GiB{fits}.")
    return "\n".join(lines)


def plan(config: Config, ranks: int, prompt: int, diagnosing: bool = False) -> str:
    """The whole text of --plan."""
    model, train, job = config.model, config.train, Job(config)
    rehearsal = Rehearsal(config, _base(job))
    moments, host = (diagnosis if diagnosing else training)(config, rehearsal, ranks, prompt)
    sizes = rehearsal.sizes()
    spread = "the whole model on each" if diagnosing else f"ZeRO-{train.zero_stage}"
    checkpointing = "with" if model.gradient_checkpointing else "without"
    lines = [
        f"{model.path}: {sizes.parameters:,} parameters, {sizes.trainable:,} trained, in "
        f"{model.dtype}, {checkpointing} gradient checkpointing; ranks: {ranks}, {spread}.",
        f"Assumed are prompts of {prompt} tokens (--plan-prompt) and answers of "
        f"{job.max_new_tokens}; micro-batches of {train.micro_batch_tokens} tokens.",
        "",
        render(moments, host, _device()),
        "Activations and logits are estimates. What the allocator loses comes on top.",
    ]
    return "\n".join(lines)


def _device() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def show(config: Config, ranks: int, prompt: int, diagnosing: bool = False) -> None:
    """Print the plan, on one rank."""
    for option, value in (("--plan-ranks", ranks), ("--plan-prompt", prompt)):
        if value < 1:
            raise ConfigError(f"{option} = {value}: must be at least 1")
    if int(os.environ.get("RANK", "0")) == 0:
        print(plan(config, ranks, prompt, diagnosing))
