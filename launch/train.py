"""Train a model, with an evaluation before and after.

deepspeed launch/train.py --config configs/pcgrad.yaml [key=value ...]
python    launch/train.py --config configs/pcgrad.yaml [key=value ...]      one rank, no launcher

--plan prints the memory that the run needs, from the model's config.json alone.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import add_options, command_line, planning

if TYPE_CHECKING:
    from trainers.config.schema import Config
    from trainers.train.run_folder import RunFolder


def main() -> int:
    parser = command_line(__doc__)
    add_options(parser, "train.steps=300 or run.dir=runs/trial")
    arguments = parser.parse_intermixed_args()

    from eval.errors import Refusal
    from trainers.commands.main import attempt
    from trainers.config.load import check_ranks, load_config
    from trainers.config.unused import unused_settings
    from trainers.engine.launcher import refuse
    from trainers.plan.plan import show
    from trainers.train.run_folder import RunFolder

    try:
        path = Path(arguments.config)
        config = load_config(path, arguments.overrides)
        if planning(arguments.plan, arguments.device):
            show(config, arguments.plan_ranks, arguments.plan_prompt, device=arguments.device)
            return 0
        check_ranks(config, int(os.environ.get("WORLD_SIZE", "1")))
        folder = RunFolder(config) if int(os.environ.get("RANK", "0")) == 0 else None
        for line in unused_settings(config, path, arguments.overrides) if folder else []:
            print(f"warning: {line}", file=sys.stderr)
    except Refusal as error:
        return refuse(error)
    code = attempt(
        lambda: train(config, folder),
        Path(str(config.run.dir)),
        f"{config.run.dir}: interrupted; the same command goes on",
        folder.outlook if folder else lambda: "goes on",
    )
    if folder and code == Refusal.code:
        folder.withdraw()
    return code


def train(config: "Config", folder: "RunFolder | None") -> None:
    """Train on all ranks; rank 0 writes into its open folder and prints the table."""
    import transformers

    from eval.errors import Refusal
    from eval.report.tables import run_table
    from trainers.engine.launcher import start_ranks
    from trainers.engine.ranks import share
    from trainers.measure.taps import Unsupported
    from trainers.train.ending import ending
    from trainers.train.trainer import Trainer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    start_ranks(config.run.threads)
    if share(folder and folder.finished(config)):
        if folder:
            done = folder.summary() or {}
            print(f"{run_table(done)}\n\n{ending(config, done, sys.argv)}")
            print(f"\n{folder.path} is finished. To go on, raise train.steps; ", end="")
            print("for a new run, choose another seed or run.dir.")
        return
    if folder:
        folder.set_aside()
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = Trainer(config, folder).run()
    except Unsupported as error:
        remedy = "set surgery.measure=last_layer, or leave such layers out by surgery.modules"
        remedy += " and a lower surgery.min_coverage"
        raise Refusal(f"surgery.measure = ghost: {error}; {remedy}") from None
    if folder and summary:
        print(f"\n{run_table(summary)}\n\n{ending(config, summary, sys.argv)}")


if __name__ == "__main__":
    sys.exit(main())
