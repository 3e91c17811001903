"""The last lines of a run, from folders made by hand."""

import json

import pytest

from tests.commands import ROOT
from trainers.config.load import load_config, save_config
from trainers.train.ending import (
    duration,
    ending,
    next_command,
    time_spent,
    too_short,
    unread,
    weights_given,
)

SUMMARY = {
    **{"task": "twin", "k": 8, "steps": 150, "world_size": 1, "seconds": 200.0},
    "change": {
        "pass@1": {"value": 0.0, "low": -0.1, "high": 0.1},
        "pass@8": {"value": -0.1, "low": -0.2, "high": -0.05},
    },
}
WORDS = ["launch/train.py", "--local_rank=0", "--config", "passk", "train.lr=1e-3"]


def config(*overrides, name="passk"):
    return load_config(ROOT / "configs" / f"{name}.yaml", overrides)


def finish(folder, *overrides, **changes):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    save_config(config(*overrides), folder / "config.yaml")


def test_where_the_time_went():
    history = [
        {"step": 0, "time/evaluate": 20.0},
        {"step": 1, "time/step": 60.0, "time/sample": 40.0, "time/update": 20.0},
        {"step": 2, "time/step": 50.0, "time/sample": 50.0, "time/verify": 0.1},
    ]
    spent = "3 minutes: sample 45 %, other 35 %, evaluate 10 %, update 10 %"
    assert time_spent(history, 200.0) == spent
    assert time_spent([], 0.0) == "0 s: "  # nothing was timed
    assert [duration(x) for x in (71.2, 119.6, 3600, 36_000)] == [
        *("71 s", "120 s", "60 minutes", "10.0 hours"),
    ]


def test_the_next_command_makes_a_run_to_compare_with(tmp_path, monkeypatch):
    """By the file of the other rule beside the configuration, which has its settings."""
    monkeypatch.chdir(tmp_path)
    said = "python launch/train.py --config pcgrad train.lr=1e-3"
    assert next_command(config(), SUMMARY, WORDS) == f"{said}  # to compare with"
    (tmp_path / "runs" / "pcgrad").mkdir(parents=True)  # a run that is not like this one
    place = "run.dir=runs/passk,rule=pcgrad/seed0"
    assert next_command(config(), SUMMARY, WORDS) == f"{said} {place}  # to compare with"
    words = ["launch/train.py", "--config", "configs/chain/mix.yaml", "surgery.mix=2", "seed=3"]
    two = SUMMARY | {"world_size": 2}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    assert next_command(config("seed=3", "run.dir=x/y", name="mix"), two, words) == (
        "deepspeed launch/train.py --config configs/chain/passk.yaml seed=3  # to compare with"
    )


def test_the_next_command_of_a_file_without_such_a_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"extends: {ROOT}/configs/mix.yaml\n")
    words = ["launch/train.py", "--config", "mine.yaml", "surgery.mix=2"]
    command = next_command(config("run.dir=runs/mine/seed0", name="mix"), SUMMARY, words)
    assert command == (
        "python launch/train.py --config mine.yaml surgery.rule=none "
        "run.dir=runs/mine,rule=none/seed0  # to compare with"
    )
    again = command.removesuffix("  # to compare with").split()[4:]
    assert config(*again).surgery.rule == "none"  # it is a command that train.py takes


def test_the_next_command_compares_with_the_newest_run_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path / "runs" / "passk" / "seed1")  # another seed of the same
    finish(tmp_path / "runs" / "short" / "seed0", steps=20)
    (tmp_path / "runs" / "broken" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "seed0" / "summary.json").write_text("{")
    assert "compare.py" not in next_command(config(), SUMMARY, WORDS)
    finish(tmp_path / "runs" / "equal" / "seed0", "seed=4")  # the same settings
    assert "compare.py" not in next_command(config(), SUMMARY, WORDS)
    finish(tmp_path / "runs" / "pcgrad" / "seed0", "surgery.rule=pcgrad")
    said = "python launch/compare.py runs/passk runs/pcgrad"
    assert next_command(config(), SUMMARY, WORDS) == said


@pytest.mark.parametrize(
    "other", ["task.verifier=boxed", "task.delta=1", "model.path=x", "eval.problems=100"]
)
def test_the_next_command_compares_with_no_other_work(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path / "runs" / "other" / "seed0", other)
    assert "compare.py" not in next_command(config(), SUMMARY, WORDS)
    finish(tmp_path / "runs" / "like" / "seed0", "task.verify_workers=8", "train.lr=1")
    said = "python launch/compare.py runs/passk runs/like"
    assert next_command(config(), SUMMARY, WORDS) == said


def test_the_next_command_has_each_key_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "run.dir=runs/a", "surgery.rule=none", "surgery.every=2"]
    assert next_command(config("run.dir=runs/a"), SUMMARY, words) == (
        "python launch/train.py --config pcgrad train.lr=1e-3 "
        "run.dir=runs/a,rule=pcgrad/seed0  # to compare with"
    )


def test_pass_1_has_no_rule_to_compare_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "python launch/compare.py runs/pass1"
    assert next_command(config(name="pass1"), SUMMARY, WORDS) == said


def test_the_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time/evaluate": 100.0}\n')
    lines = ending(config(f"run.dir={tmp_path}"), SUMMARY, WORDS).splitlines()
    assert lines[:3] == [
        f"Model:  {tmp_path}/model",
        "Time:   3 minutes: evaluate 50 %, other 50 %",
        f"Curves: tensorboard --logdir {tmp_path}, page Custom Scalars",
    ]
    assert lines[3].startswith("Next:   python launch/train.py --config pcgrad ")


def test_what_a_rule_has_given_is_said():
    def said(name, *given):
        return [*weights_given(config(name=name), [{"surgery/lambda": x} for x in given])]

    (line,) = said("pcgrad", 0.0, 2.5, 2.5, 0.0, 1.0)
    assert line.startswith("pcgrad gave pass@1 the weight 1.20 on average; 0 in 40 % of the steps")
    assert line.endswith(", the cap of 2.5 in 40 %")
    assert said("pcgrad") == said("mix", 0.5) == []


def test_a_run_that_is_too_short_for_its_rule_says_so(tmp_path):
    def history(*paid):
        return [{"step": 0}] + [{"step": i + 1, "surgery/lambda": x} for i, x in enumerate(paid)]

    short, rule = history(9, 9, 9, 9, 9, 9, 2, 3), config(name="pcgrad")
    note = too_short(rule, short, SUMMARY)
    assert note.startswith(
        "pass@8 did not rise, and pcgrad gave pass@1 the weight 2.5 in the last quarter"
    )
    assert " of the 8 steps. " in note
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in short))
    lines = ending(config(f"run.dir={tmp_path}", name="pcgrad"), SUMMARY, WORDS).splitlines()
    assert lines[4] == f"Note:   {note}" and lines[5].startswith("Next:   ")
    # no word about a rule that has let go, a rise, a policy that lost both, or fixed weights
    assert too_short(rule, history(9, 9, 9, 9, 9, 0.1, 0.1, 0.1), SUMMARY) is None
    up, down = ({"value": x, "low": x, "high": x} for x in (0.1, -0.1))
    for change in ({"pass@1": down, "pass@8": down}, {"pass@1": up, "pass@8": up}):
        assert too_short(rule, short, SUMMARY | {"change": change}) is None
    assert too_short(config(name="mix"), short, SUMMARY) is None
    assert too_short(rule, history(), SUMMARY) is None


@pytest.mark.parametrize("content", ["[]", '"text"', "3"])
def test_files_of_others_are_no_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "seed0" / "summary.json").write_text(content)
    assert "compare.py" not in next_command(config(), SUMMARY, WORDS)


def test_a_run_with_answers_that_nobody_could_read_says_so(tmp_path):
    def said(undecided, truncated):
        shares = {"train/undecided_share": undecided, "train/truncated_share": truncated}
        return [*unread(config(), [{"step": 0}, {"step": 1, **shares}, {"step": 2, **shares}])]

    assert said(0.05, 0.5) == []
    late, cut = said(0.86, 1.0)
    assert late.startswith("86 % of the training answers got no verdict within task.verify_seconds")
    assert cut.startswith("100 % of the training answers were cut at the longest allowed length;")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/undecided_share": 1.0}\n')
    lines = ending(config(f"run.dir={tmp_path}"), SUMMARY, WORDS).splitlines()
    assert lines[3].startswith("Note:   100 % of the training answers got no verdict")
