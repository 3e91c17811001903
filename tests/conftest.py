"""Shared by all tests: a cache of their own, and the base policy of `twin` trained once."""

import os
import signal
import tempfile

import pytest

# tests run side by side: threads that spin while they wait would starve the others' processes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

# workers ignore Ctrl-C, and the commands that they start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture
def one_thread():
    """Batches are small: a second thread mostly waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def alone(monkeypatch):
    """Commands in this process are the only rank, without DeepSpeed."""
    import trainers.commands.diagnose as diagnosis
    import trainers.engine.hosts
    import trainers.engine.launcher
    import trainers.engine.ranks
    from tests.fakes import Alone

    monkeypatch.setattr(diagnosis, "Ranks", Alone)
    for module in (diagnosis, trainers.engine.hosts, trainers.engine.ranks):
        monkeypatch.setattr(module, "share", lambda x: x)
    monkeypatch.setattr(trainers.engine.hosts, "once_a_host", lambda make: make())
    monkeypatch.setattr(trainers.engine.launcher, "start_ranks", lambda threads: None)


@pytest.fixture
def few(monkeypatch):
    """Three directions of a diagnosis, of the two dozen."""
    import trainers.commands.diagnose as diagnosis
    from surgery.interference import EVERYTHING, PASS_1

    levels = [PASS_1, ("plugin", 6), ("loo", 6)]
    monkeypatch.setattr(diagnosis, "requests", lambda k, n: [(x, EVERYTHING) for x in levels])
