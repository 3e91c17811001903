"""Model folders that would run code, or are no models: refused in one line, and nothing is run."""

import json
import shutil

import pytest
import torch

from eval.policy.policy import Chat, ModelError, load_policy
from tests.models import save_model


class Runs:
    """What a pickle may be."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "whole", "llama", ["ab cd"])


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("it asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    return shutil.copytree(whole, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder):
    with pytest.raises(ModelError) as error:
        load_policy(str(folder))
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"model.path = {folder}: cannot be loaded (") and "; name a" in line
    return line


@pytest.mark.parametrize("kind", ["llama", "mine"])
def test_remote_code_is_neither_run_nor_asked_for(folder, tmp_path, kind):
    (folder / "mine.py").write_text(
        f"open({str(tmp_path / 'canary')!r}, 'w')\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, LlamaTokenizer as T\n"
    )
    of_model = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    edit(folder / "config.json", auto_map=of_model, model_type=kind)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]})
    if kind == "mine":  # without the code it is no model that is known
        refusal(folder)
    else:
        load_policy(str(folder))
    assert not (tmp_path / "canary").exists()


def test_a_pickle_is_not_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save(Runs(str(tmp_path / "canary")), folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"nothing of the kind"),
        ("model.safetensors", None),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_what_is_no_model_is_refused(folder, name, content):
    path = folder / name
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    refusal(folder)


def test_weights_of_another_shape_are_refused(folder):
    edit(folder / "config.json", intermediate_size=64)
    refusal(folder)


def test_a_chat_template_runs_no_code(folder, tmp_path):
    canary = tmp_path / "canary"
    deed = f"cycler.__init__.__globals__.os.system('touch {canary}')"
    (folder / "chat_template.jinja").write_text("{{ " + deed + " }}")
    with pytest.raises(ModelError, match=r"task.template = chat: .* set task.template=plain"):
        load_policy(str(folder)).encode([Chat("x")])
    assert not canary.exists()
