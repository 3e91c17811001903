"""Seconds by hand, the operations that torch counts, and the text of --plan --device."""

import copy
import os
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from eval.policy.logprobs import PLAIN, completion_logprobs, pad_batch
from eval.policy.policy import Policy
from tests.commands import ROOT, in_process
from tests.fakes import model_config
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.measure import ghost
from trainers.plan import seconds
from trainers.plan.estimate import Estimate, Setting, estimate, model_of
from trainers.plan.plan import plan, sampler_tokens
from trainers.plan.rehearsal import Rehearsal
from trainers.plan.seconds import DEVICES, Assumptions, Device, Machine, Model, Passes, Work

# transformers' own, at gradient_checkpointing_enable
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")

BARE = Assumptions(1.0, 1.0, 0.0, 0.0, 0, 0, 0)
DEVICE = Device("a device", 10**9, bandwidth=1e6, bfloat16=1e9, float32=1e8)
MODEL = Model(
    body=800,
    head=200,
    trained=1000,
    measured=1000,
    layers=2,
    width=10,
    cache=16,
    vocabulary=50,
    element=2,
)
WORK = Work(prompts=4, n=2, prompt=6, length=4, rows=4)
PASSK = str(ROOT / "configs" / "passk.yaml")


def on(device=DEVICE, dtype="bfloat16", **assumed):
    return Machine(device, dtype, replace(BARE, **assumed))


def test_a_machine_takes_the_longer_of_two_times():
    assert on().seconds(2e9, 1e6) == 2 and on().seconds(2e9, 3e6) == 3
    assert on(dtype="float32").seconds(2e9, 0) == 20
    assert on(utilisation=0.5, bandwidth=0.25).seconds(2e9, 1e6) == 4


def test_sampling_by_hand():
    """Two batches of 4 rows: 2,000 bytes of weights, and at 8 columns 128 bytes of cache a row."""
    assert WORK.batches == 2
    token = (2000 + 4 * 8 * 16) / 1e6
    prompts = 2 * 2000 / 1e6
    assert seconds.sampling(on(), MODEL, WORK, 5) == pytest.approx(prompts + 2 * 4 * token)
    # the draw: 3 bytes for each of 50 logits; the launches: 2 layers, of prompts and of 4 tokens
    drawn = seconds.sampling(on(logit=3), MODEL, WORK, 5)
    assert drawn == pytest.approx(prompts + 2 * 4 * (token + 4 * 150 / 1e6))
    launched = seconds.sampling(on(eager=0.01, graph=0.001), MODEL, WORK, 5)
    assert launched == pytest.approx(prompts + 2 * 4 * token + 2 * 2 * 5 * 0.01)
    launched = seconds.sampling(on(eager=0.01, graph=0.001), MODEL, WORK, 2)
    assert launched == pytest.approx(prompts + 2 * 4 * token + 2 * 2 * (2 * 0.01 + 3 * 0.001))
    # features read the head's 400 bytes again
    taking = seconds.sampling(on(), MODEL, WORK, 5, features=0.5)
    assert taking == pytest.approx(prompts + 2 * 4 * (token + 200 / 1e6))


def test_sampling_where_operations_take_longer():
    """4 tokens in 2 batches of 4 rows: 2 x 1,000 and 4 x 2 x 10 x 8 operations a token."""
    machine = on(replace(DEVICE, bandwidth=1e12))
    token = 4 * (2000 + 640) / 1e9
    prompts = (2 * (800 * 24 + 200 * 4) + 4 * 2 * 10 * 6 * 24) / 1e9
    assert seconds.sampling(machine, MODEL, WORK, 5) == pytest.approx(prompts + 2 * 4 * token)
    taking = seconds.sampling(machine, MODEL, WORK, 5, features=1)
    assert taking == pytest.approx(prompts + 2 * 4 * (token + 4 * 400 / 1e9))


def test_a_gradient_by_hand():
    """80 tokens, 32 of them answers, in two micro-batches: 6 operations a weight, 12 a column."""
    machine = on(replace(DEVICE, bandwidth=1e12))
    weights, attention = 2 * (800 * 80 + 200 * 32), 4 * 2 * 10 * 10 * 80
    passes = seconds.gradient(MODEL, Config(), MODEL.trained)
    found = seconds.passing(machine, MODEL, WORK, passes)
    assert found == pytest.approx((3 * weights + 3 * attention) / 1e9)
    config = Config()
    config.model.gradient_checkpointing = True
    passes = seconds.gradient(MODEL, config, MODEL.trained)
    found = seconds.passing(machine, MODEL, WORK, passes)
    assert found == pytest.approx((4 * weights + 4 * attention) / 1e9)
    # weights move once a pass and micro-batch; a micro-batch launches two layers a pass
    assert seconds.passing(on(), MODEL, WORK, Passes()) == pytest.approx(2 * 2000 / 1e6)
    machine = on(replace(DEVICE, bandwidth=1e12, bfloat16=1e15), eager=0.01)
    assert seconds.passing(machine, MODEL, WORK, passes) == pytest.approx(2 * 3 * 2 * 0.01)


def test_the_step_by_hand():
    config = Config()
    assert seconds.stepping(on(step=48), MODEL, config, 4) == pytest.approx(48e-3)
    config.train.zero_stage = 1
    assert seconds.stepping(on(step=48), MODEL, config, 4) == pytest.approx(12e-3)


@pytest.mark.parametrize(("statistic", "operations"), [("loo", 10), ("naive", 12)])
def test_ghost_in_operations_of_a_weight(statistic, operations):
    config = Config()
    config.surgery.statistic = statistic

    def of(watched):
        passes = seconds.ghost(MODEL, config, watched)
        return 2 * (passes.forwards + passes.backwards + passes.products)

    assert of(0) == operations and of(1) == operations + 6
    config.model.gradient_checkpointing = True  # a forward more for each backward
    assert of(0) == operations + 2 * (1.5 if statistic == "loo" else 2)


SMALL = hf.LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_operations_are_those_that_torch_counts(checkpointing):
    """Of log-probabilities, a gradient, a probe, and a gradient with a probe, to 1 %.

    The forward that checkpointing makes again lacks the head, and where no probe needs it the
    last product of each layer.
    """
    config = Config()
    config.model.gradient_checkpointing = checkpointing
    torch.manual_seed(0)
    shape = copy.deepcopy(SMALL)  # torch counts no operations of sdpa on a CPU
    model = hf.AutoModelForCausalLM.from_config(shape, attn_implementation="eager")
    make_trainable(Policy(model, None), config)
    numbers = model_of(Rehearsal(config, SMALL))
    work = Work(prompts=2, n=3, prompt=20, length=30, rows=6)
    rows = pad_batch([[3] * 20] * 6, [[5] * 31] * 6, 0, "cpu")  # the last column is not read
    v, ones = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.ones(6)
    total = ghost.zeros(model, None)

    def forward():
        with torch.no_grad():
            completion_logprobs(model, rows)

    one = seconds.gradient(numbers, config, numbers.trained)
    head, last = 2 * numbers.head * 180, 2 * 3 * 64 * 160 * 300
    cases = [  # (what is done, its passes, what is not made again)
        (forward, Passes(), 0),
        (lambda: ghost.add_gradient(model, rows, ones, total, PLAIN), one, head + last),
        (lambda: ghost.probe(model, rows, v, PLAIN), one, head),
        (
            lambda: ghost.probed_gradient(model, rows, ones, v, total, PLAIN),
            one + Passes(0, 0, 1),
            head,
        ),
    ]
    machine = on(Device("", 1, bandwidth=1e30, bfloat16=1.0, float32=1.0))
    for work_done, passes, left_out in cases:
        with FlopCounterMode(display=False) as counter:
            work_done()
        expected = seconds.passing(machine, numbers, work, passes) - checkpointing * left_out
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_the_numbers_of_a_model():
    found = model_of(Rehearsal(Config(), SMALL))
    embedding = 64 * 64
    attention, inner, norms = 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 160, 2 * 64
    assert found.body == 3 * (attention + inner + norms) + 64 and found.head == embedding
    assert found.trained == found.measured == found.body + 2 * embedding
    assert (found.layers, found.width, found.cache) == (3, 64, 2 * 3 * 32 * 4)
    tied = hf.LlamaConfig(**SMALL.to_diff_dict() | {"tie_word_embeddings": True})
    again = model_of(Rehearsal(Config(), tied))
    assert again.weights == found.weights and again.trained == found.trained - embedding
    config = Config()
    config.model.lora_rank = 2
    adapted = model_of(Rehearsal(config, SMALL))
    assert adapted.share(adapted.trained) < 0.1 < found.share(found.trained) == 1


def of(device, *overrides, ranks=1, shape=SMALL):
    config = load_config(PASSK, ["train.max_new_tokens=100", *overrides])
    machine = Machine(device, config.model.dtype)
    rehearsal = Rehearsal(config, shape)
    setting = Setting(ranks, 50, sampler_tokens(rehearsal, ranks, None, False))
    return Estimate(config, machine, model_of(rehearsal), setting)


def test_phases_are_those_of_the_configuration():
    h100 = DEVICES["h100"]
    plain = of(h100, "surgery.realised_every=0", "logging.kl_every=0").of_step()
    assert list(plain) == ["sample", "backward", "step"]
    more = of(h100, "surgery.measure=ghost", "train.kl_coef=0.1", "train.updates=3").of_step()
    assert list(more) == ["sample", "measure", "reference", "backward", "step", "realised"]
    assert more["backward"] == pytest.approx(3 * plain["backward"])
    seldom = of(h100, "surgery.measure=ghost", "surgery.every=4").of_step()
    assert seldom["measure"] == pytest.approx(more["measure"] / 4)
    ruled = of(h100, "surgery.measure=ghost", "surgery.rule=nash").of_step()
    assert ruled["measure"] > 1.3 * more["measure"]  # which needs |J_k| each time
    continuous = of(h100, "train.rollouts=continuous").of_step()
    assert continuous["sample"] > plain["sample"]
    servers = ["rollout.urls=[http://a:1]", "rollout.sync_dir=sync"]
    served = of(h100, "train.rollouts=vllm", *servers).of_step()
    assert served["sample"] == continuous["sample"]
    diagnosed = of(h100).of_diagnosis()
    assert list(diagnosed) == ["sample", "directions", "probes"]
    assert diagnosed["probes"] > diagnosed["directions"]


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("part", ["bandwidth", "bfloat16", "float32"])
def test_twice_the_device_is_not_slower(name, part):
    device = DEVICES[name]
    better = replace(device, **{part: 2 * getattr(device, part)})
    for dtype in ("float32", "bfloat16"):
        overrides = [f"model.dtype={dtype}", "train.zero_stage=1", "surgery.measure=ghost"]
        before, after = (of(x, *overrides).of_step() for x in (device, better))
        assert before.keys() == after.keys()
        assert all(after[phase] <= x for phase, x in before.items())
        if part == dtype or part == "bandwidth":
            assert sum(after.values()) < sum(before.values())


def test_more_ranks_and_larger_batches_are_not_slower():
    one, many = (of(DEVICES["l4"], ranks=x).of_step() for x in (1, 8))
    assert all(many[phase] <= x for phase, x in one.items())
    few, rows = (of(DEVICES["l4"], f"train.rollout_tokens={x}") for x in (2400, 240000))
    assert rows.of_step()["sample"] < 0.2 * few.of_step()["sample"]
    assert rows.of_evaluation() < 0.2 * few.of_evaluation()


def test_what_a_gpu_is_known_to_do():
    """A 7B model on an H100, one row: 15.2 GB at 3.35 TB/s make a token of 4.5 ms at best."""
    shape = hf.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    config = Config()
    config.model.dtype = "bfloat16"
    model = model_of(Rehearsal(config, shape))
    assert model.trained == 7_615_616_512 and model.cache == 2 * 28 * 4 * 128 * 2
    machine = Machine(DEVICES["h100"], "bfloat16", BARE)
    token = seconds.sampling(machine, model, Work(1, 1, 1, 1000, 1), 1001) / 1000
    assert token == pytest.approx(2 * (7.6156 - 0.545) / 3350, rel=0.01)


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_described_within_the_table(name):
    device, rehearsal = DEVICES[name], Rehearsal(Config(), SMALL)
    rehearsal.config.train.max_new_tokens = 10
    lines = estimate(rehearsal, device, Setting(1, 10, 1000), False).splitlines()
    assert device.name in " ".join(lines)
    rule = next(i for i, x in enumerate(lines) if set(x) == {"-", " "})
    stop = lines.index("")
    columns = [x.span() for x in re.finditer("-+", lines[rule])]
    for line in lines[:rule] + lines[rule + 1 : stop]:
        gaps = [line[b:c].strip() for (_, b), (c, _) in pairwise(columns)]
        assert len(line) <= columns[-1][1] and not any(gaps), line
    for line in lines[rule + 1 : stop]:
        assert float(line[slice(*columns[1])]) > 0, line


def planned(*overrides, device=None, **more):
    config = load_config(PASSK, ["task.name=chain", *overrides])
    return plan(config, 2, 40, device=device, **more)


def test_without_a_device_the_plan_is_as_it_was():
    """The text of before, and under it that of the device, whose room is told."""
    key = "train.rollout_tokens=65536"
    before, text = planned(), planned(key, device="l4")
    assert "device" not in before.lower() or torch.cuda.is_available()
    assert planned(key) == before or torch.cuda.is_available()
    top, bottom = text.split("\n\nEstimated, of a step", 1)
    (room,) = [x for x in top.splitlines() if x.startswith("The device has")]
    assert room == "The device has 22.4 GiB."
    if not torch.cuda.is_available():
        assert top.replace(f"{room}\n", "") == before
    assert "A run of 150 steps and 7 evaluations takes" in bottom
    for word in ("NVIDIA L4", "80 % of 0.3 TB/s", "40 % (MFU) of 30.3 TFLOP/s", "float32"):
        assert word in bottom
    assert "MFU" not in before


def test_too_little_room_is_told():
    text = planned("train.micro_batch_tokens=30000000", device="4090")
    assert "\nThe device has 22.4 GiB: too little.\n" in text


def test_a_diagnosis_is_planned_too():
    text = planned(device="a100-80", diagnosing=True)
    assert "Estimated, of the diagnosis" in text and "The diagnosis takes" in text


@pytest.mark.parametrize("command", ["train", "diagnose"])
def test_the_command(tmp_path, command):
    model_config().save_pretrained(tmp_path / "model")
    script = str(ROOT / "launch" / f"{command}.py")
    options = ["--config", PASSK, f"model.path={tmp_path}/model"]
    done = in_process(script, "--plan", "--device", "h200", *options, cwd=tmp_path)
    assert done.returncode == 0 and "NVIDIA H200" in done.stdout
    assert "The device has 131.3 GiB." in done.stdout
    done = in_process(script, "--plan", "--device", "h300", *options, cwd=tmp_path)
    line = "--device = h300: must be one of h100, h200, a100-80, l4, 4090\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = in_process(script, "--device", "h100", *options, cwd=tmp_path)
    line = "--device = h100: belongs to --plan; add --plan\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert os.listdir(tmp_path) == ["model"]
