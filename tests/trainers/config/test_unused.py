"""Settings that the chosen rule, estimator, task and sampler do not read."""

import pytest

from tests.commands import ROOT
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.config.unused import unused, unused_settings
from trainers.config.values import flatten

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MINE = """
from dataclasses import dataclass

def f(weights, geometry, state, *, mix, gamma=1.0):
    return weights, mix * gamma * weights

@dataclass
class Sums:
    largest: int = 9
    delta: float = 1.0
"""


def lines(*overrides, config="pcgrad"):
    path = ROOT / "configs" / f"{config}.yaml"
    return unused_settings(load_config(path, overrides), path, list(overrides))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda x: f"{x.parent.name}/{x.stem}")
def test_no_configuration_of_the_project_holds_any(path):
    config = load_config(path)
    flat, defaults = flatten(config), flatten(Config())
    assert [key for key in unused(config) if flat[key] != defaults.get(key)] == []


def test_only_what_the_user_set_is_told(tmp_path):
    """By a file of one's own, or a file that it extends, but not by the project's."""
    (tmp_path / "mine.yaml").write_text(f"extends: {ROOT}/configs/chain.yaml\n")
    (tmp_path / "more.yaml").write_text("extends: mine.yaml\nobjective: {beta: 2}\n")
    (tmp_path / "most.yaml").write_text("extends: more.yaml\n")

    def told(name, *overrides):
        path = tmp_path / name
        return unused_settings(load_config(path, overrides), path, overrides)

    twin = ["task.name=twin", "task.size=small"]
    assert told("mine.yaml") == [] and told("mine.yaml", *twin)[0].startswith("task.size = small")
    for name in ("more.yaml", "most.yaml"):
        assert told(name) == ["objective.beta = 2.0: estimator loo does not use it"]
    assert lines("surgery.rule=none", config="floor") == []  # floor.yaml sets surgery.tolerance


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["surgery.mix=2"], ["surgery.mix = 2.0: rule pcgrad does not use it"]),
        (["surgery.mix=0.5"], ["surgery.mix = 0.5: rule pcgrad does not use it"]),  # the default
        (["surgery.restore=3", "surgery.cap=5", "surgery.every=2"], []),
        (["surgery.gain=3"], ["surgery.gain = 3.0: rule pcgrad does not use it"]),
        (["surgery.rule=mix"], []),  # pcgrad.yaml holds no setting of its rule
        (["train.candidates=4"], []),
        (
            ["train.sampler=uniform", "train.candidates=4"],
            ["train.candidates = 4: train.sampler = uniform does not use it"],
        ),
        (
            ["surgery.control_prompts=4"],
            ["surgery.control_prompts = 4: surgery.hold = train does not use it"],
        ),
        (["surgery.rule=gradvac", "surgery.cosine=0.1", "surgery.tolerance=0"], 1),
        (["objective.beta=2"], ["objective.beta = 2.0: estimator loo does not use it"]),
        (["objective.estimator=risk", "objective.beta=2"], []),
        (["task.size=large"], ["task.size = large: task twin does not use it"]),
        (["task.name=chain", "task.size=large", "task.delta=1"], []),
        (["rollout.timeout=5"], ["rollout.timeout = 5.0: train.rollouts = cached does not use it"]),
        (["surgery.options.x=1"], ["surgery.options.x = 1: rule pcgrad does not use it"]),
    ],
)
def test_what_the_choices_do_not_read(overrides, expected):
    found = lines(*overrides)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_of_a_rule_and_a_task_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    rule = [f"surgery.rule={tmp_path}/mine.py:f", "surgery.mix=2", "surgery.options.gamma=3"]
    assert lines(*rule, config="passk") == []
    (line,) = lines(*rule, "surgery.options.gama=3", config="passk")
    assert line == f"surgery.options.gama = 3: rule {tmp_path}/mine.py:f does not use it"
    task = [f"task.name={tmp_path}/mine.py:Sums", "task.delta=3", "task.options.largest=3"]
    assert lines(*task, config="passk") == []
    (line,) = lines(*task, "task.hard_share=0.5", config="passk")
    assert line.startswith("task.hard_share = 0.5: task ")
