"""Surgery for other trainers, without them: settings, a step's advantages, groups of any size."""

import json
import math
from collections.abc import Callable

import pytest
import torch

from eval.errors import Refusal
from surgery.estimators import ESTIMATORS, loo, rloo
from surgery.geometry import (
    Geometry,
    agreements,
    by_others,
    probes_of,
    products,
    prompt_gradients,
    psd,
)
from surgery.objectives import prompt_weight
from surgery.rules import apply, find_rule
from trainers.config.values import ConfigError
from trainers.integrations.groups import Groups, equal_sizes
from trainers.integrations.settings import settings
from trainers.integrations.surgeon import Surgeon, rates, verdicts

K, N, PROMPTS = 3, 6, 10


def features_of_nothing() -> torch.Tensor:
    raise AssertionError("this step measures nothing")


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    hard = torch.arange(PROMPTS)[:, None] % 3 == 0
    correct = torch.rand(PROMPTS, N, generator=dice) < torch.where(hard, 0.2, 0.8)
    # right answers of hard prompts turn against those of easy ones, so that there is a conflict
    sign = torch.where(hard, -0.3, 1.0).expand(-1, N).reshape(-1, 1)
    noise = 0.1 * torch.randn(PROMPTS * N, 5, generator=dice)
    return correct, noise + sign * correct.reshape(-1, 1) * torch.ones(5)


def taken(step: int) -> tuple[int, torch.Tensor, Callable[[], torch.Tensor]]:
    correct, features = batch(step)
    return step, correct, lambda: features


def made(**surgery: object) -> Surgeon:
    return Surgeon(settings({"k": K}, surgery, N, PROMPTS))


def test_a_rule_that_measures_nothing_may_be_measured():
    _, scalars = made(rule="mix", measure="last_layer")(*taken(1))
    assert "surgery/dot" in scalars
    with pytest.raises(AssertionError, match="measures nothing"):
        made(rule="pcgrad")(1, batch()[0], features_of_nothing)


def test_a_new_k_is_measured_at_once():
    config = settings({"k": K, "k_schedule": "2@2"}, {"rule": "nash", "every": 3}, N, PROMPTS)
    surgeon = Surgeon(config)
    assert ["surgery/dot" in surgeon(*taken(step))[1] for step in (1, 2, 3)] == [True, True, False]


def test_mix_by_hand():
    correct, _ = batch()
    advantages, scalars = made(rule="mix", mix=0.25)(1, correct, features_of_nothing)
    torch.testing.assert_close(advantages, loo(correct, K) + 0.25 * rloo(correct))
    assert scalars["surgery/lambda"] == 0.25 and scalars["surgery/skipped"] == 0


@pytest.mark.parametrize("rule", ["pcgrad", "mgda", "agreement_clip", "agreement_soft"])
def test_a_step_is_the_functions_of_surgery_put_together(rule):
    """From `surgery/` alone, as the README's function for other trainers does it."""
    correct, features = batch()
    a_k, a_1 = loo(correct, K), rloo(correct)
    g_k, g_1 = prompt_gradients(a_k, features), prompt_gradients(a_1, features)
    geometry = Geometry(
        correct.double().mean(1),
        psd(products(g_k, g_1)),
        agreements(g_1),
        by_others(correct, K, probes_of(g_1, features)),
    )
    weights = prompt_weight(N, correct.sum(1), K)
    expected = apply(find_rule(rule).bind({})(weights, geometry, {}), a_k, a_1)
    advantages, scalars = made(rule=rule)(1, correct, lambda: features)
    torch.testing.assert_close(advantages, expected)
    assert not torch.allclose(expected, a_k)  # the rule does something
    assert scalars["surgery/dot"] == pytest.approx(products(g_k, g_1).dot)


@pytest.mark.parametrize("rule", ["floor", "nash"])  # a state of its own, smoothed products
def test_a_restored_surgeon_goes_on_as_the_first(rule):
    first, second = (made(rule=rule, measure="last_layer") for _ in range(2))
    for step in (1, 2):
        first(*taken(step))
    second.restore(json.loads(json.dumps(first.state())))
    expected, _ = first(*taken(3))
    torch.testing.assert_close(second(*taken(3))[0], expected, rtol=0, atol=0)
    fresh, _ = made(rule=rule)(*taken(3))
    assert not torch.allclose(fresh, expected)  # negative control: the state matters


def test_the_pace_is_the_share_of_the_highest_rate_so_far():
    """Of whatever schedule, at whatever scale, and after a restart."""

    def paces(*rates: float, restart: bool = False) -> list[float]:
        surgeon, seen = made(rule="floor"), []
        for step, rate in enumerate(rates, 1):
            surgeon.rule = lambda weights, geometry, state: (
                seen.append(geometry.pace) or (torch.ones_like(weights),) * 2
            )
            surgeon(*taken(step), rate)
            if restart:
                again = made(rule="floor")
                again.restore(json.loads(json.dumps(surgeon.state())))
                surgeon = again
        return seen

    expected = pytest.approx([1, 1, 1, 0.5, 0.25])
    assert paces(0, 1e-4, 6e-4, 3e-4, 1.5e-4) == expected
    assert paces(0, 1, 6, 3, 1.5, restart=True) == expected


def test_a_measurement_that_is_not_finite_trains_nothing():
    correct, features = batch()
    surgeon = made(rule="pcgrad")
    advantages, scalars = surgeon(1, correct, lambda: torch.full_like(features, math.nan))
    assert scalars["surgery/skipped"] == 1 and not advantages.any()
    _, scalars = surgeon(2, correct, lambda: features)
    assert scalars["surgery/skipped"] == 0 and math.isfinite(scalars["surgery/lambda"])


def test_a_schedule_of_k():
    surgeon = Surgeon(settings({"k": K, "k_schedule": "1@2"}, {}, N, PROMPTS))
    correct, _ = batch()
    torch.testing.assert_close(surgeon(1, correct, features_of_nothing)[0], loo(correct, K))
    torch.testing.assert_close(surgeon(2, correct, features_of_nothing)[0], rloo(correct))


def test_rates_of_few_samples():
    assert list(rates(torch.tensor([[1, 0, 0]]), 8)) == ["pass@1", "pass@2", "pass@3"]
    assert rates(torch.tensor([[1, 0, 0]]), 2)["pass@2"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("reward", [0.5, 2.0, -1.0, math.nan])
def test_rewards_other_than_verdicts(reward):
    with pytest.raises(Refusal, match=rf"^reward = {reward:g}: .*1\.0 or 0\.0$"):
        verdicts(torch.tensor([1.0, reward, 0.0]))


BAD = [
    ({"k": 0}, {}, "objective.k = 0: must be at least 1"),
    ({"k": "eight"}, {}, "objective.k = eight: must be a whole number"),
    (
        {"k": 7},
        {},
        "objective.k = 7: loo serves k <= 6 from samples = 6; lower it or raise samples",
    ),
    ({"estimator": "lo"}, {}, "objective.estimator = lo: must be one of rloo"),
    ({"kk": 7}, {}, "objective.kk = 7: unknown key; the nearest is objective.k"),
    ({}, {"rule": "pcgrd"}, "surgery.rule = pcgrd: must be one of none, mix"),
    ({}, {"rule": "mgda", "measure": "none"}, "surgery.measure = none: rule mgda decides by"),
    ({}, {"measure": "ghost"}, "surgery.measure = ghost: works in launch/train.py only"),
    ({}, {"metric": "adam"}, "surgery.metric = adam: works in launch/train.py only"),
    ({}, {"cap": 0}, "surgery.cap = 0: must be above 0"),
]


@pytest.mark.parametrize("objective, surgery, message", BAD)
def test_settings_that_are_refused(objective, surgery, message):
    with pytest.raises(ConfigError) as caught:
        settings({"k": K} | objective, surgery, N, PROMPTS)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# -- groups of any size


def test_equal_groups_are_a_step_without_a_measurement():
    correct, _ = batch()
    groups = Groups(settings({"k": K}, {"rule": "floor"}, N, PROMPTS))
    surgeon = made(rule="floor")
    for step in (1, 2):  # the second has a state
        correct, _ = batch(step)
        expected, _ = surgeon(step, correct, features_of_nothing)
        found = groups(correct.double().flatten(), [i for i in range(PROMPTS) for _ in range(N)])
        torch.testing.assert_close(found, N * expected.flatten())
    assert groups.rule_state == surgeon.rule_state


def test_ragged_groups_in_any_order():
    """Each prompt weighs the same, whatever its completions; the order of rows does not matter."""
    names, correct = list("abacabcb"), torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1])
    groups = Groups(settings({"k": 2}, {"rule": "mix", "mix": 0.5}, 2, 3))
    found = groups(correct, names)
    for name in "abc":
        rows = [i for i, x in enumerate(names) if x == name]
        own = correct[rows][None]
        torch.testing.assert_close(found[rows], (loo(own, 2) + 0.5 * rloo(own))[0] * 8 / 3)
    assert [x.tolist() for x in equal_sizes(names)] == [[[3, 6]], [[0, 2, 4], [1, 5, 7]]]


def test_groups_refuse_what_they_cannot_serve():
    with pytest.raises(ConfigError, match=r"^surgery.rule = mgda: measures gradients"):
        Groups(settings({"k": 2}, {"rule": "mgda"}, N, PROMPTS))
    groups = Groups(settings({"k": 2}, {}, 2, 2))
    with pytest.raises(ValueError, match="needs n >= 2 samples, got n = 1"):
        groups(torch.tensor([1.0, 0.0, 1.0]), ["a", "a", "b"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_serves(estimator):
    correct, features = batch()
    config = settings({"k": K, "estimator": estimator}, {"rule": "pcgrad"}, N, PROMPTS)
    advantages, _ = Surgeon(config)(1, correct, lambda: features)
    assert advantages.shape == (PROMPTS, N) and advantages.isfinite().all()
