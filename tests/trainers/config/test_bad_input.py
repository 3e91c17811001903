"""Wrong configurations made from the schema itself, and files that are not what they should be."""

import importlib.util
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from tests.commands import ROOT, run
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.config.values import OPTIONS, ConfigError
from trainers.train.run_folder import RunFolder

PASSK = ROOT / "configs" / "passk.yaml"
TRAIN = ROOT / "launch" / "train.py"


def keys(section=None, prefix=""):
    """("train.lr", its field) of every key."""
    section = Config() if section is None else section
    for f in fields(section):
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from keys(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


KEYS = dict(keys())


def is_a(f, *kinds):
    return bool({f.type, *getattr(f.type, "__args__", ())} & set(kinds))


def mistyped(key, f):
    return f"{key[:-2]}{key[-1]}{key[-2]}x", 1


def wrong_type(key, f):
    return key, "[[1], {a: 2}]" if is_a(f, str) else "[1, 2]" if not is_a(f, list) else 3


def a_word(key, f):
    return (key, "many") if is_a(f, int, float, bool) or key in OPTIONS else None


def null(key, f):
    return None if is_a(f, type(None)) else (key, "null")


def below(key, f):
    if "one of" in f.metadata:
        return key, "zzz"
    low = f.metadata.get("above", f.metadata.get("at least"))
    return None if low is None else (key, int(low) - 1)


def above(key, f):
    most = f.metadata.get("at most")
    return None if most is None else (key, int(most) + 1)


def not_finite(key, f):
    return (key, ".inf") if is_a(f, int, float) else None


def refusal(*overrides, path=PASSK):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    "mistake",
    [mistyped, wrong_type, a_word, null, below, above, not_finite],
    ids=lambda x: x.__name__,
)
def test_every_key_has_its_refusal(mistake):
    """All keys at once: each mistake gets one line that begins with key and value."""
    made = [x for x in (mistake(key, f) for key, f in KEYS.items()) if x is not None]
    assert len(made) > 5
    lines = refusal(*(f"{key}={value}" for key, value in made))
    for key, _ in made:
        told = [x for x in lines if x.startswith(f"{key} = ")]
        assert told, key
        value, _, remedy = told[0].removeprefix(f"{key} = ").partition(": ")
        assert value and remedy, told[0]
    assert not [x for x in lines if "Traceback" in x or " = " not in x or ": " not in x]


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_key_alone(key):
    """One mistake gets one line; a key that it contradicts may get another."""
    for mistake in (mistyped, wrong_type, a_word, null, below, above, not_finite):
        made = mistake(key, KEYS[key])
        if made:
            lines = refusal(f"{made[0]}={made[1]}")
            assert sum(x.startswith(f"{made[0]} = ") for x in lines) == 1, lines


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("surgery.rule=pcgard", "pcgrad"),
        ("objective.estimator=grop", "grpo"),
        ("task.name=chian", "chain"),
        ("train.rollouts=cashed", "cached"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(override, meant):
    (line,) = refusal(override)
    assert ": must be one of " in line and line.endswith(f" (did you mean {meant}?)")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pcgrd", " (did you mean pcgrad?)"),
        ("configs/pcgrd.yaml", " (did you mean pcgrad?)"),
        ("chain/pcgrd", " (did you mean chain/pcgrad?)"),
        ("xyz", "--list prints"),
    ],
)
@pytest.mark.parametrize("folder", ["here", "main", "chain"])
def test_a_misspelt_configuration_gets_the_nearest(tmp_path, monkeypatch, folder, name, hint):
    """Whatever the folder is called in which the user stands."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    (line,) = refusal(path=name)
    assert "no such file; give one, or a name that --list prints" in line and line.endswith(hint)


def test_tags_of_yaml_are_refused_and_run_nothing(tmp_path):
    canary = tmp_path / "canary"
    for tag in ("object/apply:os.system", "object/new:os.system", "name:os.system", "module:os"):
        (tmp_path / "x.yaml").write_text(f"seed: !!python/{tag} ['touch {canary}']\n")
        (line,) = refusal(path=tmp_path / "x.yaml")
        assert "not readable as YAML" in line and "correct the file" in line
        (line,) = refusal(f"seed=!!python/{tag} ['touch {canary}']")
        assert "not readable as YAML" in line
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    ["${nope}", "${train.lr}", "${train.nope}", "${foo:1}", "${oc.env:NO_SUCH}", "${seed}x"],
)
def test_an_interpolation_is_told_by_its_key(tmp_path, text):
    """Of a file or of an override, beside what else is wrong."""
    told = f"train.lr = {text}: "
    (tmp_path / "x.yaml").write_text(f"extends: {PASSK}\ntrain: {{lr: '{text}', promts: 3}}\n")
    for lines in (refusal(path=tmp_path / "x.yaml"), refusal("train.promts=3", f"train.lr={text}")):
        unknown, line = lines
        assert unknown.startswith("train.promts = 3: ") and line.startswith(told)
        assert line.endswith("; correct the interpolation") and "full_key" not in line


def test_an_interpolation_inside_a_list_is_told_by_the_list(tmp_path):
    (tmp_path / "x.yaml").write_text(f"extends: {PASSK}\ntask: {{levels: [a, '${{nope}}']}}\n")
    (line,) = refusal(path=tmp_path / "x.yaml")
    assert line.startswith("task.levels = ['a', '${nope}']: Interpolation key 'nope' not found; ")


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """The command in this process, and what it says; a model must not be asked for."""
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def started(*_, **__):
        raise AssertionError("a run was started")

    monkeypatch.setattr("trainers.engine.launcher.start_ranks", started)

    def asked(*options, config=PASSK):
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", [str(TRAIN), "--config", str(config), *options])
        assert module.main() == 2
        assert sorted(tmp_path.rglob("*")) == before  # no half-made folder
        return capsys.readouterr().err.splitlines()

    return asked


def test_refusals_of_the_command_leave_nothing(ask, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    for options, key in (
        (["run.dir=file"], "run.dir = file: is a file"),
        (["run.dir=file/x"], "run.dir = file/x: "),
        (["run.dir=full"], "run.dir = full: holds files but no run"),
        (['run.dir="a\\0b"'], "run.dir = a b: must be a text without"),
        (["run.dir=/proc/x"], "run.dir = /proc/x: cannot be written"),
        (["run.base=gone"], "run.base = gone: has no eval/before.jsonl"),
        (["model.path=./gone"], "model.path = ./gone: no model folder"),
        (["model.path="], "model.path = "),
        (["task.name=data", "model.path=full"], "model.path = full: no model folder"),
    ):
        lines = ask(*options)
        assert lines and lines[0].startswith(key), (options, lines)
    assert "not readable" in ask(config=tmp_path / "bad.yaml")[0]
    assert "no such file" in ask(config=tmp_path / "gone.yaml")[0]
    assert "is a folder" in ask(config=tmp_path)[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("f = 3", "is not a function or class; name one of the file"),
        (
            "import os\nimport torhc",
            "cannot be loaded (ModuleNotFoundError: No module named 'torhc'); correct own/mine.py, "
            "line 2",
        ),
        (
            "def f(w, g, s):\nreturn w, w",
            "cannot be loaded (IndentationError: expected an indented block after function "
            "definition on line 1); correct own/mine.py, line 2",
        ),
        (
            "import os\ndef g(w):\n    pass\nclass H:\n    pass",
            "cannot be loaded (own/mine.py has no f); it has g, H",
        ),
        ("import os", "cannot be loaded (own/mine.py has no f); it has no function or class; "),
        ("def f(weights):\n    return weights", "TypeError: f() takes 1 positional argument but 3"),
        ("def f(w, g, s):\n    return w, g.nope", "AttributeError: 'Geometry' object has no attr"),
        ("def f(w, g, s):\n    return w", "returned a tensor of shape [12]; return two tensors"),
        ("def f(w, g, s):\n    return w, w[None]", "returned (a tensor of shape [12], a tensor of"),
        ("def f(w, g, s):\n    return w, w[:, None].expand(-1, 5)", "returned (a tensor of shape "),
        ("def f(w, g, s):\n    return w, w * float('nan')", "returned NaN or infinite numbers"),
        ("def f(w, g, s, *, gamma):\n    return w, gamma * w", "names a setting gamma that"),
    ],
)
def test_a_rule_of_the_users_own_is_tried_out(ask, tmp_path, monkeypatch, code, said):
    place = tmp_path / "own"
    place.mkdir()
    (place / "mine.py").write_text(code)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (line,) = ask("surgery.rule=own/mine.py:f", "train.prompts=12", "train.samples=8")
    assert line.startswith(f"surgery.rule = own/mine.py:f: {said}"), line


def test_a_value_of_a_rules_own_setting_may_be_the_fault(ask, tmp_path, monkeypatch):
    place = tmp_path / "own"
    place.mkdir()
    (place / "mine.py").write_text("def f(w, g, s, *, gamma=1.0):\n    return w, w * (gamma < 1.5)")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (line,) = ask("surgery.rule=own/mine.py:f", "surgery.options.gamma=abc")
    assert line.endswith("line 2); correct the function, or surgery.options.gamma = 'abc'")


@pytest.mark.parametrize("measure", ["none", "last_layer", "ghost"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("statistic", ["loo", "naive"])
def test_a_rule_is_tried_out_on_what_it_will_get(tmp_path, measure, every, statistic):
    """And what is measured there can be decided by: nothing is degenerate."""
    agreement = "(every > 1 or g.agreement is not None)" if measure != "none" else "True"
    (tmp_path / "mine.py").write_text(
        "def f(w, g, state, *, every):\n"
        "    assert w.shape == g.rate.shape == (7,) and state['base_pass@1'] > 0\n"
        f"    assert (g.products is not None) is {measure != 'none'} and {agreement}\n"
        f"    assert (g.others is None) or {statistic == 'loo'}\n"
        "    assert g.products is None or g.products.norm_1 > 0 < g.products.norm_k\n"
        "    return w, w\n"
    )
    options = [f"surgery.{x}" for x in (f"measure={measure}", f"every={every}")]
    options += [f"surgery.statistic={statistic}", f"surgery.rule={tmp_path}/mine.py:f"]
    load_config(PASSK, ["train.prompts=7", "train.samples=8", *options])


def test_home_is_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(PASSK, ["run.dir=~/x"]).run.dir == str(tmp_path / "x")


def test_a_run_writes_in_its_folder_only(tmp_path, monkeypatch):
    """The name of a configuration is the last part of its path, whatever else is in it."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "configs" / ".." / "configs"
    (tmp_path / "configs").mkdir()
    (place / "x y=..%2f.yaml").write_text(f"extends: {PASSK}\n")
    config = load_config(place / "x y=..%2f.yaml")
    assert Path(config.run.dir).resolve() == tmp_path / "runs" / "x y=..%2f" / "seed0"
    RunFolder(config)._lock.close()
    made = {str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")}
    assert all(x.startswith(("configs", "runs")) for x in made)


OWN = """
from dataclasses import dataclass

def judge(answer):
    return True

@dataclass
class Mine:
    verifier, max_new_tokens = "exact", 4
    def training(self, seed, step, count):
        return [None] * count
    def evaluation(self, count):
        return []
"""
COMMANDS = [  # (options, what the line begins with)
    (["train.promts=3"], "train.promts = 3: unknown key"),
    (["model.path=broken"], "model.path = broken: cannot be loaded"),
    (["model.path=pickled"], "model.path = pickled: cannot be loaded"),
    (["train.lr=fast"], "train.lr = fast: must be a number"),
    (["train.steps=null"], "train.steps = null: must be a whole number"),
    (["eval.top_p=2"], "eval.top_p = 2.0: must be at most 1"),
    (["run.dir=broken"], "run.dir = broken: holds files but no run"),
    (["task.options=3"], "task.options = 3: holds names of your own"),
    (["task.name=data", "task.path=empty.jsonl", "model.path=broken"], "task.path = empty.jsonl: "),
    (["task.name=data", "task.path=gone.jsonl", "model.path=broken"], "task.path = gone.jsonl: "),
    (["surgery.rule=gone.py:f"], "surgery.rule = gone.py:f: cannot be loaded"),
    (["task.name=own.py:Mine", "model.path=broken"], "task.name = own.py:Mine: training(0, 1, "),
    (
        ["task.verifier=own.py:judge", "model.path=broken"],
        "task.verifier = own.py:judge: TypeError: ",
    ),
]


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        *(pytest.param(*x, marks=pytest.mark.slow) for x in COMMANDS[3:-2]),
        *(*COMMANDS[:3], *COMMANDS[-2:]),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_the_real_command(tmp_path, base_path, options, begins):
    for name in ("broken", "pickled"):
        (tmp_path / name).mkdir()
        text = (Path(base_path) / "config.json").read_text()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "own.py").write_text(OWN)
    for x in Path(base_path).iterdir():
        if "token" in x.name:
            for name in ("broken", "pickled"):
                (tmp_path / name / x.name).write_bytes(x.read_bytes())
    import torch

    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    done = run(str(TRAIN), "--config", str(PASSK), *options, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(begins)
    assert not (tmp_path / "runs").exists() or not list(tmp_path.rglob("metrics.jsonl"))


def test_a_refused_run_takes_only_its_own_empty_folder_away(tmp_path):
    for name, file in (("new", None), ("begun", "metrics.jsonl"), ("old", None)):
        place = tmp_path / name
        if name == "old":
            place.mkdir()
        folder = RunFolder(load_config(PASSK, [f"run.dir={place}"]))
        if file:
            (place / file).write_text("")
        folder.withdraw()
        assert place.exists() is (name != "new")
