"""A task of the user's own: what it lacks or does wrong is one line that names file and remedy."""

import pytest

from eval.tasks.registry import build_task
from eval.tasks.task import Problem, TaskError
from trainers.config.schema import Config
from trainers.job import Job

HEAD = "from dataclasses import dataclass\nfrom eval.tasks import Problem, Task\n"
PARTS = {
    "verifier": "    verifier = 'exact'",
    "max_new_tokens": "    max_new_tokens = 4",
    "training": "    def training(self, seed, step, count):\n"
    "        return [Problem(f'{i}', f'1+{self.size}=', '6') for i in range(count)]",
    "evaluation": "    def evaluation(self, count):\n        return self.training(0, 0, count)",
    "base_model": "    def base_model(self):\n        return 'here'",
}


def write(path, **parts):
    """A file with these parts in place of the usual ones; None leaves one out."""
    lines = [x for x in ({**PARTS, **parts}).values() if x is not None]
    header = "class Mine(Task):" if path.stem == "extending" else "class Mine:"
    path.write_text("\n".join([HEAD, "@dataclass", header, "    size: int = 3", *lines]))


def build(path, **parts):
    """The task of such a file."""
    write(path, **parts)
    return build_task({"name": f"{path}:Mine", "size": 5, "verifier": None})


@pytest.fixture(params=["extending.py", "plain.py"])
def path(request, tmp_path):
    """A place for a class that extends `Task`, and for one of version 0.1."""
    return tmp_path / request.param


def refusal(path, ask, **parts):
    with pytest.raises(TaskError) as error:
        ask(build(path, **parts))
    (line,) = str(error.value).splitlines()
    return line.replace(f"task.name = {path}:Mine: ", "")


def test_a_task_that_is_one(path):
    task = build(path)
    assert task.verifier == "exact" and task.max_new_tokens == 4 and task.base_model() == "here"
    assert task.training(0, 1, 2) == [Problem("0", "1+5=", "6"), Problem("1", "1+5=", "6")]
    assert len(task.evaluation(3)) == 3
    assert task.success(None, 1.0) is task.reference(3) is task.base_config() is None
    assert task.frontier_share((0, 0), (1, 1), 8) is task.frontier(8) is None
    reference = "    def reference(self, count):\n        return []"
    said = "reference(4,) returned []; return a list of Problem"
    assert refusal(path, lambda task: task.reference(4), base_model=reference) == said


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("training", "has no method training; add it, as in `Task`"),
        ("evaluation", "has no method evaluation; add it, as in `Task`"),
        (
            "verifier",
            "has the verifier None; write exact, math, boxed or file.py:function there, or ",
        ),
    ],
)
def test_what_a_task_lacks(path, part, said):
    assert refusal(path, vars, **{part: None}).startswith(said)


def test_what_only_some_tasks_know_is_asked_of_the_class(path):
    known = ("success", "base_config", "frontier_share", "frontier")
    lines = [f"    def {x}(self, *arguments):\n        return '{x}', *arguments" for x in known]
    task = build(path, base_model="\n".join(lines))
    assert task.success(None, 0.5) == ("success", None, 0.5)
    assert task.base_config() == ("base_config",)
    assert task.frontier_share((0, 0), (1, 1), 8) == ("frontier_share", (0, 0), (1, 1), 8)
    assert task.frontier(8, 3) == ("frontier", 8, 3)


@pytest.mark.parametrize("limit", ["0", "'many'"])
def test_a_limit_that_is_none(path, limit):
    said = refusal(path, vars, max_new_tokens=f"    max_new_tokens = {limit}")
    why = f"has max_new_tokens = {limit.strip(chr(39))}"
    assert said == f"{why}; give it the most tokens that an answer needs"


def test_a_limit_that_the_configuration_names_is_enough(path):
    write(path, max_new_tokens=None)
    config = Config()
    config.task.name = f"{path}:Mine"
    with pytest.raises(TaskError) as error:
        Job(config)
    why = "has max_new_tokens = None; give it the most tokens that an answer needs, or set "
    assert str(error.value) == f"task.name = {path}:Mine: {why}train.max_new_tokens"
    config.train.max_new_tokens = 7
    assert Job(config).max_new_tokens == 7


def test_a_verifier_that_the_configuration_names_is_enough(path):
    options = {"name": f"{path}:Mine", "verifier": "math"}
    write(path, verifier=None)
    assert build_task(options).max_new_tokens == 4
    assert "has the verifier exakt" in refusal(path, vars, verifier="    verifier = 'exakt'")


def test_a_base_is_asked_for_only_where_it_is_needed(path):
    assert build(path, base_model=None).training(0, 1, 1)
    with pytest.raises(
        TaskError, match=r"model.path = base: .* no method base_model; name a folder"
    ):
        build(path, base_model=None).base_model()
    wrong = "    def base_model(self):\n        return None"
    said = refusal(path, lambda task: task.base_model(), base_model=wrong)
    assert said == "base_model() returned None; return a path"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned None; return a list of Problem"),
        ("[]", "returned []; return a list of Problem"),
        ("(x for x in range(count))", "returned <generator object Mine.training"),
        ("[{'prompt': '1'}] * count", "returned {'prompt': '1'} among its problems; return a list"),
        ("[Problem('1', '2', 3)] * count", "returned a problem whose gold is 3; give it a text"),
        (
            "[Problem('1', '2', '3')] * (count - 1)",
            "returned 3 problems instead of 4; return 4",
        ),
        ("[][count]", "ended with IndexError: list index out of range (FILE, line 10); correct it"),
    ],
)
def test_problems_that_are_none(path, returned, said):
    training = f"    def training(self, seed, step, count):\n        return {returned}"
    told = refusal(path, lambda task: task.training(0, 1, 4), training=training)
    assert told.startswith(f"training(0, 1, 4) {said.replace('FILE', str(path))}"), told


def test_ids_of_an_evaluation_differ(path):
    same = "    def evaluation(self, count):\n        return [Problem('x', '1', '2')] * count"
    said = "evaluation(3) returned 3 problems with the id 'x'; give each problem an id of its own"
    assert refusal(path, lambda task: task.evaluation(3), evaluation=same) == said
    assert len(build(path).evaluation(3)) == 3


def test_options_may_be_the_fault(path):
    post = "    def __post_init__(self):\n        self.size < 'a'"
    write(path, base_model=post)
    with pytest.raises(TaskError) as error:
        build_task({"name": f"{path}:Mine", "size": 5, "options": {"size": 5}})
    assert str(error.value).endswith("; correct the class, or task.options.size")


def test_what_is_no_class_of_data(path):
    for code, said in (
        ("def Mine(): pass", "is no dataclass; write a class with @dataclass above it"),
        ("class Mine: pass", "is no dataclass; write a class with @dataclass above it"),
        ("Mine = 3", "is no dataclass; write a class with @dataclass above it"),
        ("@dataclass\nclass Mine:\n    x: int", "TypeError: Mine.__init__() missing 1 required"),
        (
            "@dataclass\nclass Mine:\n    def __post_init__(self):\n        self.x = {}['y']",
            f"KeyError: 'y' ({path}, line 6); correct the class",
        ),
    ):
        path.write_text(f"{HEAD}{code}\n")
        with pytest.raises(TaskError) as error:
            build_task({"name": f"{path}:Mine"})
        assert str(error.value).startswith(f"task.name = {path}:Mine: {said}")
