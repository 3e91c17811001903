from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT
from trainers.config.load import check_ranks, differences, load_config, save_config
from trainers.config.schema import Config
from trainers.config.values import BOUNDS, KEYS, ConfigError, described, flatten

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def refusal(*overrides, path=ROOT / "configs" / "passk.yaml"):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value).splitlines()


REAL = ["gsm8k_qwen2.5_0.5b", "math_r1_distill_qwen_7b", "math_r1_distill_llama_8b"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda x: f"{x.parent.name}/{x.stem}")
def test_every_shipped_configuration_loads(path):
    config = load_config(path)
    name = f"{path.parent.name}/{path.stem}" if path.parent.name in [*REAL, "chain"] else path.stem
    assert config.run.dir == f"runs/{name}/seed0"
    assert config.eval.k == 8


def test_pcgrad_differs_from_passk_by_its_rule_and_its_prompts():
    bodies = [
        [x for x in (ROOT / "configs" / f"{n}.yaml").read_text().splitlines() if x[:1] != "#"]
        for n in ("passk", "pcgrad")
    ]
    assert bodies[0] == bodies[1][:-2]
    assert [x.partition(":")[0] for x in bodies[1][-2:]] == ["surgery", "train"]


@pytest.mark.parametrize("name", REAL)
def test_variants_differ_from_their_root_by_one_line(name):
    root = load_config(ROOT / "configs" / f"{name}.yaml")
    for variant in ("passk", "pcgrad", "agreement_clip"):
        path = ROOT / "configs" / name / f"{variant}.yaml"
        first, *more = [x for x in path.read_text().splitlines() if x[:1] != "#"]
        assert first == f"extends: ../{name}.yaml" and len(more) == (variant != "passk")
        changed = {key for key, x in flatten(load_config(path)).items() if x != flatten(root)[key]}
        cap = {"surgery.cap"} if variant == "pcgrad" else set()
        assert changed == {"run.dir"} | ({"surgery.rule"} if more else set()) | cap


def test_base_yaml_states_the_defaults():
    stated = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text())
    flat = flatten(Config())
    for section, content in stated.items():
        for key, value in content.items() if isinstance(content, dict) else [("", content)]:
            name = f"{section}.{key}".rstrip(".")
            assert flat[name] == value or (name == "eval.k" and value == flat["objective.k"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.promts=4", ["train.promts = 4", "unknown key", "train.prompts"]),
        ("nonsense=1", ["nonsense = 1", "unknown key"]),
        ("train=4", ["train = 4", "is a section", "train.steps"]),
        ("train.steps=many", ["train.steps = many", "a whole number"]),
        ("train.steps=2.5", ["train.steps = 2.5", "a whole number"]),
        ("train.steps=true", ["train.steps = True", "not a truth value"]),
        ("train.steps=null", ["train.steps = null", "a whole number"]),
        ("train.lr=.nan", ["train.lr = nan", "finite"]),
        ("train.lr=0", ["train.lr = 0", "above 0"]),
        ("train.samples=0", ["train.samples = 0", "at least 2"]),
        ("train.samples=1", ["train.samples = 1", "at least 2"]),
        ("objective.k=17", ["objective.k = 17", "k <= 16", "train.samples"]),
        ("objective.estimator=pkpo_loo objective.k=16", ["objective.k = 16", "k <= 15"]),
        ("objective.estimator=lo", ["objective.estimator = lo", "loo"]),
        ("train.entropy_coef=-0.1", ["train.entropy_coef = -0.1", "at least 0"]),
        ("train.top_p=0.9", ["train.top_p = 0.9", "must be 1", "eval.top_p"]),
        ("train.temperature=0", ["train.temperature = 0", "above 0"]),
        ("eval.k=64", ["eval.k = 64", "eval.samples"]),
        ("surgery.rule=pcgrat", ["surgery.rule = pcgrat", "pcgrad"]),
        ("surgery.rule=mine.py:f", ["surgery.rule = mine.py:f", "no Python file"]),
        ("surgery.rule=pcgrad surgery.measure=none", ["surgery.measure = none", "last_layer"]),
        ("surgery.measure=last_laier", ["surgery.measure = last_laier", "did you mean last_layer"]),
        ("train.prompts=1", ["train.prompts = 1", "2 or more"]),
        ("task.name=twins", ["task.name = twins", "twin"]),
        ("task.verifier=regex", ["task.verifier = regex", "exact, math"]),
        ("train.schedule=cosin", ["train.schedule = cosin", "cosine"]),
        ("model.dtype=bfloat16", ["model.dtype = bfloat16", "zero_stage=1"]),
        ("model.attention=flash_attention_2", ["model.attention = flash", "not installed", "sdpa"]),
        ("train.offload=optimizer", ["train.offload = optimizer", "zero_stage=1"]),
        ("train.offload=all train.zero_stage=2", ["train.offload = all", "zero_stage=3"]),
        ("train.updates=0", ["train.updates = 0", "at least 1"]),
        ("train.ratio_clip=0", ["train.ratio_clip = 0", "above 0"]),
        ("model.lora_rank=-1", ["model.lora_rank = -1", "at least 0"]),
        ("train.best_constraint=much", ["train.best_constraint = much", "eval/pass@8>=0.9"]),
        ("train.best_constraint=eval/pas@8>=1", ["train.best_constraint = ", "eval/pass@8"]),
        ("train.best_metric=eval/pass@3", ["train.best_metric = eval/pass@3", "eval/pass@4"]),
        ("train.warmup_steps=500", ["train.warmup_steps = 500", "lower it"]),
        ("objective.k_schedule=50", ["objective.k_schedule = 50", "k@step"]),
        ("objective.k_schedule=0@50", ["objective.k_schedule = 0@50", "k@step"]),
        ("objective.k_schedule=17@50", ["k <= 16"]),
        ("objective.estimator=plugin objective.k=17", ["objective.k = 17", "k <= 16"]),
        ("objective.estimator=grpo surgery.rule=agreement_clip", ["objective.estimator = grpo"]),
        ("surgery.rule=floor eval.temperature=0.5", ["eval.temperature = 0.5", "floor"]),
        ("surgery.rule=agreement_clip surgery.every=2", ["surgery.every = 2", "every=1"]),
        (
            "surgery.rule=agreement_clip train.samples=2 objective.k=2",
            ["train.samples = 2", "3 or"],
        ),
        ("surgery.metric=adam", ["surgery.metric = adam", "ghost"]),
        ("surgery.measure=ghost surgery.modules=[a", ["surgery.modules", "YAML"]),
        ("surgery.measure=ghost surgery.modules='('", ["surgery.modules = (", "expression"]),
        ("task.name=mine.py:Task", ["task.name = mine.py:Task", "no Python file"]),
        ("justaword", ["justaword", "key=value"]),
        ("seed=-1", ["seed = -1", "at least 0"]),
        ("seed=[1", ["seed = [1", "YAML"]),
        ("seed=${nothing}", ["interpolation"]),
    ],
)
def test_refusals_name_key_value_and_remedy(override, parts):
    (line,) = refusal(*override.split(" "))
    for part in parts:
        assert part in line, line


def test_only_estimators_of_pass_at_k_bound_it():
    beyond = ["objective.k=64", "eval.k=8", "objective.k_schedule=99@5"]
    assert "k <= 16" in refusal(*beyond)[0]
    beyond += ["objective.estimator=posterior_passk"]
    given = load_config(ROOT / "configs" / "passk.yaml", beyond)
    assert given.objective.k == 64


@pytest.mark.parametrize(("name", "k", "evaluated"), [("pcgrad", 4, 4), ("pass1", 1, 8)])
def test_the_evaluation_has_the_k_of_the_objective(name, k, evaluated):
    """But a run of pass@1 shows pass@8 too."""
    path = ROOT / "configs" / f"{name}.yaml"
    assert load_config(path, [f"objective.k={k}"]).eval.k == evaluated


def test_all_mistakes_are_told_at_once():
    lines = refusal("train.stepz=1", "train.lr=fast", "evil.k=3")
    assert [line.split(" ")[0] for line in lines] == ["train.stepz", "train.lr", "evil.k"]
    wrong = refusal("train.lr=0", "objective.k=99", "eval.k=8", "train.top_p=0.5", "x=1")
    assert len(wrong) == 4


def test_every_number_has_a_range():
    def numbers(section):
        for f in fields(section):
            value = getattr(section, f.name)
            if is_dataclass(value):
                yield from numbers(value)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                yield f

    assert [f.name for f in numbers(Config()) if not BOUNDS.keys() & f.metadata] == []


def test_every_key_has_a_help():
    """In one line, of its own, that fits under the others."""
    for key, f in KEYS.items():
        text = f.metadata["help"]
        assert 0 < len(text) <= 88 and text.isprintable() and text[-1] != ".", key
    lines = described().splitlines()
    assert len(lines) == len(KEYS)
    assert "train.lr = 0.0006 (a number, above 0): learning rate after the warm-up" in lines
    assert (
        "eval.k = null (a whole number or null, at least 1): largest k; null: objective.k" in lines
    )
    assert any(x.startswith("model.dtype = float32 (one of float32, bfloat16): ") for x in lines)


def test_a_folder_of_version_0_1_holds_a_key_that_is_gone(tmp_path):
    """train.top_p could only be 1: such a folder is read, resumed and compared."""
    path = tmp_path / "config.yaml"
    save_config(load_config(ROOT / "configs" / "pcgrad.yaml"), path)
    assert "top_p" not in yaml.safe_load(path.read_text())["train"]
    path.write_text(path.read_text().replace("train:\n", "train:\n  top_p: 1.0\n"))
    config = load_config(path)
    assert differences(config, path) == []
    for value in ("0.9", "true", "many"):
        (line,) = refusal(f"train.top_p={value}")
        assert line.endswith("the policy that is trained; eval.top_p is free")


def test_extends(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain: {steps: 5, lr: 0.1}\n")
    (tmp_path / "deep" / "b.yaml").write_text("extends: ../a.yaml\ntrain: {lr: 0.2}\n")
    config = load_config(tmp_path / "deep" / "b.yaml", ["train.steps=7"])
    assert (config.seed, config.train.steps, config.train.lr) == (1, 7, 0.2)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("extends: x.yaml\n", "circle"),
        ("extends: [a, b]\n", "one file"),
        ("extends: none.yaml\n", "no such file"),
        ("a: [1\n", "YAML"),
        ("- 1\n", "key: value"),
        ("", "key: value"),
        ("seed: 1\nseed: 2\n", "YAML"),
    ],
)
def test_unreadable_files(tmp_path, text, part):
    (tmp_path / "x.yaml").write_text(text)
    if text == "":
        assert load_config(tmp_path / "x.yaml").seed == 0  # an empty file is the defaults
        return
    (line,) = refusal(path=tmp_path / "x.yaml")
    assert part in line


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in refusal(path=tmp_path / "gone.yaml")[0]
    assert "--config" in refusal(path=tmp_path)[0]


def test_saved_configurations_come_back(tmp_path):
    config = load_config(ROOT / "configs" / "pcgrad.yaml", ["train.lr=1e-4"])
    save_config(config, tmp_path / "config.yaml")
    assert differences(config, tmp_path / "config.yaml") == []
    assert load_config(tmp_path / "config.yaml") == config
    changed = load_config(ROOT / "configs" / "pcgrad.yaml", ["train.steps=9", "logging.kl_every=0"])
    assert differences(changed, tmp_path / "config.yaml") == ["train.lr = 0.0006 (was 0.0001)"]


def test_settings_of_ones_own_rule_and_task(tmp_path):
    code = "def rule(weights, geometry, state, *, mine=1.0): return weights, mine * weights\n"
    (tmp_path / "mine.py").write_text(code)
    options = [f"surgery.rule={tmp_path}/mine.py:rule", "surgery.options.mine=2.5"]
    config = load_config(ROOT / "configs" / "passk.yaml", options)
    assert config.surgery.options == {"mine": 2.5}
    save_config(config, tmp_path / "config.yaml")
    assert differences(config, tmp_path / "config.yaml") == []
    assert load_config(tmp_path / "config.yaml") == config
    (line,) = refusal(f"surgery.rule={tmp_path}/mine.py:other")
    assert line.endswith("has no other); it has rule")


def test_ranks():
    config = load_config(ROOT / "configs" / "passk.yaml", ["train.prompts=2"])
    check_ranks(config, 2)
    with pytest.raises(ConfigError, match=r"train.prompts = 2: fewer than the 3 ranks"):
        check_ranks(config, 3)


def test_continuous_needs_a_transformers_that_has_it(monkeypatch):
    passk = ROOT / "configs" / "passk.yaml"
    monkeypatch.setattr("trainers.config.checks.metadata.version", lambda name: "5.23.0")
    load_config(passk, ["train.rollouts=continuous"])
    monkeypatch.setattr("trainers.config.checks.metadata.version", lambda name: "5.9.2")
    load_config(passk)
    (line,) = refusal("train.rollouts=continuous")
    assert line == (
        "train.rollouts = continuous: needs transformers 5.23, and this is 5.9.2; "
        "upgrade it, or use cached"
    )


def test_continuous_on_a_gpu_needs_flash_attention(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("trainers.config.checks.metadata.version", lambda name: "5.23.0")
    (line,) = refusal("train.rollouts=continuous")
    assert line == (
        "train.rollouts = continuous: on a GPU it needs flash attention; without, each token has "
        "a mask of all pages; set model.attention=flash_attention_2, or use cached"
    )


SERVED = ["train.rollouts=vllm", "rollout.urls=[http://127.0.0.1:8000]", "rollout.sync_dir=sync"]


def test_vllm_needs_servers_and_a_folder():
    passk = ROOT / "configs" / "passk.yaml"
    config = load_config(passk, SERVED)
    assert config.rollout.urls == ["http://127.0.0.1:8000"] and config.rollout.sync_dir == "sync"
    urls, folder = refusal("train.rollouts=vllm")
    assert urls == (
        "rollout.urls = []: train.rollouts=vllm draws from servers; start one by launch/serve.py, "
        "and name it here"
    )
    assert folder == (
        "rollout.sync_dir = null: train.rollouts=vllm hands weights to its servers in a folder; "
        "name one that all read, best in memory, such as /dev/shm/sync"
    )
    (line,) = refusal("rollout.correction=truncate")
    assert line == (
        "rollout.correction = truncate: corrects draws of servers; set train.rollouts=vllm"
    )


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:8000", "http://127.0.0.1", "https://127.0.0.1:8000", "http://:8000"),
        *("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1", "http://127.0.0.1:99999", "''"),
    ],
)
def test_urls_that_are_none(url):
    (line,) = refusal(*SERVED, f"rollout.urls=['http://127.0.0.1:8000', {url}]".replace("''", '""'))
    assert line.startswith("rollout.urls = [")
    assert line.endswith("must hold http://host:port, such as [http://127.0.0.1:8000]")


def test_a_server_named_twice():
    (line,) = refusal(*SERVED, "rollout.urls=[http://a:1, http://a:1]")
    assert line.endswith("names a server twice; remove one")


def test_a_run_may_go_on_with_other_servers(tmp_path):
    passk = ROOT / "configs" / "passk.yaml"
    save_config(load_config(passk, SERVED), tmp_path / "config.yaml")
    others = ["rollout.urls=[http://b:1, http://b:2]", "rollout.sync_dir=there"]
    same = load_config(passk, [*SERVED, *others, "rollout.timeout=5", "rollout.mismatch=0.1"])
    assert differences(same, tmp_path / "config.yaml") == []
    other = load_config(passk, [*SERVED, "rollout.correction=truncate"])
    (line,) = differences(other, tmp_path / "config.yaml")
    assert line == "rollout.correction = truncate (was none)"


def test_user_files_are_relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def f(weights, geometry, state): return weights, weights\n")
    assert load_config(ROOT / "configs" / "passk.yaml", ["surgery.rule=mine.py:f"])


def test_what_is_not_installed_is_said_before_a_model_is_loaded(monkeypatch):
    from trainers.config import checks as contradictions

    monkeypatch.setattr(contradictions, "find_spec", lambda name: None)
    (line,) = refusal("model.lora_rank=8")
    assert "model.lora_rank = 8" in line and "install '.[lora]'" in line
    monkeypatch.setattr(contradictions, "find_spec", lambda name: name)
    (line,) = refusal("model.attention=flash_attention_2")
    assert "model.dtype=bfloat16" in line


def test_a_key_that_is_newer_than_the_folder_has_its_default_there(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(load_config(ROOT / "configs" / "pcgrad.yaml"), path)
    lines = path.read_text().splitlines(True)
    path.write_text("".join(x for x in lines if "updates:" not in x))
    assert differences(load_config(ROOT / "configs" / "pcgrad.yaml"), path) == []
    changed = load_config(ROOT / "configs" / "pcgrad.yaml", ["train.updates=2"])
    assert differences(changed, path) == ["train.updates = 2 (was 1)"]


@pytest.mark.parametrize(
    "override",
    [
        *("task.fields=3", "task.fields=[a]", "task.fields={problem: {a: b}}"),
        *("task.fields.problem=null", "task.fields={problem: text}"),
        *("surgery.options=[1]", "task.path=mine.jsonl"),
    ],
)
def test_settings_of_data_and_options_of_the_wrong_kind(override):
    (line,) = refusal(override)
    assert line.startswith(override.split("=")[0].removesuffix(".problem"))


def test_a_run_goes_on_under_other_diagnoses(tmp_path):
    """The section changes nothing in training: runs from before it was there resume."""
    path = ROOT / "configs" / "passk.yaml"
    save_config(load_config(path), tmp_path / "config.yaml")
    assert differences(load_config(path, ["diagnose.k=4"]), tmp_path / "config.yaml") == []
