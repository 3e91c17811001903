"""Contracts that every rule keeps, numbers by hand, and TorchJD's rules where both exist."""

import dataclasses
import math

import pytest
import torch

from surgery.geometry import Geometry, Others, Products, agreements, products, psd
from surgery.rules import (
    AGREEMENT,
    PRODUCTS,
    RULES,
    apply,
    find_rule,
    from_weighting,
    per_prompt,
)
from surgery.user_code import UserCodeError


def gradients(seed, prompts=12, width=5):
    """Noisy gradients of a population whose heavy prompts pull against the light ones."""
    generator = torch.Generator().manual_seed(seed)
    heavy = torch.rand(prompts, generator=generator) < 0.4
    g_1 = torch.randn(prompts, width, generator=generator, dtype=torch.float64)
    g_1[:, 0] += torch.where(heavy, -0.7, 1.0)
    weights = torch.where(heavy, 3.0, 0.3).double()
    return weights, weights[:, None] * g_1, g_1


def geometry(g_k, g_1, statistic="naive"):
    rate = torch.linspace(0, 1, len(g_1)).double()
    return Geometry(rate, psd(products(g_k, g_1, statistic)), agreements(g_1, statistic))


def of(dot, norm_1=1.0, norm_k=1.0, agreement=None):
    agreement = torch.zeros(3).double() if agreement is None else agreement
    return Geometry(torch.ones(3).double() / 2, Products(dot, norm_1, norm_k), agreement)


def coefficient(name, *args, **settings):
    """c of a rule without memory; `pcgrad` is the plain projection."""
    alpha, beta = RULES[name].bind({"restore": 0.0} | settings)(
        torch.ones(3).double(), of(*args), {}
    )
    assert alpha.tolist() == [1, 1, 1] and len(set(beta.tolist())) == 1
    return float(beta[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", RULES)
def test_contract(name, seed):
    """Blind to the order of prompts and to the scale of gradients; never negative; finite."""
    rule = RULES[name].bind({})
    weights, g_k, g_1 = gradients(seed)
    alpha, beta = rule(weights, geometry(g_k, g_1), {})
    assert alpha.shape == beta.shape == weights.shape
    assert min(float(alpha.min()), float(beta.min())) >= 0
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    shuffled = dataclasses.replace(
        geometry(g_k[order], g_1[order]), rate=geometry(g_k, g_1).rate[order]
    )
    again = rule(weights[order], shuffled, {})
    assert torch.allclose(again[0], alpha[order]) and torch.allclose(again[1], beta[order])
    scaled = rule(weights, geometry(1e-3 * g_k, 1e-3 * g_1), {})
    assert torch.allclose(scaled[0], alpha) and torch.allclose(scaled[1], beta)


@pytest.mark.parametrize("name", RULES)
def test_no_signal(name):
    zeros = torch.zeros(4).double()
    nothing = Geometry(zeros, Products(0.0, 0.0, 0.0), zeros)
    for weights in (zeros, torch.full((4,), 8.0).double()):
        alpha, beta = RULES[name].bind({"mix": 0.0, "start": 0.0, "early": 0.0})(
            weights, nothing, {}
        )
        assert alpha.isfinite().all() and (alpha >= 0).all() and beta.isfinite().all()
        if AGREEMENT not in RULES[name].needs:
            assert (alpha == 1).all() and (beta == 0).all()


@pytest.mark.parametrize("name", RULES)
def test_no_rule_decides_by_what_is_not_finite(name):
    """Its weights are NaN then, and its state is as before."""
    rule, ones, nan = RULES[name], torch.ones(4).double(), math.nan
    fine, bad = Products(-1.0, 1.0, 1.0), torch.tensor([0.0, nan, 0.0, 0.0]).double()
    broken = [
        Geometry(ones, Products(nan, 1.0, 1.0), ones),
        Geometry(ones, Products(1.0, math.inf, nan), ones),
        Geometry(ones, Products(1.0, 1.0, math.inf), ones),
        Geometry(ones, Products(nan, nan, nan)),
        Geometry(ones, fine, bad),
    ]
    for found in broken:
        state = {}
        decision = rule.bind({})(ones, found, state)
        assert all(bool(x.isnan().all()) == bool(rule.needs) for x in decision)
        assert not (rule.needs and state)
    assert Geometry(ones, Products(1.0, 1.0, nan), ones).finite  # |J_k| may be unmeasured


COEFFICIENTS = [x for x, r in RULES.items() if PRODUCTS in r.needs and AGREEMENT not in r.needs]


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_degenerate(name):
    """|J_1|^2 measured as not positive: the cap on conflict, else nothing."""
    for dot, c in ((-1.0, 7.0), (1.0, 0.0)):
        products = psd(Products(dot, -0.5, 3.0))
        found = Geometry(torch.zeros(3).double(), products, torch.zeros(3).double())
        assert found.degenerate
        rule = RULES[name].bind({"cap": 7.0, "restore": 0.0})
        alpha, beta = rule(torch.ones(3).double(), found, {})
        assert alpha.tolist() == [1, 1, 1] and beta.tolist() == [c] * 3


@pytest.mark.parametrize(("change", "c"), [(-0.05, 1.0), (0.1, 0.0), (-0.9, 7.0)])
def test_the_restoring_force_needs_no_ratio(change, c):
    """Where |J_1|^2 is measured as not positive: 0.5 + 10 (-change), within [0, 7]."""
    settings = {"margin": 0.5, "restore": 10.0, "rate_ema": 0.0, "lead": 0.0, "cap": 7.0}
    for dot in (0.0, 1.0):
        products = psd(Products(dot, -0.5, 3.0))
        found = Geometry(torch.full((3,), 0.5).double(), products, change=change)
        rule = RULES["pcgrad"].bind(settings | {"early": 0.0})
        _, beta = rule(torch.ones(3).double(), found, {})
        assert beta.tolist() == pytest.approx([c] * 3)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "mgda", "agreement_clip"])
def test_promised_to_leave_pass_1_alone(name, seed):
    """The update's product with the J_1 that was used is not negative."""
    weights, g_k, g_1 = gradients(seed)
    alpha, beta = RULES[name].bind({"cap": 1e9})(weights, geometry(g_k, g_1), {})
    update = (alpha[:, None] * g_k + beta[:, None] * g_1).mean(0)
    j_1 = g_1.mean(0)
    assert float(update @ j_1) >= -1e-9 * float(j_1 @ j_1)
    if name == "agreement_clip":
        assert float(update @ j_1) >= float(j_1 @ j_1) * (1 - 1e-9)  # tau = 1


@pytest.mark.parametrize("seed", range(10))
def test_margin(seed):
    weights, g_k, g_1 = gradients(seed)
    alpha, beta = RULES["pcgrad"].bind({"margin": 0.2, "cap": 1e9, "restore": 0.0})(
        weights, geometry(g_k, g_1), {}
    )
    update, j_1 = (alpha[:, None] * g_k + beta[:, None] * g_1).mean(0), g_1.mean(0)
    assert float(update @ j_1) >= 0.2 * float(j_1 @ j_1) - 1e-9


@pytest.mark.parametrize("softness", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(10))
def test_bound_of_the_soft_clip(seed, softness):
    weights, g_k, g_1 = gradients(seed)
    found = geometry(g_k, g_1)
    rule = RULES["agreement_soft"].bind({"tau": 1.5, "softness": softness})
    alpha, beta = rule(weights, found, {})
    inner = float(((alpha * weights + beta) * found.agreement).mean())
    slack = 0.2785 * softness * float((weights - 1.5).abs().mean())
    assert inner >= found.products.norm_1 * (1.5 - slack) - 1e-9
    if softness == 0:
        hard = RULES["agreement_clip"].bind({"tau": 1.5})(weights, found, {})
        assert torch.equal(alpha, hard[0]) and torch.equal(beta, hard[1])


def test_pcgrad_by_hand():
    assert coefficient("pcgrad", 0.5) == 0
    assert coefficient("pcgrad", -1.0, 2.0) == 0.5
    assert coefficient("pcgrad", -30.0, cap=10.0) == 10
    assert coefficient("pcgrad", 0.1, margin=0.25) == pytest.approx(0.15)
    assert coefficient("pcgrad", -1.0, 0.0, cap=7.0) == 7  # degenerate, in conflict
    assert coefficient("pcgrad", 1.0, 0.0) == 0  # degenerate, not in conflict


def test_others_by_hand():
    assert coefficient("gradvac", -1.0, 2.0, 3.0) == pytest.approx(0.5)  # cosine 0: pcgrad
    g_k, g_1 = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])
    c = coefficient("gradvac", -2.0, 4.0, 2.0, cosine=0.5)
    lifted = g_k + c * g_1
    assert float(lifted @ g_1 / lifted.norm() / g_1.norm()) == pytest.approx(0.5)
    assert coefficient("nash", -0.3, 4.0, 9.0) == pytest.approx(1.5)
    assert coefficient("mgda", 0.0, 1.0, 3.0) == pytest.approx(3.0)  # t = 1/4
    assert coefficient("mgda", 2.0, 1.0, 9.0) == 10  # J_1 is the shortest: the cap
    assert coefficient("mgda", 2.0, 9.0, 1.0) == 0  # J_k is
    assert coefficient("cagrad", 0.3, 1.0, 1.0) == pytest.approx(1.0)  # alike by symmetry
    assert coefficient("cagrad", 0.5, 1.0, 4.0, radius=0.0) == pytest.approx(1.0)  # the mean


def test_agreement_clip_by_hand():
    weights = torch.tensor([0.2, 0.2, 3.0, 3.0]).double()
    found = of(0.0, agreement=torch.tensor([1.0, -1.0, 1.0, -1.0]).double())
    two = RULES["agreement_clip"].bind({"tau": 0.5})(weights, found, {})
    assert (two[0].tolist(), two[1].tolist()) == ([0, 1, 1, 0], [0.5, 0, 0, 0.5])
    one = RULES["agreement_clip_one_sided"].bind({"tau": 0.5})(weights, found, {})
    assert (one[0].tolist(), one[1].tolist()) == ([1, 1, 1, 0], [0, 0, 0, 0.5])


@pytest.mark.parametrize("name", [x for x, r in RULES.items() if AGREEMENT in r.needs])
def test_prompts_are_told_apart_by_others(name):
    """Each column as the rule would decide by what the others of that column say."""
    generator = torch.Generator().manual_seed(0)
    weights = 3 * torch.rand(5, 4, generator=generator).double()
    agreement = torch.randn(5, 4, generator=generator).double()
    found = Geometry(torch.ones(5).double() / 2, Products(-0.1, 0.2, 1.0), agreement.mean(1))
    rule = RULES[name].bind({})
    others = dataclasses.replace(found, others=Others(weights, agreement))
    decision = rule(weights.mean(1), others, {})
    for j in range(4):
        column = dataclasses.replace(found, agreement=agreement[:, j])
        expected = rule(weights[:, j], column, {})
        assert all(torch.equal(x[:, j], y) for x, y in zip(decision, expected, strict=True))
    assert torch.equal(per_prompt(decision)[0], decision[0].mean(1))
    advantages = apply(decision, torch.ones(5, 4), torch.full((5, 4), 10.0))
    assert torch.equal(advantages, decision[0] + 10 * decision[1])


def test_floor_pushes_back_and_lets_go():
    state = {"base_pass@1": 0.6}
    settings = {"rate_ema": 0.0, "gain": 20.0, "integral_gain": 1.0, "start": 0.0}
    rule = RULES["floor"].bind(settings)

    def step(rate):
        found = Geometry(torch.full((3,), rate, dtype=torch.float64))
        return float(rule(torch.ones(3).double(), found, state)[1][0])

    assert step(0.7) == 0
    assert step(0.5) == pytest.approx(0.1 + 20 * 0.1)
    assert step(0.5) == pytest.approx(0.2 + 20 * 0.1)
    assert step(0.6) == pytest.approx(0.2)  # the integral holds
    assert step(0.9) == 0
    assert math.isfinite(state["floor_integral"])


def test_floor_starts_before_the_loss():
    found, state = Geometry(torch.full((3,), 0.6, dtype=torch.float64)), {"base_pass@1": 0.6}
    rule = RULES["floor"].bind({"start": 2.0, "tolerance": -0.05})
    beta = rule(torch.ones(3).double(), found, state)[1]
    assert beta.tolist() == pytest.approx([2.0 + 0.05 + 20 * 0.05] * 3)


def pcgrad_at(change, dot, norms=(4.0, 1.0), state=None, **more):
    """c of `pcgrad` without smoothing, for |J_k|^2, |J_1|^2 = norms, at a change of pass@1."""
    settings = {"rate_ema": 0.0, "lead": 0.0, "restore": 10.0, "relax": 4.0, "early": 0.0}
    geometry = {name: more.pop(name) for name in ("pace", "before") if name in more}
    products = Products(dot, norms[1], norms[0])
    found = Geometry(torch.full((3,), 0.5).double(), products, change=change, **geometry)
    rule = RULES["pcgrad"].bind(settings | more)
    return float(rule(torch.ones(3).double(), found, {} if state is None else state)[1][0])


def test_pcgrad_restores_and_lets_go():
    """c = -<J_k, J_1>/|J_1|^2 + force |J_k|/|J_1|, here 1.5 + 2 force."""
    assert pcgrad_at(0.0, -1.5) == 1.5
    assert pcgrad_at(-0.05, -1.5) == pytest.approx(1.5 + 2 * 10 * 0.05)
    assert pcgrad_at(0.05, -1.5) == pytest.approx(1.5 - 2 * 4 * 0.05)
    assert pcgrad_at(0.05, -1.5, pace=0.5) == pytest.approx(1.5 - 2 * 8 * 0.05)
    assert pcgrad_at(0.05, -1.5, pace=0.0) == pytest.approx(max(0, 1.5 - 2 * 40 * 0.05))
    assert pcgrad_at(0.05, 1.5) == 0


def test_pcgrad_lets_go_of_the_best_pass_1():
    """However short J_1 is there; a force times |J_1|^2 would keep c = 1/|J_1|^2 for ever."""
    for short in (1e-2, 1e-6):
        assert pcgrad_at(0.3, -math.sqrt(short), norms=(1.0, short), cap=1e9) == 0


def test_the_floor_of_pcgrad_sinks_with_the_pace():
    for pace in (1.0, 0.25):
        c = pcgrad_at(0.0, -1.5, early=0.04, pace=pace, tolerance=0.01)
        gap = 0.04 * pace - 0.01
        assert c == pytest.approx(1.5 + 2 * gap * (10 if gap > 0 else 4 / pace))


def test_pcgrad_decides_by_the_products_before_the_batch():
    assert pcgrad_at(0.0, -1.5, before=Products(-0.5, 1.0, 4.0)) == 0.5
    assert pcgrad_at(0.0, -1.5, before=None) == 1.5


@pytest.mark.parametrize(("lead", "gaps"), [(0.0, (0.1, 0.0)), (2.0, (0.3, -0.2))])
def test_pcgrad_looks_ahead(lead, gaps):
    """The average change is 0.5 (0 - 0.2), then 0.5 (-0.1 + 0.1); its change goes on for `lead`."""
    state: dict[str, float] = {}
    for change, gap in zip((-0.2, 0.1), gaps, strict=True):
        c = pcgrad_at(change, -1.5, state=state, rate_ema=0.5, lead=lead)
        assert c == pytest.approx(max(0, 1.5 + 2 * gap * (10 if gap > 0 else 4)))


def test_without_restoring_pcgrad_is_the_projection():
    for change in (-0.2, 0.0, 0.2):
        assert pcgrad_at(change, -1.5, restore=0.0) == 1.5


def test_settings_go_to_the_rule_that_names_them():
    _, beta = RULES["mix"].bind({"mix": 0.3, "cap": 5.0})(torch.ones(2).double(), of(0.0), {})
    assert beta.tolist() == [0.3, 0.3]


def test_apply():
    decision = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    assert apply(decision, torch.ones(2, 2), torch.full((2, 2), 10.0)).tolist() == [
        [1, 1],
        [32, 32],
    ]


def test_a_rule_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def mine(weights, geometry, state, *, cap=10.0):\n"
        "    return torch.ones_like(weights), cap * geometry.rate\n"
    )
    rule = find_rule(f"{tmp_path}/mine.py:mine")
    assert rule.needs  # all is measured for it
    _, beta = rule.bind({"cap": 2.0})(torch.ones(3).double(), of(0.0), {})
    assert beta.tolist() == [1, 1, 1]
    (tmp_path / "wrong.py").write_text("def wrong(weights, geometry, state): return 1.0, 0.5\n")
    wrong = find_rule(f"{tmp_path}/wrong.py:wrong").bind({})
    with pytest.raises(UserCodeError, match=r"returned \(1.0, 0.5\); return two tensors, each of"):
        wrong(torch.ones(3).double(), of(0.0), {})


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("weights", r"returned a tensor of shape [3]; return two tensors, each of shape [3] or [3"),
        ("None", "returned None; return two tensors"),
        ("(weights, weights, weights)", "returned (a tensor of shape [3], a tensor of shape [3], "),
        ("(weights, 0.5)", "returned (a tensor of shape [3], 0.5); return two tensors"),
        ("(weights[:2], weights)", "returned (a tensor of shape [2], a tensor of shape [3]); "),
        (
            "(weights, weights[:, None])",
            "returned (a tensor of shape [3], a tensor of shape [3, 1])",
        ),
        ("(weights, weights.mean())", "returned (a tensor of shape [3], a tensor of shape []); "),
        (
            "(weights / 0, weights)",
            "returned NaN or infinite numbers, though all its inputs are",
        ),
        ("(weights, 0 * weights / 0)", "returned NaN or infinite numbers, though all its inputs"),
        ("geometry.nope", "AttributeError: 'Geometry' object has no attribute 'nope' ({}, line 2)"),
        (
            "state.update(x=weights) or (weights, weights)",
            "keeps a value in `state` that checkpoints cannot store",
        ),
    ],
)
def test_a_rule_of_the_users_own_that_is_none(tmp_path, returned, said):
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(weights, geometry, state):\n    return {returned}\n")
    weights = torch.ones(3).double()
    with pytest.raises(UserCodeError) as error:
        find_rule(f"{path}:mine").bind({}, samples=4)(weights, of(0.0), {})
    (told,) = str(error.value).splitlines()
    assert told.startswith(f"surgery.rule = {path}:mine: {said.format(path)}"), told


def test_an_own_rule_skips_what_is_not_finite_and_may_tell_completions_apart(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def mine(weights, geometry, state):\n"
        "    x = weights[:, None].expand(-1, 4) * geometry.products.dot\n"
        "    return x, [x, weights][int(state['one'])]\n"
    )
    rule, ones = find_rule(f"{path}:mine").bind({}, samples=4), torch.ones(3).double()
    assert [list(x.shape) for x in rule(ones, of(0.0), {"one": 0})] == [[3, 4], [3, 4]]
    assert [list(x.shape) for x in rule(ones, of(0.0), {"one": 1})] == [[3, 4], [3]]
    assert all(x.isnan().all() for x in rule(ones, of(math.nan), {"one": 0}))


def test_a_setting_that_nobody_gives(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def mine(w, geometry, state, *, gamma, cap):\n    return w, gamma * cap * w\n")
    rule = find_rule(f"{path}:mine")
    with pytest.raises(
        UserCodeError, match=r"gamma that .* give surgery.options.gamma=..., or a def"
    ):
        rule.bind({"cap": 2.0})
    assert rule.bind({"cap": 2.0, "gamma": 3.0})(torch.ones(1), of(0.0), {})[1].tolist() == [6]


@pytest.mark.parametrize("seed", range(10))
def test_against_torchjd(seed):
    """Their update of the two gradients, up to its length, is ours."""
    from torchjd import aggregation as torchjd

    weights, g_k, g_1 = gradients(seed)
    matrix = torch.stack([g_k.mean(0), g_1.mean(0)])
    theirs = {
        "mgda": torchjd.MGDA(epsilon=1e-10, max_iters=10_000)(matrix),
        "mix": torchjd.Constant(torch.tensor([1.0, 0.5]).double())(matrix),
    }
    for name, expected in theirs.items():
        alpha, beta = RULES[name].bind({"cap": 1e9, "restore": 0.0})(
            weights, geometry(g_k, g_1), {}
        )
        ours = alpha[0] * matrix[0] + beta[0] * matrix[1]
        cosine = torch.nn.functional.cosine_similarity(ours, expected, 0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-5), name
    # plugged in as it is, a weighting of theirs decides like the rule of the same name
    plugged = from_weighting(torchjd.MGDAWeighting(epsilon=1e-10, max_iters=10_000))
    ours = RULES["mgda"].bind({"cap": 1e9})(weights, geometry(g_k, g_1), {})
    theirs = plugged(weights, geometry(g_k, g_1), {}, cap=1e9)
    assert torch.allclose(theirs[1], ours[1], rtol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # cvxpy's own
@pytest.mark.parametrize("seed", range(10))
def test_against_torchjd_with_a_solver(seed):
    """Their GradVac is left out: it moves both gradients, towards running means of the cosine."""
    from torchjd import aggregation as torchjd

    weights, g_k, g_1 = gradients(seed)
    matrix = torch.stack([g_k.mean(0), g_1.mean(0)])
    theirs = {
        "pcgrad": torchjd.DualProj(torch.tensor([1.0, 0.0]).double())(matrix),
        "cagrad": torchjd.CAGrad(c=0.5)(matrix),
        "nash": torchjd.NashMTL(n_tasks=2)(matrix),
    }
    for name, expected in theirs.items():
        alpha, beta = RULES[name].bind({"cap": 1e9, "restore": 0.0})(
            weights, geometry(g_k, g_1), {}
        )
        ours = alpha[0] * matrix[0] + beta[0] * matrix[1]
        cosine = torch.nn.functional.cosine_similarity(ours, expected.to(ours), 0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-3), name
