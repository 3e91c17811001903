"""The memory that a measurement needs of a rank."""

from trainers.engine.memory import Held, Sizes


def directions(sizes: Sizes, halves: int, adam: bool) -> dict[str, Held]:
    """The bytes that measuring by `ghost` holds, moment by moment, in `halves` of the batch.

    J_1 of each half in fp32, while one backward's gradients are added to the last; v in the
    model's dtype while it is probed, which of two halves begins beside the second J_1; J_k
    likewise, beside J_1; in the end the means of both as well. In Adam's metric its scale, of all
    that is trained, comes on top, and every direction in use is there scaled as well.
    """
    wide, own = 4 * sizes.chosen, sizes.element * sizes.chosen
    scale, cast = 4 * sizes.trainable * adam, own * (sizes.element != 4)

    def held(count: int) -> Held:
        return {"ghost's directions": count * wide + scale}

    v = {"v in the model's dtype": cast}
    gradients = {"one backward's gradients": own}
    early = halves == 2
    return {
        "J_1": held(halves + adam * early) | gradients | (v if early else {}),
        "probe": held(halves + adam) | v,
        "J_k": held(2 * halves) | gradients,
        "products": held(2 * halves + 2 + 3 * adam),
    }


def watched(sizes: Sizes) -> tuple[Held, Held]:
    """The bytes of a watched step: (its snapshot, the J_1 that it is compared with).

    The snapshot in float32 of all that is trained is made before the step. It becomes the
    difference, and stays until it is held against the next batch's J_1.
    """
    gradient = (4 + sizes.element) * sizes.trainable
    return {"watched step": 4 * sizes.trainable}, {"J_1 of the next batch": gradient}
