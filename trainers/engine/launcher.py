"""Join the ranks that the launcher started, and end when the launcher ends."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch
from torch.distributed import distributed_c10d as collectives

from trainers.config.values import ConfigError, first_line
from trainers.engine import watch
from trainers.engine.ranks import share

PATIENCE = timedelta(days=1)  # how long a collective waits for a rank that is busy


def refuse(error: Exception) -> int:
    """Print the error once and return the exit code.

    The launcher ends the ranks of its host when one stops, so the rank that prints stops first.
    Ranks of other hosts learn of the error only after all ranks have joined.
    """
    if os.environ.get("LOCAL_SIZE") != os.environ.get("WORLD_SIZE"):
        with suppress(ConfigError):  # if the ranks cannot join, each host refuses by itself
            start_ranks(threads=1)
        return watch.leave(2, error)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(60)
    else:
        print(error, file=sys.stderr)
    return 2


def start_ranks(threads: int) -> None:
    """Join the ranks that the launcher started, or run as the only rank.

    Call it before all else that needs the ranks.
    """
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    else:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    if os.environ["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["MASTER_PORT"] = "0"  # any free port: no other rank looks for it
    local = int(os.environ.get("LOCAL_SIZE", "1"))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local))
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # DeepSpeed would compile a shared-memory collective and need a C++ compiler; gloo serves too
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():  # `share` uses the device even before there is an engine
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _join_ranks()
    atexit.register(_disconnect)  # runs after the watch's exit function: the last one runs first
    watch.start(torch.distributed.get_rank(), torch.distributed.get_world_size(), share)
    _extend_timeouts()


def _join_ranks() -> None:
    """Make the group of all ranks, within DeepSpeed's ten minutes: a rank may never come."""
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    except torch.distributed.DistError as error:
        if os.environ["RANK"] != "0":
            time.sleep(60)  # rank 0 reports it better, and the launcher ends the ranks of its host
        place, key = os.environ["MASTER_ADDR"], f"--master_port = {os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            why = f"is taken on {place}; give a free one, such as deepspeed --master_port 29600"
        else:
            why = f"the ranks did not meet on {place}: {first_line(error)}; give another port, "
            why += "and start all hosts"
        raise ConfigError(f"{key}: {why}") from None


def _extend_timeouts() -> None:
    """Let collectives wait for a day from now on: `watch` ends all ranks when one is lost.

    DeepSpeed makes groups of its own without a timeout, and these take torch's default: ten minutes
    for NCCL, thirty for gloo. The store's timeout applies to groups that connect on first use.
    """
    collectives.default_pg_timeout = collectives.default_pg_nccl_timeout = PATIENCE
    collectives._set_pg_timeout(PATIENCE)
    collectives._get_default_store().set_timeout(PATIENCE)


def _disconnect() -> None:
    """Close the connections between ranks that end in order.

    At the interpreter's own exit their threads may abort a process that has finished its work.
    """
    if torch.distributed.is_initialized() and not watch.failed():
        torch.distributed.destroy_process_group()
    gc.freeze()  # otherwise the interpreter searches all imported modules for garbage: a second


def _end_with_launcher() -> None:
    """End this rank when its launcher is gone: by SIGTERM, and 30 seconds later at once.

    The launcher would end it in the same way. Otherwise the rank would hold the run's folder for
    ever. The command `deepspeed` starts one launcher on each host, and does not end the launcher
    when the command itself is ended.
    """
    import psutil

    parent, launcher = os.getppid(), psutil.Process(os.getppid())
    command = launcher.parent()
    is_ours = command and "deepspeed" in map(os.path.basename, command.cmdline())
    above = command.pid if command and is_ours else None
    try:
        while os.getppid() == parent and above in (None, launcher.ppid()):
            time.sleep(1)
    finally:  # psutil raises when the launcher ends during the query
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(1)
