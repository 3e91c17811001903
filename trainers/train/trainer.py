"""A training run, in the order in which it happens. `step` is the algorithm."""

import gc
import math
import sys
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.errors import Failure
from eval.files import write_json, write_lines
from eval.policy.logprobs import check_chunks, pad_batch
from eval.policy.policy import Policy, load_policy
from eval.policy.streams import derive_seed
from eval.rollout.continuous import check_paged
from eval.rollout.rollout import Rollout
from eval.rollout.sample import check_cache, sample
from eval.scores.passk import problem_scores
from eval.tasks.registry import build_task
from eval.tasks.task import Problem, digest
from eval.verify.verifier import Verifier
from surgery import diagnostics
from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, entropy, rloo
from surgery.geometry import Geometry
from surgery.objectives import prompt_weight, rho
from surgery.rules import Decision, State, apply, find_rule, per_prompt
from surgery.user_code import own_settings
from trainers.config.schema import Config
from trainers.config.values import holds_pass_1, parse_constraint
from trainers.engine.batches import micro_batches
from trainers.engine.engine import Engine
from trainers.engine.hosts import base_path, check_inputs, check_weights, other_problems
from trainers.engine.ranks import share
from trainers.engine.stop import Stop
from trainers.measure.probe import Probe
from trainers.train import checkpoint
from trainers.train.evaluation import Evaluation, decoding
from trainers.train.metrics import Clock, Metrics
from trainers.train.reference import Reference
from trainers.train.run_folder import RunFolder
from trainers.train.schedules import due, k_at, learning_rate

# the base's pass@1 that rules hold batches against: the true one, or else one of training problems
BASE_PASS_1 = ("exact/pass@1", "eval/reference_pass@1", "eval/pass@1")


class TrainingFailed(Failure):
    """The run cannot go on; its folder can be resumed."""


class Interrupted(Failure):
    """The run was asked to stop, and has saved the step that this says."""

    code = 130


class Trainer:
    def __init__(self, config: Config, folder: RunFolder | None):
        """`folder` is rank 0's; the other ranks have none and write nothing."""
        self.config, self.folder = config, folder
        self.task = build_task({**vars(config.task), **config.task.options})
        self.verifier = Verifier(
            config.task.verifier or self.task.verifier,
            config.task.verify_workers,
            config.task.verify_seconds,
        )
        # what is wrong with data is told before a model is loaded
        first = self.task.training(config.seed, 1, config.train.prompts)
        self.data = digest([*first, *self.task.evaluation(config.eval.problems)])
        check_inputs(config, self.data)
        self.verifier.try_out(first[0].gold)
        self.base_path = base_path(config, self.task)
        base = self._load_base()
        check_weights(config, base)
        check_cache(base, config.train.rollouts)
        if config.train.rollouts == "continuous":
            check_paged(base)
        self.engine = Engine(base, config)
        if config.train.logprob_chunk:
            with self.engine.policy() as policy:
                check_chunks(policy)
        self.reference = Reference(config, self.engine, self._load_base)
        self.evaluation = Evaluation(config, self.task, self.verifier, self.engine)
        rule = find_rule(config.surgery.rule)
        self.probe = Probe(config, self.engine, rule.needs)
        settings = {**vars(config.surgery), **config.surgery.options}
        self.rule = rule.bind(settings, config.train.samples)
        self.estimator = ESTIMATORS[config.objective.estimator]
        # what a checkpoint carries beside the engine's and the probe's state
        self.rule_state: State = {}
        self.best: dict[str, Any] | None = None
        self.bad_steps, self.seconds = 0, 0.0

    def run(self) -> dict[str, Any] | None:
        """Evaluate, train, evaluate again. Returns the summary, on rank 0."""
        train, start = self.config.train, self._resume()
        began = time.monotonic() - self.seconds
        metrics = Metrics(self.folder.path, self.config, start) if self.folder else None
        gc.collect()
        gc.freeze()  # or each step's lists would now and then have all modules searched for garbage
        if start == train.steps:  # all but the results were there
            self._evaluate("after")
        if start == 0:
            scalars = self._evaluate("before", share(self.folder and self.folder.base_records))
            scalars |= self._evaluate_reference()
            self.rule_state["base_pass@1"] = next(scalars[x] for x in BASE_PASS_1 if x in scalars)
            if metrics:
                metrics.log(0, scalars)
        with self.verifier, Stop(self.folder is not None) as stop, self._progress(start) as bar:
            for step in range(start + 1, train.steps + 1):
                scalars, prompts, looks = self.step(step)
                last, stepped = step == train.steps, time.monotonic()
                if last or due(step, self.config.eval.every):
                    scalars |= self._evaluate("after" if last else None)
                else:
                    scalars |= self.evaluation.exact()
                scalars["time/evaluate"] = time.monotonic() - stepped
                if metrics:
                    metrics.log(step, scalars)
                    metrics.prompts(step, prompts)
                    if due(step, self.config.logging.rollouts_every):
                        metrics.rollouts(looks)
                self.seconds = time.monotonic() - began
                stopping = not last and self._agreed(stop)
                if self._is_best(step, scalars) or last or stopping or due(step, train.save_every):
                    if metrics:
                        metrics.flush()
                    self._save(step)
                if stopping:
                    raise Interrupted(
                        f"interrupted; step {step} is saved, and the same command goes on"
                    )
                shown = {name: f"{scalars[f'train/{name}']:.3f}" for name in self._shown()}
                bar.set_postfix(shown, refresh=False)
                bar.update()
        if not (self.folder and metrics):
            return None
        checkpoint.publish(self.folder.path, train.steps)
        summary = self.evaluation.summary(self.folder.path, self.seconds)
        metrics.close(self.config, summary)
        write_json(self.folder.path / "summary.json", summary)
        return summary

    def step(self, step: int) -> tuple[dict[str, float], dict[str, Tensor], list[dict[str, Any]]]:
        """Sample, verify, estimate, measure, decide, one weighted backward, update.

        Returns scalars by their TensorBoard names, the prompts' numbers, and a look at some
        rollouts.
        """
        train, surgery = self.config.train, self.config.surgery
        k = k_at(self.config, step)
        # an estimator with an objective of its own re-weights nothing that is known here
        of_k = k if self.config.objective.estimator in OF_PASS_AT_K else 1
        self.probe.begin(of_k)
        clock = Clock()

        problems = self.task.training(self.config.seed, step, train.prompts)
        mine = range(self.engine.rank, len(problems), self.engine.world)
        with clock("sample"):
            rollout = self._sample([problems[i] for i in mine], mine, step)
        with clock("verify"):
            golds = [problems[i].gold for i in mine for _ in range(train.samples)]
            verdicts = self.verifier(rollout.texts, golds)
            seen = self._everywhere(mine, rollout, verdicts)

        # from here on the numbers are the whole batch's [prompts, samples], the same on every rank
        correct = (seen["verdict"] == 1).double()
        options = own_settings(self.estimator, vars(self.config.objective))
        a_k, a_1 = self.estimator(correct, k, **options), rloo(correct)
        weights = prompt_weight(train.samples, correct.sum(1), of_k)

        geometry, measured = Geometry(correct.mean(1), self.probe.products), dict[str, float]()
        with clock("measure"):
            realised = self.probe.realised(rollout, mine, a_1)
            if self._measures(step):
                geometry, measured = self.probe(rollout, mine, a_k, a_1, correct, of_k)
        decision = self.rule(weights, geometry, self.rule_state)
        advantages = apply(decision, a_k, a_1)
        # after the decision: a rule weighs J_k against J_1 and promises nothing of their entropy,
        # nor of the distance to the base
        applied = (advantages + train.entropy_coef * entropy(seen["logprob"]))[list(mine)]
        drift = None
        if train.kl_coef > 0 or due(step, self.config.logging.kl_every):
            with clock("reference"):
                drift, back = self.reference(rollout)
            if train.kl_coef > 0:
                applied = applied[..., None] + train.kl_coef * back  # one weight a token

        with clock("update"):
            before = self.engine.snapshot() if due(step, surgery.realised_every) else None
            lr = learning_rate(self.config, step)
            loss, norms = self._update(rollout, applied, lr)
            if before:
                self.probe.watch(before, self.engine.weights())

        if geometry.agreement is not None:
            measured |= diagnostics.of_agreement(weights, geometry.agreement, measured)
        if realised is not None:
            measured["realised"] = realised
        measured |= diagnostics.of_decision(weights, decision)
        scalars = {
            **self._batch_scalars(seen, advantages, weights, decision),
            "train/loss": loss,
            **({} if norms[0] is None else {"train/grad_norm": norms[0]}),
            "train/skipped": norms.count(None) / len(norms),
            "train/lr": lr,
            "train/k": k,
            **{f"surgery/{name}": x for name, x in measured.items()},
        }
        if drift is not None:
            scalars["train/kl_to_base"] = drift
        scalars |= clock.scalars(seen["length"])
        prompts = {"weights": weights, "rate": geometry.rate}
        if geometry.agreement is not None:
            prompts["agreements"] = geometry.agreement
        return scalars, prompts, self._looks(step, problems, mine, rollout, verdicts, prompts)

    def _batch_scalars(
        self, seen: dict[str, Tensor], advantages: Tensor, weights: Tensor, decision: Decision
    ) -> dict[str, float]:
        counts = (seen["verdict"] == 1).double().sum(1)
        alpha, beta = per_prompt(decision)
        applied = alpha * weights + beta
        n = self.config.train.samples
        return {
            **{f"train/{x}": float(rho(n, counts, j).mean()) for x, j in self._shown().items()},
            "train/entropy": float(seen["entropy"].mean()),
            "train/sequence_entropy": -float(seen["logprob"].mean()),
            "train/length": float(seen["length"].mean()),
            "train/truncated_share": float(seen["truncated"].mean()),
            "train/undecided_share": float((seen["verdict"] < 0).double().mean()),
            "train/unsolved_share": float((counts == 0).double().mean()),
            "train/no_signal_share": float((advantages == 0).all(1).double().mean()),
            "train/mean_weight": float(applied.mean()),
            "train/largest_weight_share": float(applied.max() / applied.sum().clamp(min=1e-300)),
        }

    def _looks(
        self,
        step: int,
        problems: list[Problem],
        mine: range,
        rollout: Rollout,
        verdicts: list[bool | None],
        prompts: dict[str, Tensor],
    ) -> list[dict[str, Any]]:
        """The first four prompts of this rank, with all that became of them."""
        looks = []
        for place, i in enumerate(mine[:4]):
            rows = slice(place * rollout.n, (place + 1) * rollout.n)
            agreement = prompts.get("agreements")
            looks.append(
                {
                    "step": step,
                    "seed": self._stream(step),
                    "place": i,
                    "id": problems[i].id,
                    "prompt": problems[i].prompt,
                    "gold": problems[i].gold,
                    "texts": rollout.texts[rows],
                    "verdicts": verdicts[rows],
                    "weight": float(prompts["weights"][i]),
                    "agreement": None if agreement is None else float(agreement[i]),
                }
            )
        return looks

    def _stream(self, step: int) -> int:
        """The seed of the step's completions."""
        return derive_seed(self.config.seed, "train", step)

    def _measures(self, step: int) -> bool:
        """Whether this step does; until a first measurement is finite, every one does."""
        surgery = self.config.surgery
        is_due = (step - 1) % surgery.every == 0 or self.probe.smooth is None
        return surgery.measure != "none" and is_due

    def _sample(self, problems: list[Problem], mine: range, step: int) -> Rollout:
        train, surgery = self.config.train, self.config.surgery
        with self.engine.policy() as policy:
            return sample(
                policy,
                [x.prompt for x in problems],
                train.samples,
                decoding(self.config, self.task, train.temperature, top_p=1.0),
                self._stream(step),
                mine,
                features=surgery.measure == "last_layer" and self._measures(step),
            )

    def _everywhere(
        self, mine: range, rollout: Rollout, verdicts: list[bool | None]
    ) -> dict[str, Tensor]:
        """Each completion's numbers [N, n] over all ranks, in the order of the problems. Undecided
        is -1.
        """
        shape = self.config.train.prompts, self.config.train.samples
        local = {
            "verdict": torch.tensor([-1.0 if v is None else float(v) for v in verdicts]),
            "entropy": rollout.entropy.cpu(),
            "logprob": rollout.logprobs.cpu(),
            "length": rollout.lengths,
            "truncated": rollout.truncated,
        }
        whole = {name: torch.zeros(shape, dtype=torch.float64) for name in local}
        for prompts, part in self.engine.gather((list(mine), local)):
            for name, values in part.items():
                whole[name][prompts] = values.double().view(len(prompts), shape[1])
        return whole

    def _update(
        self, rollout: Rollout, weights: Tensor, lr: float
    ) -> tuple[float, list[float | None]]:
        """The weighted backward and the step, `train.updates` times: the first loss, and each
        gradient's norm, None if it was not finite.

        The first is on-policy, the others ascend PPO's clipped surrogate with the same weights.
        """
        train, pad = self.config.train, self.engine.pad_id
        budget, device = train.micro_batch_tokens, self.engine.device
        linear = train.updates == 1  # the minimum in the surrogate is not
        batches, sums = micro_batches(rollout, weights, budget, pad, device, linear)
        idle = pad_batch([[pad]], [[pad]], pad, device)
        losses, norms, old = list[float](), list[float | None](), list[Tensor]()
        for _ in range(train.updates):
            loss, logprobs = self.engine.backward(batches, sums, 1 / train.prompts, idle, old)
            losses.append(loss)
            norms.append(self.engine.step(lr))
            old = old or logprobs
            self.bad_steps = self.bad_steps + 1 if norms[-1] is None else 0
            if self.bad_steps >= train.max_bad_steps:
                raise TrainingFailed(
                    f"{self.bad_steps} gradients in a row were not finite; "
                    "lower train.lr, or raise train.max_bad_steps, in a new run.dir"
                )
        return float(self.engine.reduce(torch.tensor(losses[0], dtype=torch.float64))), norms

    def _load_base(self) -> Policy:
        model = self.config.model
        return load_policy(self.base_path, model.dtype, model.attention)

    def _evaluate(
        self, name: str | None, known: list[dict[str, Any]] | None = None
    ) -> dict[str, float]:
        records, scalars = self.evaluation(known)
        if name and self.folder:
            write_lines(self.folder.path / "eval" / f"{name}.jsonl", records)
        return scalars

    def _evaluate_reference(self) -> dict[str, float]:
        """The base's pass@1 on problems to train on, where a rule needs it and the task says that
        the evaluation's are of another kind.
        """
        needed = holds_pass_1(self.config) or ":" in self.config.surgery.rule
        if not (needed and hasattr(self.task, "reference")):
            return {}
        problems = self.task.reference(self.config.eval.problems)
        records = share(self.folder and self.folder.base_reference)
        records = records or self.evaluation.records(problems)
        if self.folder:
            write_lines(self.folder.path / "eval" / "reference.jsonl", records)
        return {"eval/reference_pass@1": float(problem_scores(records, 1).mean())}

    def _is_best(self, step: int, scalars: dict[str, float]) -> bool:
        train = self.config.train
        value = scalars.get(train.best_metric)
        if train.best_constraint:
            name, bound = parse_constraint(train.best_constraint)
            value = value if scalars.get(name, -math.inf) >= bound else None
        if value is None or (self.best and value <= self.best["value"]):
            return False
        self.best = {"step": step, "metric": train.best_metric, "value": value}
        return True

    def _agreed(self, stop: Stop) -> bool:
        """Whether any rank was asked to stop."""
        return bool(self.engine.reduce(torch.tensor(float(stop.asked is not None)), "max"))

    def _save(self, step: int) -> None:
        probe, tensors = self.probe.state()
        numbers = {
            "seed": self.config.seed,
            "data": self.data,
            "rule_state": self.rule_state,
            "probe": probe,
            "best": self.best,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
        }
        path = self.folder.path if self.folder else None
        checkpoint.save(self.engine, path, step, numbers, tensors)
        if self.folder:
            if self.best:
                write_json(self.folder.path / "checkpoints" / "best.json", self.best)
            best = self.best["step"] if self.best else None
            checkpoint.prune(self.folder.path, self.config.train.keep, best)

    def _resume(self) -> int:
        """The step of the newest intact checkpoint; 0 for a new run."""
        found = checkpoint.latest(self.folder.path) if self.folder else None
        found = share(found)
        if found is None:
            return 0
        place, numbers = found
        if numbers.get("data", self.data) != self.data:
            raise other_problems(self.config, f"are not those that {place} was trained on")
        here = place if self.folder else None
        tensors = checkpoint.load(self.engine, here, numbers["optimizer_steps"])
        self.rule_state, self.best = numbers["rule_state"], numbers["best"]
        self.bad_steps, self.seconds = numbers["bad_steps"], numbers["seconds"]
        self.probe.restore(numbers["probe"], tensors)
        if self.folder:
            print(f"{self.folder.path}: going on from step {numbers['step']}", file=sys.stderr)
        return numbers["step"]

    def _shown(self) -> dict[str, int]:
        """pass@1 and the largest pass@k of the evaluation that a batch can estimate."""
        ks = [1, min(self.evaluation.ks[-1], self.config.train.samples)]
        return {f"pass@{k}": k for k in ks}

    def _progress(self, start: int) -> tqdm:
        return tqdm(
            total=self.config.train.steps,
            initial=start,
            desc=self.config.run.dir,
            disable=self.folder is None,
            mininterval=0.3 if sys.stderr.isatty() else 15,
        )
