"""Ghost probes against autograd, completion by completion, in float64."""

import pytest
import torch

from eval.policy.logprobs import Likelihood, answer_batch, completion_logprobs
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from tests.fakes import MODELS, batch, by_autograd, directions, error, make_model
from trainers.measure import ghost
from trainers.measure.taps import Unsupported


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


def test_features_and_ghost_are_of_what_is_sampled(base, twin):
    """The sampler's features, and a probe, against autograd of the log-probability under top_p."""
    prompts = [x.prompt for x in twin.training(0, 0, 6)]
    rollout = sample(base, prompts, 4, Decoding(4, 0.9, 0.9, features=True), 0)
    model = base.model.double()
    answers = [rollout.texts[4 * i] for i in range(6)]
    batch = answer_batch(base, prompts, answers)
    logp = completion_logprobs(model, batch, Likelihood(0.9, 0.9)).sum(1)
    assert torch.allclose(logp.float(), rollout.logprobs[::4], atol=1e-4)
    torch.manual_seed(0)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    found = ghost.probe(model, batch, v, Likelihood(0.9, 0.9))
    for row in range(6):
        weight = torch.zeros(6).double()
        weight[row] = 1
        g = ghost.gradient(model, [batch], [weight], Likelihood(0.9, 0.9))
        assert float(found[row]) == pytest.approx(sum(float((g[n] * v[n]).sum()) for n in v))
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    logp = completion_logprobs(model, batch, Likelihood(0.9, 0.9)).sum(1)
    hook.remove()
    (u,) = torch.autograd.grad(logp.sum(), seen)
    assert torch.allclose(u.sum(1).float(), rollout.features[::4], atol=1e-4)
