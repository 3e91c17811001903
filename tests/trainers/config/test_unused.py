"""Settings that the chosen rule, estimator, task and sampler do not read."""

import pytest

from tests.commands import ROOT
from trainers.config.load import load_config
from trainers.config.unused import unused_settings

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
    return unused_settings(
        load_config(ROOT / "configs" / f"{config}.yaml", overrides), list(overrides)
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda x: f"{x.parent.name}/{x.stem}")
def test_no_configuration_of_the_project_holds_any(path):
    assert unused_settings(load_config(path), []) == []


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
