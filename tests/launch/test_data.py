"""Data through the commands: a model in the hub's format, its chat template, boxed answers."""

import importlib.util
import json
import sys

import pytest

import trainers.train.trainer  # noqa: F401 - before a test replaces what it imports
from eval.files import read_lines
from eval.policy.policy import Chat
from eval.tasks.data import ASKING
from tests.commands import ROOT, run
from tests.models import qwen2

# whatever it is asked the model says 2 in half of the cases and 6 in a quarter
TRAIN = [(f"How many legs has bird {x}?", 2) for x in "ABCDEFGH"]
TEST = [(f"How many legs has beetle {x}?", 6) for x in "ABCD"]
HOSTILE = "../../{}/..\n\x1b[31m|\u202e<b>\u2028\\"  # an id
SMALL = ["train.steps=2", "train.prompts=4", "train.samples=4", "train.max_new_tokens=12"]
SMALL += ["objective.k=2", "eval.problems=4", "eval.samples=8", "eval.k=2", "run.threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its data, and a configuration that names them."""
    path = tmp_path_factory.mktemp("data")
    prompts = [Chat(ASKING["chat"].replace("{problem}", x)) for x, _ in TRAIN + TEST]
    answers = [rf"\boxed{{{x}}}" for x in (2, 2, 6, 8)]
    pairs = [(x, y) for x in prompts for y in answers]
    qwen2(path / "model", *zip(*pairs, strict=True), steps=40)
    (path / "gsm8k").mkdir()
    for name, part in (("train", TRAIN), ("test", TEST)):
        rows = [
            {"id": HOSTILE.format(x), "question": x, "answer": f"so\n#### {gold}"}
            for x, gold in part
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / "gsm8k" / f"{name}.jsonl").write_text(text)
    (path / "floor.yaml").write_text(
        f"extends: {ROOT}/configs/floor.yaml\nmodel: {{path: model}}\n"
        "task: {name: gsm8k, path: gsm8k}\n"
    )
    return path


@pytest.fixture
def command(folder, alone, monkeypatch, capsys):
    """(exit code, output, errors) of a command, in this process."""
    monkeypatch.chdir(folder)

    def ask(name, *options):
        spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *options])
        return module.main(), *capsys.readouterr()

    return ask


def test_train(folder):
    """`floor` holds the training batches against the base on problems to train on, not on those of
    the evaluation, which it solves half as often.
    """
    train = [str(ROOT / "launch" / "train.py"), "--config", "floor.yaml", *SMALL]
    done = run(*train, "eval.problems=8", "logging.rollouts_every=1", "run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("8 problems to train on; left out of 8: 0") == 1
    first, *_ = read_lines(folder / "run" / "metrics.jsonl")
    held, evaluated = first["eval/reference_pass@1"], first["eval/pass@1"]
    assert held > evaluated + 0.05
    reference = read_lines(folder / "run" / "eval" / "reference.jsonl")
    assert sorted(r["prompt"].split("\n")[0] for r in reference) == [x for x, _ in TRAIN]
    assert held == sum(r["c"] for r in reference) / 64
    numbers = next((folder / "run" / "checkpoints").glob("step_*/*.json"))
    assert json.loads(numbers.read_text())["rule_state"]["base_pass@1"] == held
    ids = sorted(r["id"] for r in read_lines(folder / "run" / "eval" / "before.jsonl"))
    assert ids == [HOSTILE.format(x) for x, _ in TEST]  # and no file is named after them
    assert {x.name for x in folder.iterdir()} == {"model", "gsm8k", "floor.yaml", "run"}
    looks = read_lines(folder / "run" / "rollouts.jsonl")
    assert any(r"\boxed{" in text for look in looks for text in look["texts"])


def test_score(folder, command):
    options = ["--config", "floor.yaml", *SMALL, "--out", "scores"]
    code, said, errors = command("score", *options)
    assert code == 0, errors
    found = json.loads((folder / "scores" / "summary.json").read_text())
    assert found["problems"] == 4 and 0.05 < found["scores"]["pass@1"]["value"] < 0.6
    assert "verifier math-verify" in said and "at most 12 tokens" in said
    again = ["--responses", "scores/problems.jsonl", "--out", "again"]
    assert command("score", *again)[0] == 0
    scores = json.loads((folder / "again" / "summary.json").read_text())["scores"]
    assert scores == found["scores"]


def test_diagnose(folder, command):
    """Its prompts are those of training, none twice, however many are asked for."""
    options = ["diagnose.measure=last_layer", "diagnose.samples=4", "--out", "diagnosis"]
    code, _, errors = command("diagnose", "--config", "floor.yaml", *SMALL, *options)
    assert code == 0, errors
    records = read_lines(folder / "diagnosis" / "prompts.jsonl")
    assert len(records) == len({r["id"] for r in records}) == len(TRAIN)
    assert sum(r["c"] for r in records) > 0


def test_other_data_under_the_same_name_is_refused(folder, command, tmp_path):
    """What was measured or trained on goes on with the same problems only."""
    place = tmp_path / "data"
    place.mkdir()
    data = [f"task.path={place}", *SMALL]
    for name, part in (("train", TRAIN), ("test", TEST)):
        rows = [{"question": x, "answer": f"#### {gold}"} for x, gold in part]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    score = ["score", "--config", "floor.yaml", *data, "--out", str(tmp_path / "scores")]
    measure = ["diagnose.measure=last_layer", "diagnose.samples=4"]
    diagnose = ["diagnose", "--config", "floor.yaml", *data, *measure]
    diagnose += ["--out", str(tmp_path / "diagnosis")]
    train = [str(ROOT / "launch" / "train.py"), "--config", "floor.yaml", *data]
    train += ["train.save_every=1", f"run.dir={tmp_path / 'run'}"]
    assert command(*score)[0] == command(*diagnose)[0] == 0
    assert run(*train, "train.steps=1", cwd=folder).returncode == 0
    for name in ("train", "test"):
        text = (place / f"{name}.jsonl").read_text()
        (place / f"{name}.jsonl").write_text(
            text.replace("beetle B", "moth").replace("bird C", "owl")
        )
    code, _, said = command(*score)
    assert code == 2 and "data = " in said and "holds another evaluation" in said
    code, _, said = command(*diagnose)
    assert code == 2 and "holds another one in its place" in said
    done = run(*train, cwd=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"task.path = {place}: its problems are not those that" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model.path=base"], "model.path = base: task gsm8k has no base policy"),
        (["task.name=data", "task.path=null"], "task.path = null: task data is your own"),
        (["task.prompt=Solve"], "task.prompt = Solve: must say where"),
        (["task.easy_above=0.8"], "task.rates = null: task.easy_above and task.hard_below choose"),
        (["task.rates=x", "task.easy_above=0", "task.hard_below=1"], "task.easy_above = 0"),
        (["task.fields.problm=x"], "task.fields.problm = x: must name one of id, problem"),
        (["task.levels=4"], "task.levels = 4: must be a list"),
        (["task.template=chatml"], "task.template = chatml: must be one of chat, plain"),
        (["task.path=gone.jsonl"], "task.path = gone.jsonl: no such file"),
        (["task.split=dev"], "no split dev"),
        (["task.levels=[9]"], "task.levels = ['9']: leaves no problem"),
    ],
)
def test_refusals_are_one_line_before_a_model_is_loaded(command, monkeypatch, options, said):
    monkeypatch.setattr("eval.policy.policy.load_policy", None)
    monkeypatch.setattr("trainers.commands.diagnose.load_policy", None)
    code, _, errors = command("diagnose", "--config", "floor.yaml", *options, "--out", "none")
    assert code == 2
    (line,) = [x for x in errors.splitlines() if "problems to evaluate on" not in x]
    assert said in line, line


def test_training_is_refused_likewise(command, monkeypatch):
    monkeypatch.setattr("trainers.train.run_folder.RunFolder", lambda config: None)
    options = ["--config", "floor.yaml", "task.split=dev", "run.dir=refused"]
    code, _, errors = command("train", *options)
    assert code == 2 and errors.startswith("task.path = gsm8k: gives no split dev")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train", ["--plan"]),
        ("diagnose", ["--plan"]),
        ("train", []),
        ("diagnose", []),
        ("score", []),
    ],
)
def test_a_tokenizer_without_a_chat_template(
    command, monkeypatch, tmp_path, base_path, name, options
):
    """It is refused before a model is loaded, and by --plan."""
    for module in ("train.trainer", "commands.diagnose", "commands.score"):
        monkeypatch.setattr(f"trainers.{module}.load_policy", None)
    given = ["--config", "floor.yaml", *SMALL, f"model.path={base_path}", *options]
    places = {"train": [f"run.dir={tmp_path}/a"], "diagnose": ["--out", f"{tmp_path}/a"]}
    code, _, errors = command(name, *given, *places.get(name, []))
    said = "task.template = chat: the model's tokenizer has no chat template; set task.template="
    assert code == 2 and errors.splitlines()[-1] == f"{said}plain"
    assert name != "train" or not (tmp_path / "a").exists()  # a refused run leaves no folder
    if options:
        assert command(name, *given, "task.template=plain")[0] == 0
