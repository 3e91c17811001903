"""The evaluations of launch/score.py: a model, mixtures of two, or generations made elsewhere."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, cuda

from eval.policy.policy import Policy, check_template, interpolate, load_policy
from eval.policy.streams import derive_seed
from eval.records import Record
from eval.scores.evaluate import Draws, evaluate
from eval.scores.folder import (
    ScoreFolder,
    Scoring,
    check_sweep,
    fingerprint,
    recorded,
    run,
)
from eval.scores.responses import (
    judged_gold,
    parse_fields,
    read_responses,
    score_responses,
)
from eval.scores.summary import summarise, warn_if_one_sided
from eval.tasks.task import digest
from eval.verify.verifier import Verifier
from surgery.user_code import Unloadable, load_function
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine.sync import NOTHING, sync_of
from trainers.job import Job

CHUNK = 32  # problems between two writes


@dataclass(frozen=True)
class Arguments:
    """The options of launch/score.py; an option that is not given is empty."""

    model: str | None
    toward: str
    by: Sequence[float]
    temperatures: Sequence[float]
    config: str
    responses: Path | None
    fields: Sequence[str]
    answer_after: str | None
    verifier: str | None
    base: Path | None
    k: int | None
    out: Path | None
    overrides: Sequence[str]


def numbers(name: str, texts: Sequence[str]) -> list[float]:
    """Return the values of the option --by or --temperatures, each once."""
    return list(dict.fromkeys(_number(name, text) for text in texts))


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (name == "temperatures" and number < 0):
        raise ConfigError(f"--{name} = {text}: must be a number" + " from 0 on" * (name != "by"))
    return number


def score(arguments: Arguments) -> list[dict[str, Any]]:
    """Return a summary of each evaluation that the arguments ask for."""
    base = recorded(arguments.base, "--base") if arguments.base else None
    _check_mode(arguments)
    scorings = (
        _of_file(arguments, arguments.responses) if arguments.responses else _of_model(arguments)
    )
    outs: list[Path | None] = [arguments.out] * len(scorings)
    if arguments.out and len(scorings) > 1:
        check_sweep(arguments.out)
        outs = [arguments.out / x.label.replace(" ", "_").replace(",", "") for x in scorings]
    summaries = []
    with ExitStack() as claimed:
        folders = [
            claimed.enter_context(ScoreFolder(out, x.settings)) if out else None
            for out, x in zip(outs, scorings, strict=True)
        ]
        for scoring, folder in zip(scorings, folders, strict=True):
            records = run(scoring, folder)
            warn_if_one_sided(records, _answers(arguments.responses, folder))
            n = min(r["n"] for r in records)
            if arguments.responses:
                _check_k(arguments.k, n)
            if base is not None and not any(r["id"] in base for r in records):
                raise ConfigError(f"--base = {arguments.base}: has none of these problems' ids")
            summary = summarise(records, min(arguments.k or n, n), base)
            summaries.append(summary | {"label": scoring.label, "settings": scoring.settings})
            if folder:
                folder.finish(summaries[-1])
    return summaries


def _answers(responses: Path | None, folder: ScoreFolder | None) -> str:
    """Return where the answers of an evaluation are, in words."""
    place = folder.path / "problems.jsonl" if folder else responses
    return f"in {place}" if place else "(--out DIR keeps them)"


def _check_mode(arguments: Arguments) -> None:
    """Refuse options of both kinds of evaluation, or of neither."""
    if bool(arguments.responses) == bool(arguments.config):
        raise ConfigError("give either --responses, or --config with or without --model")
    of_file, of_model = "fields answer_after verifier", "model toward by temperatures overrides"
    names, other = of_file, "--responses; with --config set task.verifier"
    if arguments.responses:
        names, other = of_model, "--config"
    for name in names.split():
        if getattr(arguments, name):
            option = "key=value" if name == "overrides" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} = {getattr(arguments, name)}: goes with {other}")


def _check_k(k: int | None, n: int) -> None:
    if k is not None and not 1 <= k <= n:
        remedy = "pass@k needs k answers to each problem"
        raise ConfigError(f"--k = {k}: must be from 1 to n = {n}; {remedy}")


def _of_file(arguments: Arguments, path: Path) -> list[Scoring]:
    if not path.is_file():
        raise ConfigError(f"--responses = {path}: no such file")
    mode = arguments.verifier or "math"
    if ":" in mode:
        try:
            load_function(mode)
        except Unloadable as error:
            raise ConfigError(f"--verifier = {mode}: {error}") from None
    elif mode not in ("exact", "math", "boxed"):
        raise ConfigError(f"--verifier = {mode}: must be exact, math, boxed or file.py:function")
    try:
        fields = parse_fields(arguments.fields)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    verifier = Verifier(mode, key="--verifier")
    if ":" in mode:
        verifier.try_out(judged_gold(next(read_responses(path, fields)), arguments.answer_after))
    with path.open("rb") as file:
        contents = hashlib.file_digest(file, "sha256").hexdigest()
    settings = {
        "responses": contents,
        "fields": fields,
        "answer_after": arguments.answer_after,
        "verifier": verifier.version,
    }

    def produce(start: int) -> Iterator[list[Record]]:
        generations = itertools.islice(read_responses(path, fields), start, None)
        with verifier:
            yield from score_responses(generations, verifier, arguments.answer_after)

    return [Scoring(path.name, settings, None, produce)]


def _of_model(arguments: Arguments) -> list[Scoring]:
    """Return one evaluation of the model for each requested weight and temperature."""
    if bool(arguments.toward) != bool(arguments.by):
        raise ConfigError("--toward and --by belong together; give the second model and how far")
    model = [f"model.path={arguments.model}"] if arguments.model else []
    config = load_config(arguments.config, [*arguments.overrides, *model])
    _check_k(arguments.k, config.eval.samples)

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    scored = _Models(arguments, config)
    return [
        scored.scoring(by, temperature)
        for by in arguments.by or (None,)
        for temperature in arguments.temperatures or (None,)
    ]


class _Models:
    """The model of a configuration, alone or with weights between it and a second one."""

    def __init__(self, arguments: Arguments, config: Config):
        self.arguments, self.config, self.job = arguments, config, Job(config)
        self.problems = self.job.task.evaluation(config.eval.problems)
        self.verifier = self.job.verifier()
        self.verifier.try_out(self.problems[0].gold)
        self.path = self.job.base_path()
        check_template(self.path, [x.prompt for x in self.problems])
        self.toward = arguments.toward and self.job.path_of(arguments.toward)
        self.sync = sync_of(self.config)
        self.loaded: dict[str, Policy] = {}
        self.start: dict[str, Tensor] = {}

    def scoring(self, by: float | None, temperature: float | None) -> Scoring:
        """Return the evaluation at this weight of the second model and this temperature."""
        options = self.config.eval
        chosen = options.temperature if temperature is None else temperature
        n = options.samples if chosen > 0 else 1  # greedy answers are all the same
        drawing = self.job.decoding(chosen, options.top_p, self.job.eval_tokens)
        draws = Draws(n, drawing, derive_seed("eval", options.seed))
        parts = [f"by {by:g}"] if by is not None else []
        parts += [f"T {chosen:g}"] if temperature is not None else []
        label = ", ".join(parts) or str(self.arguments.model or self.config.model.path)
        total = len(self.problems)
        return Scoring(
            label, self._settings(by, draws), total, lambda begin: self._produce(begin, by, draws)
        )

    def _settings(self, by: float | None, draws: Draws) -> dict[str, Any]:
        """Return the settings that the records depend on."""
        config, drawing = self.config, draws.decoding
        second = {} if by is None else {"toward": self.arguments.toward, "by": by}
        if by is not None:
            second["toward_weights"] = fingerprint(self.toward)
        return {
            "model": config.model.path,
            "weights": fingerprint(self.path),
            **second,
            "dtype": config.model.dtype,
            "task": vars(config.task),
            "problems": config.eval.problems,
            "data": digest(self.problems),
            "n": draws.n,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "max_new_tokens": drawing.max_new_tokens,
            "rollouts": drawing.sampler,
            "seed": config.eval.seed,
            "verifier": self.verifier.version,
        }

    def _produce(self, begin: int, by: float | None, draws: Draws) -> Iterator[list[Record]]:
        """Yield the records from problem `begin` on, CHUNK problems at a time."""
        policy, drawing = self._policy(by), draws.decoding
        complete = drawing.max_new_tokens >= self.job.max_new_tokens
        uncut = drawing.temperature > 0 and drawing.top_p == 1 and complete
        population = self.job.task.success(policy, drawing.temperature) if uncut else None
        self._serve(policy, by)
        with self.verifier:
            for first in range(begin, len(self.problems), CHUNK):
                part = self.problems[first : first + CHUNK]
                places = range(first, first + len(part))
                yield evaluate(policy, self.verifier, part, draws, places, population)

    def _serve(self, policy: Policy, by: float | None) -> None:
        """Give the weights to the servers that draw, if the sampler has any."""
        if self.sync:
            if self.sync.version is NOTHING:
                self.job.check_servers(policy, self.problems)
            self.sync(policy, by)

    def _policy(self, by: float | None) -> Policy:
        """Return the model; with `by`, its weights are interpolated towards the second model's."""
        policy = self._load("model.path", self.path)
        if by is not None:
            if not self.start:
                self.start = {k: x.clone() for k, x in policy.model.state_dict().items()}
            interpolate(policy, self.start, self._load("--toward", str(self.toward)), by)
        return policy

    def _load(self, option: str, name: str) -> Policy:
        if name not in self.loaded:
            model = self.config.model
            self.loaded[name] = load_policy(name, model.dtype, model.attention, option)
            self.loaded[name].model.to("cuda" if cuda.is_available() else "cpu")
        return self.loaded[name]
