"""Checks that each host reads the same files as rank 0; all ranks call them together."""

from eval.policy.policy import Policy
from trainers.config.schema import Config
from trainers.config.values import ConfigError, flatten
from trainers.engine.ranks import once_a_host, share
from trainers.job import Job


def check_inputs(config: Config, data: str) -> None:
    """Refuse a host whose configuration or digest of the data differs from rank 0."""
    here = flatten(config)
    there = share(here)
    for key in here | there:
        if here.get(key) != there.get(key):
            why = f"not what rank 0 has, {there.get(key)}; give each host the same configuration"
            raise ConfigError(f"{key} = {here.get(key)}: {why}")
    if share(data) != data:
        raise other_problems(config, "are not those of rank 0; give each host the same data")


def base_path(job: Job) -> str:
    """Return the base model's folder or hub id; a task's own base is made once on each host."""
    return once_a_host(job.base_path)


def check_weights(config: Config, base: Policy) -> None:
    """Refuse a host whose model differs from rank 0."""
    ends = {n: p.detach().flatten()[[0, -1]].tolist() for n, p in base.model.named_parameters()}
    if share(ends) != ends:
        why = "its weights are not those of rank 0; give each host the same files"
        raise ConfigError(f"model.path = {config.model.path}: {why}")


def other_problems(config: Config, why: str) -> ConfigError:
    key = "path" if config.task.path else "name"
    return ConfigError(f"task.{key} = {getattr(config.task, key)}: its problems {why}")
