"""Settings of GRPOConfig, made up here: test_trl.py asks the real one."""

from types import SimpleNamespace

import pytest

from trainers.config.values import ConfigError
from trainers.integrations.terms import OTHERWISE, REFUSED, SCALES, check, departures

FIT = {
    "scale_rewards": "none",
    "multi_objective_aggregation": "sum_then_normalize",
    "loss_type": "dapo",
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
    "beta": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 4,
    "num_iterations": 1,
    "delta": None,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
}
BAD = {
    "scale_rewards": ["group", "batch"],
    "multi_objective_aggregation": ["normalize_then_sum"],
    "loss_type": ["grpo", "bnpo", "sapo", "cispo", "vespo"],
    "mask_truncated_completions": [True],
    "top_entropy_quantile": [0.2],
}
CHANGES = {
    "beta": 0.04,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "num_iterations": 2,
    "steps_per_generation": 8,
    "delta": 1.5,
    "off_policy_mask_threshold": 0.5,
    "use_vllm": True,
    "top_p": 0.95,
    "top_k": 50,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
}


def test_settings_that_fit():
    check(SimpleNamespace(**FIT))
    assert departures(SimpleNamespace(**FIT)) == []
    # several batches for one update are no departure
    assert departures(SimpleNamespace(**FIT | {"steps_per_generation": 2})) == []


@pytest.mark.parametrize("name, value", [(name, x) for name in BAD for x in BAD[name]])
def test_each_refused_setting_is_one_line_with_the_remedy(name, value):
    with pytest.raises(ConfigError, match=rf"^GRPOConfig.{name} = .*; set [^\n]*$"):
        check(SimpleNamespace(**FIT | {name: value}))


def test_all_refused_settings_are_named_at_once():
    args = SimpleNamespace(**FIT | {name: values[0] for name, values in BAD.items()})
    with pytest.raises(ConfigError) as caught:
        check(args)
    assert len(str(caught.value).splitlines()) == len(BAD) == len(REFUSED)


@pytest.mark.parametrize("name", CHANGES)
def test_each_departure_is_named(name):
    (phrase,) = departures(SimpleNamespace(**FIT | {name: CHANGES[name]}))
    assert any(phrase.startswith(x) for x in OTHERWISE)


def test_scales_by_hand():
    args = SimpleNamespace(num_generations=8, generation_batch_size=64, max_completion_length=10)
    assert {name: scale(args, 320.0) for name, scale in SCALES.items()} == {
        "dapo": 40.0,  # tokens a prompt
        "dr_grpo": 80,
        "luspo": 8,
    }
