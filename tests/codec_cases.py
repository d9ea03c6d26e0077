"""Bytes that codecs are tried on: what is short, repeated, random, text, packed already, around borders."""

from __future__ import annotations

import random
import zlib

from hypothesis import strategies as st

from regraft.specimens import almanac


def text(length):
    found = "\n".join(almanac.corpus(max(length, 2000), 5)).encode()
    return (found * (length // len(found) + 1))[:length]


def noise(length, seed=3):
    return random.Random(seed).randbytes(length)


def cases():
    few = bytes(random.Random(1).choices(b"ab", k=3000))
    yield from {
        "nothing": b"",
        "one byte": b"x",
        "all bytes": bytes(range(256)),
        "all bytes twice": bytes(range(256)) * 2,
        "zeros": bytes(9000),
        "noise": noise(5000),
        "two letters": few,
        "text": text(6000),
        "packed already": zlib.compress(text(9000), 9),
        "a run in text": text(700) + b"a" * 1500 + text(700),
        "far": text(1500) + noise(70_000) + text(1500),
    }.items()


NAMED = dict(cases())
ANY = st.one_of(
    st.binary(max_size=600),
    st.lists(st.sampled_from([b"the ", b"a", b"\0", b"abcabc", b"\xff\xfe", b"zz" * 40]), max_size=60).map(
        b"".join
    ),
)
"""Short bytes of any kind, and such as repeat themselves."""
