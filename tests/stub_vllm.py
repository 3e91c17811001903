"""A stand-in for a vLLM server: its routes, its payloads and its traps, around a policy of ours."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eval.policy.policy import Policy
from eval.policy.streams import uniform
from eval.rollout.draw import draw
from eval.rollout.rollout import Decoding, Servers

# how often this route was asked before -> nothing, or the fault of this answer: a status, `drop`
# the connection, `hang` before it, or in it after its `head`, `garbage` instead of JSON, or another
# body
Fault = Callable[[int], Any]


class Stub:
    """A server on a thread; `log` holds (route, body) of all that was posted, in order."""

    def __init__(self, policy: Policy, length: int = 64, name: str = "policy"):
        self.policy, self.length, self.name = policy, length, name
        self.log: list[tuple[str, Any]] = []
        self.asked: dict[str, int] = {}
        self.faults: dict[str, Fault] = {}
        self.missing: set[str] = set()
        self.seen: list[list[str]] = []  # files of each folder of weights
        self.off = 0.0  # added to each log-probability
        self.paused, self.loaded, self.ended = False, None, threading.Event()
        self.lock = threading.Lock()

    def answer(self, method: str, route: str, body: Any) -> tuple[int, Any]:
        route, _, query = route.partition("?")
        if route in self.missing:
            return 404, {"detail": "Not Found"}
        if method == "GET" and route == "/v1/models":
            return 200, {"data": [{"id": self.name, "max_model_len": self.length}]}
        known = {
            "/v1/completions": self._complete,
            "/pause": self._pause,
            "/collective_rpc": self._reload,
            "/reset_prefix_cache": self._reset,
            "/resume": self._resume,
        }
        if route not in known:
            return 404, {"detail": "Not Found"}
        if method == "GET":
            return 405, {"detail": "Method Not Allowed"}
        with self.lock:
            self.log.append((route + ("?" + query if query else ""), body))
            return known[route](body)

    def _pause(self, _: Any) -> tuple[int, Any]:
        self.paused = True
        return 200, {"status": "paused"}

    def _resume(self, _: Any) -> tuple[int, Any]:
        self.paused = False
        return 200, {"status": "resumed"}

    def _reload(self, body: Any) -> tuple[int, Any]:
        """Read the weights, which answers show only after the reset, as long prompts do."""
        assert self.paused and body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        self.seen.append(sorted(x.name for x in folder.iterdir()))
        files = sorted(folder.glob("*.safetensors"))
        self.loaded = {k: x for path in files for k, x in load_file(path).items()}
        return 200, {"results": [None]}

    def _reset(self, _: Any) -> tuple[int, Any]:
        if self.loaded:
            model = self.policy.model
            left = model.load_state_dict(self.loaded, strict=False)
            assert not left.unexpected_keys
            model.tie_weights()
        return 200, {"success": True}

    @torch.no_grad()
    def _complete(self, body: Any) -> tuple[int, Any]:
        if self.paused:
            return 503, {"error": "paused"}
        prompt, n, temperature = body["prompt"], body["n"], body["temperature"]
        if max(prompt) >= self.policy.model.config.vocab_size:
            return 400, {"error": {"message": f"Token id {max(prompt)} is out of vocabulary"}}
        if temperature == 0 and n > 1:
            return 400, {"error": {"message": f"n must be 1 when using greedy sampling, got {n}."}}
        limit = min(body["max_tokens"], self.length - len(prompt))  # silently, as vLLM does
        how = Decoding(limit, temperature, body["top_p"])
        names = body["seed"] + torch.arange(n)
        rows, ends = torch.tensor([prompt] * n), set(body["stop_token_ids"])
        choices = [{"index": j, "token_ids": [], "values": []} for j in range(n)]
        live = list(range(n))
        for t in range(limit):
            logits = self.policy.model(rows).logits[:, -1]
            drawn = draw(logits, how, uniform(0, names[live], t))
            for j, token, logp in zip(
                live, drawn.token.tolist(), drawn.logprob.tolist(), strict=True
            ):
                choices[j]["token_ids"].append(token)
                choices[j]["values"].append(logp + self.off)
            going = [i for i, token in enumerate(drawn.token.tolist()) if token not in ends]
            rows = torch.cat([rows, drawn.token[:, None]], 1)[going]
            live = [live[i] for i in going]
            if not live:
                break
        for choice in choices:
            choice["logprobs"] = {"token_logprobs": choice.pop("values")}
        return 200, {"choices": choices[::-1]}  # in no order that is promised


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._serve("GET", None)

        def do_POST(self) -> None:
            self._serve("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, method: str, body: Any) -> None:
            route = self.path.partition("?")[0]
            fault = None
            if method == "POST" or route == "/v1/models":  # not a look whether the route exists
                with stub.lock:
                    count = stub.asked.get(route, 0)
                    stub.asked[route] = count + 1
                fault = stub.faults.get(route, lambda count: None)(count)
            if fault == "head":
                self.send_response(200)
                self.send_header("Content-Length", "9")
                self.end_headers()
            if fault in ("hang", "head"):
                stub.ended.wait()
            if fault in ("drop", "hang", "head"):
                self.close_connection = True
                return
            status, content = stub.answer(method, self.path, body) if not fault else (200, fault)
            if isinstance(fault, int):
                status, content = fault, {"error": "on purpose"}
            text = b"<html>" if fault == "garbage" else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


@contextmanager
def serving(stub: Stub) -> Iterator[str]:
    """Serve until the end of the context; yield the url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def copy_of(policy: Policy) -> Policy:
    """A policy with weights of its own, as a server has them."""
    return Policy(copy.deepcopy(policy.model).eval(), policy.tokenizer)


@contextmanager
def servers_for(policy: Policy, sampler: str) -> Iterator[Servers | None]:
    """Yield a server that holds the policy itself, for the sampler that has servers."""
    if sampler != "vllm":
        yield None
        return
    with serving(Stub(policy, length=256)) as url:
        yield Servers((url,), 60.0, 1e-3)
