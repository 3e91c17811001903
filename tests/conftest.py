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
