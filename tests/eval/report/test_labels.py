"""Labels that say in what runs differ."""

import pytest

from eval.report.labels import differing, is_measured, labels, rule

BASE = {
    "seed": 0,
    "task.name": "twin",
    "objective.k": 8,
    "objective.k_schedule": None,
    "objective.estimator": "loo",
    "surgery.rule": "none",
    "surgery.mix": 0.5,
    "surgery.tolerance": 0.0,
    "train.samples": 16,
    "train.lr": 6e-4,
    "eval.samples": 32,
    "run.dir": "runs/x",
}


def config(**changes):
    """The base with changes, `train__lr=1` for train.lr."""
    return BASE | {key.replace("__", "."): value for key, value in changes.items()}


def mix(value, **more):
    return config(surgery__rule="mix", surgery__mix=value, **more)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "passk"),
        ({"objective__k": 1}, "pass1"),
        ({"objective__k_schedule": "4@40,1@80"}, "anneal"),
        ({"objective__filter": True}, "filter"),
        ({"objective__estimator": "pkpo"}, "pkpo"),
        ({"objective__estimator": "mine.py:sharp"}, "sharp"),
        ({"surgery__rule": "pcgrad", "objective__estimator": "pkpo"}, "pcgrad"),
        ({"surgery__rule": "/home/me/mine.py:Half"}, "Half"),
    ],
)
def test_a_run_is_named_by_its_rule(changes, name):
    assert rule(config(**changes)) == name == labels([config(**changes)])[0]


def test_a_setting_is_named_only_where_runs_of_one_rule_differ():
    pcgrad = config(surgery__rule="pcgrad", surgery__tolerance=-0.03, train__lr=1e-3)
    assert labels([config(), pcgrad, mix(0.1), mix(1.5)]) == [
        "passk",
        "pcgrad",
        "mix, λ = 0.1",
        "mix, λ = 1.5",
    ]


def test_a_label_has_no_more_settings_than_needed():
    follows = [mix(0.1, train__lr=1e-3), mix(0.3, train__lr=2e-3)]  # the first already tells
    assert labels(follows) == ["mix, λ = 0.1", "mix, λ = 0.3"]
    assert labels([*follows, mix(0.3, train__lr=1e-3)]) == [
        "mix, λ = 0.1, lr = 0.001",
        "mix, λ = 0.3, lr = 0.002",
        "mix, λ = 0.3, lr = 0.001",
    ]


def test_keys_of_two_sections_keep_the_section():
    runs = [config(), config(train__samples=64)]
    assert labels(runs) == [
        "passk, train.samples = 16",
        "passk, train.samples = 64",
    ]


def test_seed_and_folder_make_no_difference():
    runs = [config(), config(seed=3, run__dir="runs/y")]
    assert differing(runs) == [] and labels(runs) == ["passk", "passk"]


def test_other_models_and_tasks_are_named_on_every_run():
    """A run alone of its rule has the key that its neighbours have, and no key of the training."""
    runs = [
        config(model__path="base"),
        config(model__path="x"),
        config(model__path="base", surgery__rule="pcgrad", train__lr=1e-3),
    ]
    assert labels(runs) == [
        "passk, path = base",
        "passk, path = x",
        "pcgrad, path = base",
    ]


def test_a_task_is_called_task():
    runs = [config(), config(task__name="data", surgery__rule="pcgrad")]
    assert labels(runs) == ["passk, task = twin", "pcgrad, task = data"]


@pytest.mark.parametrize(
    ("key", "measured"),
    [
        ("model.path", True),
        ("task.delta", True),
        ("eval.problems", True),
        ("eval.samples", False),
        ("model.lora_rank", False),
        ("task.split", False),
        ("objective.k_schedule", False),
        ("train.prompts", False),
    ],
)
def test_keys_of_the_measurement_and_of_the_training(key, measured):
    assert is_measured(key) is measured


def test_parts_that_change_only_the_speed_make_no_difference():
    assert differing([config(task__verify_workers=2), config(task__verify_workers=8)]) == []
