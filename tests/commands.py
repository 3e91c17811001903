"""Commands and programs, started by tests as a user starts them."""

import importlib.util
import io
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


def run(
    *command: str, cwd: Path, ranks: int = 0, port: str = "", timeout: float = 300, **environ: str
) -> subprocess.CompletedProcess[str]:
    """A command of the project as a user gives it; with `ranks`, under the deepspeed launcher."""
    start = [sys.executable]
    if ranks:
        launcher = str(Path(sys.executable).parent / "deepspeed")
        start = [launcher, "--num_gpus", str(ranks), "--master_port", port or free_port()]
    return subprocess.run(
        [*start, *command],
        cwd=cwd,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def in_process(script: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command, run here at once: for claims in which it need not be a process of its own."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, script)
    assert spec is not None and spec.loader is not None
    module, out, err = importlib.util.module_from_spec(spec), io.StringIO(), io.StringIO()
    spec.loader.exec_module(module)
    arguments = mock.patch.object(sys, "argv", [script, *options])
    with chdir(cwd), arguments, redirect_stdout(out), redirect_stderr(err):
        code = module.main()
    return subprocess.CompletedProcess([script, *options], code, out.getvalue(), err.getvalue())


def launched(program: str, out: Path, *arguments: str, ranks: int, timeout: float = 600) -> Any:
    """The results that a program of tests/launched/ writes to its last argument, as JSON.

    A single rank starts by itself: the launcher's two processes would import DeepSpeed as well.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = str(ROOT / "tests" / "launched" / program), *arguments, str(out)
    launcher = ranks if ranks > 1 else 0
    done = run(*command, cwd=ROOT, ranks=launcher, PYTHONPATH=path, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@contextmanager
def serving(
    cwd: Path, config: str, *options: str
) -> Iterator[tuple[list[str], subprocess.Popen[str]]]:
    """A server of launch/serve.py: the keys that it prints, and the command, ended by Ctrl-C."""
    command = [sys.executable, str(ROOT / "launch" / "serve.py"), "--config", config, *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=cwd, text=True, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield shlex.split(line), process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let no file grow beyond this many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
