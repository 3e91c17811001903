"""The policy's weights on their way to the servers that draw for it."""

import fcntl
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.files import system_errors, usual_permissions
from eval.policy.policy import Policy
from eval.rollout.rollout import Servers
from eval.rollout.servers import reload
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine.adapter import merged_weights
from trainers.engine.ranks import Ranks
from trainers.job import servers_of

NAME = "synced-weights"  # how the folders begin that are written and removed in rollout.sync_dir
SHARD = "1GB"  # weights that are in the host's memory at once

NOTHING = object()  # the version that a server holds before the first call


class Sync:
    """The servers of a run, and the version of the weights that they hold."""

    def __init__(self, servers: Servers, folder: Path, ranks: Ranks | None):
        """Claim the folder on rank 0; without `ranks` this process is the only one."""
        self.servers, self.folder, self.ranks = servers, folder, ranks
        self.first = ranks is None or ranks.rank == 0
        self.version: object = NOTHING
        if self.first:
            weakref.finalize(self, os.close, _claimed(folder))

    def __call__(self, policy: Policy, version: object) -> None:
        """Give the weights to all servers, unless these hold this version; all ranks call it.

        Rank 0 writes and the servers read. No rank draws before the last server has the weights.
        """
        if version == self.version:
            return
        if self.first:
            with _written(policy, self.folder) as place:
                reload(self.servers, place)
        if self.ranks:
            self.ranks.barrier()
        self.version = version


def sync_of(config: Config, ranks: Ranks | None = None) -> Sync | None:
    """Return the sync of a configuration; None with a sampler that has no servers."""
    servers = servers_of(config)
    if servers is None:
        return None
    return Sync(servers, Path(str(config.rollout.sync_dir)).expanduser().resolve(), ranks)


def _claimed(folder: Path) -> int:
    """Make the folder, and return its lock, an open file: two runs would mix their weights."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise
        return lock
    except BlockingIOError:
        why = "another process sends weights by it; name another one, and servers of this run alone"
    except OSError as error:
        why = f"cannot be written ({error.strerror}); name another one"
    raise ConfigError(f"rollout.sync_dir = {folder}: {why}")


@contextmanager
def _written(policy: Policy, folder: Path) -> Iterator[Path]:
    """Yield a folder with the merged weights in the hub's format, and remove it afterwards.

    Its name is new each time, so that no host finds an earlier folder in its cache. It gets the
    name when it is complete.
    """
    for left in folder.glob(f"{NAME}-*"):  # left by a run that was killed
        shutil.rmtree(left)
    place = folder / f"{NAME}-{time.time_ns()}"
    part = place.with_suffix(".part")
    try:
        with system_errors(part):
            weights = merged_weights(policy.model)
            policy.model.save_pretrained(part, state_dict=weights, max_shard_size=SHARD)
        usual_permissions(part)
        yield part.rename(place)
    finally:
        for left in (part, place):
            shutil.rmtree(left, ignore_errors=True)
