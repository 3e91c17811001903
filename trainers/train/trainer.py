"""A training run, in the order in which it happens; `step.py` is the algorithm."""

import gc
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from eval.errors import Failure
from eval.files import write_json, write_lines
from eval.policy.logprobs import check_chunks
from eval.policy.policy import Policy, check_template, load_policy
from eval.progress import progress
from eval.records import Record
from eval.rollout.budget import rollout_tokens
from eval.rollout.sample import SAMPLERS
from eval.scores.passk import problem_scores
from eval.scores.summary import warn_if_one_sided
from eval.tasks.task import digest
from trainers.config.schema import Config
from trainers.config.values import holds_pass_1
from trainers.engine.engine import Engine
from trainers.engine.hosts import base_path, check_inputs, check_weights, other_problems
from trainers.engine.ranks import share
from trainers.engine.stop import Stop
from trainers.job import Job
from trainers.train import checkpoint
from trainers.train.base_rates import BaseRates
from trainers.train.best import Best
from trainers.train.evaluation import Evaluation
from trainers.train.metrics import Metrics
from trainers.train.reference import Reference
from trainers.train.run_folder import RunFolder
from trainers.train.schedules import due
from trainers.train.step import Step
from trainers.train.step_log import log_of

# rules compare batches with the base's pass@1: the true one, or else that of training problems
BASE_PASS_1 = ("exact/pass@1", "eval/reference_pass@1", "eval/pass@1")


class Interrupted(Failure):
    """The run was asked to stop, and has saved the step that the message names."""

    code = 130


class Trainer:
    """A run: the task, the engine, the step, the evaluation, and the loop over the steps."""

    def __init__(self, config: Config, folder: RunFolder | None):
        """Build all parts; only rank 0 has a `folder`, the other ranks write nothing."""
        self.config, self.folder = config, folder
        self.job = Job(config)
        self.task, self.verifier = self.job.task, self.job.verifier()
        # a mistake in the data is reported before a model is loaded
        first = self.task.training(config.seed, 1, config.train.prompts)
        problems = [*first, *self.task.evaluation(config.eval.problems)]
        self.data = digest(problems)
        if config.surgery.hold == "control":
            self.job.control(1)
        check_inputs(config, self.data)
        self.verifier.try_out(first[0].gold)
        self.base_path = base_path(self.job)
        check_template(self.base_path, [x.prompt for x in problems])
        base = self._load_base()
        check_weights(config, base)
        SAMPLERS[config.train.rollouts].check(base)
        if folder:
            self.job.check_servers(base, problems)
        self.engine = Engine(base, config)
        if config.train.logprob_chunk:
            with self.engine.policy() as policy:
                check_chunks(policy)
        self.reference = Reference(config, self.engine, self._load_base)
        if self.job.rollout_tokens is None:
            self.job.rollout_tokens = self._rollout_tokens()
        self.evaluation = Evaluation(self.job, self.verifier, self.engine)
        self.step = Step(self.job, self.verifier, self.engine, self.reference)
        self.best, self.seconds = Best(config.train), 0.0
        # pass@1, and the largest pass@k of the evaluation that a batch can estimate
        self.shown = [1, min(self.evaluation.ks[-1], config.train.samples)]

    def _rollout_tokens(self) -> int:
        """Return the sampler's budget that fits the free memory of every rank."""
        shortest = min(self.job.max_new_tokens, self.job.eval_tokens)
        with self.engine.policy() as policy:
            weights = sum(p.nbytes for p in policy.model.parameters()) * self.reference.second
            numbers = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
            snapshot = 4 * numbers * bool(self.config.surgery.realised_every)
            later = self.engine.unborn_bytes + weights + snapshot
            tokens = rollout_tokens(policy, shortest, later)
        return int(self.engine.reduce(torch.tensor(tokens), "min"))

    def run(self) -> dict[str, Any] | None:
        """Evaluate, train and evaluate again; return the summary on rank 0."""
        train, start = self.config.train, self._resume()
        began = time.monotonic() - self.seconds
        metrics = Metrics(self.folder.path, self.config, start) if self.folder else None
        gc.collect()
        gc.freeze()  # otherwise each collection during a step searches all modules
        if start == train.steps:  # only the results are missing
            self._evaluate("after")
        if start == 0:
            self._begin(metrics)
        with self.verifier, Stop(self.folder is not None) as stop, self._progress(start) as bar:
            for step in range(start + 1, train.steps + 1):
                # the batch is freed before the evaluation, which needs the memory
                log = log_of(self.step(step), self.shown)
                log.scalars |= self._evaluate_at(step)
                if metrics:
                    metrics.step(log)
                self.seconds = time.monotonic() - began
                last = step == train.steps
                stopping = not last and self._agreed(stop)
                better = self.best.takes(step, log.scalars)
                if better or last or stopping or due(step, train.save_every):
                    if metrics:
                        metrics.flush()
                    self._save(step)
                if stopping:
                    why = f"interrupted; step {step} is saved, and the same command goes on"
                    raise Interrupted(why)
                rates = {f"pass@{k}": log.scalars[f"train/pass@{k}"] for k in self.shown}
                bar.set_postfix({name: f"{x:.3f}" for name, x in rates.items()}, refresh=False)
                bar.update()
        return self._end(metrics)

    def _begin(self, metrics: Metrics | None) -> None:
        """Evaluate the base, with which rules compare later batches."""
        began = time.monotonic()
        known = share(self.folder and self.folder.base_records)
        records, scalars = self._evaluate("before", known)
        if self.folder:
            place = self.folder.path / "eval" / "before.jsonl"
            warn_if_one_sided(records, f"in {place}")
        reference = self._evaluate_reference()
        if reference is not None:
            records = reference
            scalars["eval/reference_pass@1"] = float(problem_scores(records, 1).mean())
        base = next(scalars[x] for x in BASE_PASS_1 if x in scalars)
        self.step.rule_state["base_pass@1"] = base
        self.step.base_rates = self.evaluation.base_rates(records, base)
        if metrics:
            metrics.begin(scalars | {"time/evaluate": time.monotonic() - began})

    def _end(self, metrics: Metrics | None) -> dict[str, Any] | None:
        """Publish the model and write the summary, on rank 0."""
        if not (self.folder and metrics):
            return None
        checkpoint.publish(self.folder.path, self.config.train.steps)
        summary = self.evaluation.summary(self.folder.path, self.seconds)
        metrics.close(self.config, summary)
        write_json(self.folder.path / "summary.json", summary)
        return summary

    def _load_base(self) -> Policy:
        model = self.config.model
        return load_policy(self.base_path, model.dtype, model.attention)

    def _evaluate_at(self, step: int) -> dict[str, float]:
        """Return the scalars of the evaluation after this step, or the exact values alone."""
        start, last = time.monotonic(), step == self.config.train.steps
        if last or due(step, self.config.eval.every):
            _, scalars = self._evaluate("after" if last else None)
        else:
            scalars = self.evaluation.exact()
        return scalars | {"time/evaluate": time.monotonic() - start}

    def _evaluate(
        self, name: str | None, known: list[Record] | None = None
    ) -> tuple[list[Record], dict[str, float]]:
        records, scalars = self.evaluation(known)
        if name and self.folder:
            write_lines(self.folder.path / "eval" / f"{name}.jsonl", records)
        return records, scalars

    def _evaluate_reference(self) -> list[Record] | None:
        """Return the base's records of training problems, if a rule needs them.

        Only a task whose evaluation problems are of another kind has such problems.
        """
        needed = holds_pass_1(self.config) or ":" in self.config.surgery.rule
        problems = self.task.reference(self.config.eval.problems) if needed else None
        if problems is None:
            return None
        records = share(self.folder and self.folder.base_reference)
        records = records or self.evaluation.records(problems)
        if self.folder:
            write_lines(self.folder.path / "eval" / "reference.jsonl", records)
        return records

    def _agreed(self, stop: Stop) -> bool:
        """Return whether any rank was asked to stop."""
        return bool(self.engine.reduce(torch.tensor(float(stop.asked is not None)), "max"))

    def _save(self, step: int) -> None:
        probe, tensors = self.step.probe.state()
        numbers = {
            "seed": self.config.seed,
            "data": self.data,
            "rule_state": self.step.rule_state,
            "base_rates": self.step.base_rates and self.step.base_rates.state(),
            "prompts": self.step.prompts.state(),
            "probe": probe,
            "best": self.best.held,
            "bad_steps": self.step.bad_steps,
            "histograms": self.step.histograms,
            "seconds": self.seconds,
        }
        path = self.folder.path if self.folder else None
        checkpoint.save(self.engine, path, step, numbers, tensors)
        if self.folder:
            if self.best.held:
                write_json(self.folder.path / "checkpoints" / "best.json", self.best.held)
            checkpoint.prune(self.folder.path, self.config.train.keep, self.best.step)

    def _resume(self) -> int:
        """Restore the newest intact checkpoint and return its step; 0 for a new run."""
        newest = share(checkpoint.latest(self.folder.path) if self.folder else None)
        if newest is None:
            return 0
        place, numbers = newest
        if numbers.get("data", self.data) != self.data:
            why = f"are not those that {place} was trained on"
            remedy = "restore the data, or choose another run.dir"
            raise other_problems(self.config, f"{why}; {remedy}")
        here = place if self.folder else None
        tensors = checkpoint.load(self.engine, here, numbers["optimizer_steps"])
        self.step.rule_state, self.step.bad_steps = numbers["rule_state"], numbers["bad_steps"]
        # checkpoints of version 0.1 have none of the next three
        if numbers.get("base_rates"):
            self.step.base_rates = BaseRates(**numbers["base_rates"])
        self.step.prompts.restore(numbers.get("prompts", self.step.prompts.state()))
        self.step.histograms = numbers.get("histograms", [])
        self.step.probe.restore(numbers["probe"], tensors)
        self.best.held, self.seconds = numbers["best"], numbers["seconds"]
        if self.folder:
            print(f"{self.folder.path}: going on from step {numbers['step']}", file=sys.stderr)
        return numbers["step"]

    def _progress(self, start: int) -> tqdm:
        quiet = self.folder is None
        return progress(self.config.train.steps, start, str(self.config.run.dir), quiet)
