"""The parts of the command line that the commands share.

Commands read it before their slow imports, so that --help and a wrong option take no time.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eval.errors import Refusal
from surgery import __version__
from trainers.config.aliases import answer, nearest
from trainers.config.values import KEYS, described

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
UNRECOGNIZED = "unrecognized arguments: "  # how argparse begins its message


class CommandLine(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, and explains a key given as an option."""

    takes_keys = False

    def error(self, message: str) -> NoReturn:
        unknown = message.split() if message.startswith(UNRECOGNIZED) and self.takes_keys else []
        options = [x for x in unknown if x.startswith("--")]
        lines = [*_as_keys(options, sys.argv[1:])] or [f"{message}; --help shows the options"]
        self.exit(2, "\n".join(lines) + "\n")


def _as_keys(options: Sequence[str], words: Sequence[str]) -> Iterator[str]:
    """Yield a line for each option that the command does not have; it may be meant as a key."""
    for option in options:
        name, equals, value = option.partition("=")
        following = words[words.index(option) + 1 :][:1] if option in words else []
        if not equals and following and not following[0].startswith("-"):
            value = following[0]
        key = name.strip("-").replace("-", "_")
        near = [key] if key in KEYS else nearest(key)
        remedy = "--help shows the options"
        if near:
            remedy = f"keys are given without dashes, as in {near[0]}={value or '...'}"
        yield f"{name}{' = ' if value else ''}{value}: no such option; {remedy}"


def command_line(description: str | None) -> CommandLine:
    """Return a parser whose --help begins with the text of the command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandLine(description=description, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"passk-surgery {__version__}")
    return parser


LEGEND = """key = default (values): meaning

A meaning that begins with names and a colon applies to the rules, estimators, tasks or samplers of
these names; `data:` stands for the tasks gsm8k, math and data."""


class Printing(argparse.Action):
    """An option that prints and exits, and so leaves no value among the arguments."""

    def __init__(self, **options: Any):
        super().__init__(**options | {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS})


class PrintKeys(Printing):
    """Print the keys of a section, or all of them, and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: object, section: object, *__: object
    ) -> None:
        lines = described(str(section or ""))
        if not lines:
            parser.exit(2, f"--keys = {section}: {answer(str(section))}\n")
        print(f"{LEGEND}\n\n{lines}")
        parser.exit()


class PrintNames(Printing):
    """Print the names that a configuration can choose, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from trainers.config.names import listed

        print(listed(CONFIGS))
        parser.exit()


def add_keys(parser: CommandLine, meaning: str, metavar: str = "key=value") -> None:
    """Add the keys of a configuration to a command, and the options that explain them."""
    parser.takes_keys = True
    parser.add_argument("overrides", nargs="*", metavar=metavar, help=meaning)
    keys = "print the keys, of one section or all, and exit"
    names = "print the rules, estimators, tasks, samplers and configurations, and exit"
    parser.add_argument("--keys", nargs="?", metavar="SECTION", action=PrintKeys, help=keys)
    parser.add_argument("--list", nargs=0, action=PrintNames, help=names)


def add_options(parser: CommandLine, example: str) -> None:
    """Add the options that train.py and diagnose.py share."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    parser.add_argument("--config", required=True, type=find_config, help=CONFIG)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher")
    parser.add_argument("--plan", action="store_true", help="only print what the work will need")
    parser.add_argument("--plan-ranks", type=int, default=ranks, help="ranks that --plan assumes")
    parser.add_argument("--plan-prompt", type=int, default=512, help="prompt tokens of --plan")
    parser.add_argument(
        "--device", help="with --plan: also its seconds on h100, h200, a100-80, l4 or 4090"
    )
    add_keys(parser, f"such as {example}")


CONFIG = "a YAML file, or the name of one in configs/, such as pcgrad"


def find_config(name: str) -> str:
    """Return the path of a configuration: a file, or by its name one of the project's configs/."""
    shipped = CONFIGS / f"{name}.yaml"
    return str(shipped) if shipped.is_file() and not Path(name).is_file() else name


def planning(plan: bool, device: str | None) -> bool:
    """Return whether the command should only plan."""
    if device is not None and not plan:
        raise Refusal(f"--device = {device}: belongs to --plan; add --plan")
    return plan


def apart(values: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split the values of an option: (its own values, the overrides that follow them)."""
    values = list(values)
    return [x for x in values if "=" not in x], [x for x in values if "=" in x]
