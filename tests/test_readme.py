"""The pages: their code runs, their commands parse, their links, maps and tables are true."""

import argparse
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from eval.report.compare import header
from eval.tasks.own import OwnTask
from eval.verify.verifier import Verifier
from surgery.estimators import ESTIMATORS
from surgery.rules import RULES
from tests import pages
from tests.commands import ROOT, in_process
from trainers.config.arguments import apart
from trainers.config.load import load_config
from trainers.config.values import KEYS, ConfigError

README = ROOT / "README.md"
NAMES = [str(x.relative_to(ROOT)) for x in pages.PAGES]

# -- form -----------------------------------------------------------------------------------------


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 250 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", [*NAMES, "CHANGELOG.md"])
def test_lines_of_prose_and_code_fit_a_screen(name):
    lines = (ROOT / name).read_text().splitlines()
    assert not [x for x in lines if len(x) > 120 and not x.startswith(("|", "<img"))]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in pages.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in pages.anchors(target), link


def test_every_page_is_reached_from_the_readme():
    reached = {(ROOT / x.partition("#")[0]).resolve() for x in pages.links(README)}
    assert {x for x in pages.PAGES if x.parent != ROOT} <= reached


# -- maps and tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["surgery", "eval", "trainers", "launch", "tests"])
def test_the_file_map(package):
    """It names every file, those of tests/ but the tests themselves, and no file that is gone."""
    maps = "".join(pages.blocks(ROOT / package / "README.md", ""))
    named = set(re.findall(r"(\w+\.py)\b", maps))
    files = {x.name for x in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    texts = "".join(pages.prose(ROOT / package / "README.md"))
    own = {x for x in files if not (package == "tests" and is_small(x))}
    assert own <= named | set(re.findall(r"`(\w+\.py)`", texts)), own - named
    assert named <= files, named - files


def is_small(name: str) -> bool:
    """Whether it is a test, or a program of tests/launched/ that belongs to one test."""
    launched = {x.name for x in (ROOT / "tests" / "launched").glob("*.py")}
    return name.startswith("test_") or name in launched


def test_every_configuration_is_listed():
    text = (ROOT / "configs" / "README.md").read_text()
    for path in (ROOT / "configs").rglob("*.yaml"):
        root = path.parent.with_name(f"{path.parent.name}.yaml")  # of which it is a variant
        name = (root if root.is_file() else path).relative_to(ROOT / "configs")
        assert f"`{name}`" in text, name
        assert path == root or not root.is_file() or f"`{path.stem}`" in text, path


def test_the_key_table_is_the_schema():
    page, start, end = pages.KEYS
    table = page.read_text().partition(start)[2].partition(end)[0]
    assert table == pages.key_table(), "python -m tests.pages writes it anew"
    assert table.count("\n| `") == len(KEYS)


def test_every_rule_and_estimator_is_explained():
    for title, names in (("## Rules", RULES), ("## Estimators", ESTIMATORS)):
        text = pages.section(ROOT / "surgery" / "README.md", title)
        cells = "".join(re.findall(r"^\| (`.*?) \|", text, re.M))
        assert set(re.findall(r"`(\w+)`", cells)) == names.keys()


def test_every_column_of_a_comparison_is_explained():
    text = pages.section(ROOT / "eval" / "README.md", "## Columns of the reports")
    cells = "".join(re.findall(r"^\| (`.*?) \|", text, re.M))
    assert {re.sub(r"@8$", "@k", x) for x in header(8)} <= set(re.findall(r"`([^`]+)`", cells))


def test_names_elsewhere_stand_beside_keys():
    text = pages.section(ROOT / "configs" / "README.md", "## Names in TRL, verl and OpenRLHF")
    ours = re.findall(r"^\| `([\w.]+)", text, re.M)
    assert len(ours) > 15 and set(ours) <= KEYS.keys()


# -- commands -------------------------------------------------------------------------------------

# each writes its name and its arguments into $GIVEN, and does nothing else
# bash writes at each end of a line, and commands of a page may run side by side: one write each
SHIM = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" $'\\x1e' >> "$GIVEN"
"""
PROGRAMS = ["python", "deepspeed", "torchrun", "pip", "git", "ruff", "mypy", "tensorboard"]


def given(page: Path, folder: Path) -> list[list[str]]:
    """All commands that a page shows, as the shell gives them, in a folder like a user's."""
    shims = folder / "home" / "vllm" / "bin"  # which the pages call by its path, too
    shims.mkdir(parents=True)
    for name in PROGRAMS:
        (shims / name).write_text(SHIM)
        (shims / name).chmod(0o755)
    for name in ("configs", "launch", "tests", ".ci"):
        (folder / name).symlink_to(ROOT / name)
    for name, text in pages.files_shown().items():
        (folder / name).write_text(text)
    log = folder / "given"
    log.touch()
    (folder / "passk-surgery").mkdir()  # of `git clone`
    environ = {"PATH": str(shims), "HOME": str(folder / "home"), "GIVEN": str(log)}
    for code in pages.blocks(page, "sh"):
        shell = ["/bin/bash", "-euc", f"{code}\nwait"]
        done = subprocess.run(shell, cwd=folder, env=environ, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{code}{done.stderr}"
    return [x.split("\0") for x in log.read_text().split("\0\x1e\0")[:-1]]


class Parsed(Exception):
    """The arguments that a command has read."""


def options_of(script: str, options: list[str], folder: Path) -> argparse.Namespace:
    """The options as the command's own parser reads them."""

    def stop(self, *_):
        raise Parsed(self.parse_known_intermixed_args())

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stop)
        try:
            in_process(str(ROOT / script), *options, cwd=folder)
        except Parsed as read:
            known, unknown = read.args[0]
            assert not unknown, unknown
            return known
        except SystemExit as end:
            if end.code:
                raise
    return argparse.Namespace()  # an option such as --help has ended the command


def check(script: str, options: list[str], folder: Path) -> None:
    """A command of launch/, with options that it has and a configuration that is accepted."""
    known = vars(options_of(script, options, folder))
    names, keys = apart(known.get("configs") or [known.get("config") or ""])
    keys += known.get("overrides", known.get("sweeps")) or []
    for option in ("temperatures", "by"):
        keys += apart(known.get(option) or [])[1]
    if script == "launch/ablate.py":  # of a sweep, the first value
        keys = [x.partition(",")[0] for x in keys]
    with chdir(folder):
        for name in filter(None, names):
            load_config(name, keys)


def unwrapped(command: list[str]) -> list[str]:
    """A launcher's command as [script, its options], by the launcher's own parser."""
    from deepspeed.launcher.runner import parse_args as of_deepspeed
    from torch.distributed.run import parse_args as of_torchrun

    name, *arguments = command
    if name == "deepspeed":
        read = of_deepspeed(arguments)
        return [read.user_script, *read.user_args]
    if name == "torchrun":
        read = of_torchrun(arguments)
        return [read.training_script, *read.training_script_args]
    return arguments


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name, tmp_path):
    commands = given(ROOT / name, tmp_path)
    for command in commands:
        if command[0] in ("python", "deepspeed", "torchrun"):
            script, *options = unwrapped(command)
            if script.startswith("launch/"):
                check(script, options, tmp_path)
            elif script != "-m":
                text = (ROOT / script).read_text()
                assert all(f'"{x}"' in text for x in options if x.startswith("--")), command
        for argument in command:
            assert not argument.startswith("tests/") or (ROOT / argument).exists(), command
    assert commands


def test_a_command_that_does_not_parse_is_found(tmp_path):
    page = tmp_path / "page.md"
    for number, line in enumerate(
        ["launch/train.py --confg x", "launch/train.py --config configs/mix.yaml train.stepz=3"]
    ):
        page.write_text(f"```sh\npython {line}\n```\n")
        folder = tmp_path / str(number)
        (command,) = given(page, folder)
        with pytest.raises((SystemExit, ConfigError)) as error:
            check(command[1], command[2:], folder)
        assert str(error.value) == "2" or "train.stepz" in str(error.value)


def test_ci_finds_the_test_command():
    text = README.read_text().partition("<!-- test command -->\n```sh\n")[2]
    assert text.partition("\n")[0] == "pip install -e '.[dev]' && python -m pytest"


# -- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("rule", ["pcgrad", "agreement_clip"])
def test_surgery_alone_without_deepspeed(rule, n):
    """The example for other trainers, where neither deepspeed nor our trainer can be imported."""
    examples = pages.blocks(ROOT / "surgery" / "README.md", "python")
    (block,) = [x for x in examples if "def surgery_advantages" in x]
    check = (
        "import sys\n"
        "for name in ('deepspeed', 'transformers', 'trainers', 'eval'): sys.modules[name] = None\n"
        f"{block.replace('pcgrad', rule)}\n"
        f"correct = torch.randint(0, 2, (6, {n}), generator=torch.Generator().manual_seed(0))\n"
        f"a = surgery_advantages(correct, torch.randn(6 * {n}, 5), 2)\n"
        f"assert a.shape == (6, {n}) and a.isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    if rule == "agreement_clip" and n == 2:  # refused, with its reason
        assert done.returncode and "ValueError: n = 2: this rule decides by" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the files that the README shows."""
    for name, text in pages.files_shown().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_rule_of_ones_own(own):
    from surgery.geometry import Geometry, Products
    from surgery.rules import find_rule

    rule = find_rule("mine.py:half_as_much").bind({"cap": 10.0})
    found = Geometry(torch.ones(3), Products(-1.0, 2.0, 1.0), torch.zeros(3))
    alpha, beta = rule(torch.ones(3), found, {})
    assert alpha.tolist() == [1, 1, 1] and beta.tolist() == [0.25] * 3


def test_the_task_and_the_verifier_of_ones_own(own):
    task = OwnTask({"name": "halves.py:Halves"})
    first, second = task.training(0, 3, 2)
    assert (first.prompt, first.gold, second.gold) == ("3 / 2 =", "1.5", "2.0")
    ids = {x.id for x in task.evaluation(9)}
    assert len(ids) == 9 and not ids & {x.id for x in task.training(0, 1, 99)}
    with Verifier(task.verifier) as judge:
        assert judge(["1.5", "1.51", "1.6", "one"], ["1.5"] * 4) == [True, True, False, False]
