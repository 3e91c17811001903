"""The page Custom Scalars of TensorBoard, and the card that says how to read it."""

from collections.abc import Collection
from typing import NamedTuple

from trainers.config.schema import Config


class Chart(NamedTuple):
    page: str  # part of the page under which the chart stands
    title: str
    names: list[str]  # scalars that are drawn, each as a line
    meaning: str


RESULTS, INTERFERENCE = "1 Results", "2 Interference of pass@k with pass@1"
POLICY, TIME = "3 The policy", "4 Time"

OF_INTERFERENCE = [
    Chart(
        INTERFERENCE,
        "Cosine",
        ["surgery/cosine_smoothed", "surgery/cosine"],
        "of the gradients of pass@k and pass@1. Below 0 pass@k alone lowers pass@1. Rules read the"
        " smoothed one; a single batch is noisy.",
    ),
    Chart(
        INTERFERENCE,
        "Ratio",
        ["surgery/ratio_smoothed", "surgery/ratio"],
        "⟨J_k, J_1⟩ / ‖J_1‖²: how much pass@1 a step along pass@k gains or, below 0, loses,"
        " in steps along pass@1.",
    ),
    Chart(
        INTERFERENCE,
        "Share that disagrees",
        ["surgery/negative_weight_share", "surgery/negative_share"],
        "with the gradient of pass@1, of the weight and of the prompts. Interference is a weight"
        " share far above the share of prompts.",
    ),
]
OF_DECISION = Chart(
    INTERFERENCE,
    "Lambda",
    ["surgery/lambda"],
    "the weight of pass@1 beside pass@k that the rule chose; 0 is pass@k alone.",
)
OF_POLICY = [
    Chart(
        POLICY,
        "Entropy of a token",
        ["train/entropy"],
        "mean over the sampled tokens, in nats. At 0 the policy explores no more.",
    ),
    Chart(
        POLICY,
        "Length",
        ["train/length"],
        "mean tokens of an answer. See train/truncated_share where it nears the limit.",
    ),
    Chart(
        POLICY,
        "Prompts without a signal",
        ["train/no_signal_share", "train/unsolved_share"],
        "prompts whose gradient is 0, and those never solved in the batch.",
    ),
]
PARTS = ("step", "sample", "verify", "measure", "reference", "update", "evaluate")


def charts(config: Config, known: Collection[str]) -> list[Chart]:
    """Return the charts of a run; `known` are the scalars of the evaluation before training."""
    assert config.eval.k is not None
    largest = config.eval.k
    kinds = {
        "exact": (largest, "of all problems of the task, without sampling"),
        "eval": (largest, "of the problems of the evaluation, from sampled answers"),
        "train": (min(largest, config.train.samples), "of the batch, which is noisy"),
    }
    results = [
        Chart(
            RESULTS,
            f"pass@1 and pass@{k}, {kind}",
            list(dict.fromkeys((f"{kind}/pass@1", f"{kind}/pass@{k}"))),
            f"{text}. Interference is pass@{k} that rises while pass@1 falls.",
        )
        for kind, (k, text) in kinds.items()
        if kind == "train" or f"{kind}/pass@1" in known
    ]
    measured = OF_INTERFERENCE if config.surgery.measure != "none" else []
    with_base = config.logging.kl_every or config.train.kl_coef
    parts = [f"time/{x}" for x in PARTS if x != "reference" or with_base]
    total = "by part; `step` is all but the evaluation."
    seconds = Chart(TIME, "Seconds of a step", parts, total)
    return [*results, *measured, OF_DECISION, *OF_POLICY, seconds]


def layout(shown: list[Chart]) -> dict[str, dict[str, list[object]]]:
    """Return the charts as TensorBoard takes them, which reads names as regular expressions."""
    pages: dict[str, dict[str, list[object]]] = {}
    for chart in shown:
        lines: list[object] = ["Multiline", [f"{name}$" for name in chart.names]]
        pages.setdefault(chart.page, {})[chart.title] = lines
    return pages


def card(shown: list[Chart]) -> str:
    """Return the text that says how to read the charts, as markdown."""
    lines = ["Open the page **Custom Scalars**. Its charts, from the top:", ""]
    for page in dict.fromkeys(chart.page for chart in shown):
        lines += [f"**{page}**", ""]
        lines += [f"- *{x.title}*: {x.meaning}" for x in shown if x.page == page] + [""]
    lines.append("All other scalars are on the page Scalars. The page HParams compares runs.")
    return "\n".join(lines)
