"""Run by test_verl.py with a Python that has verl: its registry, and its own call of estimators.

under_verl.py OUT
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, agg_loss
from verl.trainer.ppo.ray_trainer import compute_advantage

from surgery.estimators import loo, rloo
from trainers.integrations import verl

SIZES = (4, 6, 4, 5)  # completions of each prompt
TOKENS = 7


def batch(sizes: tuple[int, ...]) -> tuple[Any, torch.Tensor]:
    """A batch in random order, as verl holds it, and its verdicts."""
    dice = torch.Generator().manual_seed(3)
    rows = sum(sizes)
    uid = np.array([f"prompt {i}" for i, n in enumerate(sizes) for _ in range(n)], dtype=object)
    order = torch.randperm(rows, generator=dice)
    lengths = torch.randint(1, TOKENS + 1, (rows,), generator=dice)
    mask = (torch.arange(TOKENS) < lengths[:, None]).float()
    correct = torch.randint(0, 2, (rows,), generator=dice).float()
    rewards = torch.zeros(rows, TOKENS)
    rewards[torch.arange(rows), lengths - 1] = correct
    tensors = {"token_level_rewards": rewards, "response_mask": mask}
    return DataProto.from_dict(tensors, {"uid": uid[order.numpy()]}), correct


def advantages(data: Any, name: str, config: Any) -> torch.Tensor:
    """What verl's trainer computes; a fresh state for each call."""
    if name.startswith("surgery_"):
        ADV_ESTIMATOR_REGISTRY[name].groups = None
    return compute_advantage(data, name, config=config).batch["advantages"]


def refusal(data: Any, name: str, config: Any) -> str:
    try:
        advantages(data, name, config)
    except Exception as error:
        return str(error)
    return "taken"


def main(out: Path) -> None:
    even, _ = batch((8,) * 5)
    names = {x.removeprefix("surgery_") for x in ADV_ESTIMATOR_REGISTRY if "surgery_" in x}
    plain = AlgoConfig()  # no sections of this project
    apart = advantages(even, "surgery_rloo", plain) - advantages(even, "rloo", plain)

    ragged, correct = batch(SIZES)
    chosen = OmegaConf.create({"objective": {"k": 3}, "surgery": {"rule": "mix", "mix": 0.25}})
    ours = advantages(ragged, "surgery_loo", chosen)
    expected = torch.zeros(len(correct))
    for name in set(ragged.non_tensor_batch["uid"]):
        (rows,) = np.nonzero(ragged.non_tensor_batch["uid"] == name)
        own = correct[rows][None]
        expected[rows] = (loo(own, 3) + 0.25 * rloo(own))[0].float()
    # verl's own loss, of log-probabilities that are the parameters
    logp = torch.zeros_like(ours).requires_grad_()
    mask = ragged.batch["response_mask"]
    agg_loss(-ours * logp, mask, "seq-mean-token-sum").backward()
    gradient = -logp.grad - expected[:, None] * mask / len(SIZES)

    kl = DataProto.from_dict(
        {"token_level_rewards": 0.9 * ragged.batch["token_level_rewards"], "response_mask": mask},
        {"uid": ragged.non_tensor_batch["uid"]},
    )
    measuring = OmegaConf.create({"objective": {"k": 3}, "surgery": {"rule": "mgda"}})
    results = {
        "names": sorted(names),
        "from rloo of verl": float(apart.abs().max()),
        "gradient": float(gradient.abs().max()),
        "largest": float(logp.grad.abs().max()),
        "measures": refusal(ragged, "surgery_loo", measuring),
        "k": refusal(ragged, "surgery_loo", OmegaConf.create({"objective": {"k": 5}})),
        "kl": refusal(kl, "surgery_loo", chosen),
        "file": verl.__file__,
    }
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
