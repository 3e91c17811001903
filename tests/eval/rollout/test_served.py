"""The sampler `vllm` against a stand-in for its servers: payloads, retries, refusals, failures."""

import time
from itertools import pairwise

import pytest
import torch

from eval.errors import Refusal
from eval.policy.policy import Policy
from eval.policy.streams import derive_seed
from eval.rollout import servers as client
from eval.rollout.rollout import Decoding, SamplingFailed, Servers
from eval.rollout.sample import sample
from eval.rollout.servers import check, reload, server_flags
from tests.commands import free_port
from tests.fakes import PROMPTS, random_policy
from tests.stub_vllm import Stub, serving


@pytest.fixture
def policy():
    return random_policy("llama")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The waits between two tries of a request."""
    monkeypatch.setattr(client, "WAITS", (0.01, 0.02))


def trusted(*urls, timeout=30.0, bound=1e-3):
    return Servers(urls, timeout, bound)


def drawn(policy, servers, n=3, prompts=PROMPTS, names=None, **how):
    decoding = Decoding(6, sampler="vllm", servers=servers, **how)
    return sample(policy, prompts, n, decoding, seed=5, problem_ids=names)


def test_one_request_a_prompt_with_a_seed_of_its_own(policy):
    stub = Stub(policy)
    with serving(stub) as url:
        rollout = drawn(policy, trusted(url), names=[3, 4, 5, 9], temperature=0.7)
        twice = drawn(policy, trusted(url), names=[3, 4, 5, 9], temperature=0.7)
    assert rollout.completions == twice.completions
    routes, bodies = zip(*stub.log, strict=True)
    assert set(routes) == {"/v1/completions"} and len(bodies) == 2 * len(PROMPTS)
    by_prompt = {tuple(x["prompt"]): x for x in bodies}
    for prompt, name in zip(policy.encode(PROMPTS), [3, 4, 5, 9], strict=True):
        assert by_prompt[tuple(prompt)] == {
            "model": "policy",
            "prompt": prompt,
            "n": 3,
            "max_tokens": 6,
            "temperature": 0.7,
            "top_p": 1.0,
            "seed": derive_seed(5, name) >> 1,
            "top_k": 0,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": policy.end_ids,
        }


def test_seeds_lie_far_apart():
    """Completion j of a request draws from the seed + j: no two requests may meet there."""
    seeds = sorted(derive_seed(step, name) >> 1 for step in range(20) for name in range(500))
    assert min(b - a for a, b in pairwise(seeds)) > 10**9
    assert seeds[-1] + 10**6 < 2**63


def test_prompts_are_dealt_out_by_their_names(policy):
    """However many ranks there are, a prompt meets its server and gets its draws."""
    stubs = [Stub(policy), Stub(policy)]
    with serving(stubs[0]) as first, serving(stubs[1]) as second:
        servers = trusted(first, second)
        whole = drawn(policy, servers)
        met = [[x["prompt"] for _, x in stub.log] for stub in stubs]
        share = drawn(policy, servers, prompts=PROMPTS[1::2], names=[1, 3])
    ids = policy.encode(PROMPTS)
    assert sorted(met[0]) == sorted(ids[::2]) and sorted(met[1]) == sorted(ids[1::2])
    assert share.completions == whole.completions[3:6] + whole.completions[9:12]


def test_greedy_asks_for_one_completion(policy):
    """vLLM refuses more; all n are the same."""
    stub = Stub(policy)
    with serving(stub) as url:
        rollout = drawn(policy, trusted(url), temperature=0)
    assert [x["n"] for _, x in stub.log] == [1] * len(PROMPTS)
    assert rollout.completions[::3] == rollout.completions[1::3] == rollout.completions[2::3]


def test_the_distance_of_the_servers_is_kept_by_token(policy):
    stub = Stub(policy)
    with serving(stub) as url:
        near = drawn(policy, trusted(url))
        stub.off = 0.25
        far = drawn(policy, trusted(url, bound=0.3))
        with pytest.raises(SamplingFailed) as error:
            drawn(policy, trusted(url, bound=0.2))
    assert near.mismatch.abs().max() < 1e-5
    inside = torch.arange(far.mismatch.shape[1]) < far.lengths[:, None]
    assert torch.allclose(far.mismatch[inside], torch.tensor(-0.25), atol=1e-5)
    assert not far.mismatch[~inside].any() and (~inside).any()
    assert str(error.value) == (
        "rollout.mismatch = 0.2: the servers' log-probabilities of a token differ by 0.25 from the "
        "policy's; serve the model of model.path in model.dtype, or raise the bound"
    )
    assert sample(policy, PROMPTS, 2, Decoding(3), seed=0).mismatch is None


def test_old_weights_on_a_server_show_at_once(policy):
    old = Stub(random_policy("llama", seed=1))
    refused = pytest.raises(SamplingFailed, match=r"rollout.mismatch = 0.02: .* differ by ")
    with serving(old) as url, refused:
        drawn(policy, trusted(url, bound=0.02))


# -- retries and failures -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [500, 400, "drop", "garbage"])
def test_a_request_that_fails_is_sent_again_and_draws_the_same(policy, fault):
    stub = Stub(policy)
    with serving(stub) as url:
        expected = drawn(policy, trusted(url))
        stub.asked.clear()
        stub.faults["/v1/completions"] = lambda count: fault if count < 2 else None
        again = drawn(policy, trusted(url))
    assert again.completions == expected.completions
    assert stub.asked["/v1/completions"] == len(PROMPTS) + 2


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (500, 'answers 500 ({"error": "on purpose"})'),
        (400, 'answers 400 ({"error": "on purpose"})'),
        ("drop", "does not answer (Remote end closed connection without response)"),
        ("garbage", "answers with something else than JSON"),
        ("hang", "does not answer in 0.2 s"),
    ],
)
def test_a_failing_server_ends_the_draw_in_a_line(policy, fault, why):
    stub, timeout = Stub(policy), 0.2 if fault == "hang" else 30.0
    stub.faults["/v1/completions"] = lambda count: fault
    with serving(stub) as url, pytest.raises(SamplingFailed) as error:
        drawn(policy, trusted(url, timeout=timeout), prompts=PROMPTS[:1])
    remedy = "start the server again by launch/serve.py, and the same command goes on"
    assert str(error.value) == f"rollout.urls = {url}: /v1/completions {why}; {remedy}"
    times = 1 if fault == "hang" else 3  # a server that hangs leaves no time for another try
    assert stub.asked["/v1/completions"] == times and error.value.code == 1


@pytest.mark.parametrize("first", [None, "drop", "head"], ids=["at once", "a try later", "in it"])
def test_a_server_that_hangs_ends_the_draw_in_the_time_of_one_request(policy, monkeypatch, first):
    """However often a request is tried, and however many requests wait for their turn."""
    monkeypatch.setattr(client, "AT_ONCE", 2)
    stub = Stub(policy)
    stub.faults["/v1/completions"] = lambda count: first if first and count < 2 else "hang"
    start = time.monotonic()
    with serving(stub) as url, pytest.raises(SamplingFailed, match=r"does not answer in 1 s"):
        drawn(policy, trusted(url, timeout=1.0))
    assert 0.9 < time.monotonic() - start < 2.5
    assert stub.asked["/v1/completions"] == (4 if first == "drop" else 2)


def test_a_dead_server(policy):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SamplingFailed, match="Connection refused"):
        drawn(policy, trusted(url))


@pytest.mark.parametrize(
    "choices",
    [
        [{"index": 0, "logprobs": {"token_logprobs": [-1.0]}}],
        [{"index": 0, "token_ids": [3, 4], "logprobs": {"token_logprobs": [-1.0]}}],
        [{"index": 0, "token_ids": [3], "logprobs": None}],
        [],
    ],
    ids=["no token ids", "a log-probability too few", "no log-probabilities", "none"],
)
def test_an_answer_that_lacks_something(policy, choices):
    stub = Stub(policy)
    stub.faults["/v1/completions"] = lambda count: {"choices": choices}
    with serving(stub) as url, pytest.raises(SamplingFailed) as error:
        drawn(policy, trusted(url), n=1)
    assert str(error.value) == (
        "train.rollouts = vllm: a server answers without the token ids and log-probabilities of "
        "vLLM 0.32"
    )


def test_a_completion_that_the_server_cut_short(policy):
    """vLLM lowers max_tokens to what its limit leaves, without a word."""
    with serving(Stub(policy, length=7)) as url, pytest.raises(SamplingFailed) as error:
        drawn(policy, trusted(url), n=16, prompts=PROMPTS[:1])
    assert str(error.value) == (
        "train.rollouts = vllm: a server ended a completion after 2 tokens; start the server again "
        "by launch/serve.py with the configuration of this command, which sets the limit, and the "
        "same command goes on"
    )


# -- new weights ----------------------------------------------------------------------------------


def posted(stub):
    return [route for route, _ in stub.log]


def test_each_server_pauses_reads_resets_and_resumes(policy, tmp_path):
    stubs = [Stub(policy), Stub(policy)]
    with serving(stubs[0]) as first, serving(stubs[1]) as second:
        reload(trusted(first, second, timeout=7.0), tmp_path)
    for stub in stubs:
        routes = ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
        assert posted(stub) == routes
        assert stub.log[1][1] == {
            "method": "reload_weights",
            "kwargs": {"weights_path": str(tmp_path)},
            "timeout": 7.0,
        }


@pytest.mark.parametrize("route", ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"])
def test_a_server_that_takes_no_weights_ends_the_run(policy, tmp_path, route):
    stub = Stub(policy)
    stub.faults[route] = lambda count: 500
    with serving(stub) as url, pytest.raises(SamplingFailed) as error:
        reload(trusted(url), tmp_path)
    assert str(error.value).startswith(f"rollout.urls = {url}: {route} answers 500 (")
    assert stub.asked[route] == 3


def test_a_cache_that_is_not_reset_ends_the_run(policy, tmp_path):
    stub = Stub(policy)
    stub.faults["/reset_prefix_cache"] = lambda count: {"success": False}
    with serving(stub) as url, pytest.raises(SamplingFailed, match="could not reset its cache; "):
        reload(trusted(url), tmp_path)


# -- refused at the start -------------------------------------------------------------------------


def refusal(policy, stub, longest=20):
    with serving(stub) as url, pytest.raises(Refusal) as error:
        check(trusted(url), policy, longest)
    assert error.value.code == 2
    (line,) = str(error.value).splitlines()
    return line.removeprefix(f"rollout.urls = {url}: ")


def test_a_server_as_it_should_be_is_taken(policy, capsys):
    stub = Stub(policy)
    stub.paused = True  # left so by a run that was killed
    with serving(stub) as url:
        check(trusted(url), policy, 64)
    assert not stub.paused and posted(stub) == ["/resume", "/v1/completions", "/v1/completions"]
    assert capsys.readouterr().err == ""


def test_another_model(policy):
    line = refusal(policy, Stub(policy, name="facebook/opt-125m"))
    remedy = "start the server again by launch/serve.py"
    assert line == f"serves facebook/opt-125m and not policy; {remedy}"


def test_a_limit_that_is_too_low(policy):
    line = refusal(policy, Stub(policy, length=19))
    assert line == (
        "takes 19 tokens, and prompts with their answers have 20; start the server again by "
        "launch/serve.py with the configuration of this command, which sets the limit"
    )


@pytest.mark.parametrize("more", [-1, 1])
def test_another_vocabulary(policy, more):
    other = random_policy("llama")
    size = policy.model.config.vocab_size
    other.model.resize_token_embeddings(size + more)
    line = refusal(policy, Stub(Policy(other.model, other.tokenizer)))
    why = f"serves a model of another vocabulary than these {size} tokens"
    assert line == f"{why}; serve the model of model.path"


@pytest.mark.parametrize("route", client.POSTED)
def test_a_version_without_a_route(policy, route):
    stub = Stub(policy)
    stub.missing = {route}
    line = refusal(policy, stub)
    remedy = "start vLLM 0.32 or later with VLLM_SERVER_DEV_MODE=1"
    assert line == f"has no route {route}; {remedy}"


@pytest.mark.parametrize(
    ("route", "fault", "why"),
    [
        ("/v1/models", 500, 'answers 500 ({"error": "on purpose"})'),
        ("/v1/models", {"models": []}, "answers /v1/models unlike vLLM"),
        ("/v1/models", "garbage", "answers with something else than JSON"),
        ("/v1/completions", 500, 'answers 500 ({"error": "on purpose"})'),
        (
            "/v1/completions",
            {"choices": [{"index": 0, "text": "7"}]},
            "answers without the token ids and log-probabilities of vLLM 0.32",
        ),
    ],
)
def test_a_server_of_another_kind(policy, route, fault, why):
    stub = Stub(policy)
    stub.faults[route] = lambda count: fault
    remedy = "start the server again by launch/serve.py, or name another one"
    assert refusal(policy, stub) == f"{why}; {remedy}"


def test_no_server_at_all(policy):
    with pytest.raises(Refusal, match=r"does not answer \(.*Connection refused\); ") as error:
        check(trusted(f"http://127.0.0.1:{free_port()}"), policy, 20)
    assert error.value.code == 2


def test_a_server_in_the_open_gets_a_warning(policy, monkeypatch, capsys):
    monkeypatch.setattr(client, "_is_private", lambda url: "localhost" not in url)
    with serving(Stub(policy)) as url:
        far = url.replace("127.0.0.1", "localhost")
        check(trusted(url, far), policy, 20)
    (line,) = capsys.readouterr().err.splitlines()
    why = "has an address outside of private networks; whoever reaches it can replace its weights"
    assert line == f"rollout.urls = {far}: {why}"


@pytest.mark.parametrize(
    ("host", "private"),
    [
        *(("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.7", True), ("[::1]", True)),
        *(("8.8.8.8", False), ("[2001:4860:4860::8888]", False)),
    ],
)
def test_private_addresses(host, private):
    assert client._is_private(f"http://{host}:8000") is private


def test_the_flags_of_a_server():
    flags = server_flags("/models/x", "bfloat16", 640)
    pairs = dict(zip(flags[::2], flags[1::2], strict=False))
    assert pairs["--model"] == "/models/x" and pairs["--served-model-name"] == client.MODEL
    assert pairs["--dtype"] == "bfloat16" and pairs["--max-model-len"] == "640"
    assert pairs["--logprobs-mode"] == "processed_logprobs"
    assert pairs["--generation-config"] == "vllm"
