"""Informative prompts: by enumeration, gradients and products of pairs stay those of the task."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch

from eval.tasks.task import Problem, Task
from surgery.estimators import loo, rloo
from surgery.objectives import pass_at_k_weight
from trainers.config.schema import Config
from trainers.train.prompts import History, Prompts, choose, expected_signal, signal

SHARE = (0.5, 0.3, 0.2)
P = (0.9, 0.4, 0.05)
SLOPE = torch.tensor(
    [[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0]], dtype=torch.float64
)  # grad p of each problem
PROBLEMS = [Problem(str(i), f"{i}", "1", "hard" if i else "easy") for i in range(3)]
CANDIDATES, UNIFORM, N, K = 2, 0.3, 3, 2


def each_draw(history: History):
    """Yield (probability, problem, importance) of one prompt of a batch."""
    squares = signal(lambda f: loo(f, K) + 0.5 * rloo(f), N)
    for candidates in itertools.product(range(3), repeat=CANDIDATES):
        scores = expected_signal(
            *history.beta(Task(), [PROBLEMS[i] for i in candidates], 5), squares
        )
        q = (1 - UNIFORM) * scores / scores.sum() + UNIFORM / CANDIDATES
        for i, q_i in zip(candidates, q.tolist(), strict=True):
            probability = math.prod(SHARE[j] for j in candidates) * q_i
            yield probability, i, 1 / (CANDIDATES * q_i)


def each_verdicts(p: float):
    for f in itertools.product((0.0, 1.0), repeat=N):
        yield math.prod(p if x else 1 - p for x in f), torch.tensor([f], dtype=torch.float64)


def slope_of(p: float, i: int, advantages) -> torch.Tensor:
    """E[sum_j A_j grad log pi(y_j)], with grad log p if right and -grad p/(1-p) if wrong."""
    total = torch.zeros(2).double()
    for probability, f in each_verdicts(p):
        score = (f / p - (1 - f) / (1 - p)) * advantages(f)
        total += probability * score.sum() * SLOPE[i]
    return total


@pytest.fixture
def history() -> History:
    history = History(0.9)
    correct = torch.tensor([[1.0, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.float64)
    history.add(PROBLEMS, correct, torch.ones(3).double(), step=4)
    return history


def test_gradients_and_products_of_pairs_are_unbiased(history):
    """The mean of importance times gradient is the task's; two draws are independent."""
    draws = list(each_draw(history))
    assert sum(x for x, _, _ in draws) == pytest.approx(1)
    assert len({round(v, 6) for _, _, v in draws}) > 3  # not uniform
    share, p = torch.tensor(SHARE, dtype=torch.float64), torch.tensor(P, dtype=torch.float64)
    for advantages, weight in (
        (rloo, torch.ones(3)),
        (lambda f: loo(f, K), pass_at_k_weight(p, K)),
    ):
        mean = torch.zeros(2).double()
        for probability, i, v in draws:
            mean += probability * v * slope_of(P[i], i, advantages)
        torch.testing.assert_close(mean, (share * weight) @ SLOPE, atol=1e-13, rtol=0)


def test_the_function_chooses_with_the_probability_that_it_divides_by():
    """The mean of importance over 200,000 draws is 1/candidates for each column, within 5 sd."""
    scores = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64).expand(200_000, 3)
    chosen, importance = choose(scores, 0.3, torch.Generator().manual_seed(1))
    q = 0.7 * torch.tensor([0, 0.25, 0.75], dtype=torch.float64) + 0.1
    torch.testing.assert_close(importance, 1 / (3 * q[chosen]))
    assert float(importance.max()) <= 1 / 0.3 + 1e-12
    for column in range(3):
        mean = float(((chosen == column) * importance).mean())
        deviation = (1 / 9 / float(q[column]) - 1 / 9) ** 0.5 / len(chosen) ** 0.5
        assert abs(mean - 1 / 3) < 5 * deviation


def test_without_any_signal_the_choice_is_uniform():
    chosen, importance = choose(torch.zeros(4, 2).double(), 0.3, torch.Generator().manual_seed(0))
    assert importance.tolist() == [1.0] * 4 and set(chosen.tolist()) <= {0, 1}


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.5, 1.5)])
def test_the_expected_signal_is_that_of_all_verdicts(a, b):
    """Against the integral over p of the sum over all 2^n verdicts."""

    def advantages(f):
        return loo(f, K) + 0.5 * rloo(f)

    grid = (torch.arange(200_000).double() + 0.5) / 200_000
    density = grid ** (a - 1) * (1 - grid) ** (b - 1)
    density /= density.sum()
    expected = 0.0
    for f in itertools.product((0.0, 1.0), repeat=N):
        square = float(advantages(torch.tensor([f], dtype=torch.float64)).square().sum())
        right = int(sum(f))
        expected += square * float(density @ (grid**right * (1 - grid) ** (N - right)))
    pair = (torch.tensor([x], dtype=torch.float64) for x in (a, b))
    assert float(expected_signal(*pair, signal(advantages, N))) ** 2 == pytest.approx(
        expected, rel=1e-5
    )


def test_history_fades_and_begins_with_recorded_rates():
    @dataclass
    class Recorded(Task):
        def base_rate(self, problem):
            return 0.25 if problem.id == "2" else None

    history = History(0.5)
    right = torch.tensor([[1.0, 1, 1]], dtype=torch.float64)
    history.add(PROBLEMS[:1], right, torch.tensor([2.0], dtype=torch.float64), step=1)
    a, b = history.beta(Recorded(), PROBLEMS, step=3)
    # 3 right answers faded to 3/4; the stratum easy has twice as many, hard has none
    easy = (1.5 + 1) / (1.5 + 2)
    assert a.tolist() == pytest.approx([0.75 + 2 * easy, 2 * 0.5, 8 * 0.25 + 2 * 0.5])
    assert (a + b).tolist() == pytest.approx([0.75 + 2, 2, 10])


def test_the_state_goes_on_as_the_history_would(history):
    config = Config()
    config.train.sampler = "informative"
    config.train.prompts, config.train.candidates = 3, 2

    class Three(Task):
        def training(self, seed, step, count):
            dice = torch.Generator().manual_seed(seed + step)
            return [PROBLEMS[i] for i in torch.randint(3, (count,), generator=dice).tolist()]

    first, again = (Prompts(Three(), config) for _ in range(2))
    first.history, first.shares = replace(history), [1.0, 0.25]
    again.restore(first.state())
    for x in (first, again):
        x.drawn = x.draw(6, lambda f: loo(f, K))
    assert first.drawn[0] == again.drawn[0]
    assert torch.equal(first.drawn[1], again.drawn[1])
