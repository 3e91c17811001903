"""Tasks from data, in the forms in which data comes: lines, parquet, the hub's folders, MATH's."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from eval.policy.policy import Chat, ModelError, Policy
from eval.tasks.decontaminate import contaminated
from eval.tasks.registry import build_task
from eval.tasks.task import TaskError
from eval.verify.verifier import Verifier
from tests.models import bpe_tokenizer

ANIMALS = ["hens", "cats", "dogs", "cows", "mice", "bees", "owls", "pigs", "rats", "bats"]
TRAIN = [
    {"question": f"{who.title()} {i}?", "answer": f"1+{i}=<<1+{i}={i + 1}>>{i + 1}\n#### {i + 1}"}
    for i, who in enumerate(ANIMALS)
]
TEST = [{"question": f"How many {who}?", "answer": "so\n#### 1,000"} for who in ANIMALS[:4]]


def lines(path, rows):
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    return str(path)


@pytest.fixture
def gsm8k(tmp_path):
    """A folder as in the original repository."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    lines(folder / "train.jsonl", TRAIN)
    lines(folder / "test.jsonl", TEST)
    return str(folder)


def build(name="data", **options):
    return build_task({"name": name, **options})


def refusal(**options):
    with pytest.raises(TaskError) as error:
        task = build(**options)
        task.training(0, 1, 1)
        task.evaluation(1)
    (line,) = str(error.value).splitlines()
    return line


def test_gsm8k(gsm8k):
    task = build("gsm8k", path=gsm8k)
    assert {x.prompt.split("?")[0]: x.gold for x in task.training(0, 1, 10)} == {
        f"{who.title()} {i}": str(i + 1) for i, who in enumerate(ANIMALS)
    }
    assert {x.gold for x in task.evaluation(100)} == {"1,000"}
    assert task.verifier == "math" and task.max_new_tokens == 512


def test_training_visits_each_problem_once_an_epoch(gsm8k):
    """Whatever the size of a step, in another order for another seed and another epoch."""
    task = build("gsm8k", path=gsm8k)

    def stream(seed, count, steps):
        return [x.id for step in range(1, steps + 1) for x in task.training(seed, step, count)]

    epochs = stream(0, 3, 10)
    assert len(set(epochs[:10])) == len(set(epochs[10:20])) == 10
    assert epochs[:10] != epochs[10:20] and epochs == stream(0, 5, 6)
    assert epochs != stream(1, 3, 10)
    assert task.training(0, 7, 3) == build("gsm8k", path=gsm8k).training(0, 7, 3)
    assert task.training(0, 0, 4) == task.training(0, 1, 4)  # a diagnosis is of the first ones
    assert len({x.id for x in task.training(0, 1, 25)}) == 10  # more than there are


def test_evaluation_is_drawn_once_for_ever(gsm8k):
    task = build("gsm8k", path=gsm8k)
    assert task.evaluation(2) == task.evaluation(4)[:2] == build("gsm8k", path=gsm8k).evaluation(2)
    assert len(task.evaluation(100)) == 4
    held = [x.id for x in task.reference(3)]
    assert len(set(held)) == 3 and set(held) <= {x.id for x in task.training(0, 1, 10)}


def test_a_folder_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    for split, golds in (("train", [1, 2]), ("test", [3])):
        table = {"problem": [f"{split} {x}" for x in golds], "answer": golds, "level": golds}
        path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.table(table), path)
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {x}\n    path: data/{x}-*\n" for x in splits)
        for name, splits in (("main", ["train", "test"]), ("other", ["train"]))
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# Title\n")
    task = build(path=str(tmp_path), subset="main", template="plain", prompt="{problem} \\boxed{}=")
    assert sorted(x.prompt for x in task.training(0, 1, 2)) == [
        "train 1 \\boxed{}=",
        "train 2 \\boxed{}=",
    ]
    assert [(x.gold, x.level) for x in task.evaluation(9)] == [("3", "3")]
    assert "'main', 'other'" in refusal(path=str(tmp_path))
    assert "'main', 'other'" in refusal(path=str(tmp_path), subset="mian")
    said = refusal(path=str(tmp_path), subset="other")
    assert (
        said.startswith(f"task.eval_path = {tmp_path}: gives no split test (") and "train" in said
    )


def test_math(tmp_path):
    """The original archive: a folder a subject, a file a problem, the gold boxed in the solution;
    and MATH-500, which names answers.
    """
    golds = [r"\frac{1}{\sqrt{2}}", r"\text{(A)}", r"\left\{1, 2\right\}", "5", r"\frac34", ""]
    ends = [rf"\boxed{{{x}}}" for x in golds[:3]] + [r"\fbox{5}", r"\boxed\frac34", r"\boxed{}"]
    for i, end in enumerate(ends):
        folder = tmp_path / "MATH" / "train" / ("algebra" if i % 2 else "number_theory")
        folder.mkdir(parents=True, exist_ok=True)
        kind = {"level": f"Level {i % 3 + 1}", "type": "Algebra" if i % 2 else "Number Theory"}
        row = {
            "problem": f"What is problem {i}?",
            **kind,
            "solution": rf"$\boxed{{0}}$ is no ${end}$.",
        }
        (folder / f"{i}.json").write_text(json.dumps(row, indent=4))
    row = {"problem": "P", "solution": r"\boxed{2}", "answer": "2", "subject": "Algebra"}
    five = lines(tmp_path / "test.jsonl", [{**row, "level": 4, "unique_id": "test/algebra/1.json"}])
    options = {"path": str(tmp_path / "MATH"), "eval_path": five}
    task = build("math", **options)
    problems = sorted(task.training(0, 1, 6), key=lambda x: x.prompt)
    assert [x.gold for x in problems][:5] == golds[:5]
    assert [(x.level, x.subject) for x in problems][:2] == [
        ("1", "Number Theory"),
        ("2", "Algebra"),
    ]
    (x,) = task.evaluation(5)
    assert (x.id, x.gold, x.level, x.subject) == ("test/algebra/1.json", "2", "4", "Algebra")
    some = build("math", **options, levels=["1", "Level 3"])
    assert {x.level for x in some.training(0, 1, 9)} == {"1", "3"} and len(some.evaluation(9)) == 1
    with Verifier("math", workers=1) as verifier:
        assert verifier([rf"so $\boxed{{{x}}}$" for x in golds[:5]], golds[:5]) == [True] * 5


def test_data_of_ones_own(tmp_path, capsys):
    rows = [
        {"n": 1, "q": " one ", "key": {"text": "1"}},
        {"n": 2, "q": "two", "key": {"text": r"it is \boxed{2}"}},
        {"n": 3, "q": "three", "key": {"text": None}},
        {"n": 1, "q": "again", "key": {"text": "1"}},
        {"n": 4, "q": "four", "key": {"text": "4"}},
    ]
    mine = lines(tmp_path / "mine.jsonl", rows)
    names = {"id": "n", "problem": "q", "answer": "key.text"}
    task = build(path=mine, fields=names, split="train[:4]", eval_split="train[4:]")
    assert {(x.id, x.gold) for x in task.training(0, 1, 2)} == {("1", "1"), ("2", "2")}
    assert [x.gold for x in task.evaluation(5)] == ["4"]
    said = capsys.readouterr().err
    assert "2 problems to train on" in said and "2 rows are skipped" in said
    assert "has no such field, but n, q, key" in refusal(path=mine, fields={"problem": "text"})
    assert "has no field problem, question, prompt, but n, q, key" in refusal(path=mine)


def test_what_the_evaluation_has_too_is_not_trained_on(tmp_path, capsys):
    long = "A farmer has twelve hens and every hen lays three eggs in a week of seven days"
    other = long.replace("seven", "five")
    train = [f"{long}.", f"{long.upper()} !", f"{other}.", "How many eggs?", "Solve $x-3=2$."]
    test = [long, "Solve $x+3=2$."]
    far = "A " + " and a ".join(["farmer has hens", *ANIMALS])
    assert contaminated([*train, far], test) == ({0, 1}, {2})
    paths = [
        lines(tmp_path / f"{name}.jsonl", [{"problem": x, "answer": 1} for x in texts])
        for name, texts in (("train", train), ("test", test))
    ]
    task = build(path=paths[0], eval_path=paths[1], template="plain", prompt="{problem}")
    kept = {x.prompt for s in range(4) for x in task.training(0, s, 5)}
    assert kept == set(train[3:])
    said = capsys.readouterr().err
    assert "2 problems to train on; left out of 5: 2 also in the evaluation, 1 nearly" in said
    whole = build(path=paths[0], eval_path=paths[1], decontaminate=False)
    assert len({x.id for x in whole.training(0, 1, 5)}) == 5
    assert "has all of these problems too" in refusal(path=paths[1], eval_path=paths[1])


def test_easy_and_hard_by_the_bases_own_rate(tmp_path, gsm8k):
    """From records of the base on the training problems; what has none is left out."""
    ids = {x.prompt.split()[0].lower(): x.id for x in build("gsm8k", path=gsm8k).training(0, 1, 10)}
    rate = {"hens": 8, "cats": 7, "dogs": 4, "cows": 1, "mice": 0}
    records = [{"id": ids[x], "n": 8, "c": c, "verdicts": []} for x, c in rate.items()]
    (tmp_path / "scores").mkdir()
    lines(tmp_path / "scores" / "problems.jsonl", records)
    options = {"path": gsm8k, "rates": str(tmp_path / "scores"), "name": "gsm8k"}
    task = build(**options, easy_above=0.8, hard_below=0.1)
    assert {(x.prompt.split()[0], x.group) for x in task.training(0, 1, 9)} == {
        ("Hens", "easy"),
        ("Cats", "easy"),
        ("Mice", "hard"),
    }
    hard = build(**options, hard_below=0.2)
    assert {x.prompt.split()[0] for x in hard.training(0, 1, 9)} == {"Cows", "Mice"}
    assert "task.rates = " in refusal(**options, easy_above=1.0)
    assert "no records" in refusal(**{**options, "rates": "gone"}, easy_above=0.5)


def test_recorded_rates_that_chose_the_problems_are_not_the_bases_rates(tmp_path, gsm8k):
    """A problem that was kept because its few answers were right has a lower rate than these."""
    ids = [x.id for x in build("gsm8k", path=gsm8k).training(0, 1, 10)]
    records = [{"id": x, "n": 8, "c": i % 9, "verdicts": []} for i, x in enumerate(ids[:5])]
    (tmp_path / "scores").mkdir()
    lines(tmp_path / "scores" / "problems.jsonl", records)
    options = {"path": gsm8k, "rates": str(tmp_path / "scores")}
    problems = build("gsm8k", **options).training(0, 1, 10)
    assert len({x.id for x in problems}) == 10  # without a threshold all stay
    known = {x.id: build("gsm8k", **options).base_rate(x) for x in problems}
    assert [known[x] for x in ids] == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, *[None] * 5]
    chosen = build("gsm8k", **options, easy_above=0.2)
    assert {chosen.base_rate(x) for x in chosen.training(0, 1, 9)} == {None}


def test_problems_that_are_set_aside_are_never_trained_on(gsm8k):
    task, whole = build("gsm8k", path=gsm8k, held_out=3), build("gsm8k", path=gsm8k)
    assert whole.control(0, 1, 4) is None
    control = {x.id for step in range(1, 6) for x in task.control(0, step, 4)}
    trained = {x.id for x in task.training(0, 1, 50)}
    assert len(control) == 3 and not control & trained
    assert control | trained == {x.id for x in whole.training(0, 1, 10)}
    assert {x.id for x in build("gsm8k", path=gsm8k, held_out=3).control(7, 1, 3)} == control
    assert "task.held_out = 10: sets aside all of the 10" in refusal(path=gsm8k, held_out=10)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"path": "gone.jsonl"}, ["task.path = gone.jsonl", "no such file"]),
        ({"path": "/gone"}, ["task.path = /gone", "gives no split train", "data file"]),
        ({"path": "some/where"}, ["task.path = some/where", "Hub"]),
        ({"split": "dev"}, ["gives no split dev", "['train', 'test']"]),
        ({"eval_split": "dev"}, ["task.eval_path", "gives no split dev", "task.eval_split"]),
        ({"split": "test"}, ["task.split = test", "has all of these problems too"]),
        ({"split": "train[3:3]"}, ["train[3:3]"]),
        ({"levels": ["4"]}, ["task.levels = ['4']", "the data has no levels"]),
        ({"fields": {"answer": "gold"}}, ["task.fields.answer = gold", "question, answer"]),
    ],
)
def test_refusals(gsm8k, options, parts):
    line = refusal(**{"path": gsm8k, **options})
    for part in parts:
        assert part in line, line


def test_files_that_hold_nothing_or_no_json(tmp_path):
    for name, text, said in (
        ("empty.jsonl", "", "is empty"),
        ("bad.jsonl", '{"problem": 1, "answer": 1}\n{"prob', "JSON parse error"),
        ("none.jsonl", '{"problem": "a", "answer": null}\n', "no row has a problem and a gold"),
        ("notes.txt", "x", "must be a folder, or end in .jsonl"),
    ):
        (tmp_path / name).write_text(text)
        assert said in refusal(path=str(tmp_path / name))


def test_a_chat_is_put_into_the_template_once():
    tokenizer = bpe_tokenizer(["What is 2+3?"])
    policy = Policy(None, tokenizer)
    ids = policy.encode([Chat("What is 2+3?")])
    (plain,) = policy.encode(["What is 2+3?"])
    assert tokenizer.decode(ids[0]) == "<bos><|user|>What is 2+3?\n<|assistant|>"
    assert [x.count(tokenizer.bos_token_id) for x in (ids[0], plain)] == [1, 1]
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"task.template = chat.*no chat template.*plain"):
        policy.encode([Chat("What is 2+3?")])


def test_it_has_no_base_of_its_own():
    with pytest.raises(TaskError, match=r"model\.path = base"):
        build("gsm8k").base_model()
