"""The parts of gpu.py: each yields rows (case, result, whether it is as it should be)."""

import copy
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.policy.logprobs import PLAIN, Likelihood, Rows, completion_logprobs, pad_batch
from eval.policy.policy import Policy
from eval.rollout.rollout import Decoding, Rollout, SamplingFailed
from eval.rollout.sample import sample
from tests.benchmarks.gpu import ROOT, Row
from tests.benchmarks.measuring import clock, in_turn
from trainers.config.load import load_config
from trainers.config.schema import Config
from trainers.engine.adapter import make_trainable
from trainers.measure import ghost
from trainers.plan import plan, seconds
from trainers.plan.estimate import model_of
from trainers.plan.rehearsal import Rehearsal
from trainers.plan.seconds import DEVICES, Device, Machine, Passes, Work

Lines = Iterator[Row]


@dataclass(frozen=True)
class Scale:
    """The sizes of all parts."""

    shapes: tuple[str, ...]  # names in SHAPES; whole steps are of the first
    rows: tuple[int, ...]  # drawn at a time
    drawn: int  # tokens of each
    prompt: int  # tokens
    micro: tuple[int, int]  # rows and columns of the update's micro-batch
    step: tuple[int, int]  # prompts of 16 answers each, and tokens of an answer
    rounds: int


FULL = Scale(("0.5B", "7B"), (16, 64, 256, 1024), 64, 128, (16, 1024), (16, 64), 2)
TINY = Scale(("tiny",), (16, 32), 4, 8, (16, 16), (2, 4), 1)
SHAPES = {  # of Qwen2: width, inner width, layers, heads, their keys' and values', vocabulary, tied
    "tiny": (64, 128, 2, 4, 2, 512, True),
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
PROMPTS = ["one plum, " * i + "two" for i in (1, 4, 2, 7, 3)]  # of many lengths
TOKENS = 40  # of a completion: more than lie between two looks of the sampler
# the largest error beside float64, in units of the largest number; bfloat16 is for the record
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: math.inf}


# -- models and devices ---------------------------------------------------------------------------


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def data_sheet(name: str) -> Device | None:
    """The device that a GPU of this name is, if its data sheet is known."""
    words = name.upper().replace("-", " ").split()
    return next((x for key, x in DEVICES.items() if key.split("-")[0].upper() in words), None)


def machine() -> Machine | None:
    """The GPU at hand as --plan sees it."""
    sheet = data_sheet(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return sheet and Machine(sheet, "bfloat16")


def shape(name: str) -> Any:
    """A Qwen2's configuration."""
    from transformers import Qwen2Config

    width, inner, layers, heads, pairs, vocabulary, tied = SHAPES[name]
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )


def tokenizer(vocabulary: int) -> Any:
    """Each byte is a token, and so are as many words as fill the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = known + [f"w{i}" for i in range(len(known), vocabulary)]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")


class Endless(Policy):
    """No completion ends before the last token."""

    end_ids = property(lambda self: [2**30])  # type: ignore[assignment]


def policy(name: str, dtype: torch.dtype = torch.bfloat16) -> Endless:
    """Random weights of a shape, on the device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device():
        model = AutoModelForCausalLM.from_config(shape(name), dtype=dtype)
    return Endless(model.eval(), tokenizer(SHAPES[name][5]))


def planned_model(config: Any, checkpointing: bool) -> seconds.Model:
    """A model in the numbers of --plan."""
    return model_of(Rehearsal(_config(checkpointing), copy.deepcopy(config)))


def prompts(count: int, length: int) -> list[str]:
    """Texts of so many tokens, no two alike."""
    return [f"{i:08d}".ljust(length, "x")[:length] for i in range(count)]


# -- correctness ----------------------------------------------------------------------------------


def correctness(scale: Scale, folder: Path) -> Lines:
    """The same numbers as on a CPU in float64, in float32 without TF32; bfloat16 for the record.

    With a CUDA graph and without one the draws are the same.
    """
    torch.set_float32_matmul_precision("highest")
    model = policy("tiny", torch.float64).model.cpu()
    for p in model.parameters():
        p.data.mul_(3)  # far from uniform
    reference = Endless(model, tokenizer(SHAPES["tiny"][5]))
    drawn = draw(reference)
    expected = numbers(reference, drawn)
    for dtype, most in TOLERANCES.items():
        tested = Endless(copy.deepcopy(model).to(device(), dtype), reference.tokenizer)
        again = draw(tested)
        same = [x == y for x, y in zip(again.completions, drawn.completions, strict=True)]
        errors = taken(again, drawn, torch.tensor(same))
        errors |= {x: error(y, expected[x]) for x, y in numbers(tested, drawn).items()}
        count = f"{sum(same)} of {len(same)} completions equal"
        shown = "; ".join([count, *(f"{x} {far:.0e}" for x, far in errors.items())])
        good = all(far < most for far in errors.values()) and (all(same) or most == math.inf)
        name = str(dtype).removeprefix("torch.")
        yield f"{name} beside float64 on the CPU, relative errors", shown, good
        plain = draw(tested, graph=False).completions
        same = [x == y for x, y in zip(again.completions, plain, strict=True)]
        count = f"{sum(same)} of {len(same)} completions equal"
        yield f"{name}, with a graph beside without", count, all(same) or most == math.inf


def taken(ours: Rollout, expected: Rollout, same: Tensor) -> dict[str, float]:
    """The errors of what the sampler takes on its way, in the completions that are the same."""
    names = ("log-probabilities", "entropy", "features") if same.any() else ()
    keys = {"log-probabilities": "logprobs"}
    pairs = {x: [getattr(y, keys.get(x, x)) for y in (ours, expected)] for x in names}
    return {f"drawn {x}": error(a.cpu()[same], b[same]) for x, (a, b) in pairs.items()}


def draw(policy: Policy, graph: bool = True) -> Rollout:
    return sample(policy, PROMPTS, 6, Decoding(TOKENS, features=True, cuda_graph=graph), 3)


def numbers(policy: Policy, drawn: Rollout) -> dict[str, Tensor]:
    """All that is computed of given completions, on the CPU."""
    where, ids = policy.device, [x for x in drawn.prompts for _ in range(drawn.n)]
    rows = pad_batch(ids, drawn.completions, policy.pad_id, where)
    weights = torch.linspace(-1, 1, len(ids), device=where)
    v = ghost.gradient(policy.model, [rows], [weights], PLAIN)
    with torch.no_grad():
        logp = completion_logprobs(policy.model, rows)
        pieces = completion_logprobs(policy.model, rows, pieces=5)
    values = {
        "log-probabilities": logp,
        "in pieces": pieces,
        "gradient": torch.cat([x.flatten() for x in v.values()]),
        "products of ghost": ghost.probe(policy.model, rows, v, PLAIN),
    }
    return {name: x.detach().cpu() for name, x in values.items()}


def error(ours: Tensor, expected: Tensor) -> float:
    """The largest error in units of the largest number; inf where anything is not finite."""
    if not ours.isfinite().all():
        return math.inf
    expected = expected.double()
    return float((ours.double() - expected).abs().max() / expected.abs().max())


# -- smoke runs -----------------------------------------------------------------------------------

BF16 = "model.dtype=bfloat16"
CHUNKS = ["model.gradient_checkpointing=true", "train.logprob_chunk=64"]
SMOKE = {  # configuration and overrides
    "ZeRO 0, float32, pcgrad": ["pcgrad.yaml", "train.zero_stage=0"],
    "ZeRO 1, bfloat16, pcgrad, KL, two updates": [
        "pcgrad.yaml",
        "train.zero_stage=1",
        BF16,
        "train.kl_coef=0.01",
        "train.updates=2",
    ],
    "ZeRO 2, bfloat16, ghost, checkpointing, chunks": [
        "pcgrad_ghost.yaml",
        "train.zero_stage=2",
        BF16,
        *CHUNKS,
    ],
    "ZeRO 3, bfloat16, ghost": ["pcgrad_ghost.yaml", "train.zero_stage=3", BF16],
    "ZeRO 2, bfloat16, LoRA": ["pcgrad.yaml", "train.zero_stage=2", BF16, "model.lora_rank=4"],
}


def smoke(scale: Scale, folder: Path) -> Lines:
    """Three steps of each, with a checkpoint, evaluations and all looks."""
    quick = ["train.steps=3", "train.prompts=8", "eval.problems=8", "eval.samples=8"]
    quick += ["eval.every=0", "train.save_every=2", "logging.kl_every=2"]
    quick += ["surgery.realised_every=2", "logging.images_every=0", "surgery.every=1"]
    for i, (name, (config, *overrides)) in enumerate(SMOKE.items()):
        if "LoRA" in name and util.find_spec("peft") is None:
            yield name, "left out: peft is not installed", True
            continue
        out = folder / f"run{i}"
        command = [sys.executable, str(ROOT / "launch" / "train.py")]
        command += ["--config", str(ROOT / "configs" / config), *quick, *overrides]
        start = time.monotonic()
        done = subprocess.run([*command, f"run.dir={out}"], capture_output=True, text=True)
        trouble = failure(done, out)
        yield name, trouble or f"passed in {time.monotonic() - start:.0f} s", trouble is None


def failure(done: subprocess.CompletedProcess, out: Path) -> str | None:
    """Say why a run has failed, if it has: its exit code, or a step without a gradient."""
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        return f"failed with {done.returncode}: {lines[-1][:200]}"
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    norms = [x.get("train/grad_norm", math.nan) for x in lines if "train/loss" in x]
    if len(norms) != 3 or not all(0 <= x < math.inf for x in norms) or not any(norms):
        return f"failed: gradients of norm {norms}"
    return None


# -- sampling -------------------------------------------------------------------------------------


def sampling(scale: Scale, folder: Path) -> Lines:
    """Tokens a second by shape and rows drawn at a time, with CUDA graphs and without."""
    for name in scale.shapes:
        model = policy(name)
        for rows in scale.rows:
            for graph in (True, False):
                how = Decoding(scale.drawn, token_budget=2**40, cuda_graph=graph)
                case = f"{name}, {rows} rows, {'CUDA graph' if graph else 'kernel by kernel'}"
                yield case, *within(partial(_drawing, model, scale, rows, how))
        del model
        release()


def _drawing(model: Policy, scale: Scale, rows: int, how: Decoding) -> str:
    """Milliseconds a token, tokens a second, and the most memory."""
    texts = prompts(rows // 16, scale.prompt)
    sample(model, texts, 16, how, 0)  # warm, and captured
    spent, most = counted(lambda: sample(model, texts, 16, how, 1))
    token = spent / how.max_new_tokens
    layers = model.model.config.num_hidden_layers
    parts = [f"{1000 * token:.2f} ms a token ({1000 * token / layers:.3f} a layer)"]
    parts.append(f"{rows / token:,.0f} tokens/s")
    if most:
        parts.append(f"at most {most / plan.GIB:.1f} GiB")
    here = machine()
    if here:
        work = Work(len(texts), 16, scale.prompt, scale.drawn, rows)
        numbers = planned_model(model.model.config, False)
        forwards = scale.drawn + 1
        eager = 3 if how.cuda_graph else forwards  # prompts, a token, its capture
        planned = seconds.sampling(here, numbers, work, eager) / scale.drawn
        parts.append(f"by --plan {1000 * planned:.2f} ms")
    return "; ".join(parts)


# -- the update -----------------------------------------------------------------------------------


def _config(checkpointing: bool) -> Config:
    config = Config()
    config.model.dtype, config.model.gradient_checkpointing = "bfloat16", checkpointing
    config.train.logprob_chunk = 1024
    return config


def update(scale: Scale, folder: Path) -> Lines:
    """A micro-batch's forward and backward: its share of the operations that the device can do."""
    for name in scale.shapes:
        for checkpointing in (False, True):
            case = f"{name}, {'with' if checkpointing else 'without'} checkpointing"
            yield case, *within(partial(_backward, name, checkpointing, scale))
            release()


def _backward(name: str, checkpointing: bool, scale: Scale) -> str:
    config, (count, columns) = _config(checkpointing), scale.micro
    model = policy(name)
    make_trainable(model, config)
    ids = torch.randint(SHAPES[name][5], (count, columns)).tolist()
    both = [x[: columns // 2] for x in ids], [x[columns // 2 :] for x in ids]
    rows = pad_batch(*both, 0, device())
    spent = backwards(model.model, rows, Likelihood(chunk=config.train.logprob_chunk), scale.rounds)
    numbers = planned_model(model.model.config, checkpointing)
    work = Work(count, 1, columns // 2, columns - columns // 2, count)
    parts = [f"{1000 * spent:.0f} ms for {count} rows of {columns}"]
    parts.append(f"{count * columns / spent:,.0f} tokens/s")
    needed = seconds.operations(numbers, work, Passes(1, 1, 1)) / spent
    done = seconds.operations(numbers, work, Passes(1 + checkpointing, 1, 1)) / spent
    parts.append(f"{needed / 1e12:.3g} TFLOP/s")
    here = machine()
    if here:
        shares = (f"{100 * x / here.operations:.0f} %" for x in (needed, done))
        parts.append("MFU {}, {} with what is made again".format(*shares))
    return "; ".join(parts)


def backwards(model: Any, rows: Rows, likelihood: Likelihood, rounds: int) -> float:
    """The median seconds of log-probabilities and their backward."""

    def work() -> None:
        completion_logprobs(model, rows, likelihood).sum().backward()
        model.zero_grad()

    return statistics.median(in_turn({"": work}, rounds)[""])


# -- whole steps ----------------------------------------------------------------------------------

MEASURES = {"plain": "none", "last_layer": "last_layer", "ghost": "ghost"}


def step(scale: Scale, folder: Path) -> Lines:
    """Whole steps that measure nothing, by the last layer, and by ghost; their memory beside
    --plan's. All rows carry weight, for the entropy has one.
    """
    from trainers.engine.launcher import start_ranks

    start_ranks(threads=0 if torch.cuda.is_available() else 1)
    path, name = folder / "model", scale.shapes[0]
    made = policy(name)
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    del made
    release()
    plain: list[float] = []
    for measure, value in MEASURES.items():
        case = f"{name}, {scale.step[0]} x 16 answers of {scale.step[1]} tokens, {measure}"
        config = _of_step(scale, path, value)
        yield case, *within(partial(_steps, config, scale, plain))
        release()


def _of_step(scale: Scale, path: Path, measure: str) -> Config:
    own = ROOT / "tests" / "benchmarks" / "gpu.py"
    rows, columns = scale.micro
    overrides = {
        "model.path": path,
        "model.dtype": "bfloat16",
        "model.gradient_checkpointing": "true",
        "task.name": f"{own}:Letters",
        "task.options.length": scale.prompt,
        "surgery.measure": measure,
        "surgery.realised_every": 0,
        "logging.kl_every": 0,
        "train.zero_stage": 1,
        "train.prompts": scale.step[0],
        "train.max_new_tokens": scale.step[1],
        "train.entropy_coef": 0.01,
        "train.logprob_chunk": 1024,
        "train.micro_batch_tokens": rows * columns,
        "train.rollout_tokens": 2**20,
        "train.lr": 1e-9,
        "eval.problems": 2,
    }
    listed = [f"{key}={x}" for key, x in overrides.items()]
    return load_config(ROOT / "configs" / "passk.yaml", listed)


def _steps(config: Config, scale: Scale, plain: list[float]) -> str:
    """The seconds of a step by its parts; as a ratio to the plain one, which comes first."""
    from trainers.train.trainer import Trainer

    trainer = Trainer(config, None)
    trainer.step.rule_state["base_pass@1"] = 0.5
    trainer.step(1)
    parts: list[Mapping[str, float]] = []

    def steps() -> None:
        parts.extend(trainer.step(i).seconds for i in range(2, 2 + scale.rounds))

    _, most = counted(steps)
    names = [x for x in parts[0] if x != "step"]
    mean = {x: statistics.mean(y[x] for y in parts) for x in (*names, "step")}
    plain.append(mean["step"])
    shown = [f"{mean['step']:.2f} s ({', '.join(f'{x} {mean[x]:.2f}' for x in names)})"]
    if len(plain) > 1:
        shown.append(f"{mean['step'] / plain[0]:.2f} of a plain step")
    planned = _planned(config, scale)
    held = f"at most {most / plan.GIB:.2f} GiB" if most else "memory is counted on a GPU only"
    return "; ".join([*shown, f"{held}, by --plan {planned / plan.GIB:.2f}"])


def _planned(config: Config, scale: Scale) -> int:
    """The bytes of a step at most, by --plan."""
    rehearsal = Rehearsal(config, str(config.model.path))
    moments, _ = plan.training(config, rehearsal, 1, scale.prompt)
    return max(sum(x.values()) for name, x in moments.items() if name != "evaluating")


# -- cases ----------------------------------------------------------------------------------------


def within(work: Callable[[], str]) -> tuple[str, bool]:
    """The result of a case; one that outgrows the device is no failure."""
    outgrown = "outgrows the device's memory", True
    try:
        return work(), True
    except torch.OutOfMemoryError:
        return outgrown
    except SamplingFailed as error:
        if "too much for the device's memory" in str(error):
            return outgrown
        raise


def counted(work: Callable[[], object]) -> tuple[float, int | None]:
    """(seconds, the most bytes of all tensors meanwhile; None without a GPU, which counts them)."""
    if not torch.cuda.is_available():
        return clock(work), None
    torch.cuda.reset_peak_memory_stats()
    spent = clock(work)
    return spent, torch.cuda.max_memory_allocated()


def release() -> None:
    """Give back the memory of what is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
