"""Scores of a model and of generations made elsewhere."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from eval.files import COPY, read_lines, whole_lines
from tests.commands import ROOT, in_process, no_file_beyond, run

SCORE = str(ROOT / "launch" / "score.py")
CONFIG = str(ROOT / "configs" / "passk.yaml")


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """What the command says when it fails, in this process: starting one takes seconds."""
    spec = importlib.util.spec_from_file_location("score", SCORE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def ask(*options, code=2):
        monkeypatch.setattr(sys, "argv", [SCORE, *options])
        assert module.main() == code
        return capsys.readouterr().err

    return ask


def write(path, problems):
    path.write_text("".join(json.dumps(x) + "\n" for x in problems))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_model_of_broken_weights_has_no_score(refusal, base_path, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base_path, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = refusal("--model", "broken", "--config", CONFIG, "eval.problems=4", code=1)
    assert "logits are not finite after the prompt" in said.splitlines()[-1]


def test_a_model_scores_as_its_true_rates_say(tmp_path, refusal, base_path, twin, base):
    options = ["eval.problems=200", "--out", "out"]
    done = run(SCORE, "--model", base_path, "--config", CONFIG, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "out")
    assert (found["n"], found["problems"]) == (32, 200)
    assert list(found["scores"]) == [f"pass@{k}" for k in (1, 2, 4, 8, 16, 32)]
    exact = twin.success(base).pass_at([1, 8])
    for name in ("pass@1", "pass@8"):
        x = found["scores"][name]
        assert x["low"] - 0.03 < exact[name] < x["high"] + 0.03
        assert x["low"] - 0.02 < found["expected"][name] < x["high"] + 0.02
    assert [x["slice"] for x in found["slices"]] == ["group easy", "group hard"]
    assert "exact" not in found and "Expected: pass@k of these problems" in done.stdout
    for said in ("n = 32", "T = 1", "top-p 1", "at most 4 tokens", "seed 0", "verifier exact"):
        assert said in done.stdout, said

    # given again it is not done again, and what differs is refused; its own records score the same
    records = (tmp_path / "out" / "problems.jsonl").read_bytes()
    again = in_process(SCORE, "--model", base_path, "--config", CONFIG, *options, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == done.stdout and " passed, " not in again.stderr
    assert " passed, " in done.stderr
    ask = ["--model", base_path, "--config", CONFIG]
    assert "seed = 1 (was 0)" in refusal(*ask, *options, "eval.seed=1")
    assert (tmp_path / "out" / "problems.jsonl").read_bytes() == records
    assert "holds files already" in refusal(*ask, "--temperatures", "0", "1", "--out", "out")
    more = ["--responses", "out/problems.jsonl", "--verifier", "exact", "--out", "more"]
    assert in_process(SCORE, *more, cwd=tmp_path).returncode == 0
    assert summary(tmp_path / "more")["scores"] == found["scores"]
    assert summary(tmp_path / "more")["majority"] == found["majority"]


def test_shorter_answers_than_in_training(tmp_path, base_path):
    """Answers end at eval.max_new_tokens; the true rates of complete answers are not theirs."""
    options = ["--model", base_path, "--config", CONFIG, "eval.problems=20", "--out", "out"]
    done = in_process(SCORE, *options, "eval.max_new_tokens=1", cwd=tmp_path)
    assert done.returncode == 0 and "at most 1 tokens" in done.stdout
    records = list(read_lines(tmp_path / "out" / "problems.jsonl", dict))
    assert all(len(x) <= 1 for r in records for x in r["responses"])
    assert all(r.get("p") is None for r in records)


def test_interrupted_it_goes_on(tmp_path, base_path):
    command = [SCORE, "--model", base_path, "--config", CONFIG, "eval.problems=300", "--out"]
    whole = run(*command, "whole", cwd=tmp_path)
    records = tmp_path / "part" / "problems.jsonl"
    process = subprocess.Popen(
        [sys.executable, *command, "part"], cwd=tmp_path, stderr=subprocess.DEVNULL, env=os.environ
    )
    # it takes long to begin on a busy machine, and none of the wait is part of the claim
    while process.poll() is None and not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(whole_lines(records)))
    assert 0 < done < 300
    with records.open("a") as file:
        file.write('{"id": "half a li')
    again = run(*command, "part", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == whole.stdout
    assert records.read_bytes() == (tmp_path / "whole" / "problems.jsonl").read_bytes()


def test_colder_and_between_two_models(tmp_path, refusal, base_path, base):
    """At the ends of the line are the models themselves, and greedy decoding needs one answer."""
    with torch.no_grad():
        for x in base.model.parameters():
            x.mul_(0.5)
    base.model.save_pretrained(tmp_path / "other")
    base.tokenizer.save_pretrained(tmp_path / "other")
    ask = ["--config", CONFIG, "eval.problems=40", "eval.samples=8"]
    line = ["--toward", "other", "--by", "0", "0.5", "1", "--temperatures", "1", "0"]
    done = in_process(SCORE, "--model", base_path, *line, *ask, "--out", "sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweep = summary(tmp_path / "sweep")["sweep"]
    assert [x["label"] for x in sweep[:3]] == ["by 0, T 1", "by 0, T 0", "by 0.5, T 1"]
    assert [x["n"] for x in sweep] == [8, 1] * 3
    for name, by in ((base_path, 0), ("other", 4)):
        done = in_process(SCORE, "--model", name, *ask, "--out", f"{by}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert summary(tmp_path / f"{by}")["scores"] == sweep[by]["scores"]
    assert sweep[0]["scores"] != sweep[2]["scores"]
    said = refusal("--model", base_path, "--by", "0.5", *ask)
    assert "--toward and --by belong together" in said
    shutil.copytree(tmp_path / "other", tmp_path / "third")
    config = json.loads((tmp_path / "third" / "config.json").read_text())
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = AutoConfig.for_model(**{**config, "intermediate_size": 32})
    AutoModelForCausalLM.from_config(kind).save_pretrained(tmp_path / "third")
    said = refusal("--model", base_path, "--toward", "third", "--by", "0.5", *ask)
    assert "--toward: the models differ (" in said


def test_slices_by_how_hard_the_base_found_it(tmp_path, refusal):
    write(
        tmp_path / "base.jsonl",
        [{"id": str(i), "n": 4, "c": 4 * (i < 6), "verdicts": [i < 6] * 4} for i in range(12)],
    )
    write(
        tmp_path / "r.jsonl",
        [
            {"id": i, "gold": "1", "responses": ["1", "2"], "level": i % 2, "subject": "Algebra"}
            for i in range(12)
        ],
    )
    options = ["--verifier", "exact", "--base", "base.jsonl", "--out", "out"]
    done = in_process(SCORE, "--responses", "r.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    slices = {x["slice"]: x["problems"] for x in summary(tmp_path / "out")["slices"]}
    assert slices == {
        "level 0": 6,
        "level 1": 6,
        "subject Algebra": 12,
        "easy for the base": 6,
        "hard for the base": 6,
    }
    assert "--base = gone" in refusal("--responses", "r.jsonl", "--base", "gone")


def test_responses_by_hand(tmp_path, refusal):
    write(
        tmp_path / "r.jsonl",
        [
            {"id": 1, "gold": "1/2", "responses": [r"\boxed{0.5}", "0.5", "2", "no"]},
            {"id": 2, "gold": "7", "responses": ["8", "9", "9", "11", "12"]},
        ],
    )
    done = in_process(SCORE, "--responses", "r.jsonl", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "out")
    assert {name: x["value"] for name, x in found["scores"].items()} == {
        "pass@1": pytest.approx(0.25),
        "pass@2": pytest.approx((1 - 1 / 6) / 2),
        "pass@4": pytest.approx(0.5),
    }
    # k ends at the fewest answers; of four, two right ones outvote one wrong one and one without
    assert (found["n"], found["most_n"]) == (4, 5) and "from 4 to 5 answers" in done.stdout
    assert found["majority"]["maj@4"]["value"] == 0.5
    lines = read_lines(tmp_path / "out" / "problems.jsonl")
    assert [x["c"] for x in lines] == [2, 0]
    assert [x["wrong"] for x in lines] == [{"2": 1}, {"9": 2, "8": 1, "11": 1, "12": 1}]
    assert "* Too few: " in done.stdout
    said = refusal("--responses", "r.jsonl", "--k", "5")
    assert "--k = 5: must be from 1 to n = 4" in said


def test_ids_are_names_of_no_file_and_stay_in_their_line(tmp_path, refusal):
    ids = ["../../up", "/tmp/x", "a\nb\r\nc", "\u202e\u2028\x1b[31m", "\0", "\ud800", "x" * 5_000]
    ids += ["..", "日本語/🙂", "<script>", "", "| a |"]
    problems = [{"id": x, "gold": "1", "responses": ["1", x], "subject": x} for x in ids]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "given.jsonl", problems)
    options = ["--responses", "given.jsonl", "--verifier", "exact"]
    done = run(SCORE, *options, "--out", "out", cwd=tmp_path / "in")
    assert done.returncode == 0, done.stderr
    found = read_lines(tmp_path / "in" / "out" / "problems.jsonl")
    assert [r["id"] for r in found] == ids
    assert sum(x.startswith("subject ") for x in done.stdout.splitlines()) == len(ids) - 1
    assert all(x.isprintable() for x in done.stdout.splitlines())
    names = {str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")}
    files = {f"in/out/{x}" for x in (".lock", "settings.json", "problems.jsonl", "summary.json")}
    assert names == {"in", "in/given.jsonl", "in/out", *files}
    again = run(SCORE, *options, "--base", "out", cwd=tmp_path / "in")
    assert again.returncode == 0 and " for the base " in again.stdout
    write(tmp_path / "twice.jsonl", [problems[0], problems[0]])
    said = refusal("--responses", "twice.jsonl", "--verifier", "exact")
    assert "line 2: id ../../up is also in line 1" in said


def test_other_field_names_and_marks(tmp_path, refusal):
    answer = "so 2 + 3 = 5\nA: "
    line = {"question": "q", "key": {"text": "it is\nA: 5"}, "m.out": answer + "5", "cut": [True]}
    write(tmp_path / "r.jsonl", [line, {**line, "question": "p", "m.out": "5, no mark"}])
    fields = ["--fields", "id=question", "gold=key.text", "responses=m.out", "truncated=cut"]
    options = [*fields, "--answer-after", "A:", "--verifier", "exact", "--out", "out"]
    done = in_process(SCORE, "--responses", "r.jsonl", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = summary(tmp_path / "out")
    assert found["scores"]["pass@1"]["value"] == 0.5 and found["truncated_share"] == 1
    said = refusal("--responses", "r.jsonl", "--fields", "golds=x")
    assert "--fields = golds=x: write NAME=PATH" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: must be an object"),
        ('{"id": 1, "gold": "1"}', "line 1: has no responses, but id, gold; name its field with"),
        ('{"id": null, "gold": "1", "responses": ["1"]}', "line 1: has no id"),
        ('{"gold": "1", "responses": ["1"]}', "line 1: has no id"),
        ('{"id": 1, "gold": "1", "responses": []}', "line 1: responses is empty"),
        ('{"id": 1, "gold": "1", "responses": [1]}', "line 1: responses must be"),
        (
            '{"id": 1, "gold": "1", "responses": ["1"], "truncated": [null]}',
            "line 1: truncated must be a list of true or false",
        ),
        ("[" * 200_000, "line 1: not JSON (maximum recursion depth exceeded"),
        (b'\n{"id": "\xff", "gold": "1", "responses": ["1"]}', "line 2: not JSON ('utf-8' codec"),
        ('\n{"id": 1, "gold": "1", "responses": ["1"]}\n' * 2, "line 4: id 1 is also in line 2"),
        ("", "holds no problem"),
    ],
)
def test_lines_that_cannot_be_scored(tmp_path, refusal, line, message):
    (tmp_path / "r.jsonl").write_bytes(line if isinstance(line, bytes) else line.encode())
    said = refusal("--responses", "r.jsonl", "--verifier", "exact")
    assert message in said.splitlines()[-1]


def test_a_failed_start_occupies_nothing(tmp_path):
    (tmp_path / "r.jsonl").write_text("{")
    command = [SCORE, "--responses", "r.jsonl", "--verifier", "exact", "--out", "out"]
    assert run(*command, cwd=tmp_path).returncode == 2
    write(tmp_path / "r.jsonl", [{"id": 0, "gold": "1", "responses": "1"}])
    assert run(*command, cwd=tmp_path).returncode == 0


@pytest.mark.filterwarnings("ignore:.*lock:pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_folder(refusal, tmp_path):
    """Nothing is cut but a last line without an end; a file that is damaged is named, and stays."""
    write(tmp_path / "r.jsonl", [{"id": i, "gold": "1", "responses": "1"} for i in range(3)])
    ask = ["--responses", "r.jsonl", "--verifier", "exact", "--out", "out"]
    refusal(*ask, code=0)
    records, scores, asked = (
        tmp_path / "out" / name for name in ("problems.jsonl", "summary.json", "settings.json")
    )
    whole, first = records.read_bytes(), len(records.read_bytes().splitlines()[0]) + 1
    again = "cut it before that line, to have the rest made again"
    for path, content, said in (
        (records, whole.replace(b'"id": "1"', b'"id": "\xff"'), ", line 2: is damaged ('utf-8'"),
        (
            records,
            whole[: first - 5] + whole[first:],
            ", line 1: is damaged (Expecting ',' delimiter);",
        ),
        (records, b"[1]\n" + whole, f", line 1: is damaged (it is [1]); {COPY}, or {again}"),
        (records, b'{"n": 1}\n' + whole, ", line 1: is damaged (it has no c)"),
        (records, b'{"n": 1, "c": "x"}\n' + whole, ", line 1: is damaged (c is 'x')"),
        (scores, b"[]", ": is damaged (it is []); remove it, to have it made again"),
        (scores, b'{"probl', ": is damaged (Unterminated string"),
        (asked, b'{"respon', ": is damaged (Unterminated string"),
        (asked, b"3", ": is damaged (it is 3); choose another --out"),
        (asked, b'"responses"', ": is damaged (it is 'responses'); choose another --out"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        (line,) = refusal(*ask).splitlines()
        assert line.startswith(f"{path.relative_to(tmp_path)}{said}"), line
        assert path.read_bytes() == content
        path.write_bytes(before)
    records.write_bytes(whole[: first - 5])  # as a kill leaves it
    refusal(*ask, code=0)
    assert records.read_bytes() == whole and summary(tmp_path / "out")["problems"] == 3
    scores.write_text("3")
    said = refusal("--model", "m", "--config", CONFIG, "--temperatures", "0", "1", "--out", "out")
    assert said == "out/summary.json: is damaged (it is 3); name a new folder\n"


@pytest.mark.filterwarnings("ignore:.*lock:pytest.PytestUnraisableExceptionWarning")
def test_on_a_full_disk(refusal, tmp_path):
    write(tmp_path / "r.jsonl", [{"id": i, "gold": "1", "responses": "1" * i} for i in range(99)])
    ask = ["--responses", "r.jsonl", "--verifier", "exact", "--out", "out"]
    with no_file_beyond(2_000):
        said = refusal(*ask, code=1).splitlines()[-1]
    remedy = "once it can be written, the same command goes on"
    assert said == f"out: [Errno 27] File too large; {remedy}"
    refusal(*ask, code=0)
    assert [x["c"] for x in read_lines(tmp_path / "out" / "problems.jsonl")] == [0, 1] + [0] * 97


@pytest.mark.parametrize("judge", ["answer.x", "'yes'"])
def test_a_verifier_of_the_users_own_that_cannot_judge(tmp_path, refusal, monkeypatch, judge):
    """It is refused before there is a folder or a model, and not scored as 0."""
    monkeypatch.setattr("trainers.commands.score.load_policy", None)
    write(tmp_path / "r.jsonl", [{"id": 1, "gold": "1", "responses": ["1"]}])
    (tmp_path / "mine.py").write_text(f"def judge(answer, gold):\n    return {judge}\n")
    for key, options in (
        ("--verifier", ["--responses", "r.jsonl", "--verifier", "mine.py:judge"]),
        ("task.verifier", ["--config", CONFIG, "task.verifier=mine.py:judge"]),
    ):
        (said,) = refusal(*options, "--out", "a").splitlines()
        assert said.startswith(f"{key} = mine.py:judge: ") and said.endswith("correct the function")
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("False", "no answer of 2 was right"), ("True", "every answer of 2 was right")],
)
def test_answers_of_one_verdict_are_told(tmp_path, refusal, verdict, said):
    """With the file that holds them."""
    write(tmp_path / "r.jsonl", [{"id": i, "gold": "1", "responses": ["1"]} for i in range(2)])
    (tmp_path / "mine.py").write_text(f"def judge(answer, gold):\n    return {verdict}\n")
    ask = "--responses", "r.jsonl", "--verifier", "mine.py:judge"
    for place, options in (("r.jsonl", []), ("a/problems.jsonl", ["--out", "a"])):
        line = refusal(*ask, *options, code=0).splitlines()[-1]
        assert line.startswith(f"warning: {said}, so there is no gradient; look at the answers in ")
        assert f"answers in {place}" in line
    write(tmp_path / "r.jsonl", [{"id": i, "gold": "1", "responses": [f"{i}"]} for i in range(2)])
    assert "warning" not in refusal("--responses", "r.jsonl", "--verifier", "exact", code=0)


def test_a_verifier_that_fails_on_all_responses_gives_no_score(tmp_path, refusal):
    write(tmp_path / "r.jsonl", [{"id": 1, "gold": "1", "responses": ["one", "uno"]}])
    (tmp_path / "mine.py").write_text("def judge(answer, gold):\n    return int(answer) == 1\n")
    said = refusal("--responses", "r.jsonl", "--verifier", "mine.py:judge").splitlines()[-1]
    assert said.startswith("--verifier = mine.py:judge: ValueError: invalid literal for int()")
    assert said.endswith("'one' (mine.py, line 2), on 2 of 2 answers; correct the function")


def test_wrong_arguments(tmp_path, refusal, base_path):
    model = ["--model", base_path, "--config", CONFIG]
    (tmp_path / "full").mkdir()
    write(tmp_path / "r.jsonl", [{"id": 1, "gold": "1", "responses": ["1"]}])
    (tmp_path / "full" / "x").write_text("")
    for options, said in (
        ([], "give either --responses"),
        (["--responses", "gone.jsonl"], "no such file"),
        (["--model", "./gone", "--config", CONFIG], "model.path = ./gone"),
        ([*model, "--k", "64"], "--k = 64: must be from 1 to n = 32"),
        ([*model, "--temperatures", "-1"], "--temperatures = -1"),
        ([*model, "--out", "full"], "holds files already"),
        ([*model, "--verifier", "math"], "--verifier = math: goes with --responses"),
        (["--responses", "r.jsonl", "eval.samples=4"], "goes with --config"),
        (["--responses", "r.jsonl", "--verifier", "no.py:f"], "--verifier = no.py:f"),
        (["--responses", "r.jsonl", "--base", "r.jsonl"], "generations are no records"),
    ):
        assert said in refusal(*options)
