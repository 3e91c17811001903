"""The plan against what really is there: built models, DeepSpeed's states, counted allocations."""

import logging

import huggingface_hub
import pytest
import torch
import transformers as hf
from transformers.integrations import sdpa_attention

from eval.policy.logprobs import Likelihood, completion_logprobs, pad_batch
from eval.policy.policy import ModelError, Policy
from eval.rollout import draw
from eval.rollout.recompute import LOGITS
from eval.rollout.rollout import Decoding
from eval.rollout.sample import sample
from eval.tasks.registry import build_task
from eval.tasks.twin_base import make_tokenizer
from surgery.estimators import loo, rloo
from surgery.rules import RULES
from tests.commands import ROOT, in_process, launched, run
from tests.fakes import Alone, measurable, model_config
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.config.values import ConfigError
from trainers.engine import memory
from trainers.engine.adapter import make_trainable
from trainers.engine.memory import Sizes
from trainers.measure.memory import directions
from trainers.measure.probe import Probe
from trainers.plan import plan
from trainers.plan.rehearsal import Ledger, Rehearsal
from trainers.plan.rollouts import Drawing, budget, sampling

# transformers' own, at gradient_checkpointing_enable
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")

SMALL = {
    "vocab_size": 24,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN = {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
REAL = {
    "gsm8k_qwen2.5_0.5b": hf.Qwen2Config(
        **QWEN,
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
    ),
    "math_r1_distill_qwen_7b": hf.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
    "math_r1_distill_llama_8b": hf.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
PARAMETERS = dict(zip(REAL, (494_032_768, 7_615_616_512, 8_030_261_248), strict=True))


def rehearse(shape, folder, dtype="float32", checkpointing=False):
    shape.save_pretrained(folder)
    config = Config()
    config.model.dtype, config.model.gradient_checkpointing = dtype, checkpointing
    return Rehearsal(config, str(folder))


def build(shape, config):
    """The model itself, ready as the engine makes it."""
    torch.manual_seed(0)
    dtype = getattr(torch, config.model.dtype)
    policy = Policy(hf.AutoModelForCausalLM.from_config(shape, dtype=dtype), make_tokenizer())
    make_trainable(policy, config)
    return policy


def ledger_of(policy):
    ledger = Ledger(SMALL["vocab_size"])
    for tensor in [*policy.model.parameters(), *policy.model.buffers()]:
        ledger.known(tensor)
    return ledger


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [hf.LlamaConfig, hf.Qwen2Config])
def test_a_micro_batch_holds_what_was_rehearsed(tmp_path, kind, dtype, checkpointing):
    """Left padding and all: the peak to 5 %; autograd's saved tensors are the larger part of it."""
    rehearsal = rehearse(kind(**SMALL), tmp_path, dtype, checkpointing)
    rows, prompt, completion = 6, 16, 48
    cost = rehearsal.micro_batch(rows, prompt, completion, 0.7)
    policy = build(kind(**SMALL), rehearsal.config)
    for p in policy.model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    prompts = [[3] * (prompt - i) for i in range(rows)]
    batch = pad_batch(prompts, [[5] * completion] * rows, 0, "cpu")
    own = {p.untyped_storage()._cdata for p in policy.model.parameters()}
    saved = {}

    def keep(x):
        if x.untyped_storage()._cdata not in own:
            saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    ledger = ledger_of(policy)
    for tensor in vars(batch).values():
        ledger.known(tensor)
    with ledger, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        total = completion_logprobs(policy.model, batch, Likelihood(0.7)).sum()
        total.backward()
    planned = cost.activations + cost.logits
    assert planned == pytest.approx(ledger.peak, rel=0.05)
    assert cost.logits == pytest.approx(ledger.logits_at_peak, rel=0.05)
    if not checkpointing:  # which saves little and makes the rest again
        assert sum(saved.values()) / 1.05 < planned < 3 * sum(saved.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_rehearsed_as_it_is_built(dtype):
    config = Config()
    config.model.dtype, config.model.lora_rank = dtype, 4
    rehearsed = Rehearsal(config, hf.LlamaConfig(**SMALL)).model
    built = build(hf.LlamaConfig(**SMALL), config).model

    def described(model):
        return {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()}

    assert described(rehearsed) == described(built)
    assert any(p.requires_grad for p in rehearsed.parameters())
    moved = torch.nn.Linear(2, 2).to(torch.float64)  # as ever
    assert moved.weight.dtype == torch.float64


@pytest.mark.parametrize("name", REAL)
def test_sizes_of_real_models(tmp_path, name):
    shape = REAL[name]
    rehearsal = rehearse(shape, tmp_path, "bfloat16")
    sizes = rehearsal.sizes()
    assert sizes.parameters == sizes.trainable == sizes.chosen == PARAMETERS[name]
    assert sizes.element == 2
    cache, beside = rehearsal.decoding(16, 100, 28)
    heads = shape.num_key_value_heads * shape.hidden_size // shape.num_attention_heads
    assert cache == 2 * shape.num_hidden_layers * heads * 2 * 16 * 128
    assert 0 < beside < cache


# an older transformers repeats keys and values for each head under a mask: the plan counts that,
# though attention gets no mask where no prompt is padded
PACKS = hasattr(sdpa_attention, "pack_gqa")
SAMPLED = {  # vocabulary, prompts, repeats of five tokens in each, new tokens, the largest part
    "a long answer": (len(make_tokenizer()), 3, 4, 40, "cache"),
    "many words": (30000, 3, 2, 6, "drawing a token"),
    "a long prompt": (len(make_tokenizer()), 12, 30, 2, "reading prompts"),
}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("case", SAMPLED)
def test_sampling_holds_what_was_planned(tmp_path, monkeypatch, case, top_p):
    vocabulary, prompts, repeats, new, largest = SAMPLED[case]
    monkeypatch.setattr(draw, "SLICE", 8 * 30000)
    shape = hf.Qwen2Config(**SMALL | {"vocab_size": vocabulary})
    rehearsal = rehearse(shape, tmp_path)
    policy = build(shape, rehearsal.config)
    policy.tokenizer.eos_token = None
    policy.model.generation_config.eos_token_id = 10**6  # none ends before the last token
    n = 1 if case == "a long prompt" else 8
    decoding = Decoding(new, 1.0, top_p, 10**6, features=top_p == 1)
    with ledger_of(policy) as ledger:
        sample(policy, ["D3?4=" * repeats] * prompts, n, decoding, 0)
    drawing = Drawing(prompts, n, 5 * repeats, new, 10**6, top_p, features=top_p == 1)
    held = sampling(rehearsal, drawing)
    assert max(held, key=lambda name: held[name]) == largest
    assert sum(held.values()) > 0.85 * ledger.peak
    assert not PACKS or sum(held.values()) == pytest.approx(ledger.peak, rel=0.15)


def test_the_samplers_budget(tmp_path):
    """By its key; by the memory that is left: 60 % of it; or as on a CPU."""
    rehearsal = rehearse(hf.LlamaConfig(**SMALL), tmp_path)
    rehearsal.config.train.max_new_tokens = 40
    token, row = 2 * 3 * 2 * 32 * 4, 2 * 24 * 4
    assert budget(rehearsal, None) == 65536
    assert budget(rehearsal, 10**9) == int(0.6 * 10**9 / (token + row / 40))
    assert budget(rehearsal, -5) == 1
    rehearsal.config.eval.max_new_tokens = 10
    assert budget(rehearsal, 10**9) == int(0.6 * 10**9 / (token + row / 10))
    rehearsal.config.train.rollout_tokens = 77
    assert budget(rehearsal, 10**9) == budget(rehearsal, None) == 77


def test_the_rows_that_are_drawn_at_once():
    """Whole prompts, as many as fit; one at least, and no more than there are."""
    sizes = [Drawing(5, 4, 6, 4, tokens).batch.rows for tokens in (1, 79, 80, 10**6)]
    assert sizes == [4, 4, 8, 20]


def test_a_run_on_a_device_leaves_the_sampler_a_part_of_it(tmp_path):
    """The more memory, the larger the cache, up to all answers; what else is held comes first."""
    REAL["gsm8k_qwen2.5_0.5b"].save_pretrained(tmp_path)
    config = load_config(ROOT / "configs" / "gsm8k_qwen2.5_0.5b.yaml", [f"model.path={tmp_path}"])
    rehearsal = Rehearsal(config, str(tmp_path))

    def moments(memory):
        return plan.training(config, rehearsal, 1, 512, memory)[0]["evaluating"]

    small, large, vast = (moments(x * plan.GIB) for x in (24, 80, 800))
    assert small["cache"] < large["cache"] < vast["cache"] == 8000 * 1024 * 2 * 24 * 128 * 2
    for held, size in ((small, 24), (large, 80)):
        free = size * plan.GIB - sum(x for name, x in held.items() if name not in DECODING)
        assert 0.53 * free < held["cache"] < 0.55 * free  # 12,288 of the 13,475 bytes of a token
        assert not PACKS or sum(held.values()) < 0.8 * size * plan.GIB


DECODING = ("cache", "drawing a token")


@pytest.fixture(
    scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["1 rank", "2 ranks"]
)
def really_held(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("held") / "held.json"
    return request.param, launched("held.py", out, ranks=request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", range(4))
def test_states_are_those_of_deepspeed(tmp_path, really_held, stage, dtype):
    """Parameters, fp32 copies and moments, and ZeRO-3's gradients, to a thousandth: DeepSpeed pads
    its partitions.
    """
    ranks, found = really_held
    if (stage, dtype) == (0, "bfloat16"):
        return  # refused: ZeRO keeps the fp32 copy
    sizes = rehearse(model_config(), tmp_path, dtype).sizes(memory.THRESHOLD)
    planned, host = memory.states(sizes, stage, ranks)
    bucket = planned.pop("ZeRO's buckets", 0)
    measured = found[f"{dtype} {stage}"] - bucket
    assert sum(planned.values()) == pytest.approx(measured, rel=1e-3) and not host


def test_deepspeeds_defaults():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(stage=3)
    found = zero.reduce_bucket_size, zero.max_live_parameters, zero.param_persistence_threshold
    assert found == (memory.BUCKET, memory.GATHERED, memory.THRESHOLD)


def test_offload_moves_what_is_held_and_loses_nothing():
    sizes = Sizes(1000, 1000, 1000, 50, 2, 8)
    for stage in (1, 2, 3):
        here, _ = memory.states(sizes, stage, 2)
        device, host = memory.states(sizes, stage, 2, "optimizer")
        assert "Adam" not in device and device.items() <= here.items()
        assert host["Adam"] == here["Adam"] and host["fp32 copy"] == here["fp32 copy"]
    device, host = memory.states(sizes, 3, 2, "all")
    assert device["parameters"] == 2 * 50 and host["parameters"] == 2 * 550


@pytest.mark.parametrize("metric", ["euclid", "adam"])
@pytest.mark.parametrize("statistic", ["loo", "naive"])
def test_ghost_holds_what_was_planned(tmp_path, statistic, metric):
    """The most that the probe holds at once, where directions outweigh activations."""
    shape = hf.LlamaConfig(**SMALL | {"hidden_size": 256, "vocab_size": len(make_tokenizer())})
    rehearsal = rehearse(shape, tmp_path)
    config = rehearsal.config
    config.surgery.measure, config.surgery.statistic = "ghost", statistic
    config.surgery.metric = metric
    config.train.micro_batch_tokens = 1
    policy = build(shape, config)
    rollout = sample(policy, ["D3?4=", "A2?3="], 4, Decoding(2), 0)
    correct = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0]]).double()
    probe = Probe(config, Alone(policy), RULES["nash"].needs)
    named = dict(policy.model.named_parameters())
    probe.engine.adam_scale = lambda: {name: torch.ones_like(p) for name, p in named.items()}
    with ledger_of(policy) as ledger:
        probe(measurable(rollout, range(2), loo(correct, 4), rloo(correct), correct, 4))
    moments = directions(rehearsal.sizes(), 2 if statistic == "loo" else 1, metric == "adam")
    planned = max(sum(held.values()) for held in moments.values())
    assert planned == pytest.approx(ledger.peak, rel=0.15)


def test_moments_of_a_run(tmp_path):
    """What is asked for is there, and only that."""
    model_config().save_pretrained(tmp_path)
    path = str(ROOT / "configs" / "passk.yaml")

    def moments(*overrides):
        config = load_config(path, [f"model.path={tmp_path}", *overrides])
        found, _ = plan.training(config, Rehearsal(config, str(tmp_path)), 2, 8)
        return found

    plain = moments("surgery.realised_every=0", "logging.kl_every=0", "surgery.measure=none")
    assert list(plain) == ["evaluating", "sampling", "backward", "step"]
    whole = plain["step"]["parameters"]
    more = moments("surgery.measure=ghost", "train.zero_stage=3")
    assert list(more)[2:6] == ["J_1", "probe", "J_k", "products"]
    assert more["sampling"]["full copy"] == more["backward"]["reference model"] == whole
    assert more["realised"]["watched step"] == more["backward"]["watched step"] == whole
    assert "features" in moments()["sampling"]


def test_saving_takes_memory_of_the_host(tmp_path):
    model_config().save_pretrained(tmp_path)
    config = load_config(ROOT / "configs" / "passk.yaml", [f"model.path={tmp_path}"])
    rehearsal = Rehearsal(config, str(tmp_path))
    _, host = plan.training(config, rehearsal, 2, 8)
    assert host == {"saving, on rank 0 alone": (12 + 4) * rehearsal.sizes().parameters}


@pytest.mark.parametrize("task", ["twin", "chain"])
def test_a_base_is_planned_without_training_it(tmp_path, monkeypatch, task):
    monkeypatch.setenv("PASSK_SURGERY_CACHE", str(tmp_path))
    config = load_config(ROOT / "configs" / "passk.yaml", [f"task.name={task}"])
    text = plan.plan(config, 1, 8)
    assert list(tmp_path.iterdir()) == []
    made = hf.LlamaForCausalLM(build_task(vars(config.task)).base_config())
    assert text.startswith(f"base: {made.num_parameters():,} parameters")


def test_the_shape_of_a_base_is_that_of_its_folder(base_path):
    shape = build_task({"name": "twin"}).base_config()
    assert Rehearsal(Config(), shape).sizes() == Rehearsal(Config(), base_path).sizes()


def test_continuous_rollouts_are_planned_by_their_budget(tmp_path):
    rehearsal = rehearse(hf.LlamaConfig(**SMALL), tmp_path)
    train = rehearsal.config.train
    train.rollouts = "continuous"
    one = sampling(rehearsal, Drawing(1, 8, 16, 48, 1))
    token = 2 * 3 * 2 * 32 * 4  # keys and values of three layers and two heads of 32, in float32
    assert one["cache"] == 5 * 16 * token  # a row of 64, and a page to share its prompt from
    many = sampling(rehearsal, Drawing(1, 8, 16, 48, 64000))
    assert many["cache"] == 64000 * token
    wide = rehearse(hf.LlamaConfig(**SMALL | {"vocab_size": 50000}), tmp_path)
    wide.config.train.rollouts = "continuous"
    held = sampling(wide, Drawing(200, 8, 16, 48, 64000))
    rows = LOGITS // 50000 // 64  # fewer than the 1,000 of the budget
    assert rows == 83 and held["measuring what was drawn"] >= rows * 48 * 50000 * (4 + 4)
    assert held["measuring what was drawn"] < 1000 * 48 * 50000 * (4 + 4)


def test_servers_hold_the_cache(tmp_path):
    rehearsal = rehearse(hf.LlamaConfig(**SMALL), tmp_path)
    rehearsal.config.train.rollouts = "vllm"
    held = sampling(rehearsal, Drawing(200, 8, 16, 48, 64000))
    logits = 1000 * 49 * rehearsal.vocabulary * (4 + 16)
    assert held == {"measuring what was drawn": logits}


def test_the_hubs_retries_are_not_told(tmp_path, monkeypatch):
    logger = huggingface_hub.logging.get_logger("huggingface_hub.utils._http")
    heard = []

    def unreachable(path, trust_remote_code):
        heard.append(logger.isEnabledFor(logging.WARNING))
        raise OSError("no network")

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", unreachable)
    huggingface_hub.logging.set_verbosity_warning()
    with pytest.raises(ModelError, match="no network"):
        Rehearsal(Config(), "nobody/nothing")
    assert heard == [False]


ROOM = dict(zip(REAL, ((1, 24), (8, 74), (8, 74)), strict=True))  # ranks; GiB, of 80 GB


@pytest.mark.parametrize("name", REAL)
def test_shipped_configurations_fit_with_a_tenth_to_spare(tmp_path, name):
    REAL[name].save_pretrained(tmp_path)
    config = load_config(ROOT / "configs" / f"{name}.yaml", [f"model.path={tmp_path}"])
    ranks, room = ROOM[name]
    moments, _ = plan.training(config, Rehearsal(config, str(tmp_path)), ranks, 512)
    most = max(sum(held.values()) for held in moments.values())
    assert 0.3 * room < most / plan.GIB < 0.9 * room


@pytest.mark.parametrize(("command", "moment"), [("train", "backward"), ("diagnose", "direction")])
def test_the_command(tmp_path, command, moment):
    model_config().save_pretrained(tmp_path / "model")
    script = str(ROOT / "launch" / f"{command}.py")
    options = ["--config", str(ROOT / "configs" / "passk.yaml"), "--plan"]
    work = tmp_path / "work"
    work.mkdir()
    done = run(script, *options, f"model.path={tmp_path}/model", cwd=work, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("At most") == 1 and "ranks: 2" in done.stdout
    assert moment in done.stdout
    done = in_process(script, *options, "model.path=nobody/nothing", cwd=work)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("model.path = nobody/nothing: its config.json cannot be read")
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("value", [0, -2])
def test_numbers_below_one_are_refused(value):
    for option, numbers in (("--plan-ranks", (value, 512)), ("--plan-prompt", (1, value))):
        with pytest.raises(ConfigError, match=f"^{option} = {value}: must be at least 1$"):
            plan.show(Config(), *numbers)


def test_small_models_are_planned_in_mib():
    mib, gib = 2**20, 2**30
    small = plan.render({"sampling": {"cache": 3 * mib}}, {"moments": mib // 2}, 16 * gib)
    head, _, cache, total, _, *lines = small.splitlines()
    assert head.split() == ["MiB", "of", "one", "rank", "sampling"]
    assert cache.split() == ["cache", "3.00"] and total.split() == ["total", "3.00"]
    assert lines == [
        "At most 3.0 MiB, when sampling.",
        "In the host's memory: 0.5 MiB (moments 0.5 MiB).",
        "The device has 16.0 GiB.",
    ]
    large = plan.render({"step": {"moments": 20 * gib, "batch": mib}}, {}, 16 * gib).splitlines()
    assert large[0].startswith("GiB ") and large[-2:] == [
        "At most 20.0 GiB, when step.",
        "The device has 16.0 GiB: too little.",
    ]
