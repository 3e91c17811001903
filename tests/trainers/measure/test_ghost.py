"""Ghost probes against autograd, completion by completion, in float64."""

import pytest
import torch
import transformers as hf

from eval.policy.logprobs import Likelihood, completion_logprobs, pad_batch
from eval.tasks.twin_base import make_tokenizer
from trainers.measure import ghost
from trainers.measure.taps import Unsupported

SIZE = {
    "vocab_size": len(make_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GQA = SIZE | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": SIZE["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 4}
BIASED = GQA | {"attention_bias": True, "mlp_bias": True}
GEMMA = GQA | {"head_dim": 8, "pad_token_id": 0}
GEMMA2 = GEMMA | {"sliding_window": 64, "final_logit_softcapping": 3.0}
MODELS = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, GQA, 1e-10),
    "llama, biases": (hf.LlamaForCausalLM, hf.LlamaConfig, BIASED, 1e-10),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, GQA, 1e-10),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, GQA | {"head_dim": 8}, 1e-10),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, GQA, 1e-10),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT2, 1e-10),
    "gpt-neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, SIZE, 1e-10),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, GQA | {"pad_token_id": 0}, 1e-10),
    # float32 inside: the norms of Gemma, and the softmax of eager attention
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig, GEMMA, 1e-6),
    "gemma2, eager": (hf.Gemma2ForCausalLM, hf.Gemma2Config, GEMMA2, 1e-6),
    "llama, eager": (hf.LlamaForCausalLM, hf.LlamaConfig, GQA, 1e-6),
    "gpt2, eager": (hf.GPT2LMHeadModel, hf.GPT2Config, GPT2, 1e-6),
}
PROMPTS = [[5, 15, 22, 16, 23], [5, 22], [9], [7, 15, 22, 16, 23]] * 2  # ragged: left padding
COMPLETIONS = [[13, 1], [12, 14, 15, 1], [3, 1], [2, 8, 1], [4, 4], [1], [12, 13, 1], [9, 9, 9, 1]]


def make_model(kind, **more):
    torch.manual_seed(0)
    cls, config, shape, _ = MODELS[kind]
    attention = "eager" if "eager" in kind else "sdpa"
    model = cls(config(**shape, **more, attn_implementation=attention)).double().eval()
    for p in model.parameters():  # norms that are not 1, biases that are not 0
        p.data.add_(0.1 * torch.randn_like(p))
    return model


def rows(kind):
    """Eager attention in float64 turns rows that are all padding into NaN, which no layer survives:
    transformers computes its softmax in float32. There, prompts are of equal length.
    """
    prompts = [PROMPTS[0], PROMPTS[3]] * 4 if "eager" in kind else PROMPTS
    return prompts, COMPLETIONS


def batch(kind=""):
    return pad_batch(*rows(kind), 0, "cpu")


def by_autograd(model, v, kind="", temperature=0.7):
    """One backward for each completion, alone and without padding."""
    values = []
    for prompt, completion in zip(*rows(kind), strict=True):
        one = pad_batch([prompt], [completion], 0, "cpu")
        grads = ghost.gradient(model, [one], [torch.ones(1)], Likelihood(temperature))
        values.append(sum(float((grads[name] * v[name]).sum()) for name in v))
    return torch.tensor(values, dtype=torch.float64)


def directions(model, seed=1):
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", MODELS)
def test_against_autograd(kind, tied, checkpointing):
    model = make_model(kind, tie_word_embeddings=tied)
    v = directions(model)
    expected = by_autograd(model, v, kind)
    if checkpointing:
        model._set_gradient_checkpointing(
            True,
            lambda f, *a, **k: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=False, **k),
        )
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    assert error(ghost.probe(model, batch(kind), v, Likelihood(0.7)), expected) < MODELS[kind][3]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("default::DeprecationWarning")  # torch.func's own
def test_against_forward_mode():
    """The Jacobian-vector product of all rows at once."""
    model = make_model(kind := "llama, eager")
    v = directions(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class Called:
        def __call__(self, **inputs):
            return torch.func.functional_call(model, self.values, (), inputs)

    def logprobs(values):
        called = Called()
        called.values = values
        return completion_logprobs(called, batch(kind), Likelihood(0.7)).sum(1)

    _, expected = torch.func.jvp(logprobs, (parameters,), (v,))
    assert error(ghost.probe(model, batch(kind), v, Likelihood(0.7)), expected.detach()) < 1e-6


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-neox", "phi3"])
def test_on_the_way_of_a_gradient(kind, chunk):
    """One backward gives the weighted gradient and, of each row that has a weight, the probe."""
    model = make_model(kind, tie_word_embeddings=kind == "llama")
    v, rows = directions(model), batch(kind)
    # powers of two: the norms of Llama compute in float32, and round other multiples in other ways
    weights = torch.tensor([1, -2, 0, 0.5, -0.25, 4, -1, 2], dtype=torch.float64)
    expected = ghost.gradient(model, [rows], [weights], Likelihood(0.7))
    total = {name: torch.ones_like(x) for name, x in expected.items()}
    found = ghost.probed_gradient(model, rows, weights, v, total, Likelihood(0.7, chunk=chunk))
    scale = max(x.abs().max() for x in expected.values())
    assert all((total[n] - 1 - x).abs().max() < 1e-10 * scale for n, x in expected.items())
    assert found[2].isnan()
    weighted = weights != 0
    assert error(found[weighted], by_autograd(model, v, kind)[weighted]) < 1e-10
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("size", [1e-3, 1e-8])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_small_directions_beside_a_one(dtype, bound, size):
    """Gemma's norms multiply by 1 + w: so far below the 1 a direction must not be rounded off."""
    model = make_model(kind := "gemma").to(dtype)
    v = {n: (size * x).to(dtype) for n, x in directions(model).items() if "norm" in n}
    found = ghost.probe(model, batch(kind), v, Likelihood(0.7))
    wide = {name: x.double() for name, x in v.items()}
    assert error(found, by_autograd(model.double(), wide, kind)) < bound


def test_a_module_left_out_is_seen(monkeypatch):
    """Negative control: without one module's share the comparison fails."""
    model = make_model("gpt2")
    v = directions(model)
    expected = by_autograd(model, v)
    for dropped in ("transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"):
        less = {name: x for name, x in v.items() if name != dropped}
        assert error(ghost.probe(model, batch(), less, Likelihood(0.7)), expected) > 1e-3


def test_a_filter_of_modules_and_its_coverage():
    model = make_model("llama")
    pattern = r"layers\.1\."
    kept = ghost.chosen(model, pattern)
    v = {name: x for name, x in directions(model).items() if name in kept}
    assert 0 < ghost.coverage(model, pattern) < 1 == ghost.coverage(model, None)
    assert error(ghost.probe(model, batch(), v, Likelihood(0.7)), by_autograd(model, v)) < 1e-10
    only = ghost.gradient(model, [batch()], [torch.ones(8)], Likelihood(0.7), pattern)
    assert set(only) == set(kept)


def test_frozen_embeddings():
    """As under LoRA: only some layers train."""
    model = make_model("llama")
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1.mlp" in name)
    v = {name: torch.randn_like(p) for name, p in ghost.chosen(model, None).items()}
    assert error(ghost.probe(model, batch(), v, Likelihood(0.7)), by_autograd(model, v)) < 1e-10


def add_in_place(layer, inputs):
    inputs[0].add_(layer.extra(inputs[0].clone()))


@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_that_the_model_changes_in_place(frozen):
    """The embedding's, by a layer behind it; neither is measured, or all but the embedding is."""
    model = make_model("llama")
    first, embedding = model.model.layers[0], model.model.embed_tokens.weight
    first.extra = torch.nn.Linear(32, 32).double()
    first.register_forward_pre_hook(add_in_place)
    embedding.requires_grad_(not frozen)
    v = {name: x for name, x in directions(model).items() if "extra" in name}
    assert len(v) == 2
    assert error(ghost.probe(model, batch(), v, Likelihood(0.7)), by_autograd(model, v)) < 1e-10
    v = directions(model)
    if frozen:
        del v["model.embed_tokens.weight"]
    assert error(ghost.probe(model, batch(), v, Likelihood(0.7)), by_autograd(model, v)) < 1e-10


class Router(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(32, 48, bias=False).double()

    def forward(self, x):
        return self.inner(x.flatten(0, 1)).view(*x.shape[:-1], -1)


class Bypassed(torch.nn.Module):
    """Its parameters are used without calling their owner."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(32, 48, bias=False).double()

    def forward(self, x):
        return torch.nn.functional.linear(x, self.inner.weight)


class Bent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(32, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight**2


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda layer: setattr(layer, "input_layernorm", Bent()), "input_layernorm.*not affine"),
        (lambda layer: setattr(layer.mlp, "gate_proj", Router()), "inner.*first axis"),
        (lambda layer: setattr(layer.mlp, "gate_proj", Bypassed()), "gate_proj.*never called"),
    ],
)
def test_unsupported_layers_are_named(replace, message):
    model = make_model("llama")
    replace(model.model.layers[1])
    with pytest.raises(Unsupported, match=message):
        ghost.probe(model, batch(), directions(model), Likelihood(0.7))
