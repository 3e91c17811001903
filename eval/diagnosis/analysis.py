"""The numbers of a diagnosis: products, cosines and sign changes, with intervals.

Intervals of products are BCa intervals over prompts, of each prompt's influence on the product
(`surgery.interference`). Intervals of functions of several products, such as cosines, are
percentiles over common resamples.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eval.records import Record
from eval.scores.intervals import LEVEL, RESAMPLES, Interval, bca
from eval.scores.passk import ladder
from surgery.interference import (
    EASY,
    EVERYTHING,
    HARD,
    MIDDLE,
    PASS_1,
    WIDEST,
    FeatureSums,
    Group,
    Level,
    Measured,
    cross,
    filtered,
    influence,
    measurable,
    members,
    most_negative,
    products,
    shells,
)
from surgery.objectives import pass_at_k_weight, prompt_weight
from surgery.theory import critical_k

FEW = 5  # fewer prompts with a gradient give no interval that can be relied on
NEGLIGIBLE = 1e-6  # a product with a smaller share of the largest possible one is not listed
PAIRS = [(delta_1, delta_2) for delta_1 in EASY for delta_2 in HARD]


def analyse(measures: Mapping[str, Measured], records: Sequence[Record], k: int) -> dict[str, Any]:
    """Return the contents of diagnosis.json except the settings.

    `measures` are "last_layer" and, if configured, "ghost"; the last one is decisive.
    """
    features = measures["last_layer"]
    assert isinstance(features, FeatureSums)
    kind = shells(features.counts, features.n)
    rate = features.counts.double() / features.n
    return {
        "k": k,
        "n": features.n,
        "prompts": len(records),
        "pass@1": float(rate.mean()),
        "easy": int((kind > MIDDLE).sum()),
        "hard": int((kind < MIDDLE).sum()),
        "no_gradient": len(records) - int(_mixed(features).sum()),
        "measures": {name: _measure(x, k) for name, x in measures.items()},
        "proxy": proxy(features, measures["ghost"]) if "ghost" in measures else None,
        "pairs": worst_pairs(features, records, k) if measurable(features, WIDEST) else [],
    }


def _measure(x: Measured, k: int) -> dict[str, Any]:
    rows = [_row(x, EVERYTHING, k, None), *(_row(x, filtered(*p), k, p) for p in PAIRS)]
    result: dict[str, Any] = {"groups": rows}
    if measurable(x, WIDEST):
        result["cosines"] = cosines(x, [("plugin", m) for m in ladder(k)], WIDEST)
        result["against_k"] = against_k(x, k)
    return result


def _mixed(x: Measured) -> Tensor:
    """Return [N] bool: whether a prompt has right and wrong answers, without which it has no g."""
    return (x.counts > 0) & (x.counts < x.n)


def too_few(x: Measured, group: Group) -> bool:
    """Return whether the group has too few prompts with a gradient for an interval."""
    return int((_mixed(x) & members(x, group)).sum()) < FEW


def _row(x: Measured, group: Group, k: int, pair: tuple[float, float] | None) -> dict[str, Any]:
    """Return one filter's row: <J_k, J_1> by both estimators, and the theory's quantities."""
    kind = shells(x.counts, x.n)[members(x, group)]
    row: dict[str, Any] = {
        "delta_1": pair[0] if pair else None,
        "delta_2": pair[1] if pair else None,
        "easy": int((kind > MIDDLE).sum()),
        "hard": int((kind < MIDDLE).sum()),
        "prompts": len(kind),
        "measured": measurable(x, group),
        "too_few": too_few(x, group),
    }
    if not row["measured"]:
        return row
    for name in ("plugin", "loo"):
        row[name] = interval(influence(x, (name, k), PASS_1, group))
    row["naive"] = x.naive(("plugin", k), PASS_1, group) if isinstance(x, FeatureSums) else None
    row["norm_1"] = interval(influence(x, PASS_1, PASS_1, group))
    both = cosines(x, [PASS_1, ("plugin", k)], group)
    row["cosine"] = {name: both[name][0][1] for name in ("value", "low", "high")}
    if pair:
        row |= _theory(x, group, k, pair, kind)
    return row


def _theory(
    x: Measured, group: Group, k: int, pair: tuple[float, float], kind: Tensor
) -> dict[str, Any]:
    """Return k* of the theory and the measured sign change, both by the plug-in."""
    agreement = cross(x, PASS_1, PASS_1, group)
    positive, negative = (float(part.clamp(min=0).mean()) for part in (agreement, -agreement))
    share = torch.full_like(agreement, 1 / len(agreement))
    easy = kind > MIDDLE
    outside = agreement.where(easy, -agreement) < 0  # easy and negative, or hard and positive
    size = float(agreement.abs().sum())
    return {
        "positive_mass": positive,
        "negative_mass": negative,
        "outside_share": float(agreement.abs() @ outside.double()) / size if size else None,
        "k_star": float(critical_k(agreement, share, *agreement.new_tensor(pair))),
        "sign_change": sign_change(*curve(x, group, k)),
    }


def interval(phi: Tensor) -> Interval:
    """Return the product whose influences are `phi`, with its interval.

    The mean of the influences is twice the product, so its interval is shifted by the product.
    """
    value, scale = float(phi.mean()) / 2, float(phi.std())
    if not scale > 0:
        return {"value": value, "low": None, "high": None}
    drawn = _draws(len(phi)) @ (phi / scale)
    scaled = bca(phi / scale, drawn_means=drawn).interval  # scaled, as bca rounds absolutely
    low, high = scaled["low"], scaled["high"]
    if low is None or high is None:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": low * scale - value, "high": high * scale - value}


@lru_cache(2)
def _draws(size: int) -> Tensor:
    """Return the share of each prompt in each resample [RESAMPLES, size]."""
    drawn = torch.randint(size, (RESAMPLES, size), generator=torch.Generator().manual_seed(0))
    shares = torch.zeros(RESAMPLES, size, dtype=torch.float64)
    return shares.scatter_add_(1, drawn, torch.full((1, 1), 1 / size).double().expand_as(drawn))


def resampled(phi: Tensor) -> Tensor:
    """Return products [RESAMPLES, ...] under resamples of the prompts, common to all columns."""
    columns = phi.reshape(len(phi), -1)
    means = _draws(len(phi)) @ columns
    return (means - columns.mean(0) / 2).view(-1, *phi.shape[1:])


def cosines(x: Measured, levels: Sequence[Level], group: Group) -> dict[str, Any]:
    """Return cos(J_a, J_b) of all levels, with percentile intervals.

    A cosine is None if a square is not positive, which an unbiased estimate allows.
    """
    phi = torch.stack(
        [torch.stack([influence(x, a, b, group) for b in levels], 1) for a in levels], 1
    )
    value, spread = _cosine(phi.mean(0) / 2), _cosine(resampled(phi))
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = spread.nanquantile(ends, dim=0)
    names = {"value": value, "low": low, "high": high}
    return {
        "k": [level[1] for level in levels],
        **{name: [[_or_none(c) for c in row] for row in x.tolist()] for name, x in names.items()},
    }


def _cosine(gram: Tensor) -> Tensor:
    squares = torch.diagonal(gram, dim1=-2, dim2=-1)
    norms = squares.where(squares > 0, torch.nan).sqrt()
    return (gram / (norms[..., :, None] * norms[..., None, :])).clamp(-1, 1)


def _or_none(x: float) -> float | None:
    return None if x != x else x


def curve(x: Measured, group: Group, k: int) -> tuple[list[float], list[float]]:
    """Return <J_m, J_1> by the plug-in for real m from 1 to k."""
    grid = torch.logspace(0, float(torch.tensor(float(k)).log2()), 121, base=2.0).double().tolist()
    return grid, products(x, [("plugin", m) for m in grid], PASS_1, group)


def against_k(x: Measured, k: int) -> dict[str, Any]:
    """Return <J_m, J_1> over the widest filter, by the plug-in as a curve, by both at some m.

    The change of sign is not known if all intervals contain 0, or if the estimate of <J_1, J_1>,
    which cannot be negative, is negative.
    """
    ks = ladder(k)
    grid, values = curve(x, WIDEST, k)
    plugin = [interval(influence(x, ("plugin", m), PASS_1, WIDEST)) for m in ks]
    known = values[0] >= 0 and not too_few(x, WIDEST) and any(map(_excludes_0, plugin))
    change: dict[str, Any] = {"known": known, "value": None, "low": None, "high": None}
    if known:
        change["value"] = sign_change(grid, values)
    for name in ("low", "high") if known else ():
        ends = [p[name] for p in plugin]  # type: ignore[literal-required]
        pairs = [(float(m), end) for m, end in zip(ks, ends, strict=True) if end is not None]
        change[name] = sign_change(*map(list, zip(*pairs, strict=True)))
    return {
        "k": ks,
        "plugin": plugin,
        "loo": products(x, [("loo", m) for m in ks], PASS_1, WIDEST),
        "loo_at_k": interval(influence(x, ("loo", k), PASS_1, WIDEST)),
        "grid": grid,
        "curve": values,
        "sign_change": change,
    }


def _excludes_0(x: Interval) -> bool:
    low, high = x["low"], x["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def sign_change(ks: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the smallest k with negative values, by linear interpolation; None if never."""
    if values[0] < 0:
        return ks[0]
    for (k_0, v_0), (k_1, v_1) in pairwise(zip(ks, values, strict=True)):
        if v_0 >= 0 > v_1:
            return k_0 + (k_1 - k_0) * v_0 / (v_0 - v_1)
    return None


def proxy(features: FeatureSums, ghost: Measured) -> list[dict[str, Any]]:
    """Return correlations of the last layer's agreements with the exact ones."""
    kind = shells(features.counts, features.n)
    a, b = (cross(x, PASS_1, PASS_1, EVERYTHING) for x in (features, ghost))
    known = (features.counts > 0) & (features.counts < features.n)
    parts = {"all": known, "easy": known & (kind > MIDDLE), "hard": known & (kind < MIDDLE)}
    return [
        {
            "prompts": name,
            "count": int(part.sum()),
            "pearson": _correlation(a[part], b[part]),
            "spearman": _correlation(_ranks(a[part]), _ranks(b[part])),
            "same_sign": float((a[part].sign() == b[part].sign()).double().mean()),
        }
        for name, part in parts.items()
        if int(part.sum()) > 2
    ]


def _correlation(a: Tensor, b: Tensor) -> float | None:
    return _or_none(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))


def _ranks(x: Tensor) -> Tensor:
    """Return ranks; equal values share their mean rank."""
    _, place, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def worst_pairs(
    features: FeatureSums, records: Sequence[Record], k: int, count: int = 10
) -> list[dict[str, Any]]:
    """Return the most negative <g_k,i, g_1,j>: the pass@k of i costs pass@1 of j (last layer).

    The worst pair comes first. A later pair must not repeat a text in the same role. Products near
    rounding are left out.
    """
    chosen = members(features, WIDEST).nonzero().squeeze(1)
    g_k, g_1 = (features.gradients(x)[chosen] for x in (("plugin", k), PASS_1))
    total = float((g_k.sum(0) @ g_1.sum(0)) - (g_k * g_1).sum())
    sizes = [float(x.norm(dim=1).max()) for x in (g_k, g_1)]
    least = NEGLIGIBLE * max(sizes) * sizes[1]
    pairs = list[dict[str, Any]]()
    met: tuple[set[Any], set[Any]] = (set(), set())
    for i, j, value in most_negative(g_k, g_1, 5 * count):
        texts = [_who(records[int(chosen[x])]) for x in (i, j)]
        names = [(x["prompt"], x["gold"]) for x in texts]
        repeated = any(x in y for x, y in zip(names, met, strict=True))
        if len(pairs) == count or -value < least or repeated:
            continue
        for name, seen in zip(names, met, strict=True):
            seen.add(name)
        cosine = float(g_1[i] @ g_1[j] / (g_1[i].norm() * g_1[j].norm()))
        share = value / total if total < 0 else None
        raised, lowered = texts
        pairs.append({"raised": raised, "lowered": lowered, "product": value})
        pairs[-1] |= {"cosine": cosine, "share": share}
    return pairs


def _who(record: Record) -> dict[str, Any]:
    names = ("id", "group", "prompt", "gold")
    known = {name: x for name, x in record.items() if name in names}
    return known | {"rate": record["c"] / record["n"]}


def per_prompt(
    measures: Mapping[str, Measured], records: Sequence[Record], k: int
) -> list[dict[str, Any]]:
    """Return one row per prompt: record, weights, and agreements over all prompts."""
    features = next(iter(measures.values()))
    weights = pass_at_k_weight(features.counts / features.n, k)
    unbiased = prompt_weight(features.n, features.counts, k)
    agreements = {name: cross(x, PASS_1, PASS_1, EVERYTHING) for name, x in measures.items()}
    return [
        {
            **{name: value for name, value in record.items() if name != "tokens"},
            "weight": float(weights[i]),
            "weight_unbiased": float(unbiased[i]),
            "agreement": {name: float(a[i]) for name, a in agreements.items()},
        }
        for i, record in enumerate(records)
    ]
