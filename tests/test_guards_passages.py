"""How many passages of a running text are read, and which."""

from __future__ import annotations

import pytest

from regraft.data.own_texts import given_prompts
from small import opened


@pytest.mark.parametrize(
    ("count", "kept"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_passages_are_taken_evenly_and_all_where_as_many_are_asked_for(count, kept, tmp_path):
    paragraphs = [f"{5 + i} 6 7 8" for i in range(4)]
    (tmp_path / "text").write_text("\n\n".join(paragraphs), encoding="utf-8")
    model = opened("llama")
    assert given_prompts(model, None, "", str(tmp_path / "text"), count) == [paragraphs[i] for i in kept]
