"""Run by test_training.py: whole runs on the fake device under every ZeRO stage, each resumed."""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import transformers
from safetensors.torch import load_file

from eval.policy.logprobs import pad_batch
from tests.fake_device import FakeDevice, MixedDevices
from trainers.config.load import load_config
from trainers.engine import batches
from trainers.engine.launcher import start_ranks
from trainers.train import checkpoint
from trainers.train.run_folder import RunFolder
from trainers.train.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pcgrad.yaml"
SMALL = [
    *("train.prompts=8", "train.samples=6", "train.steps=2", "train.save_every=1", "objective.k=4"),
    *("eval.k=4", "eval.problems=6", "eval.samples=4", "eval.every=0", "run.threads=1"),
    *("logging.images_every=0", "logging.kl_every=1", "surgery.realised_every=1"),
]
BF16 = "model.dtype=bfloat16"
ADAM = ["surgery.measure=ghost", "surgery.metric=adam", "surgery.rule=mgda"]
LORA = ["model.lora_rank=2", "train.kl_coef=0.1"]
TWICE = ["train.kl_coef=0.1", "train.updates=2", "train.entropy_coef=0.01"]
SAVING = ["model.gradient_checkpointing=true", "train.logprob_chunk=8"]
CASES = {
    "zero 0, agreement": ["surgery.rule=agreement_clip"],
    "zero 0, adam, saving": [*ADAM, *SAVING, "train.micro_batch_tokens=100"],
    "zero 0, lora": LORA,
    "zero 1, bf16, adam": ["train.zero_stage=1", BF16, *ADAM],
    "zero 1, offload, two updates": ["train.zero_stage=1", "train.offload=optimizer", *TWICE],
    "zero 2, two updates": ["train.zero_stage=2", *TWICE],
    "zero 2, bf16, offload": ["train.zero_stage=2", BF16, "train.offload=optimizer", *ADAM],
    "zero 3, adam": ["train.zero_stage=3", *ADAM],
    "zero 3, bf16, two updates": ["train.zero_stage=3", BF16, *TWICE],
    "zero 3, lora, saving, offload all": [
        "train.zero_stage=3",
        "train.offload=all",
        *LORA,
        *SAVING,
    ],
}


def take_cuda():
    """Let DeepSpeed go the way that it goes on a GPU."""
    from deepspeed.accelerator import set_accelerator  # which looks for a GPU when it is imported
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    set_accelerator(CUDA_Accelerator())


def trained(config):
    """A run that has ended, in its folder."""
    folder = RunFolder(config)
    trainer = Trainer(config, folder)
    trainer.run()
    folder._lock.close()
    return trainer


def check(overrides):
    with TemporaryDirectory() as place, FakeDevice() as device:
        run = Path(place) / "run"
        config = load_config(CONFIG, [*SMALL, *overrides, f"run.dir={run}"])
        engine, saved = trained(config).engine, checkpoint.folder_of(run, 2)
        with engine.policy() as policy:
            places = {str(x.device) for x in [engine, *policy.model.parameters()]}
        whole = load_file(saved / checkpoint.TENSORS)
        shutil.rmtree(saved)
        (run / "summary.json").unlink()
        _, numbers = checkpoint.latest(run)
        trained(config)
        again = load_file(saved / checkpoint.TENSORS)
    return {
        "resumed from": numbers["step"],
        "places": sorted(places),
        "operations": device.operations,
        "finite": all(bool(x.isfinite().all()) for x in whole.values()),
        "resumed": whole.keys() == again.keys() and all(again[n].equal(whole[n]) for n in whole),
    }


def refused(work):
    """What is said where work mixes the devices; None where it does not."""
    try:
        with FakeDevice():
            work()
    except MixedDevices as error:
        return str(error)


def on_the_host(prompts, completions, pad_id, device):
    """A defect: the rows of an update stay where they were made."""
    return pad_batch(prompts, completions, pad_id, "cpu")


def planted():
    with TemporaryDirectory() as place, mock.patch.object(batches, "pad_batch", on_the_host):
        trained(load_config(CONFIG, [*SMALL, f"run.dir={place}/run"]))


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    start_ranks(1)
    take_cuda()
    results = {name: check(overrides) for name, overrides in CASES.items()}
    results["planted"] = refused(planted)
    results["a sum of the host's"] = refused(lambda: torch.distributed.all_reduce(torch.zeros(1)))
    with open(sys.argv[-1], "w") as file:
        json.dump(results, file)
