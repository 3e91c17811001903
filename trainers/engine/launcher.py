"""Join the ranks that the launcher started, and end with it."""

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
    """Say what is wrong, once; the exit code. The launcher ends the ranks of its host when one
    stops, so the one that speaks goes first; those of other hosts must be met to be told.
    """
    if os.environ.get("LOCAL_SIZE") != os.environ.get("WORLD_SIZE"):
        with suppress(ConfigError):  # where they cannot meet, each host refuses by itself
            start_ranks(threads=1)
        return watch.leave(2, error)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(60)
    else:
        print(error, file=sys.stderr)
    return 2


def start_ranks(threads: int) -> None:
    """Join the ranks that the launcher started, or be the only one. Call it before anything else of
    this module.
    """
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    else:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    if os.environ["WORLD_SIZE"] == "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["MASTER_PORT"] = "0"  # any that is free: no other rank looks for it
    local = int(os.environ.get("LOCAL_SIZE", "1"))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local))
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    # DeepSpeed would compile a shared-memory collective and need a C++ compiler; gloo serves too
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():  # what is shared before there is an engine goes over the device
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _meet()
    atexit.register(_part)  # after what the watch registers: the last comes first
    watch.start(torch.distributed.get_rank(), torch.distributed.get_world_size(), share)
    _be_patient()


def _meet() -> None:
    """Make the group of all ranks, within DeepSpeed's ten minutes: a rank may never come."""
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        deepspeed.init_distributed(dist_backend=backend, verbose=False)
    except torch.distributed.DistError as error:
        if os.environ["RANK"] != "0":
            time.sleep(60)  # rank 0 says it better, and the launcher ends the others of its host
        place, key = os.environ["MASTER_ADDR"], f"--master_port = {os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            why = f"is taken on {place}; give a free one, such as deepspeed --master_port 29600"
        else:
            why = f"the ranks did not meet on {place}: {first_line(error)}; give another port, "
            why += "and start all hosts"
        raise ConfigError(f"{key}: {why}") from None


def _be_patient() -> None:
    """Let collectives wait for a day, from now on: `watch` ends all ranks when one is lost.

    DeepSpeed makes groups of its own without a limit, which take torch's default: ten minutes for
    NCCL, thirty for gloo. The store serves those that meet when they are first used.
    """
    collectives.default_pg_timeout = collectives.default_pg_nccl_timeout = PATIENCE
    collectives._set_pg_timeout(PATIENCE)
    collectives._get_default_store().set_timeout(PATIENCE)


def _part() -> None:
    """Close the connections between ranks that end in order: left to the interpreter's end, their
    threads may abort a process that has done all it should.
    """
    if torch.distributed.is_initialized() and not watch.failed():
        torch.distributed.destroy_process_group()
    gc.freeze()  # or the interpreter would search all that was imported for garbage: a second


def _end_with_launcher() -> None:
    """A rank whose launcher is gone would hold the run's folder for ever. It ends as the launcher
    would end it: asked, and 30 seconds later at once.

    The command `deepspeed` starts one launcher on each host, and does not end it when it is ended.
    """
    import psutil

    parent, launcher = os.getppid(), psutil.Process(os.getppid())
    command = launcher.parent()
    is_ours = command and "deepspeed" in map(os.path.basename, command.cmdline())
    above = command.pid if command and is_ours else None
    try:
        while os.getppid() == parent and above in (None, launcher.ppid()):
            time.sleep(1)
    finally:  # the launcher may be gone while it is asked
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(1)
