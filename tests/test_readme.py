"""The README's Python is run as it stands there, one piece after the other."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
TRAINING = 'regraft.fit_embedding(model, "byte-embedding")'
"""The one line that takes minutes; its job has tests of its own."""


def test_the_pieces_of_python_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    pieces = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(pieces) == 2
    whole = "\n".join(pieces)
    assert whole.count(TRAINING) == 1
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(compile(whole.replace(TRAINING, "None"), "README", "exec"), made)
    assert made["result"].values["logit_difference"].shape == (12 * made["corrupt"].positions, 1)
    assert made["night"].shape == (made["model"].width,)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert (tmp_path / "acts" / "activations.zarr").is_dir()
