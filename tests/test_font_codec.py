"""Font sheets: grids that are found, bits that come back, sources that compile."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from regraft.codecs import font
from regraft.codecs.font_grid import read_ink
from regraft.codecs.font_sources import compiler_of, identifier, proved, source_of
from regraft.codecs.frame import DamagedFileError, header, read_header


def sheet(columns=16, rows=6, cell=(8, 16), margin=(0, 0), gap=0, dark=False):
    """Letters of Pillow's own bitmap font in a grid."""
    width = 2 * margin[0] + columns * cell[0] + (columns - 1) * gap
    height = 2 * margin[1] + rows * cell[1] + (rows - 1) * gap
    picture = Image.new("L", (width, height), 255 if dark else 0)
    draw = ImageDraw.Draw(picture)
    letters = ImageFont.load_default_imagefont()
    for n in range(columns * rows):
        at = (margin[0] + n % columns * (cell[0] + gap) + 1, margin[1] + n // columns * (cell[1] + gap) + 1)
        draw.text(at, chr(33 + n), font=letters, fill=0 if dark else 255)
    return picture


@pytest.fixture
def saved(tmp_path):
    def save(picture, name="f.png"):
        picture.save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("cell", [(8, 16), (10, 14)])
def test_a_grid_of_equal_cells_is_found(saved, cell, dark):
    found = font.read_font(saved(sheet(cell=cell, dark=dark)))
    assert (found.grid.cell, found.grid.count, found.grid.found) == (cell, 96, "equal cells")
    assert found.sheet.sum() == (np.asarray(sheet(cell=cell)) > 127).sum()


def test_a_margin_and_gaps_are_found(saved):
    found = font.read_font(saved(sheet(columns=13, rows=7, margin=(5, 3), gap=3))).grid
    assert (len(found.columns), len(found.rows), found.cell) == (13, 7, (11, 19))


def test_cells_of_different_sizes_are_told_apart_by_their_gaps(saved):
    picture = Image.new("L", (61, 23), 0)
    draw = ImageDraw.Draw(picture)
    columns, rows = [(2, 9), (14, 17), (22, 40), (47, 58)], [(1, 8), (12, 21)]
    for left, right in columns:
        for top, bottom in rows:
            draw.rectangle((left, top, right, bottom), fill=255)
    found = font.read_font(saved(picture))
    assert found.grid.columns == tuple((a, b + 1) for a, b in columns)
    assert found.grid.rows == tuple((a, b + 1) for a, b in rows)
    assert found.grid.cell == (19, 10)
    assert (found.sheet == (np.asarray(picture) > 127)).all()


def test_a_grid_that_is_told_is_taken(saved):
    place = saved(sheet())
    assert font.read_font(place, grid=(8, 3)).grid.cell == (16, 32)
    assert font.read_font(place, cell=(4, 8)).grid.count == 32 * 12
    for options, said in (
        ({"grid": (7, 3)}, "--grid 7x3 does not divide a sheet of 128 × 96"),
        ({"cell": (200, 8)}, "--char-size 200x8 does not fit"),
        ({"solid": True}, "tell --grid or --char-size with --solid"),
        ({"threshold": 300}, "--threshold 300"),
        ({"grid": (0, 3)}, "--grid 0x3"),
        ({"grid": (8, 3), "cell": (8, 8)}, "both say where the cells are"),
        ({"cell": (50, 40)}, "there is ink outside of 2 × 2 cells"),
    ):
        with pytest.raises(ValueError, match=said):
            font.read_font(place, **options)


def test_what_has_no_grid_is_refused(saved):
    with pytest.raises(ValueError, match="no grid can be found"):
        font.read_font(saved(Image.fromarray(np.tri(40, dtype=np.uint8) * 255)))
    with pytest.raises(ValueError, match="all of one kind"):
        font.read_font(saved(Image.new("L", (20, 20), 0)))
    (place := saved(sheet()).with_name("text.png")).write_text("no picture")
    with pytest.raises(ValueError, match="is no picture that Pillow reads"):
        font.read_font(place)


def test_a_threshold_decides_what_is_ink(saved):
    gray = np.full((8, 16), 200, np.uint8)
    gray[2:5, 1:6], gray[2:5, 9:14] = 20, 120
    place = saved(Image.fromarray(gray))
    assert read_ink(place, 100).sum() == 15
    assert read_ink(place, 150).sum() == 30
    assert (read_ink(place, 150, invert=True) == ~read_ink(place, 150)).all()


@pytest.mark.parametrize("cell", [(8, 16), (10, 14), (12, 12)])
def test_a_packed_sheet_gives_its_bitmap_back(saved, cell):
    whole = font.read_font(saved(sheet(cell=cell, margin=(3, 2), gap=2)))
    out = io.BytesIO()
    raw, stored = font.pack_font(whole, out)
    assert raw == len(whole.bits) == whole.grid.count * whole.grid.cell[1] * -(-whole.grid.cell[0] // 8)
    assert stored == len(out.getvalue())
    source = io.BytesIO(out.getvalue())
    back = font.unpack_font(read_header(source)[1], source)
    assert back.grid == whole.grid
    assert (back.cells == whole.cells).all()
    assert (np.asarray(font.picture(back)) == ~whole.sheet).all()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("language", ["c", "rust"])
def test_sources_compile_and_decode_to_the_same_bitmap(saved, language, raw):
    if not compiler_of(language):
        pytest.skip(f"no compiler of {language} is installed")
    whole = font.read_font(saved(sheet(cell=(10, 14))))
    source = source_of(whole, language, "8x8 font", raw)
    assert proved(source, language, "8x8 font") == whole.bits
    changed = re.sub(r", ([1-9]\d*),", lambda found: f", {int(found[1]) ^ 1 or 3},", source, count=1)
    assert changed != source
    assert proved(changed, language, "8x8 font") != whole.bits


def test_a_missing_compiler_and_a_broken_source_are_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ValueError, match="no compiler of rust is installed"):
        proved("", "rust", "x")
    monkeypatch.undo()
    if compiler_of("c"):
        with pytest.raises(RuntimeError, match="does not compile"):
            proved("int int;", "c", "x")


def test_names_become_identifiers():
    assert [identifier(name) for name in ("8x8", "A-b c", "é", "_x")] == ["font_8x8", "a_b_c", "font", "x"]


@pytest.mark.parametrize(
    "change",
    [
        {"sheet": [2**40, 5]}, {"columns": [[0, 8], [4, 12]]}, {"columns": []}, {"rows": [[0, 200]]},
        {"columns": [[5, 5]]}, {"sheet": None}, {"columns": [[0, 8.5]]}, {"rows": "no"},
    ],
)  # fmt: skip
def test_a_header_that_tells_an_impossible_grid_is_refused(saved, change):
    whole = font.read_font(saved(sheet()))
    out = io.BytesIO()
    font.pack_font(whole, out)
    source = io.BytesIO(out.getvalue())
    number, parameters = read_header(source)
    rest = io.BytesIO(header(number, {**parameters, **change}) + source.read())
    with pytest.raises(DamagedFileError, match="its header tells"):
        font.unpack_font(read_header(rest)[1], rest)


def test_a_preview_shows_every_pixel(saved):
    whole = font.read_font(saved(sheet(columns=2, rows=2)), grid=(2, 2))
    lines = list(font.preview(whole, 20))
    marks = {" ": 0, "▀": 1, "▄": 1, "█": 2}
    assert sum(marks[mark] for line in lines for mark in line) == whole.cells.sum()
    assert font.statistics(whole)["cells"] == 4


def test_no_more_cells_than_a_file_keeps(saved, monkeypatch):
    place = saved(sheet())
    monkeypatch.setattr("regraft.codecs.font_grid.MOST_CELLS", 95)
    with pytest.raises(ValueError, match="96 cells are more than the 95"):
        font.read_font(place, grid=(16, 6))
