"""The README's Python is run as it stands there, one piece after the other, and its numbers are few."""

from __future__ import annotations

import re
from pathlib import Path

from families import FAMILIES

README = Path(__file__).parent.parent / "README.md"
LONGEST = 100
"""Lines that a newcomer reads in five minutes."""


def test_the_pieces_of_python_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    pieces = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(pieces) == 1
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(compile(pieces[0], "README", "exec"), made)
    assert made["result"].logit_difference.shape == (12, 6)
    assert made["night"].shape == (made["model"].width,)
    assert len(capsys.readouterr().out.splitlines()) >= 1


def test_the_readme_is_what_a_newcomer_reads_in_five_minutes():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert f"{len(FAMILIES)} tested families" in text
