"""Diagnose the interference of pass@k with pass@1: any model, any task.

python    launch/diagnose.py --config FILE [--out DIR] [key=value ...]
deepspeed launch/diagnose.py --config FILE [--out DIR] [key=value ...]      several ranks

The section `diagnose` of the configuration sets the number of prompts, the number of answers to
each prompt, the temperature and top_p. The gradients are those of the sampled distribution, top_p
included. The command writes diagnosis.md, diagnosis.json, prompts.jsonl, pictures and TensorBoard
files into DIR. After an interruption the same command goes on. --plan prints the memory that the
diagnosis needs, from the model's config.json alone.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import add_options, command_line, planning

if TYPE_CHECKING:
    from trainers.commands.diagnosis_folder import Folder
    from trainers.config.schema import Config


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, help="default: runs/diagnosis/<configuration>")
    every = "print every pair of thresholds of easy and hard prompts"
    parser.add_argument("--thresholds", action="store_true", help=every)
    add_options(parser, "diagnose.measure=last_layer")
    arguments = parser.parse_intermixed_args()

    from eval.errors import Refusal
    from trainers.commands.main import attempt
    from trainers.config.load import load_config, run_name
    from trainers.engine.launcher import refuse
    from trainers.plan.plan import show

    out = arguments.out or Path("runs/diagnosis") / run_name(Path(arguments.config))
    try:
        config = load_config(arguments.config, arguments.overrides)
        if planning(arguments.plan, arguments.device):
            show(config, arguments.plan_ranks, arguments.plan_prompt, True, arguments.device)
            return 0
        from trainers.commands.diagnose import Folder

        folder = Folder(out, config) if int(os.environ.get("RANK", "0")) == 0 else None
    except Refusal as error:
        return refuse(error)
    interrupted = f"{out}: interrupted; the same command goes on"
    return attempt(lambda: diagnose(config, folder, arguments.thresholds), out, interrupted)


def diagnose(config: "Config", folder: "Folder | None", thresholds: bool) -> None:
    """Measure on all ranks; rank 0 writes into its open folder and closes it."""
    import transformers

    from eval.diagnosis.report import write
    from eval.errors import Refusal
    from trainers.commands.diagnose import Diagnosis
    from trainers.engine.launcher import start_ranks
    from trainers.measure.taps import Unsupported

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        start_ranks(config.run.threads)
        diagnosis = Diagnosis(config, folder)
        measures, records = diagnosis.run(), diagnosis.records()
        if folder:
            settings = folder.settings
            print(write(folder.path, measures, records, diagnosis.k, settings, thresholds))
    except Unsupported as error:
        remedy = "set diagnose.measure=last_layer"
        raise Refusal(f"diagnose.measure = ghost: {error}; {remedy}") from None
    finally:
        if folder:
            folder.close()


if __name__ == "__main__":
    sys.exit(main())
