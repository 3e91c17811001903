"""Train, with evaluation before and after.

deepspeed launch/train.py --config configs/pcgrad.yaml [key=value ...]
python    launch/train.py --config configs/pcgrad.yaml [key=value ...]      one rank, no launcher

--plan says what memory that needs, from the model's config.json alone.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import add_options


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "train.steps=300 or run.dir=runs/trial")
    arguments = parser.parse_intermixed_args()

    from eval.files import BadFile
    from eval.policy.policy import ModelError
    from eval.tasks.task import TaskError
    from trainers.config.load import check_ranks, load_config
    from trainers.config.values import ConfigError
    from trainers.engine.launcher import refuse
    from trainers.plan.plan import show
    from trainers.train.run_folder import RunFolder, unwritable

    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.plan:
            return show(config, arguments)
        check_ranks(config, int(os.environ.get("WORLD_SIZE", "1")))
        folder = RunFolder(config) if int(os.environ.get("RANK", "0")) == 0 else None
    except (BadFile, ConfigError, TaskError, ModelError) as error:
        return refuse(error)

    import transformers

    from eval.report.tables import run_table
    from eval.rollout.rollout import SamplingFailed
    from eval.verify.verifier import VerifierFailed
    from surgery.user_code import UserCodeError
    from trainers.engine.launcher import start_ranks
    from trainers.engine.ranks import share
    from trainers.engine.watch import leave
    from trainers.measure.taps import Unsupported
    from trainers.train.step import TrainingFailed
    from trainers.train.trainer import Interrupted, Trainer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        start_ranks(config.run.threads)
        if share(folder and folder.finished(config)):
            if folder:
                print(run_table(folder.summary() or {}))
                print(f"\n{folder.path} is finished. To go on, raise train.steps; ", end="")
                print("for a new run, choose another seed or run.dir.")
            return 0
        if folder:
            folder.set_aside()
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        summary = Trainer(config, folder).run()
    # what only loading could tell
    except (BadFile, ConfigError, TaskError, ModelError, UserCodeError) as error:
        return leave(2, error)
    except Unsupported as error:
        remedy = "set surgery.measure=last_layer, or leave such layers out by surgery.modules"
        more = "and a lower surgery.min_coverage"
        return leave(2, f"surgery.measure = ghost: {error}; {remedy} {more}")
    except Interrupted as step:
        saved = f"interrupted; step {step} is saved, and the same command goes on"
        return leave(130, f"{config.run.dir}: {saved}")
    except KeyboardInterrupt:
        return leave(130, f"{config.run.dir}: interrupted; the same command goes on")
    except OSError as error:
        if not unwritable(error, Path(str(config.run.dir))):
            raise
        what = folder.outlook() if folder else "goes on"
        return leave(
            1, f"{config.run.dir}: {error}; once it can be written, the same command {what}"
        )
    except (TrainingFailed, SamplingFailed, VerifierFailed) as error:
        return leave(1, f"{config.run.dir}: {error}")
    if folder and summary:
        print(f"\n{run_table(summary)}\n\nCurves: tensorboard --logdir {folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
