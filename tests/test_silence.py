"""One thread is kept quiet while transformers loads; what another one logs and prints meanwhile comes
through."""

from __future__ import annotations

import logging
import sys
import threading

from regraft.core.silence import silent


def speak(words):
    print(words)
    print(words, file=sys.stderr)
    logging.getLogger("transformers").warning(words)
    logging.getLogger("somebody").warning(words)


def test_a_quiet_thread_says_nothing_and_others_are_heard(capsys, caplog):
    before = sys.stdout, sys.stderr, logging.root.manager.disable
    inside, done = threading.Event(), threading.Event()

    def quiet():
        with silent(), silent():
            speak("secret")
            inside.set()
            done.wait()
            speak("secret")

    thread = threading.Thread(target=quiet)
    thread.start()
    inside.wait()
    speak("heard")
    with silent():
        speak("secret")
    speak("heard")
    done.set()
    thread.join()
    speak("after")
    assert (sys.stdout, sys.stderr, logging.root.manager.disable) == before
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "secret" not in text
        assert text.count("heard") >= 2
        assert "after" in text
    assert [record.getMessage() for record in caplog.records if record.name == "somebody"] == [
        "heard",
        "heard",
        "after",
    ]


def test_what_was_made_meanwhile_still_speaks(capsys):
    """A library that is imported in a quiet thread may keep the stream that it found."""
    with silent():
        kept = sys.stderr
        kept.write("secret")
    kept.write("after")
    assert capsys.readouterr().err == "after"


def test_it_ends_with_an_error(capsys):
    try:
        with silent():
            raise KeyError("x")
    except KeyError:
        pass
    print("after")
    assert capsys.readouterr().out == "after\n"
