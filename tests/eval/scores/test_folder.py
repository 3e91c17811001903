"""Responses and records of any size, read and written one by one."""

import tracemalloc

from eval.files import write_lines
from eval.scores.folder import ScoreFolder, Scoring
from eval.scores.folder import run as score_all
from eval.scores.responses import read_responses


def test_the_file_is_read_as_a_stream(tmp_path):
    write_lines(tmp_path / "r.jsonl", [{"id": 0, "gold": "1", "responses": "1"}])
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write("{")
    first = next(read_responses(tmp_path / "r.jsonl", {}))
    assert first.responses == ["1"] and first.problem.id == "0"


def test_no_text_is_held_longer_than_it_is_scored(tmp_path):
    """Of 24 MB in 300 problems, and again of what the folder holds; the line cut short goes."""

    def produce(start):
        for i in range(start, 300):
            yield [{"id": i, "n": 1, "c": 1, "prompt": "x", "responses": ["x" * 80_000]}]

    def peak(total):
        tracemalloc.start()
        with ScoreFolder(tmp_path / "out", {}) as folder:
            records = score_all(Scoring("x", {}, total, produce), folder)
            folder.finish({})
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [r["id"] for r in records] == list(range(300))
        return most

    assert peak(300) < 2e6
    path = tmp_path / "out" / "problems.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # a line without its end is not whole
    (tmp_path / "out" / "summary.json").unlink()
    assert peak(300) < 2e6
    assert path.read_bytes() == whole
