import random
import re
from dataclasses import asdict

import pytest
import torch

from eval.policy.policy import load_policy
from eval.tasks import chain_base, embedded
from eval.tasks.chain import Chain
from eval.tasks.chain_base import FACTORS, LARGEST, NAMES, SIZES, Story
from eval.verify.verifier import Verifier

# the docstring of eval/tasks/chain.py
STORY = Story("Ann", "plums", 8, (("buys", 7), ("twice", 2), ("loses", 3)))


def solutions(story, hard, draws=300):
    rng = random.Random(0)
    return {chain_base.solution(story, hard, rng) for _ in range(draws)}


def stories(count, plain=2, seed=0):
    rng = random.Random(seed)
    return [chain_base.draw_story(rng, rng.choice(NAMES), plain) for _ in range(count)]


def test_the_two_readings():
    assert STORY.prompt == "Ann has 8 plums, buys 7, gets twice as many more, loses 3.\n"
    assert STORY.answer(hard=False) == (8 + 7) * 2 - 3
    assert STORY.answer(hard=True) == (8 + 7) + 2 * (8 + 7) - 3


def test_many_solutions_are_right_and_the_other_reading_never_is():
    verifier = Verifier(Chain.verifier)
    story = Story("Ann", "plums", 8, (("buys", 7), ("loses", 3), ("twice", 2)))
    for hard in (False, True):
        found = sorted(solutions(story, hard))
        assert len(found) >= 20
        gold, other = str(story.answer(hard)), str(story.answer(not hard))
        assert verifier(found, [gold] * len(found)) == [True] * len(found)
        assert verifier(found, [other] * len(found)) == [False] * len(found)
    assert any(x.startswith("8+7=15") for x in found) and any(x.startswith("8-3=5") for x in found)


def test_every_line_of_a_solution_holds():
    for story in stories(50):
        for hard in (False, True):
            for text in solutions(story, hard, 5):
                for line in text.splitlines():
                    if "=" in line:
                        left, right = line.split("=")
                        assert eval(left) == int(right), text
                assert text.endswith(f"\\boxed{{{story.answer(hard)}}}")


def test_the_verdict_is_of_the_last_boxed_answer():
    judge = Verifier(Chain.verifier)
    for text in ("27", "15*2=27\n", "\\boxed{27", "\\boxed{27}\n\\boxed{42}", "\\boxed{027}", ""):
        assert judge([text], ["27"]) == [False], text
    for text in ("\\boxed{27}", "1+1=3\n\\boxed{27}", "\\boxed{42}\\boxed{27} 99"):
        assert judge([text], ["27"]) == [True], text
    assert judge.judge(["so \\boxed{ 12 }"], ["13"]) == [(False, "12")]


def test_streams_are_pure_functions():
    task = Chain()
    assert task.training(3, 7, 20) == task.training(3, 7, 20)
    assert task.training(3, 7, 20) != task.training(3, 8, 20) != task.training(4, 8, 20)
    assert task.evaluation(50) == task.evaluation(100)[:50]
    assert len({x.id for x in task.evaluation(500)}) == 500


def test_a_finite_set_of_stories_is_visited_once_an_epoch():
    task = Chain(stories=10)
    epochs = [x.id for step in range(1, 6) for x in task.training(3, step, 4)]
    assert len(set(epochs[:10])) == 10 and set(epochs[:10]) == set(epochs[10:])
    assert set(epochs) != {x.id for x in task.training(4, 1, 10)}  # another seed, other stories
    assert task.training(3, 2, 4) == Chain(stories=10).training(3, 2, 4)
    trained = {x.prompt for x in task.training(3, 1, 10)}
    assert not trained & {x.prompt for x in task.control(3, 1, 10)}
    assert task.control(3, 1, 10) != task.control(3, 2, 10)


def test_families_share_their_surface():
    """But for the name, which leans as its law says, nothing in a prompt tells the family."""
    problems = Chain(delta=2.0).evaluation(20_000)
    easy, hard = ([x for x in problems if x.group == g] for g in ("easy", "hard"))
    assert len(hard) / len(problems) == pytest.approx(0.3, abs=0.015)
    law = embedded.cue_given_group(2.0, len(NAMES))
    for row, family in zip(law, (easy, hard), strict=True):
        seen = [sum(x.prompt.startswith(name) for x in family) / len(family) for name in NAMES]
        assert torch.allclose(torch.tensor(seen).double(), row, atol=0.02)
    words = [re.findall(r"\w+", x.prompt.split(" ", 1)[1]) for x in easy + hard]
    for word in sorted({w for found in words for w in found}):
        having = [word in found for found in words]
        shares = sum(having[: len(easy)]) / len(easy), sum(having[len(easy) :]) / len(hard)
        assert shares[0] == pytest.approx(shares[1], abs=0.035), word


@pytest.mark.parametrize("size", SIZES)
def test_texts_round_trip_within_the_limits(size):
    tokenizer, task = chain_base.make_tokenizer(), Chain(size=size)
    for story in stories(30, SIZES[size].plain):
        for hard in (False, True):
            for text in (story.prompt, *solutions(story, hard, 5)):
                ids = tokenizer(text).input_ids
                assert tokenizer.decode(ids) == text
                assert len(ids) < task.max_new_tokens  # and the end of text
                numbers = [int(x) for x in re.findall(r"\d+", text)]
                assert all(0 <= x <= LARGEST for x in numbers)
    assert task.max_new_tokens <= {"small": 40, "large": 200}[size]


@pytest.mark.parametrize(("size", "low", "high"), [("small", 0.3e6, 1e6), ("large", 40e6, 50e6)])
def test_sizes_of_the_base(size, low, high):
    recipe = chain_base.ChainRecipe(**asdict(SIZES[size]))
    with torch.device("meta"):
        model = embedded.new_llama(recipe, chain_base.make_tokenizer())
    assert low <= sum(x.numel() for x in model.parameters()) <= high


def test_stories_are_ambiguous_once():
    for story in stories(200):
        assert sum(verb in FACTORS for verb, _ in story.steps) == 1
        assert story.answer(hard=False) != story.answer(hard=True)


def test_the_base_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSK_SURGERY_CACHE", str(tmp_path))
    shape = asdict(SIZES["small"]) | {"steps": 3, "batch": 4, "width": 16}
    recipe = chain_base.ChainRecipe(**shape)
    folder = chain_base.base_folder(recipe)
    weights = load_policy(folder).model.state_dict()
    monkeypatch.setattr(embedded, "_train", None)  # would raise
    assert chain_base.base_folder(recipe) == folder
    monkeypatch.undo()
    monkeypatch.setenv("PASSK_SURGERY_CACHE", str(tmp_path / "again"))
    again = load_policy(chain_base.base_folder(recipe)).model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    other = chain_base.base_folder(chain_base.ChainRecipe(**shape | {"steps": 4}))
    assert other != folder
