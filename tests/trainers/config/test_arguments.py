"""The command line: names of configurations, keys given otherwise, and what the help prints."""

import sys

import pytest

from surgery import __version__
from surgery.estimators import ESTIMATORS
from surgery.rules import RULES
from tests.commands import ROOT
from trainers.config.aliases import ALIASES, ELSEWHERE, nearest
from trainers.config.arguments import CONFIGS, add_options, command_line, find_config
from trainers.config.names import listed
from trainers.config.schema import TrainConfig
from trainers.config.values import KEYS


@pytest.fixture
def said(monkeypatch, capsys):
    """What train.py prints before it reads a configuration, with its exit code."""

    def ask(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        parser = command_line("Train.")
        add_options(parser, "train.steps=300")
        with pytest.raises(SystemExit) as end:
            parser.parse_intermixed_args()
        out, err = capsys.readouterr()
        return end.value.code, out, err.splitlines()

    return ask


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--train.steps", "20"], "--train.steps = 20: {} train.steps=20"),
        (["--train.steps=20"], "--train.steps = 20: {} train.steps=20"),
        (["--learning-rate", "1e-5"], "--learning-rate = 1e-5: {} train.lr=1e-5"),
        (["--lr"], "--lr: {} train.lr=..."),
    ],
)
def test_a_key_as_an_option(said, words, line):
    between = "no such option; keys are given without dashes, as in"
    assert said("--config", "pcgrad", *words) == (2, "", [line.format(between)])


def test_other_mistakes_take_one_line(said):
    remedy = "--help shows the options"
    assert said() == (2, "", [f"the following arguments are required: --config; {remedy}"])
    code, _, lines = said("--config", "x", "--frobnicate", "2")
    assert (code, lines) == (2, [f"--frobnicate = 2: no such option; {remedy}"])
    code, _, (line,) = said("--config", "x", "--plan-ranks", "many")
    assert code == 2 and "--plan-ranks" in line and "many" in line


def test_a_command_without_keys_answers_with_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--lr", "3"])
    with pytest.raises(SystemExit):
        command_line("Compare.").parse_args()
    assert capsys.readouterr().err == "unrecognized arguments: --lr 3; --help shows the options\n"


def test_version(said):
    assert said("--version") == (0, f"passk-surgery {__version__}\n", [])


def test_keys_of_a_section(said):
    code, out, _ = said("--keys", "train")
    lines = out.split("\n\n")[-1].splitlines()
    assert code == 0 and len(lines) == len(vars(TrainConfig()))
    assert lines[0] == "train.steps = 150 (a whole number, at least 1): steps of training in all"
    assert len(said("--keys")[1].split("\n\n")[-1].splitlines()) == len(KEYS)
    assert said("--keys", "train.lr")[1].count(" = ") == 2  # of the legend, and the key itself
    code, out, (line,) = said("--keys", "num_generations")
    assert (code, out) == (2, "") and "the nearest is train.samples" in line


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("num_generations", ["train.samples"]),
        ("learning_rate", ["train.lr"]),
        ("beta", ["train.kl_coef"]),  # and not objective.beta, which is of the estimator `risk`
        ("rollout.n", ["train.samples"]),
        ("actor_rollout_ref.rollout.n", ["train.samples"]),
        ("actor_rollout_ref.rollout.val_kwargs.n", ["eval.samples"]),
        ("actor_rollout_ref.actor.optim.lr", ["train.lr"]),
        ("actor_rollout_ref.model.path", ["model.path"]),
        ("n_samples_per_prompt", ["train.samples"]),
        ("lr", ["train.lr"]),
        ("samples", ["train.samples", "eval.samples", "diagnose.samples"]),
        ("train.promts", ["train.prompts"]),
        ("learning_rte", ["train.lr"]),
        ("tempereture", ["train.temperature"]),
        ("nonsense", []),
        ("evil.thing", []),
        ("task.k", ["objective.k", "eval.k", "diagnose.k"]),
        ("surgery.samples", ["train.samples", "eval.samples", "diagnose.samples"]),
        ("train.thing", []),
    ],
)
def test_the_nearest_keys(name, keys):
    assert nearest(name) == keys


def test_names_elsewhere_lead_to_keys_and_hide_none():
    for key in ELSEWHERE:
        assert key in KEYS or key.startswith("task.fields."), key
    for name, key in ALIASES.items():
        assert name not in KEYS or name == key, name


def test_a_configuration_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("pcgrad") == str(ROOT / "configs" / "pcgrad.yaml")
    assert find_config("chain/pcgrad") == str(ROOT / "configs" / "chain" / "pcgrad.yaml")
    for given in ("mine.yaml", "nothing", "", "surgery.mix=1,2"):
        assert find_config(given) == given
    (tmp_path / "pcgrad").write_text("seed: 1\n")  # a file of the user's own comes first
    assert find_config("pcgrad") == "pcgrad"


def test_the_list_has_a_line_for_every_name():
    lines = listed(CONFIGS).splitlines()
    for name in [*RULES, *ESTIMATORS, "twin", "data", "continuous", "vllm", "chain/pcgrad"]:
        named = [x for x in lines if x.startswith(f"  {name} ")]
        assert named and all(len(x.removeprefix(f"  {name}").strip()) > 15 for x in named), name
    configs = [x.relative_to(CONFIGS) for x in CONFIGS.rglob("*.yaml")]
    assert sum(x.startswith("  ") for x in lines) == 2 + len(RULES) + len(ESTIMATORS) + 6 + len(
        configs
    )
