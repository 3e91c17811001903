"""The command as a user gives it."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, run
from tests.engines import needs_continuous
from trainers.config.load import load_config
from trainers.train.board import charts

TRAIN = str(ROOT / "launch" / "train.py")
SMALL = [
    "train.steps=3",
    "train.prompts=9",
    "train.samples=4",
    "train.micro_batch_tokens=300",
    "objective.k=4",
    "eval.k=4",
    "eval.problems=20",
    "eval.samples=8",
]


def config(name):
    return str(ROOT / "configs" / f"{name}.yaml")


def test_mistakes_exit_with_2_and_leave_no_folder(tmp_path):
    done = run(TRAIN, "--config", config("passk"), "train.promts=3", "train.lr=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "train.promts = 3: unknown key; the nearest is train.prompts (prompts of a step, on all "
        "ranks together)",
        "train.lr = 0.0: must be above 0",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_leaves_the_folder_free(tmp_path, base_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    for path, message in (("./none", "no model folder"), ("./empty", "cannot be loaded")):
        done = run(TRAIN, "--config", config("passk"), f"model.path={path}", cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = run(TRAIN, "--config", config("passk"), *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_base_without_a_right_answer_is_told_and_trained(tmp_path, base_path):
    (tmp_path / "no.py").write_text("def judge(answer, gold):\n    return False\n")
    options = ["task.verifier=no.py:judge", "train.steps=1", "run.dir=a", *SMALL[1:]]
    done = run(TRAIN, "--config", config("passk"), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "no answer" in x]
    said = "warning: no answer of 160 was right, so there is no gradient; look at the answers in "
    assert line == f"{said}a/eval/before.jsonl, at the prompt, the verifier and the model"
    assert (tmp_path / "a" / "eval" / "before.jsonl").is_file()


ODD = """
import sys
from launch import train
from trainers.measure import ghost
from trainers.measure.taps import Unsupported

def refuse(*_, **__):
    raise Unsupported("model.odd (Odd): not affine in its own parameters")

ghost.probe = ghost.probed_gradient = refuse
sys.exit(train.main())
"""


def test_a_layer_that_ghost_cannot_measure(tmp_path, base_path):
    options = "--config", config("pcgrad"), "surgery.measure=ghost", "run.dir=a", *SMALL
    done = run("-c", ODD, *options, cwd=tmp_path, PYTHONPATH=str(ROOT))
    remedy = "not affine in its own parameters; set surgery.measure=last_layer, or leave such"
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"surgery.measure = ghost: model.odd (Odd): {remedy} layers out by ")
    assert last.endswith("surgery.modules and a lower surgery.min_coverage")
    assert not (tmp_path / "a").exists()  # before anything is sampled; no folder is left
    assert "Traceback" not in done.stderr


def test_mistakes_under_the_launcher(tmp_path):
    done = run(TRAIN, "--config", config("passk"), "objective.k=99", cwd=tmp_path, ranks=2)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("objective.k = 99") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.parametrize("command", ["train", "diagnose"])
def test_several_ranks_need_the_launchers_port(tmp_path, taken, command):
    script = str(ROOT / "launch" / f"{command}.py")
    arguments = script, "--config", config("passk")
    done = run(*arguments, cwd=tmp_path, ranks=2, port=taken, OMP_NUM_THREADS="1")
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert said.count(f"--master_port = {taken}: is taken on 127.0.0.1; give a free one") == 1
    assert "Traceback" not in said


def test_one_rank_needs_no_port(tmp_path, taken):
    """It goes on to load the model."""
    (tmp_path / "config.json").write_text("{}")
    arguments = TRAIN, "--config", config("passk"), f"model.path={tmp_path}"
    done = run(*arguments, cwd=tmp_path, ranks=1, port=taken)
    assert done.returncode == 2 and "cannot be loaded" in done.stdout + done.stderr, done.stderr


MORE = ["train.entropy_coef=0.1", "train.sampler=informative"]


@pytest.fixture(scope="module")
def one(tmp_path_factory, base_path):
    """The metrics of one rank, all of whose rows fit into one micro-batch."""
    place = tmp_path_factory.mktemp("one")
    options = [*SMALL, *MORE, "train.micro_batch_tokens=65536", "run.dir=one"]
    options += ["logging.kl_every=3", "surgery.mix=2"]
    done = run(TRAIN, "--config", config("pcgrad"), *options, cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "one" / "metrics.jsonl").read_text().splitlines()
    return done, [json.loads(x) for x in lines]


def test_the_words_of_a_run(one):
    """What it warns of, how far it is, and its last lines."""
    done, _ = one
    lines = done.stderr.splitlines()
    assert "warning: surgery.mix = 2.0: rule pcgrad does not use it" in lines
    assert any(re.fullmatch(r"\d\d:\d\d:\d\d one: 0 of 3, .* left", x) for x in lines), lines
    *_, last = done.stdout.split("\n\n")
    model, spent, curves, rule, *_, after = last.splitlines()
    assert rule.startswith("Rule:   pcgrad gave pass@1 the weight ")
    assert model == "Model:  one/model" and curves.startswith("Curves: tensorboard --logdir one")
    shares = {name: int(x) for name, x in re.findall(r"(\w+) (\d+) %", spent)}
    assert 95 <= sum(shares.values()) <= 105 and shares["evaluate"] and shares["update"]
    assert after.startswith("Next:   python ") and after.endswith("# to compare with")


def test_every_chart_draws_what_a_run_writes(one):
    _, lines = one
    written = {name for line in lines for name in line}
    options = [*SMALL, "logging.kl_every=3"]
    for chart in charts(load_config(config("pcgrad"), options), lines[0]):
        assert set(chart.names) <= written, chart


@pytest.mark.parametrize(
    "stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 2)), 3]
)
def test_two_ranks_do_what_one_does(tmp_path, base_path, one, stage):
    """Nine prompts on two ranks, several unequal micro-batches on both and one on the lone one, no
    C++ compiler on the path.
    """
    options = [*SMALL, *MORE, f"train.zero_stage={stage}", "run.dir=two"]
    path = str(Path(sys.executable).parent)
    done = run(TRAIN, "--config", config("pcgrad"), *options, cwd=tmp_path, ranks=2, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    two = [json.loads(x) for x in lines]
    for a, b in zip(one[1], two, strict=True):
        for key in (
            "train/pass@1",
            "train/loss",
            "train/grad_norm",
            "surgery/lambda",
            "train/sequence_entropy",
            "exact/pass@1",
        ):
            if a["step"] or key.startswith("exact"):
                assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-5), (a["step"], key)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["world_size"] == 2


@needs_continuous
@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_continuous_rollouts(tmp_path, base_path, ranks):
    """Sampled, measured and evaluated by the other engine."""
    options = [*SMALL, "train.rollouts=continuous", "run.dir=one", f"train.zero_stage={ranks + 1}"]
    done = run(TRAIN, "--config", config("pcgrad"), *options, cwd=tmp_path, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(x) for x in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and lines[0]["eval/pass@4"] > 0.4
    for line in lines[1:]:
        assert line["surgery/norm_1_squared"] != 0 and line["train/entropy"] > 0
        assert line["train/sequence_entropy"] > 0 and line["train/skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_degradation(tmp_path, seed, base_path):
    """Pass@8 training raises pass@8 and destroys pass@1; pass@1 training gives exploration away."""
    for name in ("passk", "pass1"):
        done = run(TRAIN, "--config", config(name), f"seed={seed}", cwd=tmp_path, ranks=1)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads(
            (tmp_path / "runs" / name / f"seed{seed}" / "summary.json").read_text()
        )
        before, after = summary["exact"]["before"], summary["exact"]["after"]
        if name == "passk":
            assert after["pass@1"] <= before["pass@1"] - 0.08
            assert after["pass@8"] >= before["pass@8"] + 0.08
        else:
            assert after["pass@8"] <= before["pass@8"] - 0.10
