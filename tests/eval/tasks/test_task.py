"""Contracts that every task keeps, and the example on the page from which a user writes his own."""

import json
import textwrap

import pytest

from eval.tasks import Task, TaskError
from eval.tasks.registry import OF_DATA, TASKS, build_task
from eval.verify.verifier import Verifier

EXAMPLE = textwrap.dedent((Task.__doc__ or "").split("say sums.py:\n")[1].split("and train")[0])


@pytest.fixture(params=[*TASKS, "the example"])
def options(request, tmp_path):
    """The section of a configuration that names a task."""
    if request.param == "the example":
        (tmp_path / "sums.py").write_text(EXAMPLE)
        return {"name": f"{tmp_path}/sums.py:Sums", "verifier": None, "largest": 99}
    places = {}
    if request.param in OF_DATA:
        for key, numbers in (("path", range(20)), ("eval_path", range(50, 60))):
            rows = [json.dumps({"problem": f"{i} + {i}?", "answer": str(2 * i)}) for i in numbers]
            (tmp_path / f"{key}.jsonl").write_text("\n".join(rows))
            places[key] = f"{tmp_path}/{key}.jsonl"
    return {"name": request.param, **places}


def test_contract(options):
    """Problems depend on the arguments alone; ids of an evaluation differ; golds are right."""
    task, again = build_task(options), build_task(options)
    drawn = {x: task.training(*x, 6) for x in ((0, 1), (0, 2), (1, 1))}
    evaluated = task.evaluation(8)
    for x in ((1, 1), (0, 2), (0, 1)):  # in another order
        assert again.training(*x, 6) == drawn[x] and len(drawn[x]) == 6
    assert len({json.dumps([vars(x) for x in problems]) for problems in drawn.values()}) == 3
    assert again.evaluation(8) == evaluated and len({x.id for x in evaluated}) == 8
    assert task.max_new_tokens and task.max_new_tokens > 0
    with Verifier(task.verifier, workers=1) as verifier:
        golds = [x.gold for x in evaluated]
        answers = golds if task.verifier == "exact" else [f"\\boxed{{{x}}}" for x in golds]
        assert verifier(answers, golds) == [True] * 8


def test_what_a_task_may_leave_out():
    class Plain(Task):
        pass

    task = Plain()
    assert task.max_new_tokens is None and task.reference(3) is None
    assert task.base_config() is None and task.frontier(8) is None
    assert task.success(None, 1.0) is None and task.frontier_share((0, 0), (1, 1), 8) is None
    for ask in (lambda: task.training(0, 1, 2), lambda: task.evaluation(2)):
        with pytest.raises(NotImplementedError):
            ask()
    with pytest.raises(TaskError, match=r"model.path = base: task Plain has none; name a"):
        task.base_model()


@pytest.mark.parametrize("options", ["the example"], indirect=True)
def test_the_example_takes_its_options(options):
    groups = {largest: build_task(options | {"largest": largest}) for largest in (9, 99)}
    assert {x.group for x in groups[9].evaluation(50)} == {"easy"}
    assert {x.group for x in groups[99].evaluation(50)} == {"easy", "hard"}
