"""What diagrams of models write."""

from __future__ import annotations

import plotly.graph_objects as go

from regraft.checkpoint.census import owner as owner_of
from regraft.checkpoint.dissection import Component, Kind, StackFound, Tensors
from regraft.reporting.anatomy_drawing import _cut, _few, _ranges, columns
from regraft.reporting.chapter_section import least_width


def test_widths_of_figures():
    assert least_width(go.Figure(go.Bar(x=[1, 2]))) == 280
    for count, text, wanted in (
        (4, None, 150 + 26 * 4),
        (32, None, 150 + 26 * 32),
        (33, None, 150 + 14 * 33),
        (33, "%{z}", 150 + 52 * 33),
    ):
        figure = go.Figure(go.Heatmap(x=list(range(count)), y=[0], z=[[0] * count], texttemplate=text))
        assert least_width(figure) == wanted


def test_what_a_diagram_writes():
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert _ranges([]) == ""
    assert _few(["x"] * 22) == ["x"] * 22
    assert _few(["x"] * 30) == ["x"] * 21 + ["... and 9 more"]
    assert _cut("abcde", 5) == "abcde"
    assert _cut("abcdef", 5) == "abcd…"
    vision, text = (
        StackFound(path, 1, (), size, 0, ())
        for path, size in (("model.vision.blocks", 5), ("model.text.blocks", 9))
    )
    for name, owner in (
        ("model.vision.norm", vision),
        ("model.text_norm", text),
        ("model.norm", text),
        ("lm_head", text),
    ):
        assert owner_of(name, [vision.path, text.path], text.path) == owner.path


def test_a_box_says_which_blocks_it_draws_where_there_are_kinds_of_them():
    def kind(*blocks):
        return Kind(
            blocks, (Tensors("w", "", (2, 3), "F32", 1), Tensors("b", "", (3,), "F32", 2)), 12, 48, ()
        )

    def headings(*kinds):
        made = columns(Component("", (StackFound("h", 4, kinds, 48, 192, ()),), (), (), 1, 1, {}))
        return [(box.heading, box.lines) for box in made[0]]

    lines = ["w   2 x 3", "2 vectors (norms, biases)   12 numbers a block"]
    assert headings(kind(0, 1, 2, 3)) == [("4 x h", lines)]
    assert headings(kind(0, 1, 3), kind(2)) == [("3 x h: 0-1, 3", lines), ("1 x h: 2", lines)]
