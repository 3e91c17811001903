"""The seconds that a configuration takes on a device: its work, its phases and the text of them."""

import math
from dataclasses import dataclass, replace

from eval.rollout.cache import BLOCK
from surgery.interference import SHELLS
from surgery.rules import NORM_K, find_rule
from trainers.commands.diagnose import requests
from trainers.config.schema import Config
from trainers.job import Job
from trainers.measure.probe import WATCH_EVERY
from trainers.plan import seconds
from trainers.plan.rehearsal import Micro, Rehearsal
from trainers.plan.rollouts import Drawing
from trainers.plan.seconds import Device, Machine, Model, Passes, Work
from trainers.train.schedules import due

Phases = dict[str, float]


def model_of(rehearsal: Rehearsal) -> Model:
    """Return the numbers of a rehearsed model."""
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


@dataclass(frozen=True)
class Setting:
    """What the command line adds to a configuration, and the sampler's budget that follows."""

    ranks: int
    prompt: int  # tokens
    tokens: int  # that the sampler holds at once


@dataclass(frozen=True)
class Estimate:
    """A configuration on a device, seen from the rank that has the most prompts."""

    config: Config
    machine: Machine
    model: Model
    setting: Setting

    def drawn(self, prompts: int, n: int, new: int, top_p: float) -> Work:
        """Return the draw of this rank's answers, in batches that the sampler's budget holds."""
        share, prompt = math.ceil(prompts / self.setting.ranks), self.setting.prompt
        batch = Drawing(share, n, prompt, new, self.setting.tokens).batch
        return Work(share, n, prompt, new, batch.rows, top_p)

    @property
    def job(self) -> Job:
        return Job(self.config)

    def trained(self, work: Work) -> Work:
        """Return the same answers in micro-batches."""
        budget = self.config.train.micro_batch_tokens
        return replace(work, rows=Micro.within(budget, work.prompt, work.length).rows)

    def sampling(self, work: Work, features: float) -> float:
        """Return the seconds of a draw.

        `continuous` and `vllm` read their answers again to measure them. Servers are taken to draw
        like this device, and their weights to arrive in no time.
        """
        eager = self.eager_forwards(work.length)
        drawn = seconds.sampling(self.machine, self.model, work, eager, features)
        if self.config.train.rollouts != "cached":
            drawn += self.passing(work, Passes())
        return drawn

    def eager_forwards(self, length: int) -> int:
        """Return how many forwards of a batch are launched kernel by kernel: all, or few.

        With CUDA graphs, the prompts and, for each block of the cache, a token before its capture
        and the capture itself.
        """
        train = self.config.train
        graphs = train.cuda_graph and train.rollouts == "cached"
        fixed = graphs and self.config.model.attention in ("sdpa", "eager")
        return min(length, 2 * math.ceil(length / BLOCK)) + 1 if fixed else length + 1

    def passing(self, work: Work, passes: Passes) -> float:
        """Return the seconds in which the answers pass through the model in micro-batches."""
        return seconds.passing(self.machine, self.model, self.trained(work), passes)

    def of_step(self) -> Phases:
        """Return the mean seconds of each phase of a step."""
        config, train, surgery = self.config, self.config.train, self.config.surgery
        work = self.drawn(train.prompts, train.samples, self.job.max_new_tokens, 1.0)
        gradient = seconds.gradient(self.model, config, self.model.trained)
        features = (surgery.measure == "last_layer") / surgery.every
        phases = {"sample": self.sampling(work, features)}
        if surgery.measure == "ghost":
            watched = 1 if NORM_K in find_rule(surgery.rule).needs else 1 / WATCH_EVERY
            passes = seconds.ghost(self.model, config, watched)
            phases["measure"] = self.passing(work, passes) / surgery.every
        kl_every = 1 if train.kl_coef else config.logging.kl_every
        if kl_every:
            phases["reference"] = self.passing(work, Passes(2)) / kl_every
        phases["backward"] = train.updates * self.passing(work, gradient)
        step = seconds.stepping(self.machine, self.model, config, self.setting.ranks)
        phases["step"] = train.updates * step
        if surgery.realised_every:
            phases["realised"] = self.passing(work, gradient) / surgery.realised_every
        return phases

    def of_evaluation(self) -> float:
        """Return the seconds of one evaluation."""
        options = self.config.eval
        counts = options.problems, options.samples
        return self.sampling(self.drawn(*counts, self.job.eval_tokens, options.top_p), 0)

    def of_diagnosis(self) -> Phases:
        """Return the seconds of launch/diagnose.py, where each prompt is solved now and then.

        The gradients over all shells make one over all prompts. All prompts probe each direction.
        """
        options = self.config.diagnose
        counts = options.prompts, options.samples
        work = self.drawn(*counts, self.job.max_new_tokens, options.top_p)
        phases = {"sample": self.sampling(work, 1)}
        if options.measure == "ghost":
            wanted = requests(options.k or options.samples, options.samples)
            one = seconds.gradient(self.model, self.config, self.model.measured)
            gradients = sum(len(group) for _, group in wanted) / SHELLS
            phases["directions"] = self.passing(work, gradients * one)
            phases["probes"] = self.passing(work, len(wanted) * one)
        return phases

    def of_run(self, step: float, evaluation: float) -> str:
        """Say how long a whole run takes."""
        steps, every = self.config.train.steps, self.config.eval.every
        evaluations = 2 + sum(due(i, every) for i in range(1, steps))
        total = steps * step + evaluations * evaluation
        return f"A run of {steps} steps and {evaluations} evaluations takes {_hours(total)}."

    def text(self, diagnosing: bool) -> str:
        """Return the seconds by phase, those of the whole run, and what they rest on."""
        if diagnosing:
            title, phases, beside = "Estimated, of the diagnosis", self.of_diagnosis(), {}
            counts = self.config.diagnose.prompts, self.config.diagnose.samples
            last = f"The diagnosis takes {_hours(sum(phases.values()))}."
        else:
            title, phases = "Estimated, of a step", self.of_step()
            beside = {"an evaluation": self.of_evaluation()}
            counts = self.config.train.prompts, self.config.train.samples
            last = self.of_run(sum(phases.values()), *beside.values())
        lines = [seconds.report(title, phases, beside), "", last, "Assumed, not measured:"]
        work = self.drawn(*counts, self.job.max_new_tokens, 1.0)
        drawn, trained = (math.ceil(x.count / x.batches) for x in (work, self.trained(work)))
        eager = self.eager_forwards(work.length)
        lines.append(
            f"- Of {work.count} answers {drawn} are drawn at a time and {trained} trained; of the "
            f"{work.length + 1} forwards of a draw {eager} are launched kernel by kernel."
        )
        return "\n".join([*lines, *seconds.assumptions(self.machine, self.model)])


def estimate(rehearsal: Rehearsal, device: Device, setting: Setting, diagnosing: bool) -> str:
    """Return the text of --device."""
    config = rehearsal.config
    machine = Machine(device, config.model.dtype)
    return Estimate(config, machine, model_of(rehearsal), setting).text(diagnosing)


def _hours(x: float) -> str:
    return f"{x / 3600:.1f} hours" if x >= 3600 else f"{x / 60:.1f} minutes"
