"""Run by test_glossary.py: short runs under every rule and many settings, and what they write."""

import json
import sys
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from surgery.rules import RULES
from trainers.config.load import load_config
from trainers.engine.launcher import start_ranks
from trainers.train.run_folder import RunFolder
from trainers.train.trainer import Trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pcgrad.yaml"
SMALL = [
    *("train.prompts=8", "train.samples=6", "train.steps=2", "objective.k=4", "eval.k=4"),
    *("eval.problems=6", "eval.samples=4", "eval.every=1", "run.threads=1"),
    *("surgery.realised_every=1", "logging.images_every=0", "logging.kl_every=0"),
]
REFERRED = """
from eval.tasks.twin import Twin

class Referred(Twin):
    def reference(self, count):
        return self.evaluation(count)
"""
CASES = {
    **{rule: [f"surgery.rule={rule}"] for rule in RULES},
    "nothing measured": ["surgery.rule=mix", "surgery.measure=none"],
    "ghost": ["surgery.measure=ghost", "surgery.metric=adam", "surgery.every=2"],
    "KL, bonus, updates": ["train.kl_coef=0.1", "train.entropy_coef=0.1", "train.updates=2"],
    "later k": ["objective.k_schedule=1@2", "surgery.statistic=naive", "logging.kl_every=1"],
    "another objective": [
        *("objective.estimator=curverl", "objective.filter=true", "train.sampler=uniform"),
    ],
    "chosen prompts": ["train.sampler=informative", "surgery.rule=floor"],
    "reference": ["task.name=referred.py:Referred"],
}


def names(overrides: list[str]) -> dict[str, list[str]]:
    """Return the names of the scalars of a run, in metrics.jsonl and in TensorBoard."""
    with TemporaryDirectory() as place:
        config = load_config(CONFIG, [*SMALL, *overrides, f"run.dir={place}/run"])
        folder = RunFolder(config)
        Trainer(config, folder).run()
        folder._lock.close()
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        board = EventAccumulator(str(folder.path)).Reload()
        return {
            "metrics": sorted({name for x in lines for name in json.loads(x)} - {"step"}),
            "TensorBoard": sorted(board.Tags()["scalars"]),
        }


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    start_ranks(1)
    with TemporaryDirectory() as folder, chdir(folder):
        Path("referred.py").write_text(REFERRED)
        results = {name: names(overrides) for name, overrides in CASES.items()}
    Path(sys.argv[-1]).write_text(json.dumps(results))
