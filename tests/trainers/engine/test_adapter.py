"""An adapter: its gradient by ghost, its absence, its merged weights, and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.policy.logprobs import Likelihood, completion_logprobs
from eval.policy.policy import ModelError, load_policy
from tests.fakes import TEXTS, by_autograd, error, make_model
from tests.fakes import batch as rows
from tests.models import save_model
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable, merged_weights, without_adapter
from trainers.measure import ghost


@pytest.fixture(params=["llama", "qwen2"])
def folder(request, tmp_path):
    return save_model(tmp_path / "model", request.param, TEXTS)


def with_adapter(policy, targets=None, dtype="float32"):
    """Ready for training, and no longer where it began: B is not 0."""
    config = Config()
    config.model.lora_rank, config.model.lora_targets = 4, targets
    make_trainable(policy, config)
    torch.manual_seed(1)
    for name, p in policy.model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.3)
    return policy


def frozen(policy):
    """On some processors a layer that is trained multiplies by another kernel, which rounds in
    another way.
    """
    policy.model.requires_grad_(False)
    return policy


@torch.no_grad()
def logprobs(policy):
    prompts, answers = ["D2?3=", "D4?", "D7?8="], ["5", "=9", "15"]
    from eval.policy.logprobs import answer_batch

    return completion_logprobs(policy.model, answer_batch(policy, prompts, answers))


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt-neox"])
def test_ghost_equals_autograd(kind, chunk):
    from eval.policy.policy import Policy

    model = make_model(kind)
    with_adapter(Policy(model, None))
    v = {name: torch.randn_like(p) for name, p in ghost.chosen(model, None).items()}
    assert v and all("lora_" in name for name in v) and ghost.coverage(model, None) == 1
    found = ghost.probe(model, rows(kind), v, Likelihood(0.7, chunk=chunk))
    assert error(found, by_autograd(model, v, kind)) < 1e-10
    for dropped in ("lora_A", "lora_B"):  # negative control
        less = {name: x for name, x in v.items() if dropped not in name}
        assert error(ghost.probe(model, rows(kind), less, Likelihood(0.7)), found) > 1e-3


def test_the_adapter_starts_as_nothing_and_is_all_that_trains(folder):
    plain, policy = load_policy(folder), load_policy(folder)
    config = Config()
    config.model.lora_rank = 4
    make_trainable(policy, config)
    assert torch.equal(logprobs(policy), logprobs(frozen(plain)))
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in policy.model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * 2 * 7  # A and B of the seven linear layers of each block
    again = load_policy(folder)
    torch.rand(7)  # A does not hang on what was drawn before
    make_trainable(again, config)
    first, second = (dict(x.model.named_parameters()) for x in (policy, again))
    assert all(torch.equal(first[name], second[name]) for name in trained)


def test_without_it_the_model_is_the_base(folder):
    base, policy = logprobs(frozen(load_policy(folder))), with_adapter(load_policy(folder))
    moved = logprobs(policy)
    assert (moved - base).abs().max() > 0.1
    with without_adapter(policy.model):
        assert torch.equal(logprobs(policy), base)
    assert torch.equal(logprobs(policy), moved)
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in policy.model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_load_as_an_ordinary_model(folder, tmp_path, dtype):
    policy = with_adapter(load_policy(folder, dtype))
    policy.model.save_pretrained(tmp_path / "merged", state_dict=merged_weights(policy.model))
    policy.tokenizer.save_pretrained(tmp_path / "merged")
    model, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(found.values()), found
    assert model.dtype == getattr(torch, dtype)
    assert set(model.state_dict()) == set(load_policy(folder).model.state_dict())
    again = logprobs(load_policy(str(tmp_path / "merged"), dtype))
    # in bfloat16 the sum is rounded to 8 bits, and so is every activation
    rounding = 1e-4 if dtype == "float32" else 0.3
    assert (again - logprobs(policy)).abs().max() < rounding
    assert (again - logprobs(load_policy(folder, dtype))).abs().max() > 2 * rounding


def test_weights_without_an_adapter_are_the_model_s_own(folder):
    model = load_policy(folder).model
    own = model.state_dict()
    merged = merged_weights(model)
    assert list(merged) == list(own) and all(torch.equal(merged[x], own[x]) for x in own)


def test_what_cannot_be_adapted_is_refused(tmp_path):
    tied = save_model(tmp_path / "tied", "llama", TEXTS, tie_word_embeddings=True)
    for targets, why in (("query", "name layers of this model"), ("lm_head", "one matrix")):
        with pytest.raises(ModelError, match=f"model.lora_targets = {targets}: .*{why}"):
            with_adapter(load_policy(tied), targets)
    named = with_adapter(load_policy(tied), "q_proj,v_proj")
    assert sum(p.requires_grad for p in named.model.parameters()) == 2 * 2 * 2
