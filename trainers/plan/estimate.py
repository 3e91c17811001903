"""The seconds of a configuration on a device: its work, from the model's shape, and the text."""

import math
from dataclasses import replace

from surgery.interference import SHELLS
from surgery.rules import NORM_K, find_rule
from trainers.commands.diagnose import requests
from trainers.config.schema import Config
from trainers.job import Job
from trainers.measure.probe import WATCH_EVERY
from trainers.plan import seconds
from trainers.plan.rehearsal import Micro, Rehearsal
from trainers.plan.seconds import Device, Machine, Model, Passes, Work
from trainers.train.schedules import due

Phases = dict[str, float]


def model_of(rehearsal: Rehearsal) -> Model:
    """The numbers of a rehearsed model."""
    model, sizes = rehearsal.model, rehearsal.sizes()
    config = model.config
    inputs, head = (x().weight for x in (model.get_input_embeddings, model.get_output_embeddings))
    looked_up = 0 if inputs is head else inputs.numel()
    heads = config.num_attention_heads
    cache, _ = rehearsal.decoding(1, 1, 1)
    return Model(
        body=sizes.parameters - head.numel() - looked_up,
        head=head.numel(),
        trained=sizes.trainable,
        measured=sizes.chosen,
        layers=config.num_hidden_layers,
        width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        cache=cache // 2,
        vocabulary=rehearsal.vocabulary,
        element=sizes.element,
    )


def _sampled(config: Config, machine: Machine, model: Model, work: Work, features: float) -> float:
    """Seconds to draw all answers. `continuous` reads them once more to measure them."""
    drawn = seconds.sampling(machine, model, work, graph=False, features=features)
    if config.train.rollouts == "continuous":
        drawn += seconds.passing(machine, model, _trained(config, work), Passes())
    return drawn


def _drawn(config: Config, answers: tuple[int, int], prompt: int, top_p: float) -> Work:
    """The draw of `answers` = (prompts, n), as many rows at a time as the sampler's budget holds."""
    (prompts, n), length = answers, Job(config).max_new_tokens
    rows = Micro.within(config.train.micro_batch_tokens, prompt, length, n).rows
    return Work(prompts, n, prompt, length, rows, top_p)


def _trained(config: Config, work: Work) -> Work:
    """The same answers, as many rows at a time as a micro-batch holds."""
    rows = Micro.within(config.train.micro_batch_tokens, work.prompt, work.length).rows
    return replace(work, rows=rows)


def of_step(config: Config, machine: Machine, model: Model, ranks: int, prompt: int) -> Phases:
    """The mean seconds of each phase of a step, of a rank with the most prompts."""
    train, surgery = config.train, config.surgery
    drawn = _drawn(config, (math.ceil(train.prompts / ranks), train.samples), prompt, 1.0)
    rows = _trained(config, drawn)
    gradient = seconds.gradient(model, config, model.trained)
    features = (surgery.measure == "last_layer") / surgery.every
    phases = {"sample": _sampled(config, machine, model, drawn, features)}
    if surgery.measure == "ghost":
        watched = 1 if NORM_K in find_rule(surgery.rule).needs else 1 / WATCH_EVERY
        passes = seconds.ghost(model, config, watched)
        phases["measure"] = seconds.passing(machine, model, rows, passes) / surgery.every
    kl_every = 1 if train.kl_coef else config.logging.kl_every
    if kl_every:
        phases["reference"] = seconds.passing(machine, model, rows, Passes(2)) / kl_every
    phases["backward"] = train.updates * seconds.passing(machine, model, rows, gradient)
    phases["step"] = train.updates * seconds.stepping(machine, model, config, ranks)
    if surgery.realised_every:
        looks = seconds.passing(machine, model, rows, gradient)
        phases["realised"] = looks / surgery.realised_every
    return phases


def of_evaluation(
    config: Config, machine: Machine, model: Model, ranks: int, prompt: int
) -> float:
    """The seconds of one evaluation, of a rank with the most problems."""
    options = config.eval
    answers = math.ceil(options.problems / ranks), options.samples
    work = _drawn(config, answers, prompt, options.top_p)
    return _sampled(config, machine, model, work, 0)


def of_diagnosis(config: Config, machine: Machine, model: Model, ranks: int, prompt: int) -> Phases:
    """The seconds of launch/diagnose.py, where every prompt is solved now and then.

    The gradients over all shells make one over all prompts. Each direction is probed by all.
    """
    options = config.diagnose
    answers = math.ceil(options.prompts / ranks), options.samples
    drawn = _drawn(config, answers, prompt, options.top_p)
    phases = {"sample": _sampled(config, machine, model, drawn, 1)}
    if options.measure == "ghost":
        wanted = requests(options.k or options.samples, options.samples)
        one = seconds.gradient(model, config, model.measured)
        rows = _trained(config, drawn)
        whole = sum(len(group) for _, group in wanted) / SHELLS
        phases["directions"] = seconds.passing(machine, model, rows, whole * one)
        phases["probes"] = seconds.passing(machine, model, rows, len(wanted) * one)
    return phases


def estimate(
    rehearsal: Rehearsal, device: Device, ranks: int, prompt: int, diagnosing: bool
) -> str:
    """The text of --device: seconds by phase, those of the whole run, and what they rest on."""
    config, model = rehearsal.config, model_of(rehearsal)
    machine = Machine(device, config.model.dtype)
    work = config, machine, model, ranks, prompt
    if diagnosing:
        phases, beside = of_diagnosis(*work), {}
        whole, title = sum(phases.values()), "Estimated, of the diagnosis"
        last = f"In all {_hours(whole)}."
    else:
        phases, beside = of_step(*work), {"an evaluation": of_evaluation(*work)}
        title = "Estimated, of a step"
        last = _of_run(config, sum(phases.values()), beside["an evaluation"])
    lines = [seconds.report(title, phases, beside), "", last]
    return "\n".join([*lines, "Assumed, not measured:", *seconds.assumptions(machine, model)])


def _of_run(config: Config, step: float, evaluation: float) -> str:
    """How long the whole run takes."""
    steps, every = config.train.steps, config.eval.every
    evaluations = 2 + sum(due(i, every) for i in range(1, steps))
    total = steps * step + evaluations * evaluation
    return f"The run: {steps} steps and {evaluations} evaluations, {_hours(total)}."


def _hours(x: float) -> str:
    return f"{x / 3600:.1f} hours" if x >= 3600 else f"{x / 60:.1f} minutes"
