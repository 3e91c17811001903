"""The toy of arXiv 2602.21189, section 3: a contextual bandit, its policy of two parameters.

A prompt is psi = (1, s). The policy gives answer 1 with probability sigmoid(<theta, psi>), else
answer 0. The right answer is 0 on easy prompts and 1 on hard ones. With y = -1, +1 the success rate
is p = sigmoid(y <theta, psi>), and grad p = y p (1-p) psi. All values are exact, without sampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.geometry import Geometry, Products
from surgery.objectives import pass_at_k, pass_at_k_weight
from surgery.rules import State, find_rule

ETA = 5.0  # the paper's step in the two-prompt example
REFERENCE = (-2.0, -2.0)  # the paper's theta_ref


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
    """Return the bandit with these easy and hard prompts."""
    s = torch.cat([s_easy, s_hard]).double()
    hard = torch.arange(len(s)) >= len(s_easy)
    return Bandit(torch.stack([torch.ones_like(s), s], 1), hard)


def two_prompts() -> Bandit:
    """Return one easy prompt at s = -0.1 and one hard prompt at s = +0.1.

    The paper does not print the features. Under this policy its w_e and w_h fix them to within
    0.002.
    """
    return bandit(torch.tensor([-0.1]), torch.tensor([0.1]))


def population(delta: float, hard_share: float, prompts: int = 6000) -> Bandit:
    """Return easy s ~ N(-delta/2, 1) and hard s ~ N(+delta/2, 1), each at its quantiles."""
    count = round(prompts * hard_share)
    assert 0 < count < prompts, f"hard_share {hard_share} leaves one kind without prompts"
    return bandit(_normal(prompts - count) - delta / 2, _normal(count) + delta / 2)


def _normal(count: int) -> Tensor:
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)


def success(theta: Tensor, toy: Bandit) -> Tensor:
    """Return p [..., N] at theta [..., 2]."""
    assert theta.shape[-1] == 2, theta.shape
    return torch.sigmoid(toy.sign * (theta @ toy.features.T))


def gradients(p: Tensor, toy: Bandit) -> Tensor:
    """Return grad p = y p (1-p) psi [..., N, 2]."""
    return (toy.sign * p * (1 - p))[..., None] * toy.features


def objective(theta: Tensor, toy: Bandit, k: int) -> Tensor:
    """Return J_k [...] at theta [..., 2]."""
    return pass_at_k(success(theta, toy), k).mean(-1)


def slope(theta: Tensor, toy: Bandit, k: int) -> Tensor:
    """Return grad J_k [..., 2] at theta [..., 2]."""
    p = success(theta, toy)
    pull = toy.sign * p * (1 - p) * pass_at_k_weight(p, k)
    return pull @ toy.features / len(toy.hard)


def cosine_kernel(theta: Tensor, toy: Bandit) -> Tensor:
    """Return the cosines of the prompts' gradients [N, N], the kernel without the lengths."""
    g = torch.nn.functional.normalize(gradients(success(theta, toy), toy), dim=-1)
    return g @ g.T


def geometry(theta: Tensor, toy: Bandit, k: int) -> tuple[Tensor, Tensor, Geometry]:
    """Return the exact weights [N], gradients [N, 2] and the geometry for the rule."""
    p = success(theta, toy)
    g, weights = gradients(p, toy), pass_at_k_weight(p, k)
    g_1, g_k = g.mean(0), (weights[:, None] * g).mean(0)
    products = Products(float(g_k @ g_1), float(g_1 @ g_1), float(g_k @ g_k))
    return weights, g, Geometry(p, products, g @ g_1, pace=0.0)  # no noise to keep away from


def ascend(
    toy: Bandit, k: int, rule: str, start: Tensor, steps: int, eta: float, **settings: float
) -> Tensor:
    """Return theta [steps + 1, 2] of steps eta E[(alpha w_k + beta) grad p], alpha, beta by rule.

    The rules are those of training, with their own defaults. A^k is exact here, so it contributes
    w_k grad p to a prompt's gradient. k = 1 with `none` is plain pass@1.
    """
    decide, state = find_rule(rule).bind(settings), State()
    path = [start]
    for _ in range(steps):
        weights, g, geometry_now = geometry(path[-1], toy, k)
        alpha, beta = decide(weights, geometry_now, state)
        path.append(path[-1] + eta * ((alpha * weights + beta)[:, None] * g).mean(0))
    return torch.stack(path)


def frontier(toy: Bandit, k: int, points: int = 25) -> Tensor:
    """Return the Pareto frontier: theta [points, 2] that maximise (1-t) J_1 + t J_k.

    t goes from 1 to 0.05. The search for each point starts at the point before, the first one at
    theta = 0. t = 0 has no maximum: J_1 has its supremum at infinity, at a deterministic policy.
    """
    theta = torch.zeros(2, dtype=torch.float64)
    thetas = []
    for t in torch.linspace(1, 0.05, points).tolist():
        search = torch.optim.LBFGS(
            [theta], max_iter=50, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
        )

        def loss(t: float = t) -> float:
            theta.grad = -(1 - t) * slope(theta, toy, 1) - t * slope(theta, toy, k)
            return -float((1 - t) * objective(theta, toy, 1) + t * objective(theta, toy, k))

        search.step(loss)
        thetas.append(theta.clone())
    return torch.stack(thetas)


@dataclass(frozen=True)
class Figure:
    name: str
    printed: str  # as the paper prints it
    value: float

    @property
    def matches(self) -> bool:
        """True if our value rounds to the printed digits."""
        mantissa, _, exponent = self.printed.partition("e")
        digits = len(mantissa.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - digits)
        return abs(self.value - float(self.printed)) <= unit / 2 * (1 + 1e-9)


def printed_figures() -> list[Figure]:
    """Return our values beside the paper's for its two-prompt example (section 3; k = 10)."""
    toy, theta = two_prompts(), torch.tensor(REFERENCE, dtype=torch.float64)
    weights, g, geometry_now = geometry(theta, toy, 10)
    assert geometry_now.products is not None
    after = theta + ETA * slope(theta, toy, 10)
    values: dict[str, tuple[str, Tensor | float]] = {
        "w_easy": ("2.33e-7", weights[0]),
        "w_hard": ("3.88", weights[1]),
        "kappa(easy, hard)": ("-0.01", g[0] @ g[1]),
        "cos of the prompts' gradients": ("-0.98", cosine_kernel(theta, toy)[0, 1]),
        "cos(grad J_1, grad J_10)": ("-0.77", geometry_now.products.cosine),
        "J_1 at theta_ref": ("0.48", objective(theta, toy, 1)),
        "J_1 after one step": ("0.46", objective(after, toy, 1)),
        "J_10 at theta_ref": ("0.83", objective(theta, toy, 10)),
        "J_10 after one step": ("0.95", objective(after, toy, 10)),
    }
    return [Figure(name, text, float(x)) for name, (text, x) in values.items()]
