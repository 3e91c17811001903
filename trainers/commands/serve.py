"""A server of vLLM for a configuration: its flags, its start and its end.

The server is another program, in an environment of its own; nothing here imports vLLM.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EADDRINUSE
from ipaddress import ip_address
from pathlib import Path

from eval.errors import Failure, Refusal
from eval.files import leaves
from eval.policy.policy import Policy, load_tokenizer
from eval.rollout.servers import ENVIRONMENT, is_up, server_flags
from trainers.config.load import load_config
from trainers.config.reading import overridden, read
from trainers.config.schema import Config
from trainers.job import Job

MEMORY = Path("/dev/shm")  # a folder in memory, where the system has one
LOGS = Path("runs/serve")
PROBE = """
from importlib.util import find_spec
if find_spec("vllm"):
    import torch
    print("gpu" if torch.cuda.is_available() else "cpu")
"""
PROGRAM = "vllm.entrypoints.openai.api_server"
POLL = 0.3  # seconds between two looks at a server
LOOKS = 100  # at a server that must end by itself
# `sh -c END LEADER LOOKS` waits for the end of its input, which comes with the end of its starter,
# even by SIGKILL. Then it ends the session of this leader, by force after so many looks. The others
# of the session get a moment more, to remove their shared memory.
END = f"""
trap '' INT TERM HUP
read _
kill -TERM -$0
for i in $(seq $1); do kill -0 $0 || break; sleep {POLL}; done
for i in $(seq 10); do kill -0 -$0 || exit 0; sleep {POLL}; done
kill -KILL -$0
"""
# `ValueError: why` in a log, behind the names and times that vLLM puts before its lines
ERROR = re.compile(r"^(?:\([^)]*\) )*(?:ERROR [^]]*\] )?([\w.]*(?:Error|Exception): .*)$")


@dataclass(frozen=True)
class Arguments:
    """The command line of launch/serve.py."""

    config: str
    python: str = sys.executable
    host: str = "127.0.0.1"
    port: int = 8000
    gpus: int = 1
    memory: float | None = None
    overrides: Sequence[str] = ()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        return LOGS / f"{self.port}.log"


def serve(arguments: Arguments) -> None:
    """Start the server of a configuration, print its keys, and stay until it ends."""
    check(arguments)
    device = device_of(arguments.python)
    config = configured(arguments)
    job = Job(config)
    model = job.base_path()
    longest = job.longest(Policy(None, load_tokenizer(model)), prompts(job))
    command = [arguments.python, "-m", PROGRAM, *flags(arguments, config, model, longest, device)]
    keys = [f"{x}={y}" for x, y in keys_of(config).items()]
    with running(command, environment(os.environ), arguments.log) as process:
        print(f"starting a server of {model}; its log: {arguments.log}", file=sys.stderr)
        while not is_up(arguments.url):
            _refuse_end(process, arguments, "while it started")
            time.sleep(POLL)
        _refuse_end(process, arguments, "while it started")  # another server answered
        print(shlex.join(keys), flush=True)  # zsh reads [..] as a pattern
        print("the server is ready; Ctrl-C ends it", file=sys.stderr)
        process.wait()
        _refuse_end(process, arguments, "by itself")


# -- from a configuration to flags ----------------------------------------------------------------


def configured(arguments: Arguments) -> Config:
    """Return the configuration with this server as the only one, and with a folder for weights."""
    of_server = ["train.rollouts=vllm", f"rollout.urls=[{arguments.url}]"]
    given = dict([*leaves(read(Path(arguments.config))), *overridden(arguments.overrides)])
    if given.get("rollout.sync_dir") is None:
        of_server.append(f"rollout.sync_dir={_sync_dir(arguments)}")
    return load_config(arguments.config, [*arguments.overrides, *of_server])


def _sync_dir(arguments: Arguments) -> Path:
    if not _is_loopback(arguments.host):
        why = "a trainer elsewhere hands its weights over in a folder that both machines see"
        raise Refusal(f"--host = {arguments.host}: {why}; name it by rollout.sync_dir=DIR")
    folder = MEMORY if MEMORY.is_dir() else LOGS.resolve()
    return folder / f"passk-surgery-{os.getuid()}-{arguments.port}"


def keys_of(config: Config) -> dict[str, str]:
    """Return the keys of a run that uses this server, with their values."""
    return {
        "train.rollouts": config.train.rollouts,
        "rollout.urls": f"[{','.join(config.rollout.urls)}]",
        "rollout.sync_dir": str(config.rollout.sync_dir),
    }


def prompts(job: Job) -> list[str]:
    """Return all prompts of a run, its evaluations, and a diagnosis, each once."""
    config, task = job.config, job.task
    batches = [
        task.training(config.diagnose.seed, 0, config.diagnose.prompts),
        task.evaluation(config.eval.problems),
        task.reference(config.eval.problems) or [],
    ]
    for step in range(1, config.train.steps + 1):
        batches.append(task.training(config.seed, step, config.train.prompts))
    return list({x.prompt: None for batch in batches for x in batch})


def flags(arguments: Arguments, config: Config, model: str, longest: int, device: str) -> list[str]:
    """Return the flags of the server's program; a key that changes no draw has none.

    A GPU gets CUDA graphs, into whose tensors vLLM copies new weights. A CPU has none: without this
    flag vLLM would compile the model in C++ at the start.
    """
    more = ["--host", arguments.host, "--port", str(arguments.port)]
    if device == "cpu":
        more.append("--enforce-eager")
    if arguments.gpus > 1:
        more += ["--tensor-parallel-size", str(arguments.gpus)]
    if arguments.memory is not None:
        more += ["--gpu-memory-utilization", f"{arguments.memory:g}"]
    return [*server_flags(model, config.model.dtype, longest), *more]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server.

    vLLM on a CPU would take most of the memory for its cache, and it reports its use to its makers;
    both can be chosen otherwise.
    """
    chosen = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    return {**chosen, **own, **ENVIRONMENT}


# -- refusals before the start --------------------------------------------------------------------


def check(arguments: Arguments) -> None:
    """Refuse arguments with which no server can start."""
    gpus, memory = arguments.gpus, arguments.memory
    if gpus < 1:
        raise Refusal(f"--gpus = {gpus}: must be at least 1")
    if memory is not None and not 0 < memory <= 1:
        raise Refusal(f"--memory = {memory:g}: must be a share of each GPU's memory, such as 0.4")
    if not 1 <= arguments.port < 2**16:
        raise Refusal(f"--port = {arguments.port}: must be from 1 to 65535")
    _check_address(arguments.host, arguments.port)


def _check_address(host: str, port: int) -> None:
    try:
        if ip_address(socket.gethostbyname(host)).is_unspecified:
            remedy = "name the address at which the trainer reaches it"
            raise Refusal(f"--host = {host}: is every address of this machine; {remedy}")
        with socket.socket() as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            place.bind((host, port))
    except OSError as error:
        if error.errno in (EADDRINUSE, EACCES):
            why = "is taken" if error.errno == EADDRINUSE else "is for the administrator alone"
            raise Refusal(f"--port = {port}: {why}; name another one") from None
        raise Refusal(f"--host = {host}: is no address of this machine; correct it") from None


def _is_loopback(host: str) -> bool:
    return ip_address(socket.gethostbyname(host)).is_loopback


def device_of(python: str) -> str:
    """Return `gpu` or `cpu`, on which the vLLM of this Python draws; refuse one without vLLM."""
    try:
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    except OSError as error:
        raise Refusal(
            f"--python = {python}: cannot be run ({error.strerror}); name VENV/bin/python"
        ) from None
    if done.returncode or not done.stdout:
        remedy = "make an environment with vLLM as launch/README.md says, and name its bin/python"
        raise Refusal(f"--python = {python}: has no vllm that can run; {remedy}")
    return done.stdout.strip()


# -- the process ----------------------------------------------------------------------------------


@contextmanager
def running(
    command: Sequence[str], environ: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, which writes into a log, until the end of the context.

    The program has a session of its own: Ctrl-C reaches this process alone. A shell beside it then
    ends all processes of the session, and does so as well when this process is killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ending = subprocess.Popen(
        ["sh", "-c", END, str(process.pid), str(LOOKS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        heard = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # the end is on its way already
        before = {x: signal.signal(x, signal.SIG_IGN) for x in heard}
        assert ending.stdin is not None
        ending.stdin.close()
        process.wait()
        ending.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_end(process: subprocess.Popen[bytes], arguments: Arguments, when: str) -> None:
    """Raise a failure with the reason in the log if the process has ended."""
    if process.poll() is not None:
        why = f"the server ended {when}, with exit code {process.returncode}"
        text = arguments.log.read_text(errors="replace")
        raise Failure(f"{arguments.url}: {why} ({reason(text)}); see {arguments.log}")


def reason(log: str) -> str:
    """Return the first error that a log names, with the line that explains it; or the last line."""
    lines = [x.rstrip() for x in log.splitlines() if x.strip()]
    for i, line in enumerate(lines):
        found = ERROR.match(line)
        if found:
            more = lines[i + 1] if lines[i + 1 : i + 2] and lines[i + 1].startswith(" ") else ""
            return " ".join(f"{found[1]} {more}".split())[:300]
    return lines[-1].strip()[:300] if lines else "it wrote nothing"
