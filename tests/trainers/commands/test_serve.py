"""Flags and refusals of launch/serve.py, and the life of the process behind it.

The vllm here is a package that the test makes: its server answers /health, and can fail or hang.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from eval.errors import Refusal
from eval.policy.policy import Policy, load_tokenizer
from tests.commands import ROOT, free_port, in_process
from trainers.commands import serve
from trainers.commands.serve import Arguments, configured, environment, flags, keys_of, prompts
from trainers.job import Job

COMMAND, CONFIG = str(ROOT / "launch" / "serve.py"), str(ROOT / "configs" / "pcgrad.yaml")
FAKE = """
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
if "FAULT" in os.environ:
    print("(EngineCore pid=7) WARNING OSError: [Errno 24] is possible", flush=True)
    print("(EngineCore pid=7) ERROR 11-21 10:00:00 [core.py:7] ValueError: 1 validation error")
    print("  the cache is too small")
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"flags": sys.argv[1:], "child": child.pid, "own": os.getpid(),
    "dev": os.environ["VLLM_SERVER_DEV_MODE"]}), flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()
time.sleep(float(os.environ.get("SECONDS", "0.5")))
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def configuration(*overrides, config=CONFIG, **options):
    arguments = Arguments(config, overrides=overrides, **options)
    return arguments, configured(arguments)


# -- from a configuration to flags ----------------------------------------------------------------


def test_flags_are_those_that_the_configuration_needs():
    arguments, config = configuration()
    found = flags(arguments, config, "DIR", 9, "gpu")
    assert found == [
        *("--model", "DIR", "--served-model-name", "policy", "--dtype", "float32"),
        *("--max-model-len", "9", "--logprobs-mode", "processed_logprobs"),
        *("--generation-config", "vllm", "--no-enable-chunked-prefill"),
        *("--host", "127.0.0.1", "--port", "8000"),
    ]
    assert flags(arguments, config, "DIR", 9, "cpu") == [*found, "--enforce-eager"]
    more = ["--tensor-parallel-size", "4", "--gpu-memory-utilization", "0.4"]
    half = configuration("model.dtype=bfloat16", "train.zero_stage=1", gpus=4, memory=0.4)
    found = flags(*half, "DIR", 9, "gpu")
    assert found[-4:] == more and found[found.index("--dtype") + 1] == "bfloat16"


def test_keys_of_a_run_that_uses_the_server():
    _, config = configuration(port=8123)
    assert keys_of(config) == {
        "train.rollouts": "vllm",
        "rollout.urls": "[http://127.0.0.1:8123]",
        "rollout.sync_dir": f"/dev/shm/passk-surgery-{os.getuid()}-8123",
    }


def test_a_folder_for_weights_that_is_named_stays(tmp_path):
    _, config = configuration("rollout.sync_dir=mine", host="10.0.0.1")
    assert keys_of(config)["rollout.sync_dir"] == "mine"
    (tmp_path / "own.yaml").write_text(f"extends: {CONFIG}\nrollout: {{sync_dir: of_file}}\n")
    _, config = configuration(config=str(tmp_path / "own.yaml"))
    assert keys_of(config)["rollout.sync_dir"] == "of_file"


def test_a_trainer_elsewhere_needs_a_folder_that_both_see():
    with pytest.raises(Refusal, match=r"^--host = 10\.0\.0\.1: .* rollout\.sync_dir=DIR$"):
        configuration(host="10.0.0.1")


LENGTHS = """
from dataclasses import dataclass
from eval.tasks import Problem, Task
@dataclass
class Growing(Task):
    verifier, max_new_tokens = "exact", 4
    def training(self, seed, step, count):
        return [Problem(f"{seed} {step}", "=" * (1 + 10 * seed + step), "1")] * count
    def evaluation(self, count):
        return [Problem(str(i), "A" * i, "1") for i in range(1, 1 + count)]
"""


@pytest.mark.parametrize(
    ("overrides", "longest"),
    [
        (["train.steps=20", "eval.problems=2"], 21 + 4),  # of the last step
        (["train.steps=20", "eval.problems=30"], 30 + 4),
        (["train.steps=20", "eval.problems=2", "diagnose.seed=3"], 31 + 4),
        (["train.steps=20", "eval.problems=2", "eval.max_new_tokens=7"], 21 + 7),
    ],
)
def test_the_length_is_that_of_the_longest_prompt_of_all(tmp_path, base_path, overrides, longest):
    (tmp_path / "own.py").write_text(LENGTHS)
    own = [f"task.name={tmp_path}/own.py:Growing", f"model.path={base_path}", *overrides]
    job = Job(configuration(*own)[1])
    asked = prompts(job)
    assert len(set(asked)) == len(asked)
    assert job.longest(Policy(None, load_tokenizer(base_path)), asked) == longest


def test_choices_in_the_environment_stay():
    found = environment({"VLLM_CPU_KVCACHE_SPACE": "7", "VLLM_SERVER_DEV_MODE": "0", "X": "1"})
    assert found == {
        "VLLM_CPU_KVCACHE_SPACE": "7",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "X": "1",
    }


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--gpus", "0"], "--gpus = 0: must be at least 1"),
        (["--memory", "40"], "--memory = 40: must be a share of each GPU's memory, such as 0.4"),
        (["--port", "70000"], "--port = 70000: must be from 1 to 65535"),
        (["--host", "192.0.2.1"], "--host = 192.0.2.1: is no address of this machine; correct it"),
        (["--host", "0.0.0.0"], "--host = 0.0.0.0: is every address of this machine; name the "),
        (["--python", "none/python"], "--python = none/python: cannot be run (No such file or "),
        (
            ["--python", "/bin/false"],
            "--python = /bin/false: has no vllm that can run; make an environment",
        ),
        (["train.prompt=3"], "train.prompt = 3: "),
        (["model.path=/none"], "model.path = /none: no model folder"),
    ],
)
def test_mistakes_are_refused_in_a_line(tmp_path, monkeypatch, options, line):
    monkeypatch.setattr(
        serve, "device_of", lambda x, real=serve.device_of: x == sys.executable or real(x)
    )
    options = options if "--port" in options else [*options, "--port", free_port()]
    done = in_process(COMMAND, "--config", CONFIG, *options, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(line), done.stderr


def test_a_python_without_vllm_and_a_taken_port(tmp_path):
    done = in_process(COMMAND, "--config", CONFIG, "--port", free_port(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"--python = {sys.executable}: has no vllm that can run; "
        "make an environment with vLLM as launch/README.md says, and name its bin/python\n",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = in_process(COMMAND, "--config", CONFIG, "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"--port = {port}: is taken; name another one\n"


# -- the process ----------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path, monkeypatch, base_path):
    """A vllm that every python finds."""
    package = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(FAKE)
    path = os.pathsep.join([str(tmp_path / "packages"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("FAULT", raising=False)
    return tmp_path


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ended(*pids: int) -> bool:
    """Whether processes that were sent a signal are gone, soon."""
    until = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def begun(cwd: Path, port: str) -> subprocess.Popen:
    """The command in its process."""
    command = [sys.executable, COMMAND, "--config", CONFIG, "--port", port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, text=True, **pipes)


def written(process: subprocess.Popen, cwd: Path, port: str) -> dict:
    """The line that the server of a command writes when it begins."""
    log = cwd / "runs" / "serve" / f"{port}.log"
    while process.poll() is None and not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.05)
    return json.loads(log.read_text().splitlines()[0])


def started(cwd: Path, port: str) -> tuple[subprocess.Popen, str, dict]:
    """The command once its server answers, the line that it printed, and what its server wrote."""
    process = begun(cwd, port)
    return process, process.stdout.readline(), written(process, cwd, port)


def test_a_server_from_start_to_ctrl_c(fake, base_path):
    """Nothing stays: neither the server nor what it has started itself."""
    port = free_port()
    process, line, server = started(fake, port)
    assert line == (
        f"train.rollouts=vllm 'rollout.urls=[http://127.0.0.1:{port}]' "
        f"rollout.sync_dir=/dev/shm/passk-surgery-{os.getuid()}-{port}\n"
    )
    assert server["flags"][:2] == ["--model", base_path] and server["dev"] == "1"
    assert server["flags"][server["flags"].index("--max-model-len") + 1] == "9"
    assert is_alive(server["own"]) and is_alive(server["child"])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[0].endswith(f"its log: runs/serve/{port}.log")
    assert errors.splitlines()[-1] == "interrupted; the server has ended"
    assert ended(server["own"], server["child"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_end_before_the_server_answers(fake, monkeypatch, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("started by nohup, whose children ignore it too")
    monkeypatch.setenv("SECONDS", "600")
    port = free_port()
    process = begun(fake, port)
    server = written(process, fake, port)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in errors
    assert ended(server["own"], server["child"])


@pytest.mark.parametrize("seconds", ["0.5", "600"], ids=["later", "before the server answers"])
def test_a_command_that_is_killed_takes_its_server_with_it(fake, monkeypatch, seconds):
    monkeypatch.setenv("SECONDS", seconds)
    port = free_port()
    process = begun(fake, port)
    server = written(process, fake, port)
    if seconds == "0.5":
        assert process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    assert ended(server["own"], server["child"])


def test_a_server_that_is_killed_later(fake):
    port = free_port()
    process, _, server = started(fake, port)
    os.kill(server["own"], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    why = f"http://127.0.0.1:{port}: the server ended by itself, with exit code -9 ("
    assert errors.splitlines()[-1].startswith(why)
    assert ended(server["own"], server["child"])


def test_a_server_that_dies_while_it_starts(fake, monkeypatch):
    """The line names its first error, and not what followed from it."""
    monkeypatch.setenv("FAULT", "1")
    port = free_port()
    done = in_process(COMMAND, "--config", CONFIG, "--port", port, cwd=fake)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"http://127.0.0.1:{port}: the server ended while it started, with exit code 1 "
        f"(ValueError: 1 validation error the cache is too small); see runs/serve/{port}.log"
    )


def test_a_server_that_does_not_end_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "LOOKS", 2)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    log = tmp_path / "log"
    with serve.running([sys.executable, "-c", f"{deaf}; time.sleep(60)"], os.environ, log) as it:
        while not log.read_text():
            time.sleep(0.05)
    assert it.returncode == -signal.SIGKILL


def test_the_reason_in_a_log():
    assert serve.reason("") == "it wrote nothing"
    assert serve.reason("one\ntwo\n\n") == "two"
