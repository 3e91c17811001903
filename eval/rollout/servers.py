"""A client of vLLM's servers: their flags, their routes, and their answers.

It is written for vLLM 0.32 and imports nothing of vLLM, so that the two can have environments of
their own. The routes that renew the weights are those of vLLM's development mode. They ask nobody
for a password.
"""

import ipaddress
import json
import math
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eval.errors import Refusal
from eval.policy.policy import Policy
from eval.rollout.rollout import SamplingFailed, Servers

MODEL = "policy"  # the name by which each server knows the model
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # of a server's process
COMPLETE = "/v1/completions"
POSTED = (COMPLETE, "/pause", "/collective_rpc", "/reset_prefix_cache", "/resume")
WAITS = (1.0, 4.0)  # seconds before a request is sent again
AT_ONCE = 32  # requests that a server gets at once
START = "start the server again by launch/serve.py"
LONGER = f"{START} with the configuration of this command, which sets the limit"

Body = Mapping[str, Any]


class NoAnswer(Exception):
    """A server's answer was not JSON with the status 200; the message shows the answer."""

    def __init__(self, why: str, status: int | None = None):
        super().__init__(why)
        self.status = status


def server_flags(model: str, dtype: str, longest: int) -> list[str]:
    """Return the flags of a server of this model, for prompts with answers of `longest` tokens.

    Log-probabilities are those of the distribution that is sampled, and the model's own generation
    configuration, which may cut it, has no effect.
    """
    return [
        *("--model", model),
        *("--served-model-name", MODEL),
        *("--dtype", dtype),
        *("--max-model-len", str(longest)),
        *("--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm"),
        "--no-enable-chunked-prefill",
    ]


def is_up(url: str) -> bool:
    """Return whether a server has started and answers."""
    try:
        _ask(Servers((url,), 5.0, 1.0), url, "/health")
    except NoAnswer:
        return False
    return True


def complete(servers: Servers, names: Sequence[int], bodies: Sequence[Body]) -> list[Any]:
    """Return the answers to requests for completions, in order.

    The names decide which server gets a request, so that no other request changes its place. After
    a request that failed for good, those that still wait for their turn are not sent.
    """
    urls = [servers.urls[name % len(servers.urls)] for name in names]
    failures: list[SamplingFailed] = []

    def answer(url: str, body: Body) -> Any:
        if failures:
            raise failures[0]
        try:
            return _answer(servers, url, COMPLETE, body)
        except SamplingFailed as error:
            failures.append(error)
            raise

    with ThreadPoolExecutor(AT_ONCE * len(servers.urls)) as pool:
        return list(pool.map(answer, urls, bodies))


def reload(servers: Servers, folder: Path) -> None:
    """Let all servers read the weights of a folder, at the same time."""
    with ThreadPoolExecutor(len(servers.urls)) as pool:
        list(pool.map(lambda url: _reload(servers, url, folder), servers.urls))


def _reload(servers: Servers, url: str, folder: Path) -> None:
    """Let a server read the weights of a folder.

    Without the reset, prompts longer than a block of the prefix cache would be answered from the
    weights before.
    """
    weights = {"weights_path": str(folder)}
    method = {"method": "reload_weights", "kwargs": weights, "timeout": servers.timeout}
    _answer(servers, url, "/pause?mode=wait")
    _answer(servers, url, "/collective_rpc", method)
    reset = _answer(servers, url, "/reset_prefix_cache")
    if isinstance(reset, dict) and not reset.get("success", True):
        raise _failed(url, "/reset_prefix_cache", "could not reset its cache")
    _answer(servers, url, "/resume")


def check(servers: Servers, policy: Policy, longest: int) -> None:
    """Refuse a server that cannot draw `longest` tokens from this policy.

    A warning names servers outside of private networks.
    """
    for url in servers.urls:
        try:
            _check(servers, url, policy, longest)
        except NoAnswer as error:
            raise _refused(url, f"{error}; {START}, or name another one") from None
        if not _is_private(url):
            why = "has an address outside of private networks"
            print(
                f"rollout.urls = {url}: {why}; whoever reaches it can replace its weights",
                file=sys.stderr,
            )


def _check(servers: Servers, url: str, policy: Policy, longest: int) -> None:
    models = _ask(servers, url, "/v1/models")
    try:
        limits = {x["id"]: x["max_model_len"] for x in models["data"]}
    except (KeyError, TypeError):
        raise NoAnswer("answers /v1/models unlike vLLM") from None
    if MODEL not in limits:
        raise _refused(url, f"serves {', '.join(limits)} and not {MODEL}; {START}")
    if limits[MODEL] < longest:
        why = f"takes {limits[MODEL]} tokens, and prompts with their answers have {longest}"
        raise _refused(url, f"{why}; {LONGER}")
    for route in POSTED:
        try:
            _ask(servers, url, route)
        except NoAnswer as error:
            if error.status == 404:
                why = f"has no route {route}; start vLLM 0.32 or later with"
                raise _refused(url, f"{why} VLLM_SERVER_DEV_MODE=1") from None
            if error.status != 405:  # 405: the route exists, but not for GET
                raise
    _ask(servers, url, "/resume", {})  # an interrupted run may have left it paused
    _check_vocabulary(servers, url, policy)


def _check_vocabulary(servers: Servers, url: str, policy: Policy) -> None:
    """Refuse a server that does not know the model's last token, or knows one more."""
    size = policy.model.config.vocab_size
    beyond = max(size, 1 + max(policy.tokenizer.get_vocab().values()))
    known = {}
    for token in (size - 1, beyond):
        try:
            body = request([token], 1, 1, {"temperature": 1.0, "top_p": 1.0, "seed": 0}, [])
            completions_of(_ask(servers, url, COMPLETE, body), 1)
            known[token] = True
        except NoAnswer as error:
            if error.status != 400:
                raise
            known[token] = False
    if not known[size - 1] or known[beyond]:
        why = f"serves a model of another vocabulary than these {size} tokens"
        raise _refused(url, f"{why}; serve the model of model.path")


def request(
    prompt: Sequence[int], n: int, limit: int, chosen: Body, ends: Sequence[int]
) -> dict[str, Any]:
    """Return the body of a request for n completions of at most `limit` tokens.

    `chosen` holds temperature, top_p and seed.
    """
    return {
        "model": MODEL,
        "prompt": list(prompt),
        "n": n,
        "max_tokens": limit,
        **chosen,
        "top_k": 0,
        "logprobs": 0,  # those of the drawn tokens alone
        "return_token_ids": True,
        "stop_token_ids": list(ends),
    }


def completions_of(answer: Any, n: int) -> list[tuple[list[int], list[float]]]:
    """Return token ids and log-probabilities of the n completions of an answer."""
    try:
        choices = sorted(answer["choices"], key=lambda x: x["index"])
        pairs = [(x["token_ids"], x["logprobs"]["token_logprobs"]) for x in choices]
        if [len(ids) for ids, _ in pairs] != [len(x) for _, x in pairs] or len(pairs) != n:
            raise ValueError
        return pairs
    except (KeyError, TypeError, ValueError):
        raise NoAnswer("answers without the token ids and log-probabilities of vLLM 0.32") from None


def _answer(servers: Servers, url: str, route: str, body: Body | None = None) -> Any:
    """Return the answer to a posted request; one that fails is sent again, until the timeout.

    All requests may be sent twice: draws have seeds, and the others leave what they find.
    """
    until = time.monotonic() + servers.timeout
    for wait in (*WAITS, math.inf):
        try:
            return _ask(servers, url, route, body or {}, until)
        except NoAnswer as error:
            if time.monotonic() + wait >= until:
                raise _failed(url, route, str(error)) from None
            time.sleep(wait)


def _ask(
    servers: Servers, url: str, route: str, body: Body | None = None, until: float = math.inf
) -> Any:
    """Return the JSON of one answer, to GET without a body; raise `NoAnswer` if there is none.

    The server has the time of `servers.timeout`, and never longer than `until`.
    """
    place = urlsplit(url)
    until = min(until, time.monotonic() + servers.timeout)
    connection = HTTPConnection(str(place.hostname), place.port, timeout=_left(until))
    try:
        text = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", route, text, headers)
        line = connection.sock
        line.settimeout(_left(until))
        with connection.getresponse() as answer:
            line.settimeout(_left(until))
            content = answer.read()
        if answer.status != 200:
            why = " ".join(content.decode(errors="replace").split())[:200]
            raise NoAnswer(f"answers {answer.status} ({why})", answer.status)
        return json.loads(content) if content else None
    except TimeoutError:
        raise NoAnswer(f"does not answer in {servers.timeout:g} s") from None
    except (OSError, HTTPException) as error:
        raise NoAnswer(f"does not answer ({error or type(error).__name__})") from None
    except ValueError:
        raise NoAnswer("answers with something else than JSON") from None
    finally:
        connection.close()


def _left(until: float) -> float:
    """Return the seconds until then, and at least a moment: a socket takes 0 for no timeout."""
    return max(until - time.monotonic(), 1e-3)


def _is_private(url: str) -> bool:
    """Return whether all addresses of a server are this machine's or a private network's."""
    place = urlsplit(url)
    found = socket.getaddrinfo(place.hostname, place.port, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(x[4][0]).is_private for x in found)


def _refused(url: str, why: str) -> Refusal:
    return Refusal(f"rollout.urls = {url}: {why}")


def _failed(url: str, route: str, why: str) -> SamplingFailed:
    remedy = f"{START}, and the same command goes on"
    return SamplingFailed(f"rollout.urls = {url}: {route.partition('?')[0]} {why}; {remedy}")
