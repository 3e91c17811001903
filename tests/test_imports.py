"""Tests share what they need through helpers, and import nothing from each other."""

import ast
from pathlib import Path

from tests.commands import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))


def imported(path: Path) -> list[str]:
    """The dotted names that a file takes from tests/, wherever in it that is."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [x.name for x in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import that names no package"
            names += [f"{node.module}.{x.name}" for x in node.names]
    return [x for x in names if x.startswith("tests.")]


def is_of_a_test(name: str) -> bool:
    """Whether a dotted name is a test's module, pytest's conftest, or something in one of them."""
    return any(part.startswith("test_") or part == "conftest" for part in name.split(".")[1:])


def test_no_file_imports_from_a_test():
    found = {str(path): [x for x in imported(path) if is_of_a_test(x)] for path in FILES}
    assert not any(found.values()), {path: names for path, names in found.items() if names}
    assert is_of_a_test("tests.eval.rollout.test_sampling.PROMPTS")  # negative control
    assert not is_of_a_test("tests.commands.run")


def test_programs_that_tests_start_import_the_fakes_alone():
    for path in FILES:
        if path.parent.name == "launched":
            assert all(x.startswith("tests.fakes.") for x in imported(path)), path
