"""Measuring interference in training: the geometry of each batch, over all ranks, smoothed in time.

`last_layer` uses the features that the sampler took. `ghost` is exact over the chosen parameters:
one backward gives J_1, a probe gives its product with every completion. Leave-one-out then means
two halves of all ranks' batch, each probed with the J_1 of the other. The second is probed on the
way of the backward that gives its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from eval.policy.logprobs import Likelihood, Rows
from eval.rollout.rollout import Rollout
from surgery import diagnostics
from surgery.geometry import (
    Geometry,
    Products,
    agreements,
    by_others,
    probed,
    probes_of,
    products,
    prompt_gradients,
    psd,
    smoothed,
)
from surgery.rules import AGREEMENT, NORM_K
from trainers.config.schema import Config, SurgeryConfig
from trainers.config.values import ConfigError
from trainers.engine.batches import Work, merged, summed
from trainers.engine.engine import Engine
from trainers.measure import ghost
from trainers.step_batch import StepBatch

Direction = dict[str, Tensor]


PIECE = 2**22  # numbers of a product taken at once


WATCH_EVERY = 10  # ghost measurements between looks at |J_k| that no rule has asked for


class Probe:
    def __init__(self, config: Config, engine: Engine, needs: frozenset[str]):
        self.config, self.surgery, self.engine = config, config.surgery, engine
        train = config.train
        self.likelihood = Likelihood(train.temperature, chunk=train.logprob_chunk)
        self.with_norm_k = NORM_K in needs
        # from two completions no other two are left to decide by
        self.by_others = (
            AGREEMENT in needs and config.surgery.statistic == "loo" and config.train.samples > 2
        )
        self.smooth: Products | None = None  # of the last `averaged` measurements, all of this k
        self.k: int | None = None
        self.averaged = 0
        self.measured, self.degenerate = 0, 0
        self.moved: Direction | None = None  # the last step really taken, where it is watched
        self.coverage: float | None = None
        if self.surgery.measure == "ghost":
            with engine.policy() as policy:
                self.coverage = check_coverage(policy.model, self.surgery)
                ghost.check(policy.model, self.surgery.modules)

    def __call__(self, batch: StepBatch) -> tuple[Geometry, dict[str, float]]:
        """Return the geometry of a batch over all ranks, and its scalars.

        A geometry that is not finite has only its products (NaN), and enters no average.
        """
        correct, probes = batch.correct, None
        if self.surgery.measure == "ghost":
            now, naive, agreement, probes = self._by_ghost(batch)
        else:
            g_k, g_1 = self._last_layer(batch)
            now, naive = (products(g_k, g_1, x) for x in (self.surgery.statistic, "naive"))
            agreement = agreements(g_1, self.surgery.statistic)
            if self.by_others:
                assert batch.rollout.features is not None
                local = probes_of(g_1, batch.rollout.features.cpu(), batch.mine)
                probes = self.engine.in_place(batch.mine, local, len(correct))
        if not Geometry(correct.mean(1), now, agreement).finite:  # it would stay in the average
            nothing = Products(math.nan, math.nan, math.nan)
            return Geometry(correct.mean(1), nothing), {}
        now_and_then = self.surgery.measure == "ghost" and not self.with_norm_k
        used = replace(now, norm_k=math.nan) if now_and_then else now
        before = self.products
        self.smooth = smoothed(used, self.smooth, self.surgery.ema, self.averaged)
        decisive = psd(self.smooth)
        others = None
        if self.by_others and probes is not None:
            others = by_others(correct, batch.weight_k, probes)
        # of the prompt itself, whatever its importance
        agreement = agreement / batch.importance
        geometry = Geometry(
            correct.mean(1), decisive, agreement, others, batch.change, before, batch.pace
        )
        self.measured, self.averaged = self.measured + 1, self.averaged + 1
        self.degenerate += geometry.degenerate
        scalars = diagnostics.of_products(now, naive, decisive)
        scalars["degenerate_share"] = self.degenerate / self.measured
        if self.coverage is not None:
            scalars["coverage"] = self.coverage
        return geometry, scalars

    def begin(self, k: int) -> None:
        """Begin a step of this k; forget what was measured with another k."""
        if self.k not in (k, None):
            self.smooth, self.averaged = None, 0
        self.k = k

    def due(self, step: int) -> bool:
        """Return whether to measure in this step: in every step until one measurement is finite."""
        is_due = (step - 1) % self.surgery.every == 0 or self.smooth is None
        return self.surgery.measure != "none" and is_due

    @property
    def products(self) -> Products | None:
        """The latest products, smoothed."""
        return psd(self.smooth) if self.smooth else None

    def _last_layer(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Return the g_k and g_1 of all ranks' prompts, [N, width]."""
        assert batch.rollout.features is not None
        features, mine = batch.rollout.features.cpu(), list(batch.mine)
        local = [prompt_gradients(a[mine], features) for a in (batch.a_k, batch.a_1)]
        both = self.engine.in_place(mine, torch.stack(local, 1), len(batch.a_1))
        return both[:, 0].contiguous(), both[:, 1].contiguous()

    def _by_ghost(self, batch: StepBatch) -> tuple[Products, Products | None, Tensor, Tensor]:
        """Return products, naive products, agreements and probes; an unused |J_k| is often NaN."""
        rollout, mine, a_k, a_1 = batch.rollout, batch.mine, batch.a_k, batch.a_1
        sides = halves(len(a_1))
        if self.surgery.statistic == "naive":
            sides.zero_()
        names = list(range(int(sides.max()) + 1))
        wanted = ((a_1 != 0) | (a_k != 0))[list(mine)]
        local = torch.full(wanted.shape, math.nan, dtype=torch.float64)  # nan: not probed yet
        with self.engine.policy() as policy:

            def mean(a: Tensor, s: int, v: Direction | None = None) -> Direction:
                side, pattern = (sides == s).double(), self.surgery.modules
                weights = (a * side[:, None] / side.sum())[list(mine)]
                probing = None if v is None else (v, local)
                part = self._gradient(policy.model, rollout, weights, pattern, probing)
                return {key: self.engine.total(x) for key, x in part.items()}

            metric = self._metric()
            j_1 = [mean(a_1, 0)]
            for s in names[1:]:  # the first is known by then
                j_1.append(mean(a_1, s, metric(j_1[0])))
            for s in names:
                other = sides == names[s - 1]
                left = wanted & other[list(mine), None] & local.isnan()
                self._probe(policy.model, rollout, left, metric(j_1[s]), local)
            watched = self.with_norm_k or self.measured % WATCH_EVERY == 0
            j_k = [mean(a_k, s) for s in names] if watched else None
        local = local.where(wanted, 0.0)
        probes = self.engine.in_place(mine, local, len(a_1))
        now, agreement = probed(a_k, a_1, probes, sides)
        if j_k is None:
            return now, None, agreement, probes

        mean_k, mean_1 = _mean(j_k), _mean(j_1)
        in_metric = metric(mean_1), metric(mean_k)
        naive = Products(
            _dot(mean_k, in_metric[0]), _dot(mean_1, in_metric[0]), _dot(mean_k, in_metric[1])
        )
        return replace(now, norm_k=_dot(j_k[0], metric(j_k[-1]))), naive, agreement, probes

    def _metric(self) -> Callable[[Direction], Direction]:
        """Return Adam's scaling of a gradient, or none: Euclidean metric, or before the first step.

        It uses past batches only. If the batch's own gradient were in the scale, each half would be
        measured in a metric that contains the other, and the products would be biased.
        """
        scale = self.engine.adam_scale() if self.surgery.metric == "adam" else None
        if scale is None:
            return lambda v: v
        return lambda v: {key: x * scale[key] for key, x in v.items()}

    def _gradient(
        self,
        model: Any,
        rollout: Rollout,
        weights: Tensor,
        pattern: str | None = None,
        probing: tuple[Direction, Tensor] | None = None,
    ) -> Direction:
        """Return this rank's sum over completions [prompts, n] of weight * grad log pi.

        Given `probing` = (v, probes), the same backwards leave in `probes` what `_probe` would.
        """
        total = ghost.zeros(model, pattern)
        for rows, places in self._merged(rollout, weights != 0):
            sums = summed(weights.flatten(), places).to(self.engine.device)
            if probing is None:
                ghost.add_gradient(model, rows, sums, total, self.likelihood)
            else:
                v, probes = probing
                values = ghost.probed_gradient(model, rows, sums, v, total, self.likelihood)
                _spread(values, places, probes)
        return total

    def _probe(
        self,
        model: Any,
        rollout: Rollout,
        wanted: Tensor,
        v: Mapping[str, Tensor],
        probes: Tensor,
    ) -> None:
        """Write <grad log pi(y_ij), v> into `probes` [prompts, n] where wanted; equal rows once."""
        for rows, places in self._merged(rollout, wanted):
            _spread(ghost.probe(model, rows, v, self.likelihood), places, probes)

    def _merged(self, rollout: Rollout, wanted: Tensor) -> Iterator[tuple[Rows, list[list[int]]]]:
        budget, engine = self.config.train.micro_batch_tokens, self.engine
        return merged(rollout, wanted, Work(budget, engine.pad_id, engine.device))

    def watch(self, before: Direction, after: Iterable[tuple[str, Tensor]]) -> None:
        """Keep the step taken, to compare it with the next batch's J_1; this empties `before`."""
        self.moved = {name: x - before.pop(name) for name, x in after}

    def realised(self, batch: StepBatch) -> float | None:
        """Return <grad J_1, watched step> with this batch's J_1; None if no step is watched."""
        moved, self.moved = self.moved, None
        if moved is None:
            return None
        rollout, mine = batch.rollout, batch.mine
        with self.engine.policy() as policy:
            weights = batch.a_1[list(mine)] / len(batch.a_1)
            local = self._gradient(policy.model, rollout, weights)
        inner = torch.tensor(_dot(local, moved), dtype=torch.float64)
        return float(self.engine.reduce(inner))

    def state(self) -> tuple[dict[str, Any], dict[str, Direction]]:
        """Return (numbers, tensors by kind and name) for a checkpoint."""
        numbers = {
            "smooth": asdict(self.smooth) if self.smooth else None,
            "k": self.k,
            "averaged": self.averaged,
            "measured": self.measured,
            "degenerate": self.degenerate,
        }
        return numbers, {"moved": self.moved} if self.moved else {}

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Direction]) -> None:
        self.smooth = Products(**numbers["smooth"]) if numbers["smooth"] else None
        self.measured, self.degenerate = numbers["measured"], numbers["degenerate"]
        # checkpoints of version 0.1 have neither
        self.k, self.averaged = numbers.get("k"), numbers.get("averaged", self.measured)
        moved = tensors.get("moved")
        self.moved = {n: x.to(self.engine.device) for n, x in moved.items()} if moved else None


def halves(prompts: int) -> Tensor:
    """Return the half, 0 or 1, of each prompt i: the parity of the ones among the bits of i.

    This is the Thue-Morse sequence. Rank r holds the prompts r, r + world, ..., and ranks wait for
    each other between the halves. Of any 2^m ranks each holds as many of either half; by i % 2 an
    even number of ranks would hold one half each. The worst are multiples of three, where most
    of a rank is of one half.
    """
    return torch.tensor([i.bit_count() % 2 for i in range(prompts)])


def check_coverage(model: Any, surgery: SurgeryConfig) -> float:
    """Return the share of the parameters that surgery.modules selects; refuse too small a share."""
    covered = ghost.coverage(model, surgery.modules)
    if covered < surgery.min_coverage:
        raise ConfigError(
            f"surgery.modules = {surgery.modules}: leaves in {covered:.3f} of the "
            f"parameters; widen it, or allow that by surgery.min_coverage={covered:.3f}"
        )
    return covered


def _spread(values: Tensor, rows: Sequence[Sequence[int]], probes: Tensor) -> None:
    """Copy each row's value to all completions that the row stands for."""
    counts = torch.tensor([len(places) for places in rows])
    order = torch.tensor([place for places in rows for place in places])
    probes.view(-1)[order] = values.cpu().repeat_interleave(counts)


def _mean(parts: Sequence[Direction]) -> Direction:
    return {key: torch.stack([x[key] for x in parts]).mean(0) for key in parts[0]}


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return <a, b> in float64, in pieces: a large embedding in float64 would outgrow the model."""
    pieces = (
        zip(x.flatten().split(PIECE), b[name].flatten().split(PIECE), strict=True)
        for name, x in a.items()
    )
    return float(sum(x.double() @ y.double() for both in pieces for x, y in both))
