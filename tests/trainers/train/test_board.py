"""The first page of TensorBoard, and the card that explains its charts."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from tests.commands import ROOT
from trainers.config.load import load_config
from trainers.train.board import card, charts, layout
from trainers.train.metrics import Metrics

BEFORE = {f"{kind}/pass@{k}": 0.5 for kind in ("eval", "exact") for k in (1, 2, 4, 8)}


def config(*overrides):
    return load_config(ROOT / "configs" / "pcgrad.yaml", overrides)


def names(shown):
    return [name for chart in shown for name in chart.names]


def test_charts_follow_from_the_configuration():
    every = names(charts(config(), BEFORE))
    for name in ("exact/pass@8", "eval/pass@1", "train/pass@8", "surgery/cosine", "time/measure"):
        assert name in every
    few = config("surgery.rule=mix", "surgery.measure=none", "train.samples=4", "objective.k=4",
                 "eval.k=8")  # fmt: skip
    fewer = names(charts(few, {"eval/pass@1": 0.5}))
    assert "train/pass@4" in fewer and "eval/pass@8" in fewer and "surgery/lambda" in fewer
    assert not [x for x in fewer if x.startswith("exact/") or x.endswith("cosine")]
    assert "time/reference" in every
    assert "time/reference" not in names(charts(config("logging.kl_every=0"), BEFORE))
    one = charts(config("objective.k=1", "eval.k=1"), {"eval/pass@1": 0.5})[0]
    assert one.names == ["eval/pass@1"]


def test_the_card_explains_every_chart():
    shown = charts(config(), BEFORE)
    text = card(shown)
    assert len(shown) == len({x.title for x in shown})
    for chart in shown:
        assert f"- *{chart.title}*: {chart.meaning}" in text and f"**{chart.page}**" in text


def test_tensorboard_reads_the_page(tmp_path):
    metrics = Metrics(tmp_path, config(), 0)
    metrics.begin(BEFORE)
    metrics.flush()
    board = EventAccumulator(str(tmp_path)).Reload()
    (event,) = board.Tensors(metadata.CONFIG_SUMMARY_TAG)
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    expected = layout(charts(config(), BEFORE))
    assert [x.title for x in found.category] == list(expected)
    for page in found.category:
        lines = {x.title: ["Multiline", list(x.multiline.tag)] for x in page.chart}
        assert lines == expected[page.title]
    assert "How to read/text_summary" in board.Tags()["tensors"]
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 0, **BEFORE}


@pytest.mark.parametrize("name", ["train/pass@1", "train/pass@16"])
def test_a_name_is_drawn_alone(name):
    """TensorBoard matches from the start of a name, so that pass@1 would draw pass@16 as well."""
    import re

    pages = layout(charts(config(), BEFORE))
    patterns = [x for page in pages.values() for _, lines in page.values() for x in lines]
    assert [x for x in patterns if re.match(x, name)] == ["train/pass@1$"] * (name[-2:] == "@1")
