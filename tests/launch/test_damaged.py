"""Files of a user's folders that are damaged, or JSON of another kind: one line that names file and
remedy, exit code 2, and nothing is cut.
"""

import importlib.util
import json
import sys

import pytest

from eval.files import write_json, write_lines
from tests.commands import ROOT
from tests.fakes import make_run as make
from trainers.commands.diagnosis_folder import Folder
from trainers.config.load import load_config
from trainers.train.metrics import Metrics
from trainers.train.run_folder import RunFolder

CONFIG = str(ROOT / "configs" / "passk.yaml")
# (contents of a summary, what is said of it)
SUMMARIES = [
    ("[]", "is damaged (it is [])"),
    ('"done"', "is damaged (it is 'done')"),
    ("3", "is damaged (it is 3)"),
    ("{}", "is damaged (it has no run)"),
    ('{"run": "x', "is damaged (Unterminated string starting at)"),
    ({"steps": "many"}, "is damaged (steps is 'many')"),
    ({"before": 3}, "is damaged (before is 3)"),
    ({"after": {"pass@1": 0.5}}, "is damaged (after.pass@1 is 0.5)"),
    ({"before": {}}, "is damaged (before has no pass@1)"),
    ({"exact": [1]}, "is damaged (exact is [1])"),
]


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """The one line that a command says, in this process; no rank must be started."""
    monkeypatch.chdir(tmp_path)

    def started(*_, **__):
        raise AssertionError("ranks were started")

    monkeypatch.setattr("trainers.engine.launcher.start_ranks", started)

    def ask(name, *options):
        spec = importlib.util.spec_from_file_location(name, ROOT / "launch" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *options])
        files = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
        assert module.main() == 2
        assert {x: x.read_bytes() for x in files} == files
        return capsys.readouterr().err.splitlines()

    return ask


@pytest.fixture
def begun(tmp_path):
    """A run's folder after three steps, as the command below would go on with."""
    config = load_config(CONFIG, ["run.dir=run"])
    config.run.dir = str(tmp_path / "run")
    RunFolder(config)._lock.close()
    folder = tmp_path / "run"
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        write_lines(folder / name, [{"step": step} for step in range(4)])
    record = {"id": "1", "n": 2, "c": 1, "verdicts": [True, False]}
    write_lines(folder / "eval" / "before.jsonl", [record] * 3)
    return folder


def spoil(path, content):
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "eval/before.jsonl"])
def test_a_damaged_line_of_a_run(refusal, begun, name):
    lines = (begun / name).read_text().splitlines(keepends=True)
    remedy = "remove that line" if "eval" not in name else "choose another run.dir"
    for bad, why in (("{" + lines[1], "Expecting property name"), ("\0\n", ""), ("7\n", "it is 7")):
        (begun / name).write_text("".join([lines[0], bad, *lines[2:]]))
        (line,) = refusal("train", "--config", CONFIG, "run.dir=run")
        assert line.startswith(f"run/{name}, line 2: is damaged ({why}")
        assert line.endswith(f"restore it from a copy, or {remedy}")


def test_half_a_line_at_the_end_is_none(begun):
    """From a kill; steps behind the checkpoint go as well."""
    config = load_config(CONFIG, [f"run.dir={begun}"])
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (begun / name).open("a") as file:
            file.write('{"step": 4, "tr')
    RunFolder(config)._lock.close()
    Metrics(begun, config, 2)._writer.close()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert (begun / name).read_text() == "".join(f'{{"step": {i}}}\n' for i in range(3))


@pytest.mark.parametrize(("content", "said"), SUMMARIES, ids=str)
def test_a_summary_that_is_none(refusal, tmp_path, content, said):
    """Of a run that is given again, compared, or part of an ablation."""
    folder = tmp_path / "all" / "passk" / "seed0"
    make(folder, (0.6, 0.9))
    spoil(folder / "summary.json", content)
    config = load_config(CONFIG, [f"run.dir={folder}"])
    (folder / "config.yaml").unlink()
    (folder / "summary.json").rename(tmp_path / "kept")
    (folder / "metrics.jsonl").unlink()
    RunFolder(config)._lock.close()
    (tmp_path / "kept").rename(folder / "summary.json")
    place, out = "all/passk/seed0", "restore it from a copy, or leave the run out"
    (line,) = refusal("train", "--config", CONFIG, f"run.dir={place}")
    assert line.startswith(f"{place}/summary.json: {said}; restore it")
    expected = f"{folder}/summary.json: {said}; {out}"
    assert refusal("compare", "all") == [expected]
    assert refusal("ablate", "--configs", CONFIG, "--out", "all", "--dry-run") == [
        expected.replace(f"{tmp_path}/", "")
    ]
    assert refusal("ablate", "--configs", CONFIG, "--out", "all")[-1] == expected


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval/before.jsonl", "eval/after.jsonl"])
def test_a_damaged_line_of_a_run_that_is_compared(refusal, tmp_path, name):
    folder = tmp_path / "x" / "seed0"
    make(folder, (0.6, 0.9))
    first, _, *rest = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join([first, "{\n", *rest]))
    (line,) = refusal("compare", "x", "--out", "out")
    assert line.startswith(f"{folder / name}, line 2: is damaged (Expecting property name")
    assert line.endswith("or leave the run out")


@pytest.mark.parametrize("content", ["[]", "3", '"x"', '{"a'])
def test_settings_of_a_diagnosis(refusal, tmp_path, base_path, content):
    folder = Folder(tmp_path / "out", load_config(CONFIG))
    write_json(tmp_path / "out" / "parts" / "000000.json", [{"id": "x"}])
    with pytest.raises(ValueError, match=r"parts/000000.json: is damaged \(it has no n\); remove"):
        folder.records(0)
    folder.close()
    (tmp_path / "out" / "settings.json").write_text(content)
    (line,) = refusal("diagnose", "--config", CONFIG, "--out", "out")
    assert line.startswith("out/settings.json: is damaged (") and "choose another --out" in line
