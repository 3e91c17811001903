"""The gap between pass@1 and its floor, for rules that hold pass@1 near that of the base."""

from torch import Tensor

from surgery.geometry import Geometry


def change_to_base(rate: Tensor, base: Tensor, importance: Tensor | None = None) -> float:
    """Return mean_i v_i (rate_i - base_i), the change of pass@1 since the base.

    `rate` [N] are the shares of correct answers, `base` [N] the base's success rates on the same
    prompts or in their strata, v the importance of each prompt (1 if None). The mean of v_i base_i
    over all prompts is the base's pass@1, whatever the strata, so the estimate is unbiased. The
    prompts that the batch happens to hold cancel: this noise is most of that of the mean rate.
    """
    apart = rate.double() - base.double()
    return float((apart if importance is None else apart * importance).mean())


def gap_to_base(
    geometry: Geometry,
    state: dict[str, float],
    tolerance: float,
    rate_ema: float,
    lead: float = 0.0,
) -> float:
    """Return - tolerance - the average change of pass@1 since the base, `lead` steps on.

    The change is `geometry.change`. Without it, it is the mean rate of the batch less
    ``state["base_pass@1"]``, or less the mean rate of the first batch. The average is a moving one
    and starts at 0, so that the noise of the first batch is no gap. It is extrapolated by its last
    change for `lead` steps.
    """
    now = geometry.change
    if now is None:
        rate = float(geometry.rate.mean())
        now = rate - state.setdefault("base_pass@1", rate)
    before = state.get("average_change", 0.0)
    average = rate_ema * before + (1 - rate_ema) * now
    state["average_change"] = average
    return -tolerance - (average + lead * (average - before))
