"""Every measured product against the exact one, over repeated sampling, and over ranks."""

import math
from dataclasses import replace

import pytest
import torch

from eval.policy.logprobs import answer_batch, completion_logprobs
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.rollout.taps import tapped
from surgery.estimators import loo, rloo
from surgery.objectives import pass_at_k, pass_at_k_weight, prompt_weight
from surgery.rules import RULES, apply
from tests.commands import launched
from tests.fakes import make_probe, measurable
from trainers.config.values import ConfigError
from trainers.measure import ghost
from trainers.measure.probe import halves

K, N, PROMPTS, BATCHES = 4, 8, 32, 120


def a_batch(base, twin, step, budget=2**16):
    problems = twin.training(0, step, PROMPTS)
    decoding = Decoding(4, token_budget=budget, features=True)
    rollout = sample(base, [x.prompt for x in problems], N, decoding, step)
    golds = [x.gold for x in problems for _ in range(N)]
    correct = torch.tensor([a == b for a, b in zip(rollout.texts, golds, strict=True)]).view(-1, N)
    return rollout, correct.double()


@pytest.fixture(scope="module")
def exact(twin, base_path):
    """Products of the true gradients over the population: all parameters, and last hidden layer."""
    from eval.policy.policy import load_policy

    policy = load_policy(base_path)
    problems, share = twin.population, twin.shares
    batch = answer_batch(policy, [x.prompt for x in problems], [x.gold for x in problems])
    with tapped(policy, features=True) as tap:
        p = completion_logprobs(policy.model, batch).sum(1).exp()
        (u,) = torch.autograd.grad(p.log().sum(), tap.hidden, retain_graph=True)
    p_exact, u = p.detach().double(), u.double().sum(1)
    weight = pass_at_k_weight(p_exact, K)
    g_1, g_k = ((share * w * p_exact) @ u for w in (torch.ones_like(weight), weight))
    last_layer = {"dot": g_k @ g_1, "norm_1": g_1 @ g_1, "norm_k": g_k @ g_k}
    p = completion_logprobs(policy.model, batch).sum(1).exp().double()
    parameters = list(policy.model.parameters())
    j_1, j_k = (
        torch.cat([g.flatten() for g in torch.autograd.grad(x, parameters, retain_graph=True)])
        for x in (share @ p, share @ pass_at_k(p, K))
    )
    full = {"dot": j_k @ j_1, "norm_1": j_1 @ j_1, "norm_k": j_k @ j_k}
    scale = torch.cat([x.flatten() for x in past_scale(twin, policy).values()])
    in_adam = {"dot": j_k @ (scale * j_1), "norm_1": j_1 @ (scale * j_1)}
    in_adam["norm_k"] = j_k @ (scale * j_k)
    return {
        kind: {name: float(x) for name, x in found.items()}
        for kind, found in (("last_layer", last_layer), ("ghost", full), ("adam", in_adam))
    }


def past_scale(twin, policy):
    """Adam's metric as other batches leave it, most unlike the Euclidean one."""
    probe = make_probe(policy)
    squares = {name: torch.zeros_like(p) for name, p in policy.model.named_parameters()}
    for step in range(1000, 1003):
        rollout, correct = a_batch(policy, twin, step)
        for name, g in probe._gradient(policy.model, rollout, rloo(correct) / PROMPTS).items():
            squares[name] += g.square()
    below = {name: v.sqrt() + 1e-8 for name, v in squares.items()}
    mean = torch.cat([x.flatten() for x in below.values()]).mean()
    return {name: mean / x.clamp(min=1e-3 * mean) for name, x in below.items()}


@pytest.mark.parametrize("measure", ["last_layer", "ghost", "adam"])
def test_products_are_unbiased(exact, twin, base, measure):
    """In Adam's metric as well, which must not know the batch that it measures."""
    if measure == "adam":
        probe = make_probe(base, measure="ghost", metric="adam")
        scale = past_scale(twin, base)
        probe.engine.adam_scale = lambda: scale
    else:
        probe = make_probe(base, measure=measure)
    found = {name: [] for name in exact[measure]}
    agreement = []
    for step in range(BATCHES):
        rollout, correct = a_batch(base, twin, step)
        a_k, a_1 = loo(correct, K), rloo(correct)
        geometry, _ = probe(measurable(rollout, range(PROMPTS), a_k, a_1, correct))
        agreement.append(float(geometry.agreement.mean()))
        for name in found:
            found[name].append(getattr(probe.smooth, name))
    for name, values in (*found.items(), ("norm_1", agreement)):
        x = torch.tensor(values, dtype=torch.float64)
        error = float(x.std()) / math.sqrt(len(x))
        assert abs(float(x.mean()) - exact[measure][name]) < 4 * error, name
    assert exact[measure]["dot"] < 0  # the base is in conflict


def test_naive_products_are_biased(exact, twin, base):
    """The self-term: what the default leaves out is not small."""
    probe = make_probe(base, statistic="naive")
    values = []
    for step in range(40):
        rollout, correct = a_batch(base, twin, step)
        probe(measurable(rollout, range(PROMPTS), loo(correct, K), rloo(correct), correct))
        values.append(probe.smooth.norm_1)
    assert sum(values) / len(values) > 1.5 * exact["last_layer"]["norm_1"]


@pytest.mark.parametrize("statistic", ["naive", "loo"])
def test_ghost_products_against_gradients(base, twin, statistic):
    """One batch: agreements and products from full gradients, prompt by prompt."""
    rollout, correct = a_batch(base, twin, 0)
    a_k, a_1 = loo(correct, K), rloo(correct)
    probe = make_probe(base, measure="ghost", statistic=statistic)
    geometry, scalars = probe(measurable(rollout, range(PROMPTS), a_k, a_1, correct))

    def prompt_gradient(a, i):
        weights = torch.zeros_like(a)
        weights[i] = a[i]
        gradient = probe._gradient(base.model, rollout, weights)
        return torch.cat([x.flatten() for x in gradient.values()]).double()

    g_1, g_k = (torch.stack([prompt_gradient(a, i) for i in range(PROMPTS)]) for a in (a_1, a_k))
    if statistic == "naive":
        other = g_1.mean(0).expand_as(g_1)
        norm_k = float(g_k.mean(0) @ g_k.mean(0))
    else:
        second = halves(PROMPTS).bool()
        other = torch.where(second[:, None], g_1[~second].mean(0), g_1[second].mean(0))
        norm_k = float(g_k[~second].mean(0) @ g_k[second].mean(0))
    scale = float((g_1 * other).sum(1).abs().max())
    assert torch.allclose(geometry.agreement, (g_1 * other).sum(1), atol=1e-4 * scale)
    assert probe.smooth.dot == pytest.approx(float((g_k * other).sum(1).mean()), abs=1e-4 * scale)
    assert probe.smooth.norm_1 == pytest.approx(float((g_1 * other).sum(1).mean()), rel=1e-3)
    assert probe.smooth.norm_k == pytest.approx(norm_k, rel=1e-3)
    assert scalars["coverage"] == 1.0


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_each_rank_holds_both_halves(world):
    for prompts in (2 * world, 64):
        assert all(
            x.double().mean() == 0.5 for x in (halves(prompts)[r::world] for r in range(world))
        )
    assert [halves(n).tolist() for n in (1, 2, 3)] == [[0], [0, 1], [0, 1, 1]]


def test_weights_that_cancel_are_probed_as_well(base, twin):
    """Equal completions of unequal verdicts may sum to a row of no weight in J_1."""
    rollout, correct = a_batch(base, twin, 0)
    a_1 = rloo(correct)
    second = halves(PROMPTS).bool()
    equal = [i for i in second.nonzero().flatten().tolist() if _first_two_are_equal(rollout, i)]
    assert len(equal) > 3
    for i in equal:
        a_1[i] = torch.tensor([1.0, -1.0] + (N - 2) * [0.0])
    probe = make_probe(base, measure="ghost")
    _, _, agreement, probes = probe._by_ghost(measurable(rollout, range(PROMPTS), a_1, a_1))
    first = probe._gradient(base.model, rollout, a_1 * ~second[:, None] / (~second).sum())
    expected = torch.zeros_like(a_1)
    probe._probe(base.model, rollout, a_1 != 0, first, expected)
    assert torch.isfinite(probes).all() and (probes[equal, :2] != 0).all()
    assert torch.allclose(probes[second], expected[second], atol=1e-5 * float(expected.abs().max()))
    assert (agreement[equal].abs() < 1e-6 * agreement.abs().max()).all()


def _first_two_are_equal(rollout, i):
    return rollout.completions[i * N] == rollout.completions[i * N + 1]


def test_the_metric_of_adam(base, twin):
    """Products in a diagonal metric, against gradients scaled by hand."""
    rollout, correct = a_batch(base, twin, 0)
    a_k, a_1 = loo(correct, K), rloo(correct)
    probe = make_probe(base, measure="ghost", statistic="naive", metric="adam")
    torch.manual_seed(0)
    scale = {name: torch.rand_like(p) for name, p in base.model.named_parameters()}
    probe.engine.adam_scale = lambda: scale
    probe(measurable(rollout, range(PROMPTS), a_k, a_1, correct))
    j_1, j_k = (probe._gradient(base.model, rollout, a / PROMPTS) for a in (a_1, a_k))

    def product(a, b):
        return sum(float((a[n].double() * scale[n] * b[n]).sum()) for n in a)

    assert probe.smooth.dot == pytest.approx(product(j_k, j_1), rel=1e-3)
    assert probe.smooth.norm_1 == pytest.approx(product(j_1, j_1), rel=1e-3)
    assert probe.smooth.norm_k == pytest.approx(product(j_k, j_k), rel=1e-3)


def test_before_the_first_step_the_metric_is_that_of_euclid(base, twin):
    rollout, correct = a_batch(base, twin, 0)
    found = []
    for metric in ("adam", "euclid"):
        probe = make_probe(base, measure="ghost", metric=metric)
        probe.engine.adam_scale = lambda: None
        probe(measurable(rollout, range(PROMPTS), loo(correct, K), rloo(correct), correct))
        found.append(probe.smooth)
    assert found[0] == found[1]


@pytest.mark.parametrize("measure", ["last_layer", "ghost"])
def test_micro_batches_change_no_decision(base, twin, measure):
    """An update by agreements, though its prompts were sampled and measured in other company."""
    updates = []
    for budget in (2**16, 600):
        rollout, correct = a_batch(base, twin, 5, budget)
        probe = make_probe(base, "agreement_clip", measure=measure)
        probe.config.train.micro_batch_tokens = budget
        a_k, a_1 = loo(correct, K), rloo(correct)
        geometry, _ = probe(measurable(rollout, range(PROMPTS), a_k, a_1, correct))
        weights = prompt_weight(N, correct.sum(1), K)
        decision = RULES["agreement_clip"].bind({"tau": 0.7})(weights, geometry, {})
        advantages = apply(decision, a_k, a_1)
        g = probe._gradient(base.model, rollout, advantages / PROMPTS)
        updates.append(torch.cat([x.flatten() for x in g.values()]).double())
    assert (updates[1] - updates[0]).norm() < 1e-5 * updates[0].norm()


def test_another_k_begins_another_average(base, twin):
    """And so does it after a checkpoint; the same k goes on."""
    batches = [a_batch(base, twin, step) for step in range(3)]

    def measured(probe, steps, k):
        for rollout, correct in (batches[step] for step in steps):
            probe.begin(k)
            probe(measurable(rollout, range(PROMPTS), loo(correct, k), rloo(correct), correct, k))
        return probe.smooth

    alone = measured(make_probe(base, ema=0.5), [1, 2], 2)
    for saved in (False, True):
        probe = make_probe(base, ema=0.5)
        measured(probe, [0], K)
        if saved:
            numbers, tensors = probe.state()
            probe = make_probe(base, ema=0.5)
            probe.restore(numbers, tensors)
        assert measured(probe, [1, 2], 2) == alone
    assert measured(make_probe(base, ema=0.5), [0, 1, 2], 2) != alone


def test_the_step_that_was_realised(base, twin):
    """<grad J_1, step> of a watched step is the first-order change of this batch's objective."""
    rollout, correct = a_batch(base, twin, 1)
    a_1 = rloo(correct)
    probe, batch = make_probe(base), measurable(rollout, range(PROMPTS), a_1, a_1)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    torch.manual_seed(0)
    moved = {name: 1e-4 * torch.randn_like(p) for name, p in before.items()}
    assert probe.realised(batch) is None
    probe.watch(dict(before), ((name, x + moved[name]) for name, x in before.items()))
    found = probe.realised(batch)
    gradient = probe._gradient(base.model, rollout, a_1 / PROMPTS)
    expected = sum(float((gradient[name] * moved[name]).sum()) for name in moved)
    assert found == pytest.approx(expected, rel=1e-2)
    assert probe.realised(batch) is None  # once


def test_a_field_is_not_read_before_its_stage(base, twin):
    rollout, correct = a_batch(base, twin, 0)
    batch = measurable(rollout, range(PROMPTS), None, None, correct)
    del batch.a_k
    with pytest.raises(AttributeError, match="a_k"):
        make_probe(base)(batch)


def test_coverage_is_asserted(base):
    with pytest.raises(ConfigError, match=r"surgery.modules = lm_head: leaves in 0\.\d+"):
        make_probe(base, measure="ghost", modules="lm_head")
    allowed = make_probe(base, measure="ghost", modules="lm_head", min_coverage=0.01)
    assert 0 < allowed.coverage < 1


@pytest.mark.parametrize("measure", ["last_layer", "ghost"])
def test_what_is_not_finite_is_forgotten(base, twin, measure, monkeypatch):
    """Of three batches the second has one such completion: the average is that of the others."""
    batches = [a_batch(base, twin, step) for step in range(3)]

    def measured(which):
        probe = make_probe(base, measure=measure, ema=0.5)
        for step in which:
            rollout, correct = batches[step]
            with monkeypatch.context() as patch:
                if step == 1 and measure == "ghost":
                    patch.setattr(ghost, "probe", lambda model, batch, *_, **__: nans(batch))
                elif step == 1:
                    rollout = replace(rollout, features=rollout.features.clone())
                    rollout.features[3, 5] = math.nan
                a_k, a_1 = loo(correct, K), rloo(correct)
                geometry, scalars = probe(measurable(rollout, range(PROMPTS), a_k, a_1, correct))
            assert geometry.finite == bool(scalars) == (step != 1)
        return probe.state()

    assert measured([0, 1, 2]) == measured([0, 2])


def nans(batch):
    return torch.full((len(batch.input_ids),), math.nan).double()


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def over_ranks(request, tmp_path_factory, base_path):
    out = tmp_path_factory.mktemp("probes") / "results.json"
    return launched("probes.py", out, ranks=request.param)


@pytest.mark.parametrize("stage", "0123")
def test_over_ranks_and_zero_stages(over_ranks, stage):
    """As in one process; and a naive projection in conflict leaves nothing along J_1."""
    found = over_ranks[stage]
    for measure in ("ghost", "last_layer"):
        assert found[f"{measure} agreement error"] < 1e-5
        assert found[f"{measure} products error"] < 1e-5
    assert found["conflict"] < 0
    assert abs(found["cosine of the applied gradient with J_1"]) < 1e-5


def test_ghost_is_a_direction_of_the_model(base):
    assert set(ghost.chosen(base.model, None)) == {n for n, _ in base.model.named_parameters()}
