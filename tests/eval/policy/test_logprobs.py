"""Log-probabilities made a few positions at a time, against all at once."""

import copy
import math
import re

import pytest
import torch
import transformers as hf

from eval.policy.logprobs import (
    Likelihood,
    answers_logprobs,
    check_chunks,
    completion_logprobs,
    log_softmax,
    pad_batch,
)
from eval.policy.policy import ModelError, Policy, in_eval_mode
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.twin_base import make_tokenizer
from tests.commands import ROOT
from tests.fakes import MODELS, PROMPTS, batch, make_model, random_policy
from tests.models import SHAPE
from tests.rounding import rounding

SIZE = SHAPE | {"vocab_size": len(make_tokenizer()), "pad_token_id": 0}
SCALED = {  # what stands behind the head
    "cohere": (hf.CohereForCausalLM, hf.CohereConfig, SIZE | {"logit_scale": 0.3}),
    "granite": (hf.GraniteForCausalLM, hf.GraniteConfig, SIZE | {"logits_scaling": 5.0}),
}
KINDS = ["llama", "qwen2", "gpt2", "gpt-neox", "gemma2, eager", *SCALED]


def model_of(kind):
    if kind in MODELS:
        return make_model(kind)
    cls, config, shape = SCALED[kind]
    torch.manual_seed(0)
    return cls(config(**shape)).double().eval()


def value_and_gradient(model, rows, pieces, top_p=1.0):
    model.zero_grad()
    logp = completion_logprobs(model, rows, Likelihood(0.7, top_p), pieces)
    weights = torch.linspace(-1, 2, logp.numel(), dtype=logp.dtype).view_as(logp)
    (logp * weights).sum().backward()
    return logp.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_all_at_once(kind, dtype):
    model, rows = model_of(kind).to(dtype), batch(kind)
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    whole, gradient = value_and_gradient(model, rows, 1)
    scale = max(float(g.abs().max()) for g in gradient.values())
    for pieces in (2, 4, 7):  # even, a column each, and some without any
        parts, again = value_and_gradient(model, rows, pieces)
        assert (parts - whole).abs().max() < exact
        assert max(float((again[n] - g).abs().max()) for n, g in gradient.items()) < exact * scale
    check_chunks(Policy(model, make_tokenizer()))


@pytest.mark.parametrize("kind", KINDS)
def test_answers_to_a_prompt_that_is_read_once(kind):
    model = model_of(kind)
    short = [7, 8, 9, 4] if "eager" in kind else [7, 8]  # see `rows` of fakes.py
    prompts = [[3, 4, 5, 6], short]  # ragged, as are the answers
    answers = [[9, 1], [10, 11, 1], [1], [12, 9, 9, 1], [9, 1], [5, 1]]
    rows = pad_batch([x for x in prompts for _ in range(3)], answers, 0, "cpu")
    with torch.no_grad():
        whole = completion_logprobs(model, rows, Likelihood(0.7))
    assert torch.allclose(answers_logprobs(model, rows, 3, 0.7), whole, rtol=0, atol=1e-12)


def test_only_one_function_gives_a_cache():
    """`reading`, with the model in eval mode: gradient checkpointing drops a cache in train mode,
    and no number would show it.
    """
    makes, reads = [], 0
    for folder in ("eval", "trainers", "launch", "tests/benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            makes += [path.name] * len(re.findall(r"\w+Cache\(", text))
            asked = re.findall(r'(past_key_values\W+(?:self\.)?cache,\s*)?"?use_cache\W+True', text)
            assert all(asked), f"{path}: use_cache without the cache of `reading`"
            reads += len(asked)
    assert makes == ["policy.py"] and reads == 5


def test_every_module_goes_back_to_its_own_mode():
    model = model_of("llama").train()
    model.model.layers[1].eval()
    was = {name: x.training for name, x in model.named_modules()}
    with pytest.raises(KeyError), in_eval_mode(model):
        assert not any(x.training for x in model.modules())
        raise KeyError
    assert {name: x.training for name, x in model.named_modules()} == was
    assert len(set(was.values())) == 2


def test_equal_when_cut_at_top_p():
    model = model_of("llama")
    whole, gradient = value_and_gradient(model, batch(), 1, 0.8)
    parts, again = value_and_gradient(model, batch(), 4, 0.8)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)
    for name, g in gradient.items():
        assert torch.allclose(again[name], g, rtol=0, atol=1e-10)


def positions_of_head(model, seen):
    """Record how many positions the head is given at a time."""
    head = model.get_output_embeddings()
    return head.register_forward_pre_hook(lambda _, x: seen.append(x[0][..., 0].numel()))


def test_no_more_positions_at_once_in_backward_either():
    model, rows, seen = model_of("qwen2"), batch(), []
    with positions_of_head(model, seen):
        value_and_gradient(model, rows, rows.pieces(17))
    assert rows.completion_mask.shape == (8, 4)
    assert seen == [16] * 2 * 2  # two columns at a time, forward and again in backward


@pytest.mark.parametrize(
    ("chunk", "pieces"), [(0, 1), (1, 4), (15, 4), (16, 2), (24, 2), (31, 2), (32, 1), (99, 1)]
)
def test_pieces_of_eight_rows_and_four_columns(chunk, pieces):
    assert batch().pieces(chunk) == pieces


def test_sampling_asks_for_one_position_a_row():
    policy, seen = random_policy("llama"), []
    for features in (False, True):
        with positions_of_head(policy.model, seen):
            sample(policy, PROMPTS, 3, Decoding(6, features=features), 0)
        assert max(seen) <= 3 * len(PROMPTS)


class Looking(hf.LlamaForCausalLM):
    """Its last position sees how long the text is."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * (1 + output.logits.shape[1])
        return output


def test_a_model_whose_logits_do_not_stand_alone_is_refused_by_name():
    shape = SHAPE | {"vocab_size": len(make_tokenizer())}
    looking = Policy(Looking(hf.LlamaConfig(**shape)), make_tokenizer())
    with pytest.raises(ModelError, match=r"Looking does not compute .*; set it to 0"):
        check_chunks(looking)
    headless = copy.copy(random_policy("gpt2"))
    headless.model.base_model_prefix = ""
    with pytest.raises(ModelError, match="GPT2LMHeadModel has no body apart"):
        check_chunks(headless)


def test_the_score_of_what_is_sampled_has_mean_zero():
    """By enumeration; the score without the cut has not."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    logp = log_softmax(logits, 0.7, 0.9)
    q = logp.detach().exp()
    assert (q > 0).tolist() == [True, True, False, False] and float(q.sum()) == pytest.approx(1)
    ratio = math.exp((2.0 - 1.0) / 0.7)
    assert float(q[0] / q[1]) == pytest.approx(ratio)

    def mean_score(logp):
        rows = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in logp]
        return sum(q[i] * row for i, row in enumerate(rows) if q[i] > 0)

    assert float(mean_score(logp).abs().max()) < 1e-12
    assert float(mean_score(log_softmax(logits, 0.7)).abs().max()) > 1e-2
    kept = log_softmax(logits, 0.7, 0.9, torch.tensor(2))  # a drawn token is inside
    assert kept.isfinite().tolist() == [True, True, True, False]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_is_that_of_float32(kind):
    """In units of what the rounding of stored values alone makes; half the digits show at once."""
    policy = random_policy(kind)
    rollout = sample(policy, PROMPTS, 8, Decoding(6), seed=0)
    exact, spread = rounding(policy, rollout.prompts, rollout.completions)
    rows = pad_batch(
        [x for x in rollout.prompts for _ in range(8)], rollout.completions, policy.pad_id, "cpu"
    )
    inside = rows.completion_mask

    def error(model):
        with torch.no_grad():
            found = completion_logprobs(model, rows)
        return ((found - exact)[inside] / spread[inside]).square().mean().sqrt()

    assert 0.2 < error(policy.model) < 2
    for p in policy.model.parameters():
        p.data = p.data.bfloat16().float()
    assert error(policy.model) > 1_000
