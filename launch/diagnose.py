"""Diagnose the interference of pass@k with pass@1: any model, any task.

python    launch/diagnose.py --config FILE [--out DIR] [key=value ...]
deepspeed launch/diagnose.py --config FILE [--out DIR] [key=value ...]      several ranks

The `diagnose` section says how: n answers to each of the prompts, at a temperature and a top_p.
Gradients are those of the distribution that is so sampled, top_p included. DIR gets diagnosis.md
and .json, prompts.jsonl, pictures, TensorBoard; the same command goes on where it was interrupted.
--plan says what memory it needs, from the model's config.json alone.
"""

import argparse
import os
import sys
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import add_options


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: runs/diagnosis/<configuration>")
    add_options(parser, "diagnose.measure=last_layer")
    arguments = parser.parse_intermixed_args()

    from eval.files import BadFile
    from eval.policy.policy import ModelError
    from eval.scores.folder import BadFolder
    from eval.tasks.task import TaskError
    from trainers.config.load import load_config, run_name
    from trainers.config.values import ConfigError
    from trainers.engine.launcher import refuse
    from trainers.plan.plan import show
    from trainers.train.run_folder import unwritable

    out = arguments.out or Path("runs/diagnosis") / run_name(Path(arguments.config))
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.plan:
            return show(config, arguments, diagnosing=True)
        from trainers.commands.diagnose import Diagnosis, Folder

        folder = Folder(out, config) if int(os.environ.get("RANK", "0")) == 0 else None
    except (BadFile, ConfigError, TaskError, ModelError, BadFolder) as error:
        return refuse(error)

    import transformers

    from eval.diagnosis.report import write
    from eval.rollout.rollout import SamplingFailed
    from eval.verify.verifier import VerifierFailed
    from surgery.user_code import UserCodeError
    from trainers.engine.launcher import start_ranks
    from trainers.engine.watch import leave
    from trainers.measure.taps import Unsupported

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        start_ranks(config.run.threads)
        diagnosis = Diagnosis(config, folder)
        measures, records = diagnosis.run(), diagnosis.records()
        if folder:
            text = write(out, measures, records, diagnosis.k, folder.settings)
            print(f"{text.split('## Agreement, weight')[0].strip()}\n\nPictures and tables: {out}")
    # what only loading could tell
    except (BadFile, ConfigError, TaskError, ModelError, UserCodeError) as error:
        return leave(2, error)
    except Unsupported as error:
        return leave(2, f"diagnose.measure = ghost: {error}; set diagnose.measure=last_layer")
    except KeyboardInterrupt:
        return leave(130, f"{out}: interrupted; the same command goes on")
    except OSError as error:
        if not unwritable(error, out):
            raise
        return leave(1, f"{out}: {error}; once it can be written, the same command goes on")
    except (SamplingFailed, VerifierFailed) as error:
        return leave(1, f"{out}: {error}")
    finally:
        if folder:
            folder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
