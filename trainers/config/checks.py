"""Checks beyond the range of a single key.

They refuse keys that contradict each other, names of functions that do not exist, and packages that
are not installed. Each check yields (key, remedy). The checks read the estimators, rules and tasks
themselves, which needs torch; reading a configuration does not.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from eval.scores.passk import ladder
from eval.tasks.data import Data
from eval.tasks.registry import OF_DATA, TASKS
from eval.tasks.sources import FIELDS
from surgery.estimators import ESTIMATORS, OF_PASS_AT_K, largest_k, rloo
from surgery.geometry import (
    Geometry,
    agreements,
    by_others,
    probes_of,
    products,
    prompt_gradients,
    psd,
)
from surgery.objectives import prompt_weight
from surgery.rules import AGREEMENT, RULES, find_rule
from surgery.user_code import Unloadable, UserCodeError, load_function, own_settings
from trainers.config.schema import Config
from trainers.config.values import (
    DEFAULTS,
    flatten,
    holds_pass_1,
    must_be_one_of,
    parse_constraint,
    parse_schedule,
    shown,
)

CONTINUOUS = [5, 23]  # the first transformers whose batching eval/rollout/continuous.py knows


Mistakes = Iterator[tuple[str, str]]


def contradictions(config: Config) -> Iterator[str]:
    """Yield one line per mistake: key = value: error; remedy."""
    flat = flatten(config)
    of_method = _of_objective, _of_training, _of_rollouts, _of_surgery
    for check in (*of_method, _of_model, _of_task, _of_results):
        yield from (f"{key} = {shown(flat[key])}: {remedy}" for key, remedy in check(config))


def _of_objective(config: Config) -> Mistakes:
    k, n, estimator = config.objective.k, config.train.samples, config.objective.estimator
    try:
        scheduled = [later for _, later in parse_schedule(config.objective.k_schedule)]
    except ValueError:
        scheduled = [0]
    if min(scheduled, default=1) < 1:
        yield "objective.k_schedule", "write k@step, such as 4@50,1@100"
    if estimator not in ESTIMATORS:
        yield "objective.estimator", must_be_one_of(estimator, ESTIMATORS)
    elif n >= 2 and max([k, *scheduled]) > largest_k(estimator, n):
        most = f"{estimator} serves k <= {largest_k(estimator, n)} from train.samples = {n}"
        yield "objective.k", f"{most}; lower it or raise train.samples"
    if config.objective.filter and config.train.sampler != "uniform":
        remedy = "counts prompts that are drawn alike; set train.sampler=uniform"
        yield "objective.filter", remedy
    rule = config.surgery.rule
    compares = AGREEMENT in RULES[rule].needs if rule in RULES else False
    if compares and estimator in set(ESTIMATORS) - OF_PASS_AT_K:
        remedy = f"rule {rule} compares weights of pass@k; use loo, or another rule"
        yield "objective.estimator", remedy
    decoding = config.eval.temperature, config.eval.top_p
    if holds_pass_1(config) and decoding != (config.train.temperature, 1):
        remedy = f"rule {rule} compares training with it; use train.temperature and top_p=1"
        remedy += ", or surgery.restore=0" if rule == "pcgrad" else ""
        yield "eval.temperature", remedy


def _of_model(config: Config) -> Mistakes:
    model = config.model
    local = model.path.startswith((".", "/", "~")) or Path(model.path).exists()
    if local and not (Path(model.path) / "config.json").is_file():
        yield "model.path", "no model folder (no config.json in it); name one, or a hub id"
    if model.dtype != "float32" and config.train.zero_stage == 0:
        yield "model.dtype", "needs the fp32 weights that ZeRO keeps; set train.zero_stage=1"
    flash = model.attention == "flash_attention_2"
    if flash and find_spec("flash_attn") is None:
        remedy = "needs flash-attn, which is not installed; install it, or set model.attention=sdpa"
        yield "model.attention", remedy
    elif flash and model.dtype != "bfloat16":
        yield "model.attention", "computes in 16 bits; set model.dtype=bfloat16"
    if model.lora_rank and find_spec("peft") is None:
        remedy = "needs peft, which is not installed; install '.[lora]', or set it to 0"
        yield "model.lora_rank", remedy


def knows_continuous(transformers: str) -> bool:
    return [*map(int, transformers.split(".")[:2])] >= CONTINUOUS


def _of_training(config: Config) -> Mistakes:
    train = config.train
    if train.offload == "all" and train.zero_stage < 3:
        yield "train.offload", "only ZeRO-3 moves the weights to the CPU; set train.zero_stage=3"
    elif train.offload != "none" and train.zero_stage == 0:
        yield "train.offload", "needs the optimiser that ZeRO splits; set train.zero_stage=1"
    installed = metadata.version("transformers")
    if train.rollouts == "continuous" and not knows_continuous(installed):
        least = ".".join(map(str, CONTINUOUS))
        remedy = f"needs transformers {least}, and this is {installed}; upgrade it, or use cached"
        yield "train.rollouts", remedy
    flash = config.model.attention == "flash_attention_2"
    if train.rollouts == "continuous" and torch.cuda.is_available() and not flash:
        why = "on a GPU it needs flash attention; without, each token has a mask of all pages"
        yield "train.rollouts", f"{why}; set model.attention=flash_attention_2, or use cached"
    if (train.warmup_steps or 0) > train.steps:
        yield "train.warmup_steps", f"exceeds train.steps = {train.steps}; lower it"


def _of_rollouts(config: Config) -> Mistakes:
    options = config.rollout
    if config.train.rollouts != "vllm":
        if options.correction != "none":
            yield "rollout.correction", "corrects draws of servers; set train.rollouts=vllm"
        return
    if not options.urls:
        why = "train.rollouts=vllm draws from servers; start one by launch/serve.py, and name it"
        yield "rollout.urls", f"{why} here"
    for url in options.urls:
        if not _is_server(url):
            yield "rollout.urls", "must hold http://host:port, such as [http://127.0.0.1:8000]"
            break
    if len(set(options.urls)) < len(options.urls):
        yield "rollout.urls", "names a server twice; remove one"
    if options.sync_dir is None:
        why = "train.rollouts=vllm hands weights to its servers in a folder; name one that all read"
        yield "rollout.sync_dir", f"{why}, best in memory, such as /dev/shm/sync"


def _is_server(url: str) -> bool:
    try:
        place = urlsplit(url)
        return bool(place.hostname and place.port) and url == f"http://{place.netloc}"
    except ValueError:  # no such port
        return False


def _of_task(config: Config) -> Mistakes:
    task = config.task
    if ":" in task.name:
        yield from _not_a_function("task.name", task.name)
    elif task.name not in TASKS:
        yield "task.name", must_be_one_of(task.name, TASKS, ", or file.py:Class")
    elif task.name in OF_DATA:
        yield from _of_data(config)
    else:
        flat = flatten(config)
        of_data = {f"task.{x.name}" for x in fields(Data) if x.init}
        for key in (x for x in flat if x.startswith("task.fields.") or x in of_data):
            if flat[key] != DEFAULTS.get(key):
                remedy = f"belongs to data, but the task is {task.name}; set task.name=data"
                yield key, f"{remedy} (or {', '.join(x for x in OF_DATA if x != 'data')})"
    if task.verifier is not None and ":" in task.verifier:
        yield from _not_a_function("task.verifier", task.verifier)
    elif task.verifier not in (None, "exact", "math", "boxed"):
        yield "task.verifier", "must be exact, math, boxed or file.py:function"


def _of_data(config: Config) -> Mistakes:
    task = config.task
    if config.model.path == "base":
        yield "model.path", f"task {task.name} has no base policy; name a folder or a hub id"
    if task.name == "data" and task.path is None:
        yield "task.path", "task data is your own; name a file, a folder or a hub id"
    if task.prompt is not None and "{problem}" not in task.prompt:
        yield "task.prompt", "must say where the problem goes; write {problem} there"
    thresholds = [x for x in (task.hard_below, task.easy_above) if x is not None]
    if thresholds and task.rates is None:
        yield (
            "task.rates",
            "task.easy_above and task.hard_below choose by records of the base; name some",
        )
    if thresholds != sorted(thresholds):
        yield "task.easy_above", f"lies below task.hard_below = {task.hard_below}; raise it"
    for name in task.fields.keys() - set(FIELDS):
        yield f"task.fields.{name}", f"must name one of {', '.join(FIELDS)}"


def _of_surgery(config: Config) -> Mistakes:
    surgery = config.surgery
    if ":" in surgery.rule:
        yield from _not_a_function("surgery.rule", surgery.rule)
    elif surgery.rule not in RULES:
        yield "surgery.rule", must_be_one_of(surgery.rule, RULES, ", or file.py:function")
    elif surgery.measure == "none" and RULES[surgery.rule].needs:
        remedy = f"rule {surgery.rule} decides by measurement; set surgery.measure=last_layer"
        yield "surgery.measure", remedy
    elif AGREEMENT in RULES[surgery.rule].needs:
        if surgery.every > 1:
            remedy = f"rule {surgery.rule} needs the agreement of every prompt; set surgery.every=1"
            yield "surgery.every", remedy
        if config.train.samples < 3:
            remedy = f"rule {surgery.rule} decides by two other completions; use 3 or more"
            yield "train.samples", remedy
    if surgery.hold == "control" and not (holds_pass_1(config) or ":" in surgery.rule):
        remedy = f"rule {surgery.rule} holds no pass@1; set surgery.hold=train"
        yield "surgery.hold", remedy
    if surgery.metric == "adam" and surgery.measure != "ghost":
        yield "surgery.metric", "is a metric of parameters; set surgery.measure=ghost"
    if surgery.modules is not None:
        try:
            re.compile(surgery.modules)
        except re.error as error:
            yield "surgery.modules", f"not a regular expression ({error}); correct it"
    if surgery.measure != "none" and surgery.statistic == "loo" and config.train.prompts == 1:
        remedy = "surgery.statistic = loo compares prompts; use 2 or more, or surgery.measure=none"
        yield "train.prompts", remedy


def _of_results(config: Config) -> Mistakes:
    """Check the evaluation, the diagnosis, and the choice of the best checkpoint."""
    train, options, diagnose = config.train, config.eval, config.diagnose
    assert options.k is not None and diagnose.k is not None
    if options.k > options.samples:
        most = f"exceeds eval.samples = {options.samples}"
        yield "eval.k", f"{most}; lower it or raise eval.samples"
    if diagnose.k > diagnose.samples:
        most = f"exceeds diagnose.samples = {diagnose.samples}"
        yield "diagnose.k", f"{most}; lower it or raise diagnose.samples"
    metrics = [f"{x}/pass@{j}" for x in ("eval", "exact") for j in ladder(options.k)]
    if train.best_constraint is not None:
        try:
            constrained, _ = parse_constraint(train.best_constraint)
        except ValueError:
            yield "train.best_constraint", "write it as eval/pass@8>=0.9"
            constrained = None
        if constrained is not None and constrained not in metrics:
            yield "train.best_constraint", f"must name one of {', '.join(metrics)}"
    if train.best_metric not in metrics:
        yield "train.best_metric", f"must be one of {', '.join(metrics)}"


def _not_a_function(key: str, name: str) -> Mistakes:
    try:
        if not callable(load_function(name)):
            yield key, "is not a function or class; name one of the file"
    except Unloadable as error:
        yield key, str(error)


def mistakes_of_own_rule(config: Config) -> Iterator[str]:
    """Try a rule of the user's own on made-up batches of the right shape; yield its mistake."""
    surgery = config.surgery
    if ":" not in surgery.rule:
        return
    state = {"base_pass@1": 0.5}
    try:
        rule = find_rule(surgery.rule).bind(
            {**vars(surgery), **surgery.options}, config.train.samples
        )
        for weights, geometry in _made_up(config):
            rule(weights, geometry, state)
    except UserCodeError as error:
        yield str(error)


def _made_up(config: Config) -> Iterator[tuple[Tensor, Geometry]]:
    """Yield weights and geometry of the kind that steps of this configuration measure.

    Two prompts of three are solved once, the third in half of its samples. Features of right
    answers differ from those of wrong ones by more than their noise, so that nothing degenerates.
    """
    train, surgery, dice = config.train, config.surgery, torch.Generator().manual_seed(0)
    solved = [max(1, train.samples // 2) if i % 3 == 2 else 1 for i in range(train.prompts)]
    correct = (torch.arange(train.samples) < torch.tensor(solved)[:, None]).double()
    features = correct.view(-1, 1) + 0.1 * torch.randn(correct.numel(), 4, generator=dice)
    estimator, k = ESTIMATORS[config.objective.estimator], config.objective.k
    a_k = estimator(correct, k, **own_settings(estimator, vars(config.objective)))
    k = k if config.objective.estimator in OF_PASS_AT_K else 1
    weights, rate = prompt_weight(train.samples, correct.sum(1), k), correct.mean(1)
    if surgery.measure == "none":
        yield weights, Geometry(rate)
        return
    g_k, g_1 = (prompt_gradients(a, features) for a in (a_k, rloo(correct)))
    measured = psd(products(g_k, g_1, surgery.statistic))
    yield (
        weights,
        Geometry(
            rate,
            measured,
            agreements(g_1, surgery.statistic),
            by_others(correct, k, probes_of(g_1, features))
            if surgery.statistic == "loo" and train.samples > 2
            else None,
        ),
    )
    if surgery.every > 1:  # the steps between two measurements
        yield weights, Geometry(rate, measured)
