"""The toy of arXiv 2602.21189, section 3: a contextual bandit, its policy of two parameters.

A prompt is psi = (1, s). The policy gives answer 1 with probability sigmoid(<theta, psi>), else
answer 0. Right is 0 on easy prompts and 1 on hard ones, so with y = -1, +1 the success rate is
p = sigmoid(y <theta, psi>) and grad p = y p (1-p) psi: all is exact, nothing is sampled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.geometry import Geometry, Products
from surgery.objectives import pass_at_k, pass_at_k_weight
from surgery.rules import State, find_rule

ETA = 5.0  # the paper's step in the two-prompt example
REFERENCE = (-2.0, -2.0)  # and its theta_ref


@dataclass(frozen=True)
class Bandit:
    features: Tensor  # [N, 2] psi, float64
    hard: Tensor  # [N] bool

    @property
    def sign(self) -> Tensor:
        """y: +1 where answer 1 is right, -1 where answer 0 is."""
        return torch.where(self.hard, 1.0, -1.0).to(self.features)

    @property
    def score_bound(self) -> Tensor:
        """G: |grad log pi| = (1 - pi) |psi| <= max |psi|."""
        return self.features.norm(dim=1).max()

    @property
    def curvature_bound(self) -> Tensor:
        """F: |hess log pi| = pi (1 - pi) |psi|^2 <= max |psi|^2 / 4."""
        return self.score_bound**2 / 4


def bandit(s_easy: Tensor, s_hard: Tensor) -> Bandit:
    s = torch.cat([s_easy, s_hard]).double()
    hard = torch.arange(len(s)) >= len(s_easy)
    return Bandit(torch.stack([torch.ones_like(s), s], 1), hard)


def two_prompts() -> Bandit:
    """One easy prompt at s = -0.1 and one hard one at s = +0.1.

    The features are ours: under this policy the printed w_e and w_h fix them to within 0.002.
    """
    return bandit(torch.tensor([-0.1]), torch.tensor([0.1]))


def population(delta: float, hard_share: float, prompts: int = 6000) -> Bandit:
    """Easy s ~ N(-delta/2, 1), hard s ~ N(+delta/2, 1), each laid out at its quantiles."""
    count = round(prompts * hard_share)
    assert 0 < count < prompts, f"hard_share {hard_share} leaves one kind without prompts"
    return bandit(_normal(prompts - count) - delta / 2, _normal(count) + delta / 2)


def _normal(count: int) -> Tensor:
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def success(theta: Tensor, toy: Bandit) -> Tensor:
    """p [..., N] at theta [..., 2]."""
    assert theta.shape[-1] == 2, theta.shape
    return torch.sigmoid(toy.sign * (theta @ toy.features.T))


def gradients(p: Tensor, toy: Bandit) -> Tensor:
    """[..., N, 2] grad p = y p (1-p) psi."""
    return (toy.sign * p * (1 - p))[..., None] * toy.features


def objective(theta: Tensor, toy: Bandit, k: int) -> Tensor:
    """J_k [...] at theta [..., 2]."""
    return pass_at_k(success(theta, toy), k).mean(-1)


def slope(theta: Tensor, toy: Bandit, k: int) -> Tensor:
    """grad J_k [..., 2] at theta [..., 2]."""
    p = success(theta, toy)
    pull = toy.sign * p * (1 - p) * pass_at_k_weight(p, k)
    return pull @ toy.features / len(toy.hard)


def cosine_kernel(theta: Tensor, toy: Bandit) -> Tensor:
    """[N, N] cosines of the prompts' gradients: the kernel without the gradients' lengths."""
    g = torch.nn.functional.normalize(gradients(success(theta, toy), toy), dim=-1)
    return g @ g.T


def geometry(theta: Tensor, toy: Bandit, k: int) -> tuple[Tensor, Tensor, Geometry]:
    """Weights [N], gradients [N, 2] and what a rule is shown, all exact."""
    p = success(theta, toy)
    g, weights = gradients(p, toy), pass_at_k_weight(p, k)
    g_1, g_k = g.mean(0), (weights[:, None] * g).mean(0)
    products = Products(float(g_k @ g_1), float(g_1 @ g_1), float(g_k @ g_k))
    return weights, g, Geometry(p, products, g @ g_1)


def ascend(
    toy: Bandit, k: int, rule: str, start: Tensor, steps: int, eta: float, **settings: float
) -> Tensor:
    """theta [steps + 1, 2] under theta + eta E[(alpha w_k + beta) grad p], alpha, beta the rule's.

    The rules are those of training, with their own defaults; A^k is exact here, so its share of a
    prompt's gradient is w_k grad p. k = 1 with `none` is plain pass@1.
    """
    decide, state = find_rule(rule).bind(settings), State()
    path = [start]
    for _ in range(steps):
        weights, g, seen = geometry(path[-1], toy, k)
        alpha, beta = decide(weights, seen, state)
        path.append(path[-1] + eta * ((alpha * weights + beta)[:, None] * g).mean(0))
    return torch.stack(path)


def frontier(toy: Bandit, k: int, points: int = 25) -> Tensor:
    """theta [points, 2] that maximise (1-t) J_1 + t J_k, t from 1 to 0.05: the Pareto frontier.

    Each point starts where the one before ended, the first at theta = 0. At t = 0 there is none:
    J_1 has its supremum at infinity, at a policy without chance.
    """
    theta = torch.zeros(2, dtype=torch.float64)
    found = []
    for t in torch.linspace(1, 0.05, points).tolist():
        search = torch.optim.LBFGS(
            [theta], max_iter=50, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
        )

        def loss(t: float = t) -> float:
            theta.grad = -(1 - t) * slope(theta, toy, 1) - t * slope(theta, toy, k)
            return -float((1 - t) * objective(theta, toy, 1) + t * objective(theta, toy, k))

        search.step(loss)
        found.append(theta.clone())
    return torch.stack(found)


@dataclass(frozen=True)
class Figure:
    name: str
    printed: str  # as the paper prints it
    value: float

    @property
    def matches(self) -> bool:
        """Ours rounds to the printed digits."""
        mantissa, _, exponent = self.printed.partition("e")
        digits = len(mantissa.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - digits)
        return abs(self.value - float(self.printed)) <= unit / 2 * (1 + 1e-9)


def printed_figures() -> list[Figure]:
    """Every figure of the two-prompt example, ours beside the paper's (its section 3; k = 10)."""
    toy, theta = two_prompts(), torch.tensor(REFERENCE, dtype=torch.float64)
    weights, g, seen = geometry(theta, toy, 10)
    assert seen.products is not None
    after = theta + ETA * slope(theta, toy, 10)
    values: dict[str, tuple[str, Tensor | float]] = {
        "w_easy": ("2.33e-7", weights[0]),
        "w_hard": ("3.88", weights[1]),
        "kappa(easy, hard)": ("-0.01", g[0] @ g[1]),
        "cos of the prompts' gradients": ("-0.98", cosine_kernel(theta, toy)[0, 1]),
        "cos(grad J_1, grad J_10)": ("-0.77", seen.products.cosine),
        "J_1 at theta_ref": ("0.48", objective(theta, toy, 1)),
        "J_1 after one step": ("0.46", objective(after, toy, 1)),
        "J_10 at theta_ref": ("0.83", objective(theta, toy, 10)),
        "J_10 after one step": ("0.95", objective(after, toy, 10)),
    }
    return [Figure(name, text, float(x)) for name, (text, x) in values.items()]
