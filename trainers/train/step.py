"""The training step: the algorithm, in the order in which it runs."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from eval.errors import Failure
from eval.policy.logprobs import pad_batch
from eval.policy.streams import derive_seed
from eval.rollout.rollout import Rollout
from eval.rollout.sample import sample
from eval.scores.evaluate import Draws
from eval.tasks.task import Problem
from eval.verify.verifier import Verifier
from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, entropy, mixed_only, rloo
from surgery.gap import change_to_base
from surgery.geometry import Geometry
from surgery.objectives import prompt_weight
from surgery.rules import State, apply, find_rule
from surgery.user_code import own_settings
from trainers.engine.batches import Work, micro_batches
from trainers.engine.engine import Engine
from trainers.job import Job
from trainers.measure.probe import Probe
from trainers.step_batch import StepBatch
from trainers.train.base_rates import BaseRates
from trainers.train.correction import corrected, of_mismatch
from trainers.train.evaluation import judged
from trainers.train.prompts import Prompts
from trainers.train.reference import Reference
from trainers.train.schedules import due, k_at, learning_rate, pace


class TrainingFailed(Failure):
    """The run cannot go on; its folder can be resumed."""


class Step:
    """One step of training per call, and the state that it keeps between steps."""

    def __init__(self, job: Job, verifier: Verifier, engine: Engine, reference: Reference):
        self.job, self.config, self.verifier = job, job.config, verifier
        self.engine, self.reference = engine, reference
        config = job.config
        rule = find_rule(config.surgery.rule)
        self.probe = Probe(config, engine, rule.needs)
        settings = {**vars(config.surgery), **config.surgery.options}
        self.rule = rule.bind(settings, config.train.samples)
        estimator = ESTIMATORS[config.objective.estimator]
        self.estimator = partial(estimator, **own_settings(estimator, vars(config.objective)))
        # checkpoints carry these beside the engine's and the probe's state
        self.prompts = Prompts(job.task, config)
        self.base_rates = BaseRates(math.nan)  # the trainer sets them before the first step
        self.rule_state: State = {}
        self.bad_steps = 0
        self.histograms: list[
            list[float]
        ] = []  # of right answers, in the batches that curverl reads

    def __call__(self, step: int) -> StepBatch:
        """Sample, verify, estimate, measure, decide, run one weighted backward, and update."""
        clock, batch = Clock(), self._prompts(step)
        with clock("sample"):
            batch.rollout = self._sample(batch)
            batch.served = of_mismatch(batch.rollout, self.config.rollout, self.engine)
        with clock("verify"):
            self._verify(batch)
        with clock("control"):
            self._hold(batch)
        self._estimate(batch)
        with clock("measure"):
            self._measure(batch)
        self._decide(batch)
        self._weigh(batch, clock)
        with clock("update"):
            self._update(batch)
        batch.seconds = clock.seconds()
        return batch

    def _prompts(self, step: int) -> StepBatch:
        """Begin the batch of this step: its problems, this rank's share of them, and the k."""
        config = self.config
        k = k_at(config, step)
        # the weights of an estimator with an objective of its own are not known here
        weight_k = k if config.objective.estimator in OF_PASS_AT_K else 1
        self.probe.begin(weight_k)
        problems, importance = self.prompts.draw(step, lambda verdicts: self.estimator(verdicts, k))
        mine = range(self.engine.rank, len(problems), self.engine.world)
        seed = derive_seed(config.seed, "train", step)
        return StepBatch(step, seed, k, weight_k, pace(config, step), problems, importance, mine)

    def _sample(self, batch: StepBatch) -> Rollout:
        """Draw n completions for each of this rank's prompts."""
        train, surgery = self.config.train, self.config.surgery
        features = surgery.measure == "last_layer" and self.probe.due(batch.step)
        with self.engine.sampling() as policy:
            return sample(
                policy,
                [batch.problems[i].prompt for i in batch.mine],
                train.samples,
                self.job.decoding(train.temperature, 1.0, self.job.max_new_tokens, features),
                batch.seed,
                batch.mine,
            )

    def _verify(self, batch: StepBatch) -> None:
        """Judge this rank's completions, and gather the numbers [N, n] of all ranks."""
        rollout, mine, n = batch.rollout, batch.mine, self.config.train.samples
        golds = [batch.problems[i].gold for i in mine for _ in range(n)]
        batch.verdicts = self.verifier(rollout.texts, golds)
        rows = [
            torch.tensor([bool(x) for x in batch.verdicts]),
            torch.tensor([x is None for x in batch.verdicts]),
            *(rollout.entropy, rollout.logprobs, rollout.lengths, rollout.truncated),
        ]
        local = torch.stack([x.cpu().double().view(len(mine), n) for x in rows], 1)
        gathered = self.engine.in_place(mine, local, len(batch.problems))
        numbers = (x.contiguous() for x in gathered.unbind(1))
        batch.correct, batch.undecided, batch.entropy, *others = numbers
        batch.logprob, batch.length, batch.truncated = others

    def _hold(self, batch: StepBatch) -> None:
        """Compare pass@1 with the base's, on this batch or on problems that are never trained on.

        The base is compared on the same problems, or on those of their strata.
        """
        problems, rate, importance = batch.problems, batch.correct.mean(1), batch.importance
        if self.config.surgery.hold == "control":
            problems, rate = self._control(batch.step)
            importance = torch.ones_like(rate)
        base = self.base_rates(self.job.task, problems)
        batch.change = change_to_base(rate, base, importance)

    def _control(self, step: int) -> tuple[list[Problem], Tensor]:
        """Return the control problems of this step, and the policy's success rate on each."""
        config, job = self.config, self.job
        problems = job.control(step)
        how = job.decoding(config.train.temperature, 1.0, job.max_new_tokens)
        draws = Draws(config.train.samples, how, derive_seed(config.seed, "control", step))
        records = judged(self.engine, self.verifier, problems, draws)
        return problems, torch.tensor([x["c"] / x["n"] for x in records]).double()

    def _estimate(self, batch: StepBatch) -> None:
        """Estimate the advantages of pass@k and pass@1, and the weight w_k of each prompt."""
        n, counts, importance = self.config.train.samples, batch.correct.sum(1), batch.importance
        factors = importance[:, None]
        if self.config.objective.filter:
            factors = factors * mixed_only(batch.correct)
        past = self._reference(counts, importance)
        batch.a_k = factors * self.estimator(batch.correct, batch.k, **past)
        batch.a_1 = factors * rloo(batch.correct)
        batch.weights = prompt_weight(n, counts, batch.weight_k)

    def _reference(self, counts: Tensor, importance: Tensor) -> dict[str, Tensor]:
        """Return the histogram of the batches before this one, if the estimator reads it."""
        past = torch.tensor(self.histograms).sum(0) if self.histograms else None
        given = own_settings(self.estimator, {"reference": past})
        if given:
            now = torch.bincount(counts.long(), importance, self.config.train.samples + 1)
            self.histograms = [*self.histograms, now.tolist()][-self.config.objective.window :]
        return given

    def _measure(self, batch: StepBatch) -> None:
        """Measure the geometry of the batch; steps between two measurements reuse the products."""
        batch.realised = self.probe.realised(batch)
        if self.probe.due(batch.step):
            batch.geometry, batch.measured = self.probe(batch)
        else:
            rate, products = batch.correct.mean(1), self.probe.products
            batch.geometry = Geometry(rate, products, change=batch.change, pace=batch.pace)
            batch.measured = {}

    def _decide(self, batch: StepBatch) -> None:
        """Let the rule decide how much pass@k and pass@1 each prompt gets."""
        batch.decision = self.rule(batch.weights, batch.geometry, self.rule_state)
        batch.advantages = apply(batch.decision, batch.a_k, batch.a_1)
        self.prompts.learn(batch)

    def _weigh(self, batch: StepBatch, clock: "Clock") -> None:
        """Compute the weights of this rank's backward: advantages, entropy bonus, KL, correction.

        The bonus and the KL come after the decision: a rule weighs J_k against J_1, and promises
        nothing about the entropy or the distance to the base. The correction weighs all of them,
        because servers drew the tokens of all; what was measured for the rule is not corrected.
        """
        train = self.config.train
        bonus = train.entropy_coef * batch.importance[:, None] * entropy(batch.logprob)
        batch.applied = (batch.advantages + bonus)[list(batch.mine)]
        batch.drift = None
        if train.kl_coef > 0 or due(batch.step, self.config.logging.kl_every):
            with clock("reference"):
                batch.drift, back = self.reference(batch.rollout)
            if train.kl_coef > 0:
                back = back * batch.importance[list(batch.mine), None, None]
                batch.applied = batch.applied[..., None] + train.kl_coef * back  # one per token
        batch.applied = corrected(batch.applied, batch.rollout, self.config.rollout)

    def _update(self, batch: StepBatch) -> None:
        """Run the weighted backward and the optimiser step `train.updates` times.

        The first is on-policy; the others ascend PPO's clipped surrogate with the same weights.
        """
        train, engine, pad = self.config.train, self.engine, self.engine.pad_id
        watched = due(batch.step, self.config.surgery.realised_every)
        before = engine.snapshot() if watched else None
        batch.lr = learning_rate(self.config, batch.step)
        work = Work(train.micro_batch_tokens, pad, engine.device)
        linear = train.updates == 1  # the minimum in the surrogate is not linear in the rows
        batches, sums = micro_batches(batch.rollout, batch.applied, work, linear)
        idle = pad_batch([[pad]], [[pad]], pad, work.device)
        losses, batch.norms, old = list[float](), [], list[torch.Tensor]()
        for _ in range(train.updates):
            loss, logprobs = engine.backward(batches, sums, 1 / train.prompts, idle, old)
            losses.append(loss)
            batch.norms.append(engine.step(batch.lr))
            old = old or logprobs
            self._count_bad(batch.norms[-1])
        batch.loss = float(engine.reduce(torch.tensor(losses[0], dtype=torch.float64)))
        if before:
            self.probe.watch(before, engine.weights())

    def _count_bad(self, norm: float | None) -> None:
        """End the run after too many non-finite gradients in a row."""
        self.bad_steps = self.bad_steps + 1 if norm is None else 0
        if self.bad_steps >= self.config.train.max_bad_steps:
            raise TrainingFailed(
                f"{self.bad_steps} gradients in a row were not finite; "
                "lower train.lr, or raise train.max_bad_steps, in a new run.dir"
            )


class Clock:
    """A clock that measures the seconds of the parts of a step."""

    def __init__(self) -> None:
        self.start, self.parts = time.monotonic(), dict[str, float]()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.parts[part] = time.monotonic() - start

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part, and the total so far as `step`."""
        return {**self.parts, "step": time.monotonic() - self.start}
