"""A score and a diagnosis on the fake device, in this process: the results of the host."""

import torch

import trainers.commands.diagnose as diagnosis
from tests.commands import ROOT
from tests.fake_device import FakeDevice
from tests.fakes import Alone
from trainers.commands.score import Arguments, score
from trainers.config.load import load_config

CONFIG = str(ROOT / "configs" / "passk.yaml")


class AloneOnTheDevice(Alone):
    """The only rank, on a machine with a GPU."""

    def __init__(self):
        super().__init__()
        self.device = torch.device("cuda", 0)


def scores(base_path, out):
    few = ["eval.problems=12", "eval.samples=4", "eval.k=4"]
    sweep = {"toward": "base", "by": [0.5], "temperatures": [1.0, 0.0]}
    file = dict.fromkeys(("responses", "answer_after", "verifier", "base", "k"))
    options = {"model": base_path, "config": CONFIG, "out": out, "fields": [], "overrides": few}
    return score(Arguments(**options, **sweep, **file))


def test_score(base_path, tmp_path):
    expected = scores(base_path, tmp_path / "host")
    with FakeDevice() as device:
        found = scores(base_path, tmp_path / "device")
    assert device.operations > 1000
    assert found == expected and len(found) == 2


def measures(out):
    few = ["diagnose.prompts=12", "diagnose.samples=6", "diagnose.top_p=0.98"]
    config = load_config(CONFIG, few)
    folder = diagnosis.Folder(out, config)
    found = diagnosis.Diagnosis(config, folder).run()
    folder.close()
    return found


def test_diagnose(base_path, tmp_path, alone, few, monkeypatch):
    expected = measures(tmp_path / "host")
    monkeypatch.setattr(diagnosis, "Ranks", AloneOnTheDevice)
    with FakeDevice() as device:
        found = measures(tmp_path / "device")
    assert device.operations > 1000 and found.keys() == expected.keys() == {"last_layer", "ghost"}
    assert torch.allclose(found["last_layer"].sums, expected["last_layer"].sums)
    for request, probes in found["ghost"].probes.items():
        assert torch.allclose(probes, expected["ghost"].probes[request])
