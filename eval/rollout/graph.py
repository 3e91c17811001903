"""One token of all rows as a CUDA graph."""

import sys
from collections.abc import Callable

import torch

_refused: set[str] = set()  # models of which this process has said that they cannot be captured


def captured(step: Callable[[], None], name: str) -> Callable[[], None]:
    """Capture a step and return its replay; where that fails, say so once and return the step.

    A forward of few rows takes the host longer than the device: it launches hundreds of kernels.
    A replay launches all of them at once. Capturing runs nothing, so the step must have run before,
    and every tensor that it reads or writes must stay where it is. Another thread, such as NCCL's
    watchdog, may use the device meanwhile.
    """
    if name in _refused:
        return step
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _refused.add(name)
        why = str(error).strip().splitlines()[0]
        print(
            f"train.cuda_graph = true: {name} cannot be captured ({why}); its tokens are drawn "
            "without a graph, which is slower",
            file=sys.stderr,
        )
        return step
    return graph.replay
