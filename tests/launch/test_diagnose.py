"""launch/diagnose.py: what it leaves, prints and refuses, and how it goes on."""

import importlib.util
import json
import sys

import pytest

import eval.diagnosis.analysis
import eval.diagnosis.pictures as diagnosis_pictures
import eval.diagnosis.report as diagnosis_report
import trainers.commands.diagnose as diagnosis
from eval.files import read_lines
from eval.scores.folder import BadFolder
from tests.commands import ROOT, no_file_beyond, run
from trainers.measure import ghost
from trainers.measure.taps import Unsupported

pytestmark = pytest.mark.usefixtures("one_thread")

DIAGNOSE = str(ROOT / "launch" / "diagnose.py")
CONFIG = str(ROOT / "configs" / "passk.yaml")
SMALL = ["diagnose.prompts=100", "diagnose.samples=6"]


@pytest.fixture
def command(alone, tmp_path, monkeypatch, capsys):
    """The command in this process: starting one takes seconds."""
    spec = importlib.util.spec_from_file_location("diagnose", DIAGNOSE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def ask(*options):
        monkeypatch.setattr(sys, "argv", [DIAGNOSE, "--config", CONFIG, *options])
        code = module.main()
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


@pytest.fixture
def unwritten(few, monkeypatch):
    """What is measured, without the report, which takes longer."""
    monkeypatch.setattr(diagnosis_report, "write", lambda out, measures, *_: " ".join(measures))


def answers(folder):
    found = json.loads((folder / "diagnosis.json").read_text())
    return found, read_lines(folder / "prompts.jsonl")


def test_variants_of_a_name_have_folders_of_their_own(tmp_path, monkeypatch):
    places = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "Folder", lambda out, config: places.append(str(out)) or stop())
    spec = importlib.util.spec_from_file_location("diagnose_command", DIAGNOSE)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def stop():
        raise BadFolder("enough")

    for name in ("pcgrad", "chain/pcgrad"):
        path = str(ROOT / "configs" / f"{name}.yaml")
        monkeypatch.setattr(sys, "argv", ["diagnose.py", "--config", path])
        assert command.main() == 2
    assert places == ["runs/diagnosis/pcgrad", "runs/diagnosis/chain/pcgrad"]


def test_what_the_command_leaves(command, tmp_path, base_path, monkeypatch):
    monkeypatch.setattr(eval.diagnosis.analysis, "RESAMPLES", 200)
    code, out, err = command(*SMALL, "--out", "a")
    assert code == 0, err
    found, prompts = answers(tmp_path / "a")
    ghost_rows = found["measures"]["ghost"]["groups"]
    assert len(prompts) == 100 and len(ghost_rows) == 10 and found["k"] == found["n"] == 6
    assert found["easy"] + found["hard"] <= 100 and found["proxy"][0]["prompts"] == "all"
    pair = found["pairs"][0]
    assert pair["product"] < 0 and pair["raised"]["id"] != pair["lowered"]["id"]
    names = ["agreement", "weights", "thresholds", "kernel", "cosines", "against_k", "proxy"]
    assert all((tmp_path / "a" / f"{name}.png").stat().st_size > 5000 for name in names)
    ends = ghost_rows[0]["loo"]
    word = "conflict" if ends["high"] < 0 else "none" if ends["low"] > 0 else "cannot tell"
    assert out.startswith(f"k = 6: {word}. ") and "by all parameters (ghost)" in out.splitlines()[0]
    assert out.count("\n| > 0.") == 2 == out.count("\n| > 0.80, < 0.15 ")  # of either measure
    text = (tmp_path / "a" / "diagnosis.md").read_text()
    assert text.count("\n| > 0.") == 18 and text.splitlines()[2] == out.splitlines()[0]
    assert text.count("](") == len(names) and pair["raised"]["prompt"] in out
    assert len(list((tmp_path / "a").glob("events.out.*"))) == 1

    # given again, nothing is measured: the model is not even loaded
    monkeypatch.setattr(diagnosis, "load_policy", None)
    monkeypatch.setattr(diagnosis_pictures, "pictures", lambda *_: {})
    code, again, _ = command(*SMALL, "--out", "a")
    assert code == 0 and again.splitlines()[:-1] == out.splitlines()[:-1]
    assert [x.splitlines()[-1] for x in (out, again)] == [
        "Pictures and all thresholds: a",
        "All answers: a",
    ]
    assert answers(tmp_path / "a") == (found, prompts)
    code, longer, _ = command(*SMALL, "--thresholds", "--out", "a")
    assert code == 0 and longer.count("\n| > 0.") == 18

    # what was sampled under other settings is not gone on with, and every key is named
    code, _, err = command(*SMALL, "diagnose.seed=1", "diagnose.top_p=0.9", "--out", "a")
    assert code == 2 and len(err.strip().splitlines()) == 2
    assert "diagnose.seed = 1 (was 0)" in err and "diagnose.top_p = 0.9 (was 0.95)" in err


def test_cut_short_it_goes_on(command, unwritten, tmp_path, base_path, monkeypatch):
    """Stopped while sampling, then among the directions; a measure added later uses the samples."""
    assert command(*SMALL, "--out", "whole")[0] == 0

    def stop_at(name, calls):
        kind, count = diagnosis.Folder, iter(range(calls))
        original = getattr(kind, name)

        def write(self, *arguments):
            if next(count, None) is None:
                raise KeyboardInterrupt
            original(self, *arguments)

        monkeypatch.setattr(kind, name, write)
        code, _, err = command(*SMALL, "--out", "part")
        monkeypatch.setattr(kind, name, original)
        assert code == 130 and "goes on" in err

    stop_at("write_part", 1)
    assert len(list((tmp_path / "part" / "parts").glob("*.json"))) == 1
    stop_at("write_probe", 1)
    monkeypatch.setattr(diagnosis, "sample", None)  # nor is anything sampled again
    assert len(list((tmp_path / "part" / "probes").iterdir())) == 1
    assert command(*SMALL, "--out", "part")[0] == 0
    files = [x.relative_to(tmp_path / "whole") for x in (tmp_path / "whole").glob("p*/*")]
    assert len(files) == 2 * 2 + 3
    for name in files:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    code, out, _ = command(*SMALL, "diagnose.measure=last_layer", "--out", "part")
    assert code == 0 and out.startswith("last_layer\n")


def test_on_a_full_disk(command, unwritten, base_path):
    """The features are written by safetensors, which has words of its own for it."""
    ask = [*SMALL, "diagnose.measure=last_layer", "--out", "a"]
    with no_file_beyond(4_000):
        code, _, err = command(*ask)
    said = "a: [Errno 27] File too large: 'a'; once it can be written, the same command goes on"
    assert code == 1 and err.splitlines()[-1] == said
    assert command(*ask)[0] == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("diagnose.k=33", "diagnose.k = 33: exceeds diagnose.samples = 32"),
        ("diagnose.top_p=0", "diagnose.top_p = 0.0: must be above 0"),
        ("diagnose.temperature=0", "diagnose.temperature = 0.0: must be above 0"),
        ("diagnose.measure=gost", "diagnose.measure = gost: must be one of ghost, last_layer"),
        ("diagnose.promts=3", "diagnose.promts = 3: unknown key; the nearest is diagnose.prompts"),
        ("model.path=./gone", "model.path = ./gone: no model folder"),
        ("--out=full", "--out = full: holds files already"),
    ],
)
def test_bad_input(command, tmp_path, monkeypatch, option, said):
    """One line, before any model is loaded."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    monkeypatch.setattr(diagnosis, "load_policy", None)
    code, _, err = command(option)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
    assert [x.name for x in tmp_path.iterdir()] == ["full"]


def test_a_verifier_that_cannot_judge(command, tmp_path, base_path, monkeypatch):
    """One line, before any model is loaded."""
    (tmp_path / "mine.py").write_text("def judge(answer):\n    return True\n")
    monkeypatch.setattr(diagnosis, "load_policy", None)
    code, _, err = command("task.verifier=mine.py:judge", "--out=a")
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith("task.verifier = mine.py:judge: TypeError: judge() takes 1 positional")


def test_a_layer_that_ghost_cannot_measure(command, tmp_path, base_path, monkeypatch):
    def refuse(*_):
        raise Unsupported("model.odd (Odd): not affine in its own parameters")

    monkeypatch.setattr(ghost, "probe", refuse)
    code, _, err = command("diagnose.prompts=60", "diagnose.samples=4", "--out", "a")
    remedy = "not affine in its own parameters; set diagnose.measure=last_layer"
    assert code == 2 and f"diagnose.measure = ghost: model.odd (Odd): {remedy}" in err


def test_too_few_to_compare(command, tmp_path, base_path):
    """Four prompts: no filter has enough, and the report says what it can."""
    few = ["diagnose.prompts=4", "diagnose.samples=4", "diagnose.temperature=1.5"]
    code, out, err = command(*few, "diagnose.top_p=1", "--out", "a")
    assert code == 0, err
    assert "| –" in out and out.startswith("k = 4: cannot tell. Only ")


def test_no_right_answer(command, tmp_path, base_path):
    """The report names the file of the answers, and no picture that is not there."""
    (tmp_path / "no.py").write_text("def judge(answer, gold):\n    return False\n")
    few = ["diagnose.prompts=4", "diagnose.samples=4", "task.verifier=no.py:judge"]
    code, out, err = command(*few, "--out", "a")
    assert code == 0, err
    first, last = out.splitlines()[0], out.splitlines()[-1]
    said = "look at the answers in a/prompts.jsonl, at the prompt, the verifier and the model."
    assert first.startswith("k = 4: cannot tell, as no answer of 16 was right") and said in first
    assert last == "All answers: a" and not list((tmp_path / "a").glob("*.png"))
    assert json.loads((tmp_path / "a" / "prompts.jsonl").read_text().splitlines()[0])["responses"]


@pytest.mark.slow
def test_two_ranks_do_what_one_does(tmp_path, base_path):
    """Under the launcher, as a user gives it."""
    for ranks, name in ((0, "one"), (2, "two")):
        options = ["--config", CONFIG, *SMALL, "--out", name]
        done = run(DIAGNOSE, *options, cwd=tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    (one, prompts), (two, again) = (answers(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(prompts, again, strict=True):
        assert (a["id"], a["responses"]) == (b["id"], b["responses"])
        for measure, value in a["agreement"].items():
            assert b["agreement"][measure] == pytest.approx(value, rel=1e-3, abs=1e-4)
    for measure in ("ghost", "last_layer"):
        for a, b in zip(*(x["measures"][measure]["groups"] for x in (one, two)), strict=True):
            assert b["plugin"]["value"] == pytest.approx(a["plugin"]["value"], rel=1e-3, abs=1e-6)
    wrong = ["--config", CONFIG, "diagnose.k=99"]
    done = run(DIAGNOSE, *wrong, cwd=tmp_path, ranks=2)
    assert done.returncode == 2 and (done.stdout + done.stderr).count("diagnose.k = 99") == 1
