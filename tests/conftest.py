"""Shared by all tests: a cache of their own, and the base policy of `twin` trained once."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

# tests run side by side: threads that spin while they wait would starve the others' processes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

# workers ignore Ctrl-C, and the commands that they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
_cache = tempfile.TemporaryDirectory(prefix="passk-surgery-")
os.environ.setdefault("PASSK_SURGERY_CACHE", _cache.name)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = f"{_cache.name}/datasets"
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def twin():
    from eval.tasks.twin import Twin

    return Twin()


@pytest.fixture(scope="session")
def base_path(twin):
    return twin.base_model()


@pytest.fixture
def base(base_path):
    from eval.policy.policy import load_policy

    return load_policy(base_path)


@contextmanager
def no_file_beyond(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run(
    *command: str, cwd: Path, ranks: int = 0, port: str = "", timeout: float = 300, **environ: str
):
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


@pytest.fixture
def command():
    return run
