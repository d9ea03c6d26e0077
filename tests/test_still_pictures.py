"""Still pictures against the figures that they stand for: every mark where its value lies, ticks as people
write them, both themes' colours; and the drawing library that pages hold."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest

from regraft.reporting.chapter_section import plot_box
from regraft.reporting.plotly_script import plotly_script
from regraft.reporting.polish import NAMED, polished
from regraft.reporting.still_axes import Axis, even_ticks, log_ticks, plain_number
from regraft.reporting.still_picture import WIDTH, stands_still, still
from regraft.reporting.theme import (
    DIVERGING,
    LEVELS,
    PALETTE,
    SEQUENTIAL,
    bars,
    colour_of,
    heatmap,
    label_sides,
    lines,
    scale_styles,
)

NAN = float("nan")


def tree(figure):
    return ElementTree.fromstring(still(figure))


def words(root):
    return [one.text for one in root.iter("text")]


def test_bars_are_as_long_as_their_values():
    root = tree(bars(["a", "b", "c"], [1.0, 2.0, NAN], "block", "loss", "nats"))
    heights = [float(one.get("height")) for one in root.iter("rect")]
    assert len(heights) == 2, "what is no number has no bar"
    assert heights[1] == pytest.approx(2 * heights[0], rel=1e-2)
    assert {"a", "b", "c", "block", "loss"} <= set(words(root))


def test_bars_of_a_logarithmic_axis_stand_apart_by_their_ratio():
    figure = polished(bars(["a", "b", "c"], [1.0, 10.0, 100.0], "block", "loss", "x", log=True))
    tops = [float(one.get("y")) for one in tree(figure).iter("rect")]
    assert tops[0] - tops[1] == pytest.approx(tops[1] - tops[2], abs=0.2)
    assert list(figure.layout.yaxis.ticktext) == ["1", "10", "100"]


def test_lines_break_where_a_value_is_missing_and_share_one_scale():
    figure = lines([0, 1, 2, 3], {"one": [0.0, 1.0, NAN, 3.0], "two": [3.0, 3.0, 3.0, 3.0]}, "x", "y")
    root = tree(figure)
    paths = [one.get("d") for one in root.iter("path")]
    assert [path.count("M") for path in paths] == [2, 1]
    ends = [re.findall(r"[ML]([\d.]+) ([\d.]+)", path)[-1] for path in paths]
    assert ends[0] == ends[1], "both end at x 3, y 3"
    assert {"one", "two"} <= set(words(root))


def test_cells_have_the_colour_and_the_place_of_their_value():
    values = [[0.0, 0.5], [1.0, NAN]]
    root = tree(heatmap(values, ["p", "q"], ["r", "s"], "share", zmin=0, zmax=1))
    paths = {one.get("class"): one.get("d") for one in root.iter("path")}
    assert set(paths) == {"q0", f"q{(LEVELS - 1) // 2}", f"q{LEVELS - 1}"}
    corner = {
        name: tuple(map(float, re.match(r"M([\d.]+) ([\d.]+)", d).groups())) for name, d in paths.items()
    }
    assert corner["q0"][0] == corner[f"q{LEVELS - 1}"][0], "first column"
    assert corner["q0"][1] > corner[f"q{LEVELS - 1}"][1], "rows go upwards, as plotly's do"


def test_a_scale_around_zero_has_zero_in_the_middle():
    root = tree(heatmap([[-1.0, 0.0, 3.0]], ["a", "b", "c"], ["r"], "effect", True))
    kinds = [one.get("class") for one in root.iter("path")]
    assert f"d{(LEVELS - 1) // 2}" in kinds
    assert f"d{LEVELS - 1}" in kinds
    assert "d0" not in kinds, "minus one is a third of the way"


def test_hostile_names_stay_words():
    root = tree(bars(["<b>x</b>", "a & b", "%{y}"], [1, 2, 3], "<script>", "y", "u"))
    assert {"<b>x</b>", "a & b", "%{y}"} <= set(words(root))


def test_bars_of_equal_traces_stand_beside_each_other():
    figure = bars(["a"], [1.0], "x", "y", "u")
    figure.add_bar(x=["a"], y=[1.0])
    figure.update_layout(barmode="group")
    left = [float(one.get("x")) for one in tree(figure).iter("rect")]
    assert left[1] > left[0]


def test_cells_of_wide_columns_touch():
    figure = go.Figure(go.Heatmap(z=[[0, 1, 2]], x=[0, 10, 20], y=["r"], meta="sequential", showscale=False))
    paths = {one.get("class"): one.get("d") for one in tree(figure).iter("path")}
    starts = [float(re.match(r"M([\d.]+)", paths[name])[1]) for name in ("q0", "q8", "q16")]
    wide = float(re.search(r"h([\d.]+)", paths["q0"])[1])
    assert np.allclose(np.diff(starts), wide + 1, atol=0.2)


def test_letters_on_strong_cells_have_the_papers_colour():
    figure = heatmap(
        [[0.0, 0.9]], ["a", "b"], ["r"], "u", zmin=0, zmax=1, text=[["p", "q"]], texttemplate="%{text}"
    )
    kinds = {one.text: one.get("class") for one in tree(figure).iter("text") if one.get("class")}
    assert kinds == {"p": "in", "q": "in on"}


def test_crosses_are_crosses_and_names_stand_where_they_are_put():
    figure = go.Figure(
        go.Scatter(x=[1, 2], y=[1, 2], mode="markers+text", text=["a", "b"], marker_symbol="x-thin")
    )
    figure.update_traces(textposition=["middle right", "bottom left"], marker_size=8)
    root = tree(figure)
    assert not list(root.iter("circle"))
    assert [one.get("d").count("M") for one in root.iter("path")] == [2, 2]
    sides = {one.text: one.get("text-anchor") for one in root.iter("text")}
    assert (sides["a"], sides["b"]) == ("start", "end")


def test_every_block_is_named_and_always_the_last():
    twelve = polished(lines([str(n) for n in range(12)], {"one": range(12)}, "block", "y"))
    assert list(twelve.layout.xaxis.tickvals) == [str(n) for n in range(12)]
    assert twelve.layout.xaxis.type == "category"
    many = list(polished(lines(range(61), {"one": range(61)}, "depth", "y")).layout.xaxis.tickvals)
    assert (many[0], many[-1]) == (0, 60)
    assert len(many) <= NAMED
    assert min(np.diff(many)) > 1, "none beside another"
    assert polished(lines([0.5, 1.5], {"one": [1, 2]}, "x", "y")).layout.xaxis.tickvals is None


def test_a_figure_of_other_marks_has_no_still_picture_and_is_drawn_all_the_same():
    """Another package's drawing may hold any mark that the library knows."""
    box = go.Figure(go.Box(y=[1.0, 2.0, 4.0]))
    assert not stands_still(box)
    assert "<svg" not in plot_box(box, "there")
    assert 'class="plot"' in plot_box(box, "there")
    piled = bars(["a"], [1.0], "x", "y", "u").update_layout(barmode="relative")
    assert not stands_still(piled)
    with pytest.raises(ValueError, match="relative on one another"):
        still(piled)


def test_what_cannot_be_drawn_still_is_refused():
    with pytest.raises(
        ValueError, match=r"a still picture has heat maps, lines, points and bars, and .* pie"
    ):
        still(go.Figure(go.Pie(values=[1])))


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0, 3, ["1", "10", "100", "1,000"]),
        (-4, -1, ["1e-4", "0.001", "0.01", "0.1"]),
        (0, 1.1, ["1", "2", "5", "10"]),
        (-0.1, 0.02, ["0.8", "0.85", "0.9", "0.95", "1"]),
    ],
)
def test_logarithmic_axes_have_plain_ticks(low, high, names):
    ticks = log_ticks(low, high)
    assert [name for _, name in ticks] == names
    for at, name in ticks:
        assert 10**at == pytest.approx(float(name.replace(",", "")), rel=1e-9)


def test_even_ticks_are_round_and_inside():
    for low, high in ((0, 1), (-3.2, 7.9), (0.001, 0.0042), (1234, 5678)):
        ticks = even_ticks(low, high)
        assert 3 <= len(ticks) <= 8
        assert low <= ticks[0]
        assert ticks[-1] <= high
        assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_one_value_alone_is_its_own_tick():
    assert even_ticks(2.5, 2.5) == [2.5]
    assert [name for _, name in log_ticks(np.log10(3.0), np.log10(3.0))] == ["3"]
    figure = polished(bars(["a", "b"], [3.0, 3.0], "block", "loss", "x", log=True))
    assert "3" in words(tree(figure))
    same = polished(lines([0, 1], {"one": [3.0, 3.0]}, "x", "y").update_yaxes(type="log"))
    assert list(same.layout.yaxis.ticktext) == ["3"]


def test_numbers_as_people_write_them():
    told = [plain_number(v) for v in (0, 1, 2.5, 1000, 1e5, 1e6, 1e-3, 1e-4, -0.5)]
    assert told == ["0", "1", "2.5", "1,000", "100,000", "1e6", "0.001", "1e-4", "-0.5"]


def test_a_polished_axis_ends_where_its_data_ends():
    figure = polished(bars(["a", "b"], [1.0, 12.6], "block", "loss", "x", log=True))
    low, high = figure.layout.yaxis.range
    assert high == pytest.approx(np.log10(12.6), abs=0.1)
    assert low < 0, "the shortest bar can be seen"


def test_a_category_stands_where_it_first_came():
    axis = Axis.of(go.Figure().layout.xaxis, [["b", "a"], ["a", "c"]])
    axis.close()
    assert axis.numbers(["b", "a", "c"]).tolist() == [0, 1, 2]
    assert np.isnan(axis.number("z"))


def test_styles_give_both_themes_every_level():
    style = scale_styles()
    for letter, scale in (("q", SEQUENTIAL), ("d", DIVERGING)):
        for level in (0, LEVELS - 1):
            assert f".{letter}{level}{{fill:{colour_of(scale, level / (LEVELS - 1))}}}" in style
        assert len(re.findall(rf"\.{letter}\d+\{{", style)) == 2 * LEVELS
    assert "@media screen and (prefers-color-scheme: dark)" in style, "paper is light"


def test_a_picture_is_as_wide_as_it_says():
    root = tree(bars(["a"], [1.0], "x", "y", "u"))
    assert root.get("viewBox") == f"0 0 {WIDTH} 380"
    for one in root.iter("text"):
        assert 0 <= float(one.get("x")) <= WIDTH


def test_the_library_is_what_the_registry_has():
    place = resources.files("regraft.reporting").joinpath("plotly")
    told = json.loads(place.joinpath("source.json").read_text())
    for name, found in told["sha256"].items():
        assert hashlib.sha256(place.joinpath(name).read_bytes()).hexdigest() == found
    assert plotly_script().splitlines()[1].strip(" *").startswith("plotly.js")
    assert "MIT" in place.joinpath("LICENSE").read_text()


DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
"""Linear RGB as someone without the middle cones sees it (Machado, Oliveira and Fernandes, 2009)."""
TOLD_APART = 12.0
"""CIE76 distance from which on lines are told apart with ease (2.3 is just noticeable)."""


def lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 1e-4))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def seen(colour):
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return lab(np.clip(DEUTERANOPIA @ linear, 0, 1))


def test_the_first_four_colours_are_told_apart_without_middle_cones():
    for i, one in enumerate(PALETTE[:4]):
        for other in PALETTE[:i]:
            assert np.linalg.norm(seen(one) - seen(other)) > TOLD_APART, (one, other)
    assert np.linalg.norm(seen("#b8443c") - seen("#6e6a1e")) < TOLD_APART, "a red and a green that are not"


def test_names_of_near_points_stand_on_different_sides():
    assert label_sides([0, 1, 1.01, 5], [0, 1, 1, 5]) == [
        "top center",
        "top center",
        "bottom center",
        "top center",
    ]
    assert label_sides([NAN, NAN], [1.0, 2.0]) == ["top center"] * 2, "points that are nowhere"
    assert label_sides([], []) == []
    assert len(set(label_sides([1] * 6, [1] * 6))) == 6


def test_more_than_four_lines_differ_in_more_than_colour():
    figure = lines([0, 1], {f"line {n}": [n, n] for n in range(7)}, "x", "y")
    looks = [(trace.line.dash or "solid", trace.marker.symbol or "circle") for trace in figure.data]
    assert len(set(looks[4:])) == len(looks[4:])
    assert not set(looks[4:]) & set(looks[:4])


ODD = (NAN, float("inf"), -float("inf"), 0.0, -0.0, 1.0, 1.0 + 1e-12, -3.0, 1e-300, 1e300, 1e-12, 7.5)


def test_whatever_the_numbers_a_picture_is_drawn():
    generator = np.random.default_rng(0)
    for turn in range(60):
        values = [ODD[i] for i in generator.integers(0, len(ODD), 4)]
        names = ["a", "b", "c", "d"]
        figures = [
            bars(names, values, "x", "y", "u", log=bool(turn % 2)),
            lines([0, 1, 2, 3], {"one": values, "two": values[::-1]}, "x", "y"),
            heatmap([values, values[::-1]], names, ["r", "s"], "u", bool(turn % 2)),
        ]
        if turn % 3:
            figures[1].update_yaxes(type="log")
        for figure in figures:
            root = tree(polished(figure))
            for one in root.iter():
                for key in ("x", "y", "x1", "y2", "width", "height", "cx"):
                    assert np.isfinite(float(one.get(key, 0))), (values, one.attrib)
