"""The memory that DeepSpeed needs of a rank for a model's states, by ZeRO stage.

With P parameters, T of them trainable, b bytes a number in the model's dtype, N ranks:

                    ZeRO 0   1       2       3
    parameters      bP       bP      bP      bP/N, and those below DeepSpeed's threshold in full
    fp32 copy       –        4T/N    4T/N    4T/N
    Adam            8T       8T/N    8T/N    8T/N
    gradients       bT       4T      4T/N    4T/N

Under ZeRO gradients add up in float32. They are there at all times under ZeRO-3, and in bfloat16
under ZeRO-1; else only from the first backward of a step to its end. These figures are exact, up
to the padding of partitions. Buckets and the step's own copies are upper bounds. Host memory under
offload is by DeepSpeed's description.
"""

import math
from dataclasses import dataclass

Held = dict[str, int]  # bytes by what they are for


# DeepSpeed's defaults, in numbers: a bucket of gradients; what ZeRO-3 gathers at once, and what it
# never shards
BUCKET, GATHERED, THRESHOLD = 500_000_000, 1_000_000_000, 100_000


@dataclass(frozen=True)
class Sizes:
    """A model in numbers: parameters, shared ones once, and bytes."""

    parameters: int
    trainable: int
    chosen: int  # those that ghost measures
    small: int  # all those that ZeRO-3 keeps in full, because they are below its threshold
    element: int  # bytes of a number in the model's dtype
    width: int  # of its last hidden state


def states(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> tuple[Held, Held]:
    """The bytes that a rank holds at all times: (on the device, on the host)."""
    share = math.ceil(sizes.trainable / ranks)
    sharded = math.ceil(sizes.parameters / ranks)
    weights = {"parameters": sizes.element * sizes.parameters}
    optimizer = {"fp32 copy": 4 * share, "Adam": 8 * share}
    if stage == 0:
        return weights | {"Adam": 8 * sizes.trainable}, {}
    small = sizes.small if ranks > 1 else 0
    if stage == 3:
        weights = {"parameters": sizes.element * (sharded + small)}
    if stage == 3 or offload != "none":
        optimizer["gradients"] = 4 * share
    elif stage == 1 and sizes.element != 4:
        optimizer["gradients"] = 4 * sizes.trainable
    buckets = {"ZeRO's buckets": sizes.element * BUCKET} if stage == 3 else {}
    if offload == "none":
        return weights | optimizer | buckets, {}
    if offload == "all" and stage == 3:
        return {"parameters": sizes.element * small} | buckets, weights | optimizer
    return weights | buckets, optimizer


def backward(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> Held:
    """The bytes that gradients add while they accumulate and are reduced.

    At most a bucket, and a copy of one. ZeRO-2 offloads the sum of bfloat16 gradients only when it
    is complete.
    """
    share, casts = math.ceil(sizes.trainable / ranks), sizes.element != 4
    flush = sizes.element * min(sizes.trainable, BUCKET)
    if stage == 0:
        return {"gradients": sizes.element * sizes.trainable, "ZeRO's buckets": flush}
    if stage == 3:
        gathered = min(sizes.parameters - sizes.small, GATHERED)
        return {"gathered weights": sizes.element * gathered, "ZeRO's buckets": flush}
    if stage == 1:
        return _backward_1(sizes, share, offload)
    gradients = {"gradients": 4 * share} if offload == "none" or casts else {}
    return gradients | {"ZeRO's buckets": sizes.element * BUCKET + flush}


def _backward_1(sizes: Sizes, share: int, offload: str) -> Held:
    """`backward` under ZeRO-1, which holds all gradients until the last one and then reduces them.

    It reduces in float32. In bfloat16 the gradients of one backward come on top, and under offload
    this rank's part of the sum.
    """
    total, flush = 4 * sizes.trainable, 4 * min(sizes.trainable, BUCKET)
    if sizes.element == 4:
        return {"gradients": total, "ZeRO's buckets": 4 * BUCKET + flush}
    one = {"one backward's gradients": sizes.element * sizes.trainable}
    if offload == "none":
        return one | {"ZeRO's buckets": flush}
    return one | {"gradients": total + 4 * share, "ZeRO's buckets": 4 * BUCKET + flush}


def step(sizes: Sizes, stage: int, ranks: int, offload: str = "none") -> Held:
    """The bytes that the optimiser's step adds.

    They are the gradient of this rank's part in fp32, and AdamW's square root and quotient.
    """
    if stage == 0:
        return {"gradients": 4 * sizes.trainable, "the step's copies": 4 * sizes.trainable}
    if offload != "none":
        return {}
    gradient = 0 if stage == 1 and sizes.element != 4 else 4  # a view of what is always there
    return {"the step's copies": (8 + gradient) * math.ceil(sizes.trainable / ranks)}
