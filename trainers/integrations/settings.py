"""The sections `objective` and `surgery`, for trainers with a configuration of their own."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from surgery.rules import RULES
from trainers.config.checks import contradictions, mistakes_of_own_rule
from trainers.config.reading import set_key
from trainers.config.schema import Config
from trainers.config.values import ConfigError, misfit, shown

# these need the parameters' gradients, or the optimiser, of the trainer of this project
OWN = ("surgery.metric", "surgery.modules", "surgery.min_coverage", "surgery.realised_every")


def settings(
    objective: Mapping[str, Any],
    surgery: Mapping[str, Any],
    samples: int,
    prompts: int,
    name_of_samples: str = "samples",
) -> Config:
    """Return a configuration with the two sections, for batches of prompts times samples.

    The keys are those of launch/train.py. By default a rule that measures nothing costs no
    measurement. All mistakes are raised as one `ConfigError`, with a line for each; it calls the
    number of samples as the trainer's users do.
    """
    rule = surgery.get("rule", "none")
    measure = "none" if rule in RULES and not RULES[rule].needs else "last_layer"
    given = {f"objective.{name}": x for name, x in objective.items()}
    given |= {f"surgery.{name}": x for name, x in ({"measure": measure} | dict(surgery)).items()}
    node = OmegaConf.structured(Config)
    wrong = {key: _misfit(node, key, value) for key, value in given.items()}
    lines = [f"{key} = {shown(given[key])}: {why}" for key, why in wrong.items() if why]
    if lines:
        raise ConfigError("\n".join(lines))
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    config.train.samples, config.train.prompts = samples, prompts
    config.eval.k = config.diagnose.k = config.objective.k
    sections = "objective.", "surgery.", "train.samples", "train.prompts"
    lines = [x for x in contradictions(config) if x.startswith(sections)]
    lines = lines or [*mistakes_of_own_rule(config)]
    if lines:
        raise ConfigError("\n".join(lines).replace("train.samples", name_of_samples))
    return config


def _misfit(node: Any, key: str, value: Any) -> str | None:
    """Set a key; return the mistake in it, if there is one."""
    if key in OWN or (key, value) == ("surgery.measure", "ghost"):
        return "works in launch/train.py only; remove it"
    return set_key(node, key, value) or (None if key.count(".") > 1 else misfit(key, value))
