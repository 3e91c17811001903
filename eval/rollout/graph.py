"""One token of all rows as a CUDA graph."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Step = Callable[[], None]

_refused: set[str] = set()  # models of which this process has said that they cannot be captured


def captured(step: Step, name: str) -> Step | None:
    """Run a step, then capture it and return its replay; say once where a model allows none.

    A forward of few rows takes the host longer than the device: it launches hundreds of kernels.
    A replay launches all of them at once. Every tensor that the step reads or writes must stay
    where it is. The first run shows whether the host waits for the device within the step: no graph
    can hold that, and a capture that fails may leave torch's allocator in disorder.
    """
    ran = False
    if name not in _refused:
        try:
            with _no_waiting():
                step()
            ran = True
            return _capture(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _refuse(name, error)
    if not ran:  # one that ended early is begun again: it changes nothing before its last lines
        step()
    return None


def _capture(step: Step) -> Step:
    """Capture a step on a stream of its own, which ends with the capture however that ends."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # another thread, such as NCCL's watchdog, may use the device meanwhile
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Let torch raise where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _refuse(name: str, error: BaseException) -> None:
    _refused.add(name)
    why = str(error.__context__ or error).strip().splitlines()[0]
    print(
        f"train.cuda_graph = true: {name} cannot be captured ({why}); its tokens are drawn without "
        "a graph, which is slower",
        file=sys.stderr,
    )
