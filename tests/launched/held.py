"""Run by test_plan.py under the launcher: what DeepSpeed really holds between steps."""

import gc
import json
import sys

import torch

from eval.policy.logprobs import answer_batch
from eval.policy.policy import Policy
from eval.tasks.twin_base import make_tokenizer
from tests.fakes import model_config
from trainers.config.schema import Config
from trainers.engine.engine import Engine
from trainers.engine.launcher import start_ranks


def storages():
    """All that is alive, by address, and kept alive: an address is not used again."""
    tensors = (x for x in gc.get_objects() if isinstance(x, torch.Tensor) and is_real(x))
    return {storage._cdata: storage for storage in (x.untyped_storage() for x in tensors)}


def is_real(x):
    try:
        return x.device.type != "meta"
    except RuntimeError:  # torch keeps some that have no device
        return False


def held(stage, dtype):
    """Bytes after two steps, each of two backwards."""
    from transformers import LlamaForCausalLM

    gc.collect()
    before = storages()  # of an engine before this one, too, which DeepSpeed may hold on to
    config = Config()
    config.train.zero_stage, config.model.dtype = stage, dtype
    tokenizer = make_tokenizer()
    policy = Policy(LlamaForCausalLM(model_config()).to(getattr(torch, dtype)), tokenizer)
    batch = answer_batch(policy, ["D3?4=", "A2?3="], ["7", "6"])
    engine = Engine(policy, config)
    del policy
    with engine.policy():
        pass  # as each step begins: ZeRO-3's whole copy is dropped again
    for _ in range(2):
        engine.backward([batch, batch], [torch.ones(2)] * 2, 0.5, batch[:1])
        engine.step(1e-3)
    gc.collect()
    return sum(x.nbytes() for address, x in storages().items() if address not in before)


if __name__ == "__main__":
    start_ranks(1)
    gc.freeze()  # the objects of all imports, which are many and hold nothing of an engine
    cases = [(s, d) for d in ("float32", "bfloat16") for s in range(4) if (s, d) != (0, "bfloat16")]
    results = {f"{dtype} {stage}": held(stage, dtype) for stage, dtype in cases}
    if torch.distributed.get_rank() == 0:
        with open(sys.argv[-1], "w") as file:
            json.dump(results, file)
