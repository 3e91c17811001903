"""The memory that a run will need of a rank, moment by moment, before anything is loaded.

The states (`engine/memory.py`), the cache and everything as large as the model (directions of
`ghost`, snapshots of watched steps, the reference, ZeRO-3's full copy) are exact. Activations and
logits are rehearsed (`rehearsal.py`), at prompts of an assumed length and completions of the full
length. Saving takes fp32 parameters, moments and the model in the host's memory.
"""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from eval.report.tables import table
from eval.rollout.continuous import FORWARD, PAGE
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine.memory import THRESHOLD, Held, backward, states, step
from trainers.job import Job
from trainers.measure.memory import directions, watched
from trainers.plan.estimate import estimate
from trainers.plan.rehearsal import Cost, Micro, Rehearsal
from trainers.plan.seconds import DEVICES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30


def sampling(rehearsal: Rehearsal, work: Micro, prompts: int, n: int, top_p: float) -> Held:
    """The cache of one decoding batch; the larger of a token's forward and of drawing it: logits,
    log pi in fp32, two arrays in float64 for its sum (below top_p = 1 the sort's four and more);
    and the features of all completions of this rank, if any. Servers hold the cache of `vllm`: only
    the answers' own forward takes memory here.
    """
    cache, forward = rehearsal.decoding(work.rows, work.prompt, work.completion)
    sizes = rehearsal.sizes()
    number = sizes.element + (20 if top_p == 1 else 41)
    drawing = work.rows * rehearsal.vocabulary * number
    features = {"features": 4 * prompts * n * sizes.width} if prompts else {}
    rollouts = rehearsal.config.train.rollouts
    if rollouts == "vllm":
        return {"measuring what was drawn": _measured(rehearsal, work, number)} | features
    if rollouts == "continuous":
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
    measured = _measured(rehearsal, work, number)
    if measured > paged + drawing:
        return {"measuring what was drawn": measured}
    return {"cache": paged, "drawing a token": drawing}


def _measured(rehearsal: Rehearsal, work: Micro, number: int) -> int:
    """The logits of a micro-batch of answers that are read again."""
    budget = rehearsal.config.train.micro_batch_tokens
    rows = Micro.within(budget, work.prompt, work.completion).rows
    return rows * (work.completion + 1) * rehearsal.vocabulary * number


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
    model = sizes.element * sizes.parameters
    micro = Micro.within(train.micro_batch_tokens, prompt, new)
    held = _micro_batch(rehearsal.micro_batch(micro.rows, prompt, new, train.temperature))
    always, host = states(sizes, stage, ranks, offload)
    host |= {"saving, on rank 0 alone": 12 * sizes.trainable + model}
    if (config.logging.kl_every or train.kl_coef) and not config.model.lora_rank:
        always["reference model"] = model
    policy = {"full copy": model} if stage == 3 else {}
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
        measured = directions(sizes, halves, surgery.metric == "adam")
        moments |= {name: policy | x | held for name, x in measured.items() if name != "products"}
        moments["products"] = measured["products"]
    moments["backward"] = backward(sizes, stage, ranks, offload) | held
    moments["step"] = step(sizes, stage, ranks, offload)
    if surgery.realised_every:
        snapshot, gradient = watched(sizes)
        for name in ("sampling", "backward", "step"):
            moments[name] |= snapshot
        moments["realised"] = policy | held | snapshot | gradient
    return {name: _sum(always, x) for name, x in moments.items()}, host


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
        measured = directions(sizes, 1, False)
        moments |= {"direction": measured["J_1"] | held, "probe": measured["probe"] | held}
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


def plan(
    config: Config, ranks: int, prompt: int, diagnosing: bool = False, device: str | None = None
) -> str:
    """The whole text of --plan."""
    model, train, job = config.model, config.train, Job(config)
    sheet = DEVICES[device] if device else None
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
        render(moments, host, sheet.memory if sheet else _memory()),
        "Activations and logits are estimates. What the allocator loses comes on top.",
    ]
    if sheet:
        lines += ["", estimate(rehearsal, sheet, ranks, prompt, diagnosing)]
    return "\n".join(lines)


def _memory() -> int | None:
    """Return the bytes of the device at hand, if there is one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def show(
    config: Config, ranks: int, prompt: int, diagnosing: bool = False, device: str | None = None
) -> None:
    """Print the plan, on one rank."""
    for option, value in (("--plan-ranks", ranks), ("--plan-prompt", prompt)):
        if value < 1:
            raise ConfigError(f"{option} = {value}: must be at least 1")
    if device is not None and device not in DEVICES:
        raise ConfigError(f"--device = {device}: must be one of {', '.join(DEVICES)}")
    if int(os.environ.get("RANK", "0")) == 0:
        print(plan(config, ranks, prompt, diagnosing, device))
