"""The packages' own imports: which way they run, no circle, and none hidden in a function.

Tests share what they need through helpers, and import nothing from each other.
"""

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.commands import ROOT

PACKAGES = ["surgery", "eval", "trainers", "launch"]  # each imports itself and those before it

TORCH = "a command is refused, or prints its help, before torch is loaded"
MATPLOTLIB = "only what draws pictures loads matplotlib"
WORKER = "each worker loads the user's file, which may hold his task too, without torch"
# all imports that stand in a function, but those of launch/: (module, what it imports) -> why
LATE = {
    ("trainers.config.load", "trainers.config.checks"): TORCH,
    ("trainers.config.arguments", "trainers.config.names"): TORCH,
    ("eval.diagnosis.report", "eval.diagnosis.pictures"): MATPLOTLIB,
    ("trainers.train.metrics", "eval.report.plots"): MATPLOTLIB,
    ("eval.tasks.task", "surgery.objectives"): WORKER,
}


@dataclass(frozen=True)
class Import:
    module: str
    imported: str
    late: bool  # it stands in a function


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(x): x for package in PACKAGES for x in sorted((ROOT / package).rglob("*.py"))}


def targets(node: ast.AST) -> list[str]:
    """The names that a statement imports, a module's own and those of modules in a package."""
    if isinstance(node, ast.Import):
        return [x.name for x in node.names]
    assert isinstance(node, ast.ImportFrom) and node.module and not node.level
    inside = [f"{node.module}.{x.name}" for x in node.names]
    return [name if name in FILES else node.module for name in inside]


def imports(name: str, tree: ast.AST) -> set[Import]:
    """All own modules that a module imports, in functions and for the type checker as well."""
    late = {
        statement
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in ast.walk(function)
    }
    return {
        Import(name, target, node in late)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node)
        if target.partition(".")[0] in PACKAGES
    }


@pytest.fixture(scope="module")
def found() -> set[Import]:
    trees = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
    return {x for name, tree in trees.items() for x in imports(name, tree)}


def test_the_reader_sees_every_kind_of_import():
    code = "import surgery.rules\nimport torch\nif x:\n    from eval.tasks import Task, twin\n"
    code += "def f():\n    from eval import files\n"
    assert imports("here", ast.parse(code)) == {
        Import("here", "surgery.rules", False),
        Import("here", "eval.tasks", False),
        Import("here", "eval.tasks.twin", False),
        Import("here", "eval.files", True),
    }


def test_imports_name_modules_that_are_there(found):
    assert len(FILES) > 50 and {x.imported for x in found} <= FILES.keys()


def test_no_package_imports_a_higher_one(found):
    height = {name: i for i, name in enumerate(PACKAGES)}
    above = [
        x
        for x in found
        if height[x.imported.partition(".")[0]] > height[x.module.partition(".")[0]]
    ]
    assert not above


def test_no_circle(found):
    """Neither one of imports in functions: such an import hides a circle."""
    graph = {name: {x.imported for x in found if x.module == name} for name in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_import_hides_in_a_function(found):
    late = {(x.module, x.imported) for x in found if x.late and not x.module.startswith("launch.")}
    assert late == LATE.keys()


def test_no_module_is_imported_by_its_text():
    assert not [name for name, path in FILES.items() if "import_module" in path.read_text()]


# -- of tests -------------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("*.py"))


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
    found = {str(path): [x for x in imported(path) if is_of_a_test(x)] for path in TESTS}
    assert not any(found.values()), {path: names for path, names in found.items() if names}
    assert is_of_a_test("tests.eval.rollout.test_sampling.PROMPTS")  # negative control
    assert not is_of_a_test("tests.commands.run")


def test_programs_that_tests_start_import_the_fakes_alone():
    for path in TESTS:
        if path.parent.name == "launched":
            fakes = ("tests.fakes.", "tests.fake_device.")
            assert all(x.startswith(fakes) for x in imported(path)), path
