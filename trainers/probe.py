"""Measuring interference in training: the geometry of each batch, over all ranks, smoothed over
steps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.gram import Geometry, Products, agreements, products, prompt_gradients, psd, smoothed
from trainers.engine import Engine
from trainers.schema import SurgeryConfig


class Probe:
    """Measures with the completions' own features, so that weight and gradient come from the same
    samples.
    """

    def __init__(self, config: SurgeryConfig, engine: Engine):
        self.config, self.engine = config, engine
        self.smooth: Products | None = None
        self.scalars: dict[str, float] = {}

    def measure(self, features: Tensor, mine: Sequence[int], a_k: Tensor, a_1: Tensor) -> Geometry:
        """The geometry of the whole batch, given the features of this rank's prompts `mine`."""
        features = features.cpu()
        local = [prompt_gradients(a[list(mine)], features) for a in (a_k, a_1)]
        g_k, g_1 = torch.zeros(2, len(a_1), features.shape[1], dtype=torch.float64)
        for prompts, (k_part, one_part) in self.engine.gather((list(mine), local)):
            g_k[prompts], g_1[prompts] = k_part, one_part
        now = products(g_k, g_1, self.config.statistic)
        naive = products(g_k, g_1, "naive")
        self.smooth = smoothed(now, self.smooth, self.config.ema)
        decisive = psd(self.smooth)
        agreement = agreements(g_1, self.config.statistic)
        self.scalars = {
            "surgery/cosine": psd(now).cosine,
            "surgery/cosine_naive": naive.cosine,
            "surgery/cosine_smoothed": decisive.cosine,
            "surgery/dot": now.dot,
            "surgery/norm_1_squared": now.norm_1,
            "surgery/conflict": float(now.dot < 0),
            "surgery/negative_share": float((agreement < 0).double().mean()),
        }
        return Geometry(decisive, agreement, degenerate=decisive.norm_1 <= 0)

    def state(self) -> dict[str, Any]:
        return {"smooth": vars(self.smooth) if self.smooth else None}

    def restore(self, state: dict[str, Any]) -> None:
        self.smooth = Products(**state["smooth"]) if state["smooth"] else None
