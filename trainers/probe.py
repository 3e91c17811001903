"""Measuring interference in training: the geometry of each batch, over all ranks, smoothed in time.

`last_layer` uses the features that the sampler took. `ghost` is exact over the chosen parameters:
one
backward gives J_1, a probe gives its product with every completion. Leave-one-out then means
halves:
even and odd prompts of the whole batch, each probed with the J_1 of the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eval.sampling import Rollout
from surgery import diagnostics
from surgery.gram import (
    Geometry,
    Products,
    agreements,
    probed,
    products,
    prompt_gradients,
    psd,
    smoothed,
)
from surgery.rules import NORM_K
from trainers import ghost
from trainers.batches import merged, micro_batches
from trainers.config import ConfigError
from trainers.engine import Engine
from trainers.schema import Config

Direction = dict[str, Tensor]


class Probe:
    def __init__(self, config: Config, engine: Engine, needs: frozenset[str]):
        self.config, self.surgery, self.engine = config, config.surgery, engine
        self.with_norm_k = NORM_K in needs
        self.smooth: Products | None = None
        self.measured, self.degenerate = 0, 0
        self.moved: Direction | None = None  # the last step really taken, where it is watched
        self.coverage = self._check_coverage() if self.surgery.measure == "ghost" else None

    def __call__(
        self, rollout: Rollout, mine: Sequence[int], a_k: Tensor, a_1: Tensor, rate: Tensor
    ) -> tuple[Geometry, dict[str, float]]:
        """The geometry of the whole batch and its scalars; `mine` are this rank's prompts."""
        naive = gram = None
        if self.surgery.measure == "ghost":
            now, agreement = self._by_ghost(rollout, mine, a_k, a_1)
        else:
            g_k, g_1 = self._last_layer(rollout, mine, a_k, a_1)
            now = products(g_k, g_1, self.surgery.statistic)
            naive, gram = products(g_k, g_1, "naive"), g_1 @ g_1.T
            agreement = agreements(g_1, self.surgery.statistic)
        self.smooth = smoothed(now, self.smooth, self.surgery.ema)
        geometry = Geometry(rate, psd(self.smooth), agreement, gram)
        self.measured, self.degenerate = self.measured + 1, self.degenerate + geometry.degenerate
        scalars = diagnostics.of_products(now, naive, psd(self.smooth))
        scalars["degenerate_share"] = self.degenerate / self.measured
        if self.coverage is not None:
            scalars["coverage"] = self.coverage
        return geometry, scalars

    @property
    def products(self) -> Products | None:
        """The latest, smoothed."""
        return psd(self.smooth) if self.smooth else None

    def _last_layer(
        self, rollout: Rollout, mine: Sequence[int], a_k: Tensor, a_1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Everybody's g_k and g_1, [N, width]."""
        assert rollout.features is not None
        features = rollout.features.cpu()
        local = [prompt_gradients(a[list(mine)], features) for a in (a_k, a_1)]
        whole = torch.zeros(2, len(a_1), features.shape[1], dtype=torch.float64)
        for prompts, parts in self.engine.gather((list(mine), local)):
            for g, part in zip(whole, parts, strict=True):
                g[prompts] = part
        return whole[0], whole[1]

    def _by_ghost(
        self, rollout: Rollout, mine: Sequence[int], a_k: Tensor, a_1: Tensor
    ) -> tuple[Products, Tensor]:
        prompts = torch.arange(len(a_1))
        sides = prompts % 2 if self.surgery.statistic == "loo" else torch.zeros_like(prompts)
        count = int(sides.max()) + 1
        local = torch.zeros(len(mine), rollout.n, dtype=torch.float64)
        with self.engine.policy() as policy:
            scale = self._metric()
            means = [
                [
                    self._mean_gradient(policy.model, rollout, mine, a, sides == s)
                    for s in range(count)
                ]
                for a in ((a_1, a_k) if self.with_norm_k else (a_1,))
            ]
            for s, j_1 in enumerate(means[0]):
                direction = {name: x * scale[name] for name, x in j_1.items()} if scale else j_1
                other = (sides == (s + 1) % count)[list(mine)]
                signal = ((a_1 != 0) | (a_k != 0))[list(mine)] & other[:, None]
                local += self._probe(policy.model, rollout, signal, direction)
        probes = torch.zeros_like(a_1)
        for places, part in self.engine.gather((list(mine), local)):
            probes[places] = part
        found, agreement = probed(a_k, a_1, probes, sides)
        if self.with_norm_k:
            first, last = means[1][0], means[1][-1]
            norm_k = sum(
                _dot(x, last[n] * scale[n] if scale else last[n]) for n, x in first.items()
            )
            found = Products(found.dot, found.norm_1, norm_k)
        return found, agreement

    def _mean_gradient(
        self, model: Any, rollout: Rollout, mine: Sequence[int], a: Tensor, side: Tensor
    ) -> Direction:
        """The mean over all prompts of one side of sum_j A_ij grad log pi(y_ij)."""
        weights = (a * side[:, None] / side.sum())[list(mine)]
        local = self._gradient(model, rollout, weights)
        return {name: self.engine.total(x) for name, x in local.items()}

    def _gradient(self, model: Any, rollout: Rollout, weights: Tensor) -> Direction:
        train, engine = self.config.train, self.engine
        batches = micro_batches(
            rollout, weights, train.micro_batch_tokens, engine.pad_id, engine.device
        )
        return ghost.gradient(model, *batches, train.temperature, self.surgery.modules)

    def _probe(
        self, model: Any, rollout: Rollout, wanted: Tensor, direction: Mapping[str, Tensor]
    ) -> Tensor:
        """[prompts, n] <grad log pi(y_ij), direction> where wanted, else 0; equal rows once."""
        train, engine = self.config.train, self.engine
        budget = train.micro_batch_tokens
        probes = torch.zeros(wanted.numel(), dtype=torch.float64)
        for batch, rows in merged(rollout, wanted, budget, engine.pad_id, engine.device):
            values = ghost.probe(model, batch, direction, train.temperature).cpu()
            for value, places in zip(values, rows, strict=True):
                probes[places] = value
        return probes.view(wanted.shape)

    def _metric(self) -> Direction | None:
        """The inverse of Adam's preconditioner, None for the Euclidean metric."""
        return self.engine.inverse_preconditioner() if self.surgery.metric == "adam" else None

    def watch(self, before: Direction, after: Direction) -> None:
        """Keep the step really taken, to be held against the next batch's J_1."""
        self.moved = {name: after[name] - before[name] for name in before}

    def realised(self, rollout: Rollout, mine: Sequence[int], a_1: Tensor) -> float | None:
        """<grad J_1, step> of the watched step, with this batch's J_1; None if none is watched."""
        moved, self.moved = self.moved, None
        if moved is None:
            return None
        with self.engine.policy() as policy:
            local = self._gradient(policy.model, rollout, a_1[list(mine)] / len(a_1))
        inner = sum(_dot(x, moved[name]) for name, x in local.items())
        return float(self.engine.reduce(torch.tensor(inner, dtype=torch.float64)))

    def _check_coverage(self) -> float:
        with self.engine.policy() as policy:
            covered = ghost.coverage(policy.model, self.surgery.modules)
        if covered < self.surgery.min_coverage:
            raise ConfigError(
                f"surgery.modules = {self.surgery.modules}: leaves in {covered:.3f} of the "
                f"parameters; widen it, or allow that by surgery.min_coverage={covered:.3f}"
            )
        return covered

    def state(self) -> tuple[dict[str, Any], dict[str, Direction]]:
        """(numbers, tensors by kind and name) for a checkpoint."""
        numbers = {
            "smooth": asdict(self.smooth) if self.smooth else None,
            "measured": self.measured,
            "degenerate": self.degenerate,
        }
        return numbers, {"moved": self.moved} if self.moved else {}

    def restore(self, numbers: Mapping[str, Any], tensors: Mapping[str, Direction]) -> None:
        self.smooth = Products(**numbers["smooth"]) if numbers["smooth"] else None
        self.measured, self.degenerate = numbers["measured"], numbers["degenerate"]
        moved = tensors.get("moved")
        self.moved = {n: x.to(self.engine.device) for n, x in moved.items()} if moved else None


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
