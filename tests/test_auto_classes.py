"""How transformers comes to know exported models: at once where its automatic classes are loaded, else as
they are loaded."""

from __future__ import annotations

import sys

from regraft.core import auto_classes
from regraft.core.auto_classes import AUTO, OURS, _Finder, register


def test_the_type_is_registered_at_once_where_automatic_classes_are_there_and_waited_for_where_not(
    monkeypatch,
):
    asked, finders = [], []
    monkeypatch.setattr(auto_classes.importlib, "import_module", asked.append)
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.setitem(sys.modules, AUTO, object())
    register()
    assert (asked, finders) == ([OURS], [])
    monkeypatch.delitem(sys.modules, AUTO)
    register()
    register()
    assert asked == [OURS]
    assert [type(finder) for finder in finders] == [_Finder], "once, however often it is asked for"
