"""The parts of the command line that the commands share.

Commands read it before their slow imports, so that --help and a wrong option take no time.
"""

import argparse
import os
from collections.abc import Iterable

from eval.errors import Refusal
from trainers.config.values import described


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose --help begins with the text of the command."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=raw)


LEGEND = """key = default (values): meaning

A meaning that begins with names and a colon applies to the rules, estimators or tasks of these
names; `data:` stands for the tasks gsm8k, math and data."""


class HelpConfig(argparse.Action):
    """Print every key and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{LEGEND}\n\n{described()}")
        parser.exit()


def add_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the options that train.py and diagnose.py share."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("--help-config", nargs=0, action=HelpConfig, help="print every key")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_argument("--plan", action="store_true", help="only print what the work will need")
    parser.add_argument("--plan-ranks", type=int, default=ranks, help="ranks that --plan assumes")
    parser.add_argument("--plan-prompt", type=int, default=512, help="prompt tokens of --plan")
    parser.add_argument(
        "--device", help="with --plan: also its seconds on h100, h200, a100-80, l4 or 4090"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def planning(plan: bool, device: str | None) -> bool:
    """Return whether the command shall only plan."""
    if device is not None and not plan:
        raise Refusal(f"--device = {device}: belongs to --plan; add --plan")
    return plan


def apart(values: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split the values of an option: (its own values, the overrides that follow them)."""
    values = list(values)
    return [x for x in values if "=" not in x], [x for x in values if "=" in x]
