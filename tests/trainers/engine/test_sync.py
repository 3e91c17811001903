"""The way of the weights to the servers: when, in which order, and what is left of it."""

from pathlib import Path

import pytest
import torch

from eval.policy.policy import load_policy
from eval.rollout import servers as client
from eval.rollout.rollout import Decoding, SamplingFailed, Servers
from eval.rollout.sample import sample
from tests.commands import no_file_beyond
from tests.fakes import PROMPTS, Alone, random_policy
from tests.models import qwen2
from tests.stub_vllm import Stub, copy_of, serving
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine.adapter import make_trainable, merged_weights
from trainers.engine.sync import Sync, sync_of
from trainers.job import servers_of


@pytest.fixture
def policy():
    return random_policy("llama")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(client, "WAITS", (0.01,))


def moved(policy, by=0.05):
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(by * torch.randn_like(p))
    return policy


def drawn(policy, url):
    servers = Servers((url,), 30.0, 1e-4)
    return sample(policy, PROMPTS, 3, Decoding(6, sampler="vllm", servers=servers), seed=5)


def left_in(folder):
    return sorted(x.name for x in folder.iterdir() if x.name != ".lock")


class Rank(Alone):
    """One of two ranks; it notes when it waits for the other."""

    def __init__(self, rank, log):
        super().__init__()
        self.rank, self.log = rank, log

    def barrier(self):
        self.log.append(("barrier", None))


def test_servers_draw_from_the_weights_that_they_got(policy, tmp_path):
    """From new weights only after a call, once for each version; nothing stays in the folder."""
    stub = Stub(copy_of(policy))
    with serving(stub) as url:
        sync = Sync(Servers((url,), 30.0, 1e-4), tmp_path / "new" / "folder", None)
        drawn(policy, url)
        moved(policy)
        with pytest.raises(SamplingFailed, match=r"rollout.mismatch"):
            drawn(policy, url)
        for version in (1, 1, 1):
            sync(policy, version)
        drawn(policy, url)
        moved(policy)
        sync(policy, 2)
        drawn(policy, url)
    assert len(stub.seen) == 2
    assert all("model.safetensors" in names and "config.json" in names for names in stub.seen)
    assert left_in(tmp_path / "new" / "folder") == []


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_writes_and_all_wait(policy, tmp_path, rank):
    stub = Stub(copy_of(policy))
    with serving(stub) as url:
        sync = Sync(Servers((url,), 30.0, 1e-4), tmp_path, Rank(rank, stub.log))
        for version in (0, 0, 1):
            sync(policy, version)
    routes = ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    expected = [*routes, "barrier"] if rank == 0 else ["barrier"]
    assert [route for route, _ in stub.log] == 2 * expected


def test_folders_have_new_names_and_leftovers_go(policy, tmp_path):
    """A host may have an earlier folder in its cache; the user's own files stay."""
    for name in ("synced-weights-17", "synced-weights-18.part", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("")
    stub = Stub(copy_of(policy))
    with serving(stub) as url:
        sync = Sync(Servers((url,), 30.0, 1e-4), tmp_path, None)
        sync(policy, 0)
        sync(policy, 1)
    assert left_in(tmp_path) == ["mine"]
    first, second = (x["kwargs"]["weights_path"] for _, x in stub.log if "method" in x)
    assert first != second
    assert {str(Path(x).parent) for x in (first, second)} == {str(tmp_path)}


def test_a_large_model_comes_in_shards(policy, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.engine.sync.SHARD", "20KB")
    stub = Stub(copy_of(policy))
    with serving(stub) as url:
        sync = Sync(Servers((url,), 30.0, 1e-4), tmp_path, None)
        sync(moved(policy), 0)
        drawn(policy, url)
    assert sum(x.endswith(".safetensors") for x in stub.seen[0]) > 1


def test_an_adapter_is_merged(tmp_path):
    pytest.importorskip("peft")
    policy, config = random_policy("llama"), Config()
    stub = Stub(copy_of(policy))
    config.model.lora_rank = 4
    make_trainable(policy, config)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if ".lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    with serving(stub) as url:
        Sync(Servers((url,), 30.0, 1e-4), tmp_path, None)(policy, 0)
        drawn(policy, url)
    held = stub.policy.model.state_dict()
    for name, x in merged_weights(policy.model).items():
        assert torch.equal(held[name], x)


def test_a_head_that_is_the_embedding_is_written_once(tmp_path):
    policy = load_policy(str(qwen2(tmp_path / "model", ["a b"], ["c"], steps=1)))
    stub = Stub(copy_of(policy))
    with serving(stub) as url:
        Sync(Servers((url,), 30.0, 1e-4), tmp_path / "sync", None)(moved(policy), 0)
        drawn(policy, url)
    assert "lm_head.weight" not in stub.loaded


@pytest.mark.parametrize("fault", [500, "drop"])
def test_weights_that_do_not_arrive_leave_no_files(policy, tmp_path, fault):
    """And the next call sends them again."""
    stub = Stub(copy_of(policy))
    stub.faults["/collective_rpc"] = lambda count: fault if count < 2 else None
    with serving(stub) as url:
        sync = Sync(Servers((url,), 30.0, 1e-4), tmp_path, None)
        with pytest.raises(SamplingFailed, match=r"/collective_rpc .* the same command goes on"):
            sync(moved(policy), 0)
        assert left_in(tmp_path) == []
        sync(policy, 0)
        drawn(policy, url)


def test_a_folder_serves_one_run_at_a_time(tmp_path):
    servers, file = Servers(("http://127.0.0.1:1",), 30.0, 1e-4), tmp_path / "file"
    first = Sync(servers, tmp_path, None)
    Sync(servers, tmp_path, Rank(1, []))  # another rank of the same run
    with pytest.raises(ConfigError) as error:
        Sync(servers, tmp_path, Rank(0, []))
    assert str(error.value) == (
        f"rollout.sync_dir = {tmp_path}: another process sends weights by it; name another one, "
        "and servers of this run alone"
    )
    del first
    Sync(servers, tmp_path, None)
    file.write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(File exists\); name another one"):
        Sync(servers, file, None)


def test_a_full_disk(policy, tmp_path):
    stub = Stub(copy_of(policy))
    with serving(stub) as url, no_file_beyond(10_000), pytest.raises(OSError, match="too large"):
        Sync(Servers((url,), 30.0, 1e-4), tmp_path, None)(policy, 0)
    assert left_in(tmp_path) == [] and stub.log == []


def test_what_a_configuration_asks_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config()
    assert sync_of(config) is None
    config.train.rollouts = "vllm"
    config.rollout.urls, config.rollout.sync_dir = ["http://127.0.0.1:8000"], "here"
    sync = sync_of(config)
    assert sync.folder == tmp_path / "here"  # servers have another working folder
    assert sync.servers == Servers(("http://127.0.0.1:8000",), 600.0, 1e-3)
    config.model.dtype = "bfloat16"
    assert servers_of(config).bound == 0.05
    config.rollout.mismatch = 0.5
    assert servers_of(config).bound == 0.5
