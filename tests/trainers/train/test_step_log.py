"""What is written of a step, from a batch that was filled by hand."""

import pytest
import torch

from eval.rollout.rollout import Rollout
from eval.tasks.task import Problem
from surgery.geometry import Geometry
from trainers.step_batch import StepBatch
from trainers.train.step_log import log_of

PROBLEMS = [Problem(str(i), f"{i}+1=", str(i + 1)) for i in range(3)]


@pytest.fixture
def batch():
    """Three prompts of two samples; this rank has the first and the last."""
    ones = torch.ones(3).double()
    batch = StepBatch(7, 5, 2, 2, 1.0, PROBLEMS, importance=ones, mine=range(0, 3, 2))
    batch.change = -0.125
    none = torch.zeros(4)
    texts = ["1", "x", "3", "3"]
    batch.rollout = Rollout([[1], [2]], [[1], [2], [3], [3]], texts, none > 0, none, none, None, 2)
    batch.served = {"rollout/mismatch_mean": 0.25}
    batch.verdicts = [True, None, True, True]
    batch.correct = torch.tensor([[1.0, 0], [0, 0], [1, 1]]).double()
    batch.undecided = torch.tensor([[0.0, 1], [0, 0], [0, 0]]).double()
    batch.entropy = torch.full((3, 2), 0.5).double()
    batch.logprob = torch.full((3, 2), -2.0).double()
    batch.length = torch.tensor([[1.0, 3], [2, 2], [2, 2]]).double()
    batch.truncated = torch.tensor([[0.0, 0], [1, 1], [1, 0]]).double()
    batch.a_1 = torch.tensor([[1.0, -1], [0, 0], [0, 0]]).double()
    batch.a_k = batch.a_1
    batch.weights = torch.tensor([1.0, 2, 0]).double()
    batch.realised, batch.measured = None, {}
    batch.geometry = Geometry(batch.correct.mean(1))
    batch.decision = torch.ones(3).double(), torch.tensor([0.0, 1, 0]).double()
    batch.advantages, batch.drift = batch.a_1, None
    batch.lr, batch.loss, batch.norms = 0.1, -0.25, [3.0, None]
    batch.seconds = {"sample": 1.0, "step": 2.0}
    return batch


def test_scalars(batch):
    assert log_of(batch, [1, 2]).scalars == pytest.approx(
        {
            "train/pass@1": 1 / 2,
            "train/pass@2": 2 / 3,
            "train/entropy": 0.5,
            "train/sequence_entropy": 2.0,
            "train/length": 2.0,
            "train/truncated_share": 1 / 2,
            "train/undecided_share": 1 / 6,
            "train/unsolved_share": 1 / 3,
            "train/largest_importance": 1.0,
            "surgery/change_to_base": -0.125,
            "train/no_signal_share": 2 / 3,
            "train/mean_weight": 4 / 3,  # weights 1, 3, 0 after the rule
            "train/largest_weight_share": 3 / 4,
            "rollout/mismatch_mean": 0.25,
            "train/loss": -0.25,
            "train/grad_norm": 3.0,
            "train/skipped": 1 / 2,
            "train/lr": 0.1,
            "train/k": 2,
            "surgery/effective_sample_size": 16 / (10 * 3),
            "surgery/mean_weight": 1.0,
            "surgery/lambda": 1 / 3,
            "time/sample": 1.0,
            "time/step": 2.0,
            "throughput/completions_per_second": 3.0,
            "throughput/tokens_per_second": 6.0,
        }
    )


def test_scalars_stand_for_the_task_and_not_for_the_prompts_drawn(batch):
    """Importance 1.5, 1, 0.5: the mean of x over the task is (1.5 x_0 + x_1 + 0.5 x_2) / 3."""
    batch.importance = torch.tensor([1.5, 1.0, 0.5]).double()
    scalars = log_of(batch, [1, 2]).scalars
    assert scalars["train/pass@1"] == pytest.approx((1.5 * 0.5 + 0.5 * 1) / 3)
    assert scalars["train/truncated_share"] == pytest.approx((1 + 0.5 * 0.5) / 3)
    assert scalars["train/unsolved_share"] == pytest.approx(1 / 3)
    assert scalars["surgery/mean_weight"] == pytest.approx((1.5 * 1 + 2) / 3)
    assert scalars["surgery/lambda"] == pytest.approx(1 / 3)
    assert scalars["train/largest_importance"] == 1.5
    assert scalars["train/largest_weight_share"] == pytest.approx(3 / 4.5)


def test_what_was_looked_at_is_there_and_only_that(batch):
    batch.drift, batch.realised, batch.norms = 0.01, 0.02, [None]
    scalars = log_of(batch, [1]).scalars
    assert scalars["train/kl_to_base"] == 0.01 and scalars["surgery/realised"] == 0.02
    assert "train/grad_norm" not in scalars and "train/pass@2" not in scalars


def test_looks_are_of_this_rank(batch):
    first, last = log_of(batch, [1]).looks
    assert first == {
        "step": 7,
        "seed": 5,
        "place": 0,
        "id": "0",
        "prompt": "0+1=",
        "gold": "1",
        "texts": ["1", "x"],
        "verdicts": [True, None],
        "weight": 1.0,
        "agreement": None,
    }
    assert (last["place"], last["texts"], last["weight"]) == (2, ["3", "3"], 0.0)
    batch.geometry = Geometry(batch.correct.mean(1), agreement=torch.tensor([0.5, 0, -0.5]))
    batch.measured = {"norm_1_squared": 1.0, "dot": 1.0}
    log = log_of(batch, [1])
    assert [x["agreement"] for x in log.looks] == [0.5, -0.5]
    assert log.scalars["surgery/negative_share"] == pytest.approx(1 / 3)


def test_what_no_stage_has_filled_cannot_be_read(batch):
    empty = StepBatch(7, 5, 2, 2, 1.0, PROBLEMS, batch.importance, mine=range(3))
    for name in vars(batch).keys() - vars(empty).keys():
        with pytest.raises(AttributeError, match=name):
            getattr(empty, name)
    with pytest.raises(AttributeError):
        log_of(empty, [1])
