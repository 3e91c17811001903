"""The command line that train.py and diagnose.py share. Read before anything is imported that takes
a while, so that --help and a wrong option cost nothing.
"""

import argparse
import os


def add_options(parser: argparse.ArgumentParser, example: str) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parser.add_argument("--plan", action="store_true", help="only print the memory that it needs")
    parser.add_argument("--plan-ranks", type=int, default=ranks, help="over so many ranks")
    parser.add_argument("--plan-prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")
