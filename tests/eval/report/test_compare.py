"""Runs side by side, from folders made by hand."""

import csv
import io
import json
import re

import pytest

from eval.files import write_lines
from eval.report import page, pictures
from eval.report.bases import bases
from eval.report.compare import as_csv, cells, compare, drawn_alike, header, render
from eval.report.curve import above, curves
from eval.report.html import grid
from eval.report.notes import not_alike, notes
from eval.report.runs import BadRuns, find_runs, grouped
from eval.scores.intervals import bca
from eval.scores.passk import changes, moved, problem_scores, verdict
from tests.fakes import make_run as make


def test_the_table_by_hand(tmp_path):
    make(tmp_path / "x" / "seed0", (0.6, 0.9), 0)
    make(tmp_path / "x" / "seed1", (0.7, 0.901), 1, summary={"seconds": 20.0})
    (row,) = compare(find_runs([tmp_path]))
    assert row["pass@1"]["change"]["value"] == pytest.approx(0.15)
    half = 12.7062 * 0.05  # t on one degree of freedom, error .05
    assert row["pass@1"]["change"]["high"] - 0.15 == pytest.approx(half, rel=1e-4)
    assert row["pass@1"]["verdict"] == "cannot tell" and row["pass@8"]["verdict"] == "better"
    assert row["pass@1"]["before"] == 0.5 and row["seconds"] == 15
    assert row["lowest_pass@1"] == 0.5 and row["frontier_share"] == 0.5
    assert "0.500 → 0.650" in render([row]) and "+0.150" in render([row], markdown=True)
    (line,) = csv.DictReader(io.StringIO(as_csv([row])))
    assert float(line["pass@1.change.value"]) == pytest.approx(0.15)


def test_verdicts_need_the_margin_and_holm(tmp_path):
    for seed in range(4):
        make(tmp_path / "x" / f"seed{seed}", (0.52 + 0.001 * seed, 0.8), seed)
    assert compare(find_runs([tmp_path]))[0]["pass@1"]["verdict"] == "better"
    assert compare(find_runs([tmp_path]), margin=0.05)[0]["pass@1"]["verdict"] == "cannot tell"
    p = compare(find_runs([tmp_path]))[0]["pass@1"]["p"]
    for name in "abcd":  # of one label, as they differ in nothing but the folder
        for seed in range(4):
            make(tmp_path / name / f"seed{seed}", (0.5 + 0.01 * (-1) ** seed, 0.8), seed)
    rows = compare(find_runs([tmp_path]))
    assert rows[-1]["pass@1"]["p"] == p and rows[-1]["pass@1"]["p_holm"] == pytest.approx(5 * p)
    make(tmp_path / "worse" / "seed0", (0.4, 0.8), 0)
    make(tmp_path / "worse" / "seed1", (0.401, 0.8), 1)
    assert {r["run"]: r for r in compare(find_runs([tmp_path]))}["passk (worse)"]["pass@1"][
        "verdict"
    ] == "worse"


def test_a_single_seed_of_sampled_values_is_judged_over_problems(tmp_path):
    make(tmp_path / "x" / "seed0", (0.4, 0.8), exact=False)
    (run,) = find_runs([tmp_path])
    (row,) = compare([run])
    before, after = (problem_scores(run.records(when), 1) for when in ("before", "after"))
    assert row["pass@1"]["change"] == bca(after - before).interval
    assert row["pass@1"]["after"]["low"] == pytest.approx(0.39)  # the run's own interval
    assert "frontier_share" not in row and row["lowest_pass@1"] == pytest.approx(0.3)


def test_one_seed_is_judged_as_the_run_judges_itself(tmp_path):
    """By its own interval of sampled values, exact ones or not; another group follows suit."""
    make(tmp_path / "y" / "seed0", (0.4, 0.8))
    (run,) = find_runs([tmp_path / "y"])
    (alone,) = compare([run])
    own = changes(run.records("before"), run.records("after"), [1, 8])
    assert not alone["exact"] and alone["frontier_share"] == 0.5
    for name in ("pass@1", "pass@8"):
        assert alone[name]["change"] == own[name]
        assert alone[name]["verdict"] == moved(own[name])
    assert moved(own["pass@1"]) == "fell" and verdict(own).endswith("pass@1 fell")
    assert compare([run], margin=0.5)[0]["pass@1"]["verdict"] == "cannot tell"
    said = " ".join(notes([alone], grouped([run]), 0.0))
    assert " one seed, sampled " in render([alone]) and "0.300 sampled" in render([alone])
    assert "BCa" in said and "Student" not in said
    assert "does not contain 0, as the run itself says" in said and "±" not in said
    assert "beyond ±0.5. " in " ".join(notes([alone], grouped([run]), 0.5))
    page = grid(header(8), [cells(alone)])
    assert '<td class="worse">fell</td>' in page


def two_seeds(folder, after, **settings):
    for seed in (0, 1):
        make(folder / f"seed{seed}", (after[0] + 0.001 * seed, after[1]), seed, **settings)


def test_one_seed_more_changes_no_other_row(tmp_path):
    """Several seeds keep their exact values, their p and their verdict."""
    two_seeds(tmp_path / "x", (0.4, 0.9))
    two_seeds(tmp_path / "mix", (0.6, 0.9), **{"surgery.rule": "mix"})
    before = {row["run"]: row for row in compare(find_runs([tmp_path]))}
    make(tmp_path / "y" / "seed0", (0.4, 0.8), **{"surgery.rule": "pcgrad"})
    runs = find_runs([tmp_path])
    after = {row["run"]: row for row in compare(runs)}
    one = after.pop("pcgrad")
    assert after == before and all(row["exact"] for row in after.values())
    assert not one["exact"] and one["pass@1"]["verdict"] == "fell"
    assert one["pass@1"]["p_holm"] is None and before["passk"]["pass@1"]["p_holm"] < 0.05
    said = notes([*after.values(), one], grouped(runs), 0.0)
    assert sum("exact values" in x or "One seed: sampled" in x for x in said) == 2
    assert " 0.300 exact " in render([after["passk"]]) and "0.300 sampled" in render([one])


def test_a_distance_has_values_of_one_kind(tmp_path):
    """Of one seed they are sampled, on both sides; the row beside it keeps the exact ones."""
    two_seeds(tmp_path / "x", (0.4, 0.9))
    two_seeds(tmp_path / "mix", (0.6, 0.85), **{"surgery.rule": "mix"})
    for seed, pass_8 in enumerate((0.9, 0.901)):
        make(tmp_path / "mine" / f"seed{seed}", (0.5, pass_8), seed, **{"surgery.rule": "pcgrad"})
    make(tmp_path / "one" / "seed0", (0.5, 0.9), **{"surgery.rule": "floor"})
    runs = find_runs([tmp_path])
    rows = {row["run"]: row for row in compare(runs)}
    assert rows["pcgrad"]["above_mix"]["value"] == pytest.approx(0.9 - 0.875, abs=1e-3)
    groups = grouped(runs)
    sampled = above(groups["floor"], curves([*groups.values()], False), False)
    assert rows["floor"]["above_mix"] == sampled
    assert rows["pcgrad"]["above_mix_exact"] and not rows["floor"]["above_mix_exact"]


def test_pictures_have_values_of_one_kind(tmp_path):
    """Exact ones, where the table has some and all runs know theirs; else sampled ones."""
    make(tmp_path / "y" / "seed0", (0.4, 0.8), **{"surgery.rule": "pcgrad"})
    runs = find_runs([tmp_path])
    assert not any(x["exact"] for x in drawn_alike(compare(runs), grouped(runs)))
    two_seeds(tmp_path / "x", (0.4, 0.9))
    runs = find_runs([tmp_path])
    rows = drawn_alike(compare(runs), grouped(runs))
    assert all(x["exact"] for x in rows)
    assert {x["run"]: x["pass@1"]["after"]["low"] for x in rows}["pcgrad"] is None
    make(tmp_path / "z" / "seed0", (0.4, 0.8), exact=False, **{"surgery.rule": "floor"})
    runs = find_runs([tmp_path])
    assert not any(x["exact"] for x in drawn_alike(compare(runs), grouped(runs)))


def test_what_makes_rows_no_match_is_said(tmp_path):
    """Keys of the measurement, then those of the training, but none of the rule."""
    make(tmp_path / "x" / "seed0", (0.6, 0.9))
    make(
        tmp_path / "y" / "seed0", (0.4, 0.9),
        **{"surgery.rule": "pcgrad", "train.lr": 3e-3, "train.steps": 20, "model.path": "m"},
    )  # fmt: skip
    assert said_of(find_runs([tmp_path])) == [
        "Not comparable: model.path differs between the rows.",
        "Beside the rules' own settings, the rows differ in train.steps and train.lr.",
    ]
    page.write(find_runs([tmp_path]), tmp_path / "out", 0.0)
    for name in ("compare.md", "compare.html"):
        assert "Not comparable: model.path differs" in (tmp_path / "out" / name).read_text()


def said_of(runs):
    return [*not_alike(compare(runs), grouped(runs))]


def test_other_problems_are_not_comparable(tmp_path):
    for name in ("x", "y"):
        make(tmp_path / name / "seed0", (0.6, 0.9))
    assert said_of(find_runs([tmp_path])) == []
    records = tmp_path / "y" / "seed0" / "eval"
    for path in records.iterdir():
        path.write_text(path.read_text().replace('"id": "0"', '"id": "another"'))
    said = "Not comparable: the problems of the evaluation differ between the rows."
    assert said_of(find_runs([tmp_path])) == [said]


def test_exact_values_are_comparable_whatever_the_evaluation(tmp_path):
    two_seeds(tmp_path / "x", (0.4, 0.9), **{"eval.problems": 20})
    two_seeds(tmp_path / "y", (0.4, 0.9), **{"eval.problems": 40})
    assert said_of(find_runs([tmp_path])) == []
    make(tmp_path / "z" / "seed0", (0.4, 0.9), **{"eval.problems": 20, "surgery.rule": "floor"})
    said = "Not comparable: eval.problems differs between the rows."
    assert said_of(find_runs([tmp_path])) == [said]


def test_another_objective_is_comparable(tmp_path):
    """Runs of pass@1 and pass@8 are compared all the time, if both report pass@8."""
    make(tmp_path / "x" / "seed0", (0.4, 0.9))
    make(tmp_path / "y" / "seed0", (0.7, 0.7), **{"objective.k": 1})
    assert said_of(find_runs([tmp_path])) == []


def test_a_key_that_a_run_does_not_record_has_its_default(tmp_path):
    make(tmp_path / "old" / "seed0", (0.6, 0.9))
    make(tmp_path / "new" / "seed0", (0.6, 0.9), **{"train.sampler": "uniform"})
    make(tmp_path / "other" / "seed0", (0.6, 0.9), **{"train.sampler": "history"})
    runs = find_runs([tmp_path / "old", tmp_path / "new"], {"train.sampler": "uniform"})
    assert said_of(runs) == []
    runs = find_runs([tmp_path / "old", tmp_path / "other"], {"train.sampler": "uniform"})
    assert list(grouped(runs)) == ["passk, sampler = history", "passk, sampler = uniform"][::-1]


def test_each_base_has_its_mark(tmp_path):
    """Two bases have two labels, three none; tasks whose base is in one place share it."""
    start = {"pass@1": {"value": 0.2}, "pass@8": {"value": 0.4}}

    def make_from(name, **scores):
        before = {x: {"value": y, "low": None, "high": None} for x, y in scores.items()}
        make(
            tmp_path / name / "seed0", (0.6, 0.9), exact=False, summary={"before": before},
            **{"model.path": name},
        )  # fmt: skip

    def found():
        runs = find_runs([tmp_path])
        return bases(compare(runs), grouped(runs), 8)

    make_from("a", **{"pass@1": 0.5, "pass@8": 0.8})
    make_from("b", **{"pass@1": 0.5, "pass@8": 0.8})
    assert [x.label for x in found()] == ["base"]
    make_from("c", **{"pass@1": 0.2, "pass@8": 0.4})
    assert [x.label for x in found()] == ["base, path = a", "base, path = c"]
    assert found()[1].scores == {x: y["value"] for x, y in start.items()}
    runs = find_runs([tmp_path])
    rows, groups = compare(runs), grouped(runs)
    plane = pictures.pareto(rows, groups, [], 8).axes[0]
    assert {"base, path = a", "base, path = c"} <= {x.get_text() for x in plane.texts}
    make_from("d", **{"pass@1": 0.1, "pass@8": 0.3})
    assert found() == []


def test_a_narrow_terminal_has_no_seconds_and_no_empty_columns(tmp_path):
    two_seeds(tmp_path / "x", (0.4, 0.9))
    (row,) = compare(find_runs([tmp_path]))
    wide, narrow = (render([row], width=width).splitlines()[0] for width in (500, 60))
    assert wide.endswith("  seconds") and "seconds" not in narrow
    assert "above mix" not in wide and "frontier share" in narrow
    full = render([row], markdown=True)
    assert all(f"| {name} " in full for name in header(8))


def test_groups_are_folders(tmp_path):
    for place in ("a/x", "b/x", "b/y"):
        make(tmp_path / place / "seed0", (0.6, 0.9))
    names = list(grouped(find_runs([tmp_path])))
    assert names == ["passk (a/x)", "passk (b/x)", "passk (b/y)"]  # nothing else differs
    (tmp_path / "score").mkdir()
    (tmp_path / "score" / "summary.json").write_text('{"scores": {}}')  # of score.py: no run
    assert len(find_runs([tmp_path])) == 3


def test_runs_of_other_settings_are_not_averaged(tmp_path):
    make(tmp_path / "x" / "seed0", (0.6, 0.9), 0)
    make(tmp_path / "x" / "seed1", (0.6, 0.9), 1, **{"train.lr": 0.5})
    with pytest.raises(BadRuns, match=r"train.lr = 0.5, but 0.001 in .*move one"):
        compare(find_runs([tmp_path]))


def test_true_and_sampled_values_are_not_mixed(tmp_path):
    make(tmp_path / "x" / "seed0", (0.6, 0.9))
    make(tmp_path / "y" / "seed0", (0.4, 0.8), exact=False, **{"surgery.rule": "pcgrad"})
    with (tmp_path / "x" / "seed0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "eval/pass@1": 0.39, "eval/pass@8": 0.9}\n')
    rows = {row["run"]: row for row in compare(find_runs([tmp_path]))}
    assert not rows["passk"]["exact"] and rows["passk"]["lowest_pass@1"] == 0.39


def is_grey(look):
    return look["color"].startswith("0.")


def test_distance_to_the_curve(tmp_path):
    """Two mixtures and pass@k alone make a curve; a rule at .65 is .02 above it on both seeds."""
    for seed in (0, 1):
        shift = 0.01 * seed  # seeds differ, and alike in all runs: the distance does not
        make(tmp_path / "passk" / f"seed{seed}", (0.5 + shift, 1.0), seed)
        make(
            tmp_path / "mix,1" / f"seed{seed}", (0.7 + shift, 0.9), seed,
            **{"surgery.rule": "mix", "surgery.mix": 1.0},
        )  # fmt: skip
        make(
            tmp_path / "mix,2" / f"seed{seed}", (0.8 + shift, 0.7), seed,
            **{"surgery.rule": "mix", "surgery.mix": 2.0},
        )  # fmt: skip
        make(
            tmp_path / "mine" / f"seed{seed}", (0.65 + shift, 0.945 + 0.001 * seed), seed,
            **{"surgery.rule": "pcgrad", "train.lr": 3e-3, "train.prompts": 8, "train.samples": 4},
        )  # fmt: skip
        make(
            tmp_path / "anneal" / f"seed{seed}", (0.65 + shift, 0.945 + 0.001 * seed), seed,
            **{"objective.k_schedule": "4@5"},
        )  # fmt: skip
        make(
            tmp_path / "other" / f"seed{seed}", (0.6, 0.99), seed,
            **{"surgery.rule": "floor", "train.steps": 20},
        )  # fmt: skip
    runs = find_runs([tmp_path])
    (curve,) = curves(list(grouped(runs).values()), exact=True)
    assert curve.lambdas == [0.0, 1.0, 2.0] and curve.seeds == [0, 1]
    greys = [name for name, x in pictures.looks(grouped(runs), [curve]).items() if is_grey(x)]
    assert greys == ["mix, λ = 1", "mix, λ = 2"]
    rows = {row["run"]: row["above_mix"] for row in compare(runs)}
    half = 12.7062 * 0.0005  # t on one degree of freedom, error .0005
    assert rows["pcgrad"] == pytest.approx(
        {"value": 0.0205, "low": 0.0205 - half, "high": 0.0205 + half}
    )
    assert rows["anneal"] == rows["pcgrad"]  # another objective, judged by the same k
    assert rows["floor"] is None  # other work: more steps; pcgrad has as many answers in a step
    assert rows["mix, λ = 1"] is None and rows["passk"] is None  # on the curve
    one = above([grouped(runs)["pcgrad"][1]], [curve], exact=True)
    assert one is not None and one["low"] is None


def test_why_a_table_has_no_distance_is_said(tmp_path):
    def said():
        runs = find_runs([tmp_path])
        return "No distance to the fixed mixtures' curve" in " ".join(
            notes(compare(runs), grouped(runs), 0.0)
        )

    for name, mix in (("one", 1.0), ("two", 2.0)):
        make(tmp_path / name / "seed0", (0.7, 0.9), **{"surgery.rule": "mix", "surgery.mix": mix})
    assert not said()  # mixtures alone
    make(tmp_path / "mine" / "seed0", (0.7, 0.95), **{"surgery.rule": "floor", "train.samples": 4})
    assert said()
    make(tmp_path / "like" / "seed0", (0.7, 0.95), **{"surgery.rule": "pcgrad"})
    assert not said()


def test_distance_of_sampled_values(tmp_path):
    """Two seeds with the same answers: the spread over seeds is 0, that over problems is not."""
    rules = {
        "passk": ([2] * 40, (0.25, 1.0), {}),
        "mix": ([8] * 20 + [0] * 20, (0.5, 0.5), {"surgery.rule": "mix", "surgery.mix": 1.0}),
        "mine": ([4, 4, 4, 4, 0] * 8, (0.4, 0.8), {"surgery.rule": "pcgrad"}),  # the curve: .7
    }
    for name, (counts, after, config) in rules.items():
        for seed in (0, 1):
            make(tmp_path / name / f"seed{seed}", after, seed, exact=False, **config)
            write_lines(
                tmp_path / name / f"seed{seed}" / "eval" / "after.jsonl",
                [
                    {"id": str(i), "n": 8, "c": c, "verdicts": [j < c for j in range(8)]}
                    for i, c in enumerate(counts)
                ],
            )
    runs = find_runs([tmp_path])
    row = {x["run"]: x for x in compare(runs)}["pcgrad"]
    assert row["above_mix"]["value"] == pytest.approx(0.1)
    low, high = row["above_mix"]["low"], row["above_mix"]["high"]
    assert low is not None and low < -0.05 and high > 0.2
    alone = [run for run in runs if run.summary["seed"] == 0]
    (one,) = (x["above_mix"] for x in compare(alone) if x["run"] == "pcgrad")
    assert one == pytest.approx(row["above_mix"], rel=0.01)
    for when in ("before", "after"):
        place = tmp_path / "mine" / "seed0" / "eval" / f"{when}.jsonl"
        place.write_text(place.read_text().replace('"id": "0"', '"id": "another"'))
    (other,) = (x["above_mix"] for x in compare(alone) if x["run"] == "pcgrad")
    assert other is None  # evaluated on other problems, it is not held against the curve


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    for seed in range(2):
        make(tmp_path / "x" / f"seed{seed}", (0.6, 0.9), seed, **{"surgery.rule": "a.py:x<y"})
        make(tmp_path / "z" / f"seed{seed}", (0.4 + 0.001 * seed, 0.9), seed)
    rows = page.write(find_runs([tmp_path]), tmp_path / "out", 0.0)
    assert {x.name for x in (tmp_path / "out").iterdir()} == {
        *(f"compare.{end}" for end in ("md", "csv", "json", "html")),
        *(f"{name}.png" for name in ("pareto", "passk", "steps", "flows")),
    }
    text = (tmp_path / "out" / "compare.html").read_text()
    assert text.count("data:image/png;base64,") == 4 and "x&lt;y" in text and "x<y" not in text
    plain = re.sub(r"data:image/png;base64,[^\"]*", "", text)
    for outside in ("http", "//", "<script", "@import", "url("):
        assert outside not in plain, outside
    assert '<td class="worse">worse</td>' in text
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == json.loads(
        json.dumps(rows)
    )


def test_the_page_says_in_which_settings_the_runs_differ(tmp_path):
    make(tmp_path / "x" / "seed0", (0.6, 0.9), **{"surgery.rule": "mix", "train.lr": 2e-3})
    make(tmp_path / "y" / "seed0", (0.6, 0.9), 3)
    groups = grouped(find_runs([tmp_path]))
    header, rows = page.differences(groups)
    assert header == ["run", "surgery.rule", "train.lr", "folder"]  # no seed
    assert rows == [
        ["mix", "mix", "0.002", str(tmp_path / "x")],
        ["passk", "none", "0.001", str(tmp_path / "y")],
    ]
    page.write(find_runs([tmp_path]), tmp_path / "out", 0.0)
    text = (tmp_path / "out" / "compare.html").read_text()
    assert "<td>none</td><td>0.001</td>" in text
    assert "<td>train.steps</td><td>10</td>" in text  # they share it
    assert "<td>train.lr</td>" not in text


def test_scalars_over_training(tmp_path):
    """A difference of two scalars over seeds; a run without it is left out, a misspelt one told."""
    for seed in range(2):
        make(tmp_path / "x" / f"seed{seed}", (0.6, 0.9 + 0.02 * seed), seed)
    make(tmp_path / "y" / "seed0", (0.4, 0.9), **{"surgery.rule": "pcgrad"})
    with (tmp_path / "y" / "seed0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "surgery/length_k": 3.0}\n')
    runs, gap = find_runs([tmp_path]), "exact/pass@8-exact/pass@1"
    steps, values = zip(*runs[0].scalar(gap), strict=True)
    assert steps == (0, 5, 10) and values == pytest.approx((0.3, 0.35, 0.3))
    groups = grouped(runs)
    look = pictures.looks(groups, [])
    gaps, lengths = pictures.of_scalars([gap, "surgery/length_k"], groups, look).axes
    assert [x.get_label() for x in gaps.lines] == ["passk", "pcgrad"]
    assert gaps.lines[0].get_ydata()[2] == pytest.approx(0.31)  # .30 and .32
    assert [list(x.get_ydata()) for x in lengths.lines] == [[3.0]]
    page.write(runs, tmp_path / "out", 0.0, [gap])
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(BadRuns, match=r"pass1: in no run.*nearest is exact/pass@1"):
        page.write(runs, tmp_path / "out", 0.0, ["exact/pass1"])
