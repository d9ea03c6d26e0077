"""The known name that a mistyped one is most like."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """What to add to a sentence that refuses a word: the name that was meant, or all that there are."""
    found = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {found[0]}?" if found else f" (there are {', '.join(known)})" if known else ""
