"""Load a configuration: YAML with `extends:` and key=value overrides.

All mistakes are raised as one `ConfigError`, with a line for each that names key, value and remedy.
Nothing here loads a model.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.files import leaves, replace_text
from trainers.config.reading import RETIRED, overridden, read, set_key
from trainers.config.schema import Config
from trainers.config.values import DEFAULTS, KEYS, OPTIONS, ConfigError, flatten, misfit, shown


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file and its overrides, complete and checked."""
    node = OmegaConf.structured(Config)
    mistakes = []
    given = [*leaves(read(Path(path))), *overridden(overrides)]
    for key, value in given:
        mistake = set_key(node, key, value)
        if mistake:
            mistakes.append(f"{key} = {shown(value)}: {mistake}")
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        key = str(error.full_key).partition("[")[0]
        why = str(error).partition("\n")[0]
        mistakes.append(f"{key} = {shown(dict(given).get(key))}: {why}; correct the interpolation")
        raise ConfigError("\n".join(mistakes)) from None
    assert isinstance(config, Config)
    if config.run.dir is None:
        config.run.dir = f"runs/{run_name(Path(path))}/seed{config.seed}"
    config.run.dir = os.path.expanduser(config.run.dir)  # instead of a folder with the name ~
    if config.eval.k is None:
        config.eval.k = config.objective.k
    if config.diagnose.k is None:
        config.diagnose.k = config.diagnose.samples

    from trainers.config.checks import contradictions, mistakes_of_own_rule

    flat = flatten(config)
    misfits = {key: misfit(key, flat[key]) for key in KEYS if key not in OPTIONS}
    outside = [f"{key} = {shown(flat[key])}: {why}" for key, why in misfits.items() if why]
    named = {line.partition(" = ")[0] for line in outside}  # one line for each of these keys
    mistakes += outside
    mistakes += [line for line in contradictions(config) if line.partition(" = ")[0] not in named]
    mistakes = mistakes or [*mistakes_of_own_rule(config)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def is_root(path: Path) -> bool:
    """Return whether other files extend this one: base.yaml, or x.yaml beside a folder x/."""
    return path.stem == "base" or path.with_suffix("").is_dir()


def run_name(path: Path) -> str:
    """Return the file's name, or x/variant for x/variant.yaml beside x.yaml."""
    folder = path.resolve().parent
    of_root = folder.with_name(f"{folder.name}.yaml").is_file()
    return f"{folder.name}/{path.stem}" if of_root else path.stem


def save_config(config: Config, path: Path) -> None:
    replace_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


MAY_CHANGE = (  # in a run that is resumed
    *("train.steps", "run.", "logging.", "diagnose."),
    *("rollout.urls", "rollout.sync_dir", "rollout.timeout", "rollout.mismatch"),
)


OF_BASE = (  # all that the evaluation before training depends on
    *("model.", "task.", "train.max_new_tokens", "train.rollouts", "eval.problems"),
    *("eval.samples", "eval.temperature", "eval.top_p", "eval.seed", "eval.max_new_tokens"),
)


def differences(config: Config, path: Path, among: Sequence[str] = ("",)) -> list[str]:
    """Return a line for each key that starts with one of `among` and differs from the saved one.

    A key that is newer than the folder has its default there.
    """
    saved = DEFAULTS | dict(leaves(read(path)))
    now = flatten(config)
    return [
        f"{key} = {shown(now.get(key))} (was {shown(saved.get(key))})"
        for key in now | saved
        if saved.get(key) != now.get(key)
        and not key.startswith((*MAY_CHANGE, *RETIRED))
        and key.startswith(tuple(among))
    ]


def check_ranks(config: Config, ranks: int) -> None:
    """Refuse fewer prompts or problems than ranks: each rank needs one of its own."""
    for key in ("train.prompts", "eval.problems"):
        value = flatten(config)[key]
        if value < ranks:
            raise ConfigError(
                f"{key} = {value}: fewer than the {ranks} ranks; raise it or use fewer"
            )
