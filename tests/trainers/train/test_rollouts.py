"""Runs whose completions servers draw: when these get weights, and how a run ends without them."""

import pytest
import torch

from eval.files import read_lines
from eval.policy.policy import load_policy
from eval.rollout.rollout import Rollout
from surgery.tokens import importance
from tests.commands import ROOT, in_process, run
from tests.fakes import Alone
from tests.stub_vllm import Stub, serving
from trainers.config.schema import RolloutConfig
from trainers.train.correction import corrected, of_mismatch

TRAIN, SCORE, DIAGNOSE = (str(ROOT / "launch" / f"{x}.py") for x in ("train", "score", "diagnose"))
CONFIG = str(ROOT / "configs" / "pcgrad.yaml")
SMALL = [
    *("train.steps=3", "train.prompts=12", "train.samples=4", "objective.k=4", "eval.k=4"),
    *("eval.problems=20", "eval.samples=8", "eval.every=0", "train.save_every=1"),
    *("run.threads=1", "train.rollouts=vllm", "rollout.timeout=60"),
]
SYNC = ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]


def train(cwd, urls, *more, **how):
    servers = [f"rollout.urls=[{','.join(urls)}]", "rollout.sync_dir=sync"]
    return run(TRAIN, "--config", CONFIG, *SMALL, *servers, *more, cwd=cwd, **how)


def metrics(folder):
    slow = ("time/", "throughput/")
    lines = read_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(slow)} for line in lines]


def phases(stub):
    """The posts of a server, with runs of completions counted: [12, SYNC.., 20, ..]."""
    found = []
    for route, body in stub.log:
        if route != "/v1/completions":
            found.append(route)
        elif body["prompt"] and body["max_tokens"] > 1:
            if found and isinstance(found[-1], int):
                found[-1] += 1
            else:
                found.append(1)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base_path):
    """A run with a correction, and the server that drew for it."""
    folder, stub = tmp_path_factory.mktemp("served"), Stub(load_policy(base_path))
    with serving(stub) as url:
        done = train(folder, [url], "rollout.correction=truncate", "run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, stub


def test_weights_arrive_before_each_draw_that_needs_them(whole):
    """The base once, for its evaluation and the first step; then after every step."""
    folder, stub = whole
    base = ["/resume", *SYNC, 20 + 12]
    assert phases(stub) == [*base, *SYNC, 12, *SYNC, 12, *SYNC, 20]
    assert [x.name for x in (folder / "sync").iterdir()] == [".lock"]
    trained = load_policy(str(folder / "run" / "model")).model.state_dict()
    held = stub.policy.model.state_dict()
    assert all(torch.equal(held[name], x) for name, x in trained.items())


def test_the_distance_and_the_correction_are_logged(whole):
    """Equal arithmetic: no distance but rounding, so that the correction changes nothing."""
    before, *steps = metrics(whole[0] / "run")
    assert "rollout/mismatch_mean" not in before and before["eval/pass@4"] > 0.4
    for line in steps:
        assert 0 < line["rollout/mismatch_mean"] <= line["rollout/mismatch_max"] < 1e-4
        assert line["rollout/weight_mean"] == pytest.approx(1, abs=1e-4)
        assert line["rollout/weight_max"] == pytest.approx(1, abs=1e-4)
        assert line["rollout/weights_truncated"] == 0
        assert line["surgery/norm_1_squared"] != 0 and line["train/skipped"] == 0


def test_a_server_that_dies_in_a_step_and_is_started_again(whole, tmp_path, base_path):
    """One line; the same command goes on, by another server, to the same numbers."""
    stub, answered = Stub(load_policy(base_path)), 2 + 20 + 12 + 12 + 5
    stub.faults["/v1/completions"] = lambda count: "drop" if count >= answered else None
    options = "rollout.correction=truncate", "run.dir=run"
    with serving(stub) as url:
        done = train(tmp_path, [url], *options)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"run: rollout.urls = {url}: /v1/completions does not answer (")
    assert last.endswith("the same command goes on") and "Traceback" not in done.stderr
    assert metrics(tmp_path / "run")[-1]["step"] == 2
    with serving(Stub(load_policy(base_path))) as url:
        done = train(tmp_path, [url], *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run: going on from step 2" in done.stderr
    assert metrics(tmp_path / "run") == metrics(whole[0] / "run")


@pytest.mark.slow
def test_two_ranks_of_zero_3_with_two_servers(tmp_path, base_path):
    """Rank 0 gives the gathered weights to both servers, and each draws its half."""
    stubs = [Stub(load_policy(base_path)), Stub(load_policy(base_path))]
    with serving(stubs[0]) as first, serving(stubs[1]) as second:
        more = "train.zero_stage=3", "train.steps=2", "run.dir=run"
        done = train(tmp_path, [first, second], *more, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    for stub in stubs:
        assert phases(stub) == ["/resume", *SYNC, 10 + 6, *SYNC, 6, *SYNC, 10]
    trained = load_policy(str(tmp_path / "run" / "model")).model.state_dict()
    for stub in stubs:
        held = stub.policy.model.state_dict()
        assert all(torch.equal(held[name], x) for name, x in trained.items())


def test_score_gives_each_mixture_to_the_server(tmp_path, base_path, whole):
    stub = Stub(load_policy(base_path))
    with serving(stub) as url:
        servers = ["train.rollouts=vllm", f"rollout.urls=[{url}]", "rollout.sync_dir=sync"]
        options = ["eval.problems=40", "eval.samples=8", *servers]
        between = ["--model", base_path, "--toward", str(whole[0] / "run" / "model")]
        done = in_process(
            SCORE, *between, "--by", "0", "1", "--config", CONFIG, *options, cwd=tmp_path
        )
    assert done.returncode == 0, done.stderr
    assert phases(stub) == ["/resume", *SYNC, 40, *SYNC, 40]
    trained = load_policy(str(whole[0] / "run" / "model")).model.state_dict()
    held = stub.policy.model.state_dict()
    assert all(torch.allclose(held[name], x) for name, x in trained.items())


def test_a_wrong_server_is_refused_in_a_line(tmp_path, base_path):
    with serving(Stub(load_policy(base_path), length=8)) as url:
        servers = ["train.rollouts=vllm", f"rollout.urls=[{url}]", "rollout.sync_dir=sync"]
        done = in_process(SCORE, "--config", CONFIG, "eval.problems=4", *servers, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (  # below the bar
        f"rollout.urls = {url}: takes 8 tokens, and prompts with their answers have 9; "
        "start the server again by launch/serve.py with the configuration of this command, "
        "which sets the limit"
    )
    assert [x.name for x in (tmp_path / "sync").iterdir()] == [".lock"]


def test_diagnose_draws_from_the_server(tmp_path, base_path, alone, monkeypatch):
    stub, reported = Stub(load_policy(base_path)), []

    def report(out, measures, records, *_):  # the real one takes longer than the rest
        reported.append(len(records))
        return ""

    monkeypatch.setattr("eval.diagnosis.report.write", report)
    with serving(stub) as url:
        servers = ["train.rollouts=vllm", f"rollout.urls=[{url}]", "rollout.sync_dir=sync"]
        options = ["diagnose.prompts=70", "diagnose.samples=6", "diagnose.measure=last_layer"]
        command = DIAGNOSE, "--config", CONFIG, "--out", "out", *options, *servers
        done = in_process(*command, cwd=tmp_path)
        again = in_process(*command, cwd=tmp_path)
    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    assert reported[0] == reported[1] > 64  # two parts
    assert phases(stub) == ["/resume", *SYNC, reported[0]]  # what is measured is not drawn again


@pytest.mark.slow
def test_a_server_of_another_rank_that_dies(tmp_path, base_path):
    """All ranks end, with one line, and the same command goes on."""
    stubs = [Stub(load_policy(base_path)), Stub(load_policy(base_path))]
    stubs[1].faults["/v1/completions"] = lambda count: "drop" if count >= 2 + 10 + 6 else None
    with serving(stubs[0]) as first, serving(stubs[1]) as second:
        done = train(tmp_path, [first, second], "run.dir=run", ranks=2)
        assert done.returncode == 1, done.stdout + done.stderr
        said = done.stdout + done.stderr
        assert said.count(f"run: rollout.urls = {second}: /v1/completions does not answer") == 1
        assert "Traceback" not in said
        stubs[1].faults.clear()
        done = train(tmp_path, [first, second], "run.dir=run", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "run")[-1]["step"] == 3


# -- the correction -------------------------------------------------------------------------------

OPTIONS = RolloutConfig(correction="truncate", cap=2.0)
RATIOS = torch.tensor([[1.0, 4.0], [0.5, 1.0], [1.5, 1.0], [1.0, 1.0]])


def served(ratios=RATIOS):
    """Two prompts of two completions, the second and the last one token long."""
    none = torch.zeros(4)
    tokens = [[5, 1], [1], [5, 6], [1]]
    distance = None if ratios is None else ratios.log()
    return Rollout([[2], [3]], tokens, [""] * 4, none > 0, none, none, None, 2, distance)


@pytest.mark.parametrize("columns", [False, True])
def test_each_token_is_weighed(columns):
    weights = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    if columns:
        weights = weights[..., None] * torch.tensor([1.0, 10.0])
    found = corrected(weights, served(), OPTIONS)
    ten = 10 if columns else 1
    assert found.view(4, 2).tolist() == [
        [1, pytest.approx(2 * ten)],
        [pytest.approx(-0.5), -ten],
        [pytest.approx(3), 2 * ten],
        [0, 0],
    ]
    assert torch.equal(
        found.view(4, 2)[0], importance(RATIOS.log()[0], 2.0) * weights.new_tensor([1, ten])
    )


def test_without_a_correction_weights_stay_as_they_are():
    weights = torch.randn(2, 2)
    assert corrected(weights, served(), RolloutConfig()) is weights
    assert corrected(weights, served(None), OPTIONS) is weights


def test_scalars_are_of_the_tokens_alone():
    """Six tokens; one ratio lies above the cap."""
    logs = RATIOS.log().abs()
    mean = float(logs.sum()) / 6
    expected = {"mismatch_mean": mean, "mismatch_max": float(logs.max())}
    plain = of_mismatch(served(), RolloutConfig(), Alone())
    assert plain == pytest.approx({f"rollout/{k}": x for k, x in expected.items()})
    expected |= {"weight_mean": (1 + 2 + 0.5 + 1.5 + 1 + 1) / 6, "weight_max": 2}
    expected |= {"weights_truncated": 1 / 6}
    found = of_mismatch(served(), OPTIONS, Alone())
    assert found == pytest.approx({f"rollout/{k}": x for k, x in expected.items()})
    assert of_mismatch(served(None), OPTIONS, Alone()) == {}
