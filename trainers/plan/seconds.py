"""The seconds of a step's phases on a device, by arithmetic: nothing is measured here.

A phase takes the longer of two times: that of its floating-point operations and that of the bytes
that it moves, each at the share of the data sheet's figure that is assumed to be reached. The
host's launches come on top. P weights cost 2 P operations for each token and pass:

                              forwards   backwards   products with weights
    log-probabilities         1
    a gradient                1          1           1, over what is trained
    a probe of ghost          1          1           1, the tangents of what is measured
    a gradient with a probe   1          1           2

A backward is that of activations alone. So a trained token costs 6 P, a forward alone 2 P, a probe
6 P; with gradient checkpointing each backward makes the forward again, which adds at most 2 P.
Attention costs 4 x layers x width x columns for a token's forward, and twice that for its backward.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eval.report.tables import table
from trainers.config.schema import Config

GB = 10**9


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: bytes, bytes a second, dense operations a second."""

    name: str
    memory: int
    bandwidth: float
    bfloat16: float
    float32: float  # without TF32, which torch leaves off


# The data sheets give figures of tensor cores with sparsity: dense ones are half of them.
DEVICES = {
    # "NVIDIA H100 Tensor Core GPU Datasheet", H100 SXM
    "h100": Device("NVIDIA H100 SXM", 80 * GB, 3.35e12, 989.5e12, 67e12),
    # "NVIDIA H200 Tensor Core GPU Datasheet", H200 SXM
    "h200": Device("NVIDIA H200 SXM", 141 * GB, 4.8e12, 989.5e12, 67e12),
    # "NVIDIA A100 Tensor Core GPU Datasheet", A100 80GB SXM
    "a100-80": Device("NVIDIA A100 80GB SXM", 80 * GB, 2.039e12, 312e12, 19.5e12),
    # "NVIDIA L4 Tensor Core GPU Datasheet"
    "l4": Device("NVIDIA L4", 24 * GB, 0.3e12, 121e12, 30.3e12),
    # "NVIDIA Ada GPU Architecture" (white paper), appendix A, sums in float32
    "4090": Device("NVIDIA GeForce RTX 4090", 24 * GB, 1.008e12, 165.2e12, 82.6e12),
}


@dataclass(frozen=True)
class Assumptions:
    """Figures that no data sheet holds; `.ci/gpu` shows the share of operations and launches."""

    utilisation: float = 0.4  # the share of the operations a second (MFU)
    bandwidth: float = 0.8  # the share of the bytes a second
    eager: float = 0.85e-3  # seconds for a layer of a forward, launched kernel by kernel
    graph: float = 0.08e-3  # seconds for a layer of a forward, launched as one CUDA graph
    logit: int = 60  # bytes that are moved for each logit when a token is drawn
    sorted_logit: int = 700  # the same below top_p = 1
    step: int = 48  # bytes that AdamW, the clip and the cast move for each trained weight


@dataclass(frozen=True)
class Machine:
    """A device, the type that it computes in, and what is assumed of it."""

    device: Device
    dtype: str
    assumed: Assumptions = Assumptions()

    @property
    def operations(self) -> float:
        """Dense operations a second, by the data sheet."""
        return float(getattr(self.device, self.dtype))

    def seconds(self, operations: float, moved: float) -> float:
        """Return the longer of the two times."""
        computing = operations / (self.assumed.utilisation * self.operations)
        return max(computing, moved / (self.assumed.bandwidth * self.device.bandwidth))


@dataclass(frozen=True)
class Model:
    """A model in numbers, as tokens cost them."""

    body: int  # weights that each token meets, without the head; an embedding is only looked up
    head: int
    trained: int
    measured: int  # by ghost
    layers: int
    width: int  # of the queries of all heads
    cache: int  # bytes of a token's keys and values
    vocabulary: int
    element: int  # bytes of a number

    @property
    def weights(self) -> int:
        return self.body + self.head

    def share(self, count: int) -> float:
        """Return the share of the weights that so many parameters are, at most 1."""
        return min(1.0, count / self.weights)

    def forward(self, read: float, scored: float, columns: float) -> tuple[float, float]:
        """Return the operations of tokens that are read: (with weights, of attention).

        `scored` of them go through the head. Each token reads all columns of its
        row, padded ones and later ones too.
        """
        weights = 2 * (self.body * read + self.head * scored)
        return weights, 4 * self.layers * self.width * columns * read


@dataclass(frozen=True)
class Work:
    """The answers of one rank, all at their full length, and how many rows it handles at a time."""

    prompts: int
    n: int
    prompt: int  # tokens of a prompt
    length: int  # tokens of an answer
    rows: int
    top_p: float = 1.0

    @property
    def count(self) -> int:
        return self.prompts * self.n

    @property
    def batches(self) -> int:
        return math.ceil(self.count / self.rows)


@dataclass(frozen=True)
class Passes:
    """The passes of each row through the model, counted as in the table above."""

    forwards: float = 1
    backwards: float = 0
    products: float = 0  # in units of all weights

    @property
    def total(self) -> float:
        return self.forwards + self.backwards + self.products

    def __rmul__(self, times: float) -> "Passes":
        return Passes(times * self.forwards, times * self.backwards, times * self.products)

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.products + other.products,
        )


def sampling(machine: Machine, model: Model, work: Work, eager: int, features: float = 0) -> float:
    """Return the seconds to draw all answers in batches of rows, none of which ends early.

    The mean token reads a prompt and half an answer. Of the forwards of a batch, one for the
    prompts and one a token, `eager` are launched kernel by kernel and the others as a graph.
    `features` is the share of the draws that take them, by one more product with the head.
    """
    assumed, rows = machine.assumed, work.count / work.batches
    weights = model.element * model.weights
    read = sum(model.forward(work.prompts * work.prompt, work.prompts, work.prompt))
    columns = work.prompt + work.length / 2
    drawn = sum(model.forward(rows, rows * (1 + features), columns))
    number = assumed.logit if work.top_p == 1 else assumed.sorted_logit
    moved = weights + features * model.element * model.head
    moved += rows * (columns * model.cache + number * model.vocabulary)
    launches = eager * assumed.eager + (work.length + 1 - eager) * assumed.graph
    batch = work.length * machine.seconds(drawn, moved) + model.layers * launches
    return machine.seconds(read, work.batches * weights) + work.batches * batch


def operations(model: Model, work: Work, passes: Passes) -> float:
    """Return the operations in which all answers pass through the model, with their prompts."""
    columns = work.prompt + work.length
    weights, attention = model.forward(work.count * columns, work.count * work.length, columns)
    return passes.total * weights + (passes.forwards + 2 * passes.backwards) * attention


def passing(machine: Machine, model: Model, work: Work, passes: Passes) -> float:
    """Return the seconds of the same: the weights move once for each pass and batch."""
    moved = work.batches * passes.total * model.element * model.weights
    launches = work.batches * (passes.forwards + passes.backwards) * model.layers
    computing = machine.seconds(operations(model, work, passes), moved)
    return computing + launches * machine.assumed.eager


def gradient(model: Model, config: Config, count: int) -> Passes:
    """Return the passes of a gradient of `count` parameters; a probe takes as many."""
    return Passes(1 + config.model.gradient_checkpointing, 1, model.share(count))


def ghost(model: Model, config: Config, watched: float) -> Passes:
    """Return the passes of a measurement; a share `watched` of all measures |J_k| too.

    By halves, one half is probed on the way of its own gradient, which adds the tangents alone.
    """
    one = gradient(model, config, model.measured)
    if config.surgery.statistic == "naive":
        both = 2 * one
    else:
        both = 1.5 * one + Passes(0, 0, one.products / 2)
    return both + watched * one


def stepping(machine: Machine, model: Model, config: Config, ranks: int) -> float:
    """Return the seconds of the clip and of AdamW over this rank's part of the optimiser."""
    part = model.trained / (ranks if config.train.zero_stage else 1)
    return machine.seconds(0, machine.assumed.step * part)


def report(title: str, phases: Mapping[str, float], beside: Mapping[str, float]) -> str:
    """Return a table of seconds: phases with their shares, their sum, and more `beside` it."""
    total = sum(phases.values())
    rows = [[name, _digits(x), f"{100 * x / total:.0f} %"] for name, x in phases.items()]
    rows.append(["in all", _digits(total), ""])
    rows += [[name, _digits(x), ""] for name, x in beside.items()]
    return table([title, "seconds", "share"], rows)


def _digits(x: float) -> str:
    return f"{x:.3g}" if x < 100 else f"{x:.0f}"


def assumptions(machine: Machine, model: Model) -> list[str]:
    """Return the lines that say what the figures rest on, whatever the work."""
    device, assumed = machine.device, machine.assumed
    reached = f"{100 * assumed.bandwidth:.0f} % of {device.bandwidth / 1e12:.3g} TB/s"
    computed = f"{100 * assumed.utilisation:.0f} % (MFU) of {machine.operations / 1e12:.4g} TFLOP/s"
    eager, graph = (1000 * x * model.layers for x in (assumed.eager, assumed.graph))
    return [
        f"- {device.name}: it has {device.memory / GB:.0f} GB, and reaches {reached} and "
        f"{computed}, dense, in {machine.dtype}.",
        f"- The launches of a forward take {eager:.1f} ms ({1000 * assumed.eager:.2f} a layer), "
        f"as one CUDA graph {graph:.1f} ms ({1000 * assumed.graph:.2f} a layer).",
        f"- A token is drawn with {assumed.logit} bytes moved for each logit "
        f"({assumed.sorted_logit} below top_p = 1), a weight is stepped with {assumed.step}.",
        "- A weight costs 2 operations for each token of a forward, 6 for each trained one and for "
        "each probe of ghost, and 2 more in both under gradient checkpointing.",
        "- All answers have the full length, differ from each other, and carry weight.",
        "- Left out: verdicts, traffic between ranks and with the host, checkpoints, start-up.",
    ]
