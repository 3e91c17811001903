"""Whoever may read a user's files may read those that the project writes."""

import os

import pytest
import torch

from eval.files import append_lines, usual_permissions, write_json
from eval.tasks.twin_base import TwinRecipe, base_folder
from surgery.interference import PASS_1, WIDEST
from tests.commands import ROOT
from tests.fakes import Still
from trainers.commands.diagnosis_folder import Folder
from trainers.config.load import load_config
from trainers.train import checkpoint


@pytest.fixture(params=[0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(folder):
    """Of files and of folders."""
    found = {False: set(), True: set()}
    for place in [folder, *folder.rglob("*")]:
        found[place.is_dir()].add(place.stat().st_mode & 0o777)
    return found


def test_the_umask_decides(tmp_path, base_path, monkeypatch, umask):
    """Of the cached base, a checkpoint with its model, a diagnosis, and single files."""
    top = tmp_path / "all"
    config = load_config(ROOT / "configs" / "passk.yaml")
    diagnosis = Folder(top / "diagnosis", config)
    diagnosis.write_part(0, [{"id": 1}], torch.zeros(1, 2, 3))
    diagnosis.write_probe((PASS_1, WIDEST), {"probe": torch.zeros(2)})
    diagnosis.close()
    (top / "run" / "checkpoints").mkdir(parents=True)
    checkpoint.save(Still(), top / "run", 1, {}, {})
    checkpoint.publish(top / "run", 1)
    write_json(top / "run" / "summary.json", {})
    append_lines(top / "run" / "metrics.jsonl", [{}])
    monkeypatch.setenv("PASSK_SURGERY_CACHE", str(top / "cache"))
    base_folder(TwinRecipe(steps=1, batch=2))
    assert len([x for x in top.rglob("*.safetensors")]) == 6
    assert permissions(top) == {False: {0o666 & ~umask}, True: {0o777 & ~umask}}
    assert os.umask(umask) == umask  # as it was


def test_a_folder_keeps_handing_its_group_on(tmp_path, umask):
    folder = tmp_path / "of a group"
    folder.mkdir()
    folder.chmod(0o2700)
    usual_permissions(folder)
    assert folder.stat().st_mode & 0o7777 == 0o2777 & ~umask
