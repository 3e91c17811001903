"""Reproduce the paper's toy: its printed figures, its pictures, and the path of every rule.

python launch/toy.py [--out DIR] [--delta X] [--hard SHARE] [--prompts N] [--k K]

The command writes toy.json and PNG pictures into DIR (default runs/toy). The numbers are exact:
nothing is sampled.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

# a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers.config.arguments import command_line


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="a new folder")
    parser.add_argument("--delta", type=float, default=1.0, help="distance between easy and hard")
    parser.add_argument("--hard", type=float, default=0.3, help="share of hard prompts")
    parser.add_argument("--prompts", type=int, default=6000, help="prompts of the population")
    parser.add_argument("--k", type=int, default=5, help="the k of the population's pass@k")
    arguments = parser.parse_args()

    from trainers.commands.main import attempt

    return attempt(lambda: study(arguments))


def study(arguments: Namespace) -> None:
    """Print the toy's numbers; write them and the pictures into --out."""
    from eval.errors import Refusal

    for name, value, good, needs in (
        ("delta", arguments.delta, 0 <= arguments.delta <= 6, "must lie in 0..6"),
        ("hard", arguments.hard, 0.05 <= arguments.hard <= 0.95, "must lie in 0.05..0.95"),
        ("prompts", arguments.prompts, 40 <= arguments.prompts <= 10**5, "must lie in 40..100000"),
        ("k", arguments.k, 2 <= arguments.k <= 1024, "must lie in 2..1024"),
    ):
        if not good:
            raise Refusal(f"--{name} = {value}: {needs}")

    from tqdm import tqdm  # `disable=None`: it shows bars on a terminal only

    from eval.files import write_json
    from eval.toy import study as toy

    setting = toy.Setting(arguments.delta, arguments.hard, arguments.prompts, arguments.k)
    if not _free(arguments.out, toy.parameters(setting)):
        raise Refusal(f"--out = {arguments.out}: holds something else; name a new folder")
    results = toy.study(setting, lambda names: tqdm(names, "rules", leave=False, disable=None))
    content = toy.results(results)
    print(toy.report(content))

    from eval.report.plots import png
    from eval.toy.pictures import PICTURES

    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "toy.json", content)
    for name, draw in tqdm(PICTURES.items(), "pictures", leave=False, disable=None):
        (arguments.out / f"{name}.png").write_bytes(png(draw(results), 100))
    print(f"\n{len(PICTURES)} pictures and toy.json: {arguments.out}")


def _free(out: Path, parameters: dict) -> bool:
    """Return whether the folder is new, is empty, or holds a toy of the same parameters."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    before = out / "toy.json"
    try:
        return json.loads(before.read_text())["parameters"] == parameters
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(main())
