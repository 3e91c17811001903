"""The memory that a run will need of a rank, moment by moment, before anything is loaded.

The states (`engine/memory.py`), the cache and everything as large as the model (directions of
`ghost`, snapshots of watched steps, the reference, ZeRO-3's full copy) are exact. Activations and
logits are rehearsed (`rehearsal.py`), at prompts of an assumed length and completions of the full
length. Saving takes fp32 parameters, moments and the model in the host's memory.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eval.policy.policy import Chat, check_template
from eval.report.tables import table
from eval.tasks.data import Data
from trainers.commands.diagnose import PART
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine.memory import THRESHOLD, Held, backward, states, step
from trainers.job import Job
from trainers.measure.memory import directions, watched
from trainers.plan.estimate import Setting, estimate
from trainers.plan.rehearsal import Cost, Micro, Rehearsal
from trainers.plan.rollouts import Drawing, budget, sampling
from trainers.plan.seconds import DEVICES

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB, MIB = 2**30, 2**20


def _micro_batch(cost: Cost) -> Held:
    return {"activations": cost.activations, "logits": cost.logits}


def _always(config: Config, rehearsal: Rehearsal, ranks: int) -> tuple[Held, Held]:
    """Return the bytes that a rank of a run holds at all times: (on the device, on the host)."""
    sizes = rehearsal.sizes(THRESHOLD)
    always, host = states(sizes, config.train.zero_stage, ranks, config.train.offload)
    if (config.logging.kl_every or config.train.kl_coef) and not config.model.lora_rank:
        always["reference model"] = sizes.element * sizes.parameters
    return always, host


def sampler_tokens(rehearsal: Rehearsal, ranks: int, memory: int | None, diagnosing: bool) -> int:
    """Return the sampler's budget on a device of so many bytes, if they are known."""
    sizes, config = rehearsal.sizes(), rehearsal.config
    weights = sizes.element * sizes.parameters
    held = weights
    if not diagnosing:
        held = sum(_always(config, rehearsal, ranks)[0].values())
        held += weights * (config.train.zero_stage == 3)  # a full copy to sample from
    return budget(rehearsal, None if memory is None else memory - held)


def training(
    config: Config, rehearsal: Rehearsal, ranks: int, prompt: int, memory: int | None = None
) -> tuple[dict[str, Held], Held]:
    """Return the moments of a run with all that each of them holds, and what the host holds.

    The sampler takes a part of the device's `memory`, where that is known and no key says how much.
    """
    train, surgery, evaluation, job = config.train, config.surgery, config.eval, Job(config)
    new, stage, offload = job.max_new_tokens, train.zero_stage, train.offload
    sizes = rehearsal.sizes(THRESHOLD)
    model = sizes.element * sizes.parameters
    micro = Micro.within(train.micro_batch_tokens, prompt, new)
    held = _micro_batch(rehearsal.micro_batch(micro.rows, prompt, new, train.temperature))
    always, host = _always(config, rehearsal, ranks)
    host |= {"saving, on rank 0 alone": 12 * sizes.trainable + model}
    policy = {"full copy": model} if stage == 3 else {}
    tokens = sampler_tokens(rehearsal, ranks, memory, False)
    problems, prompts = (math.ceil(x / ranks) for x in (evaluation.problems, train.prompts))
    evaluated = Drawing(
        problems, evaluation.samples, prompt, job.eval_tokens, tokens, evaluation.top_p
    )
    features = surgery.measure == "last_layer"
    drawn = Drawing(prompts, train.samples, prompt, new, tokens, features=features)
    moments: dict[str, Held] = {
        "evaluating": policy | sampling(rehearsal, evaluated),
        "sampling": policy | sampling(rehearsal, drawn),
    }
    if surgery.measure == "ghost":
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
    config: Config, rehearsal: Rehearsal, ranks: int, prompt: int, memory: int | None = None
) -> tuple[dict[str, Held], Held]:
    """Return the moments of launch/diagnose.py with the bytes that each holds.

    Each rank holds the complete model. The moments are sampling; the sum J_b in fp32 while one
    backward's gradients are added; its products with every answer.
    """
    options, sizes, new = config.diagnose, rehearsal.sizes(), Job(config).max_new_tokens
    always = {"parameters": sizes.element * sizes.parameters}
    tokens = sampler_tokens(rehearsal, ranks, memory, True)
    part = math.ceil(min(PART, options.prompts) / ranks)
    drawn = Drawing(part, options.samples, prompt, new, tokens, options.top_p, features=True)
    moments = {"sampling": sampling(rehearsal, drawn)}
    if options.measure == "ghost":
        micro = Micro.within(config.train.micro_batch_tokens, prompt, new)
        held = _micro_batch(
            rehearsal.micro_batch(micro.rows, prompt, new, options.temperature, options.top_p)
        )
        measured = directions(sizes, 1, False)
        moments |= {"direction": measured["J_1"] | held, "probe": measured["probe"] | held}
    return {name: _sum(always, x) for name, x in moments.items()}, {}


def _base(job: Job) -> "PretrainedConfig | str":
    """Return the shape of the task's own base, or its folder, made now, if the task cannot tell."""
    shape = job.task.base_config() if job.config.model.path == "base" else None
    return job.base_path() if shape is None else shape


def _check_template(job: Job) -> None:
    """Refuse a chat template that a model's folder lacks, if the folder has a tokenizer."""
    task, model = job.task, job.config.model.path
    has_tokenizer = (Path(model) / "tokenizer_config.json").is_file()
    if isinstance(task, Data) and task.template == "chat" and has_tokenizer:
        check_template(model, [Chat("1+1=")])


def _sum(*parts: Held) -> Held:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def render(moments: Mapping[str, Held], host: Held, device: int | None) -> str:
    """Return a table of GiB, or of MiB below ten GiB, with its largest column and the device."""
    totals = {moment: sum(held.values()) for moment, held in moments.items()}
    worst = max(totals, key=lambda moment: totals[moment])
    peak = totals[worst]
    unit, name_of_unit = (GIB, "GiB") if peak >= 10 * GIB else (MIB, "MiB")
    names = [*dict.fromkeys(name for held in moments.values() for name in held)]
    rows = [
        [
            name,
            *(f"{held[name] / unit:.2f}" if held.get(name) else "–" for held in moments.values()),
        ]
        for name in names
    ]
    rows.append(["total", *(f"{x / unit:.2f}" for x in totals.values())])
    lines = [table([f"{name_of_unit} of one rank", *moments], rows), ""]
    lines.append(f"At most {_size(peak)}, when {worst}.")
    if host:
        parts = ", ".join(f"{name} {_size(x)}" for name, x in host.items())
        lines.append(f"In the host's memory: {_size(sum(host.values()))} ({parts}).")
    if device:
        fits = "" if peak < device else ": too little"
        lines.append(f"The device has {_size(device)}{fits}.")
    return "\n".join(lines)


def _size(count: int) -> str:
    """Return a number of bytes in GiB, or in MiB if it is less than one GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def plan(
    config: Config, ranks: int, prompt: int, diagnosing: bool = False, device: str | None = None
) -> str:
    """Return the complete text of --plan."""
    model, train, job = config.model, config.train, Job(config)
    sheet = DEVICES[device] if device else None
    _check_template(job)
    rehearsal = Rehearsal(config, _base(job))
    memory = sheet.memory if sheet else _memory()
    moments_of = diagnosis if diagnosing else training
    moments, host = moments_of(config, rehearsal, ranks, prompt, memory)
    tokens = sampler_tokens(rehearsal, ranks, memory, diagnosing)
    sizes = rehearsal.sizes()
    spread = "the whole model on each" if diagnosing else f"ZeRO-{train.zero_stage}"
    checkpointing = "with" if model.gradient_checkpointing else "without"
    lines = [
        f"{model.path}: {sizes.parameters:,} parameters, {sizes.trainable:,} trained, in "
        f"{model.dtype}, {checkpointing} gradient checkpointing; ranks: {ranks}, {spread}.",
        f"Assumed are prompts of {prompt} tokens (--plan-prompt) and answers of "
        f"{job.max_new_tokens}; micro-batches of {train.micro_batch_tokens} tokens; the sampler "
        f"holds {tokens} (train.rollout_tokens).",
        "",
        render(moments, host, memory),
        "Activations and logits are estimates. What the allocator loses comes on top.",
    ]
    if sheet:
        setting = Setting(ranks, prompt, tokens)
        lines += ["", estimate(rehearsal, sheet, setting, diagnosing)]
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
