"""Damaged and hostile files: whatever is changed, cut or repaired, they are refused or give back what was
packed; none hangs, crashes, or takes memory that it does not need."""

from __future__ import annotations

import hashlib
import io
import random
import tracemalloc

import numpy as np
import pytest
import torch
import transformers

import regraft
from codec_cases import noise, text
from regraft.codecs import archive_format, font, frame, image
from regraft.codecs.archive import add
from regraft.codecs.archive_reading import Choice, extract
from regraft.codecs.font_grid import CellGrid
from regraft.codecs.frame import DamagedFileError, StoredBlock
from regraft.codecs.image_network import ImagePlan, NetworkSize
from regraft.model.load import load

REFUSED = (DamagedFileError, ValueError)
LIMIT = 1 << 20
"""What a file may unpack to, bytes."""
ALLOWED = 24 << 20
"""What unpacking may take beside that."""
QUICK, SLOW = 2000, 100_000


def plain(name):
    """What is packed, as a few blocks of some kinds."""
    return {"text": text(1500) + noise(200), "runs": bytes(700) + b"ab" * 300 + bytes(range(256))}[name]


def byte_files():
    for name in ("bpez", "ulz"):
        for kind in ("text", "runs"):
            codec = regraft.codec(name)
            options = {"level": 9} if name == "ulz" and kind == "runs" else {}
            yield name, codec.compress(plain(kind), block_size=1024, **options), plain(kind)
    cells = np.random.default_rng(0).random((12, 9, 11)) < 0.2
    steps = [
        tuple((at, at + size) for at in range(0, count * size, size)) for size, count in ((11, 4), (9, 3))
    ]
    whole = font.Font(cells, CellGrid(steps[0], steps[1], "told", 44, 27))
    out = io.BytesIO()
    font.pack_font(whole, out)
    yield "font", out.getvalue(), whole.bits


def unpacked(name, content):
    if name == "font":
        source = io.BytesIO(content)
        number, parameters = frame.read_header(source)
        if number != font.NUMBER:
            raise ValueError("another codec")
        return font.unpack_font(parameters, source, LIMIT).bits
    return regraft.codec(name).decompress(content, LIMIT)


def mutated(draw, content):
    """A file with some bytes changed, cut out, put in or doubled."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 8, 60))
        kind = draw.randrange(5)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length]
        else:
            del found[at:]
    return bytes(found)


def parts(content):
    source = io.BytesIO(content)
    number, parameters = frame.read_header(source)
    return number, parameters, list(frame.read_blocks(source, frame.LARGEST_BLOCK))


def repaired(draw, content):
    """A file whose stored bytes, lengths or numbers are changed, and all of whose checksums fit but the one
    of what comes out."""
    number, parameters, blocks = parts(content)
    out = frame.header(number, told(draw, parameters) if draw.random() < 0.3 else parameters)
    for one in blocks[:-1]:
        kind, raw, stored = one.kind, one.raw, one.stored
        if draw.random() < 0.7:
            stored = mutated(draw, stored)
        if draw.random() < 0.2:
            raw = draw.choice((raw + 1, raw - 1, 0, 2 * raw, LIMIT - 1, frame.LARGEST_BLOCK)) & 0xFFFFFFFF
        if draw.random() < 0.05:
            kind = 3 - kind
        out += frame.block(kind, raw, stored)
    return out + frame.end(blocks[-1].raw, blocks[-1].digest)


def told(draw, value):
    """Parameters with one number or text changed."""
    if isinstance(value, dict) and value:
        name = draw.choice(sorted(value))
        return {**value, name: told(draw, value[name])}
    if isinstance(value, list) and value:
        at = draw.randrange(len(value))
        return [*value[:at], told(draw, value[at]), *value[at + draw.randrange(2) + (value == []) :]]
    return draw.choice((0, -1, 1, 2, 7, 2**31, 2**63, 1.5, "", "x", None, True, [], {}))


def tried(name, changed, meant):
    """Whether a changed file is refused; what it gives else is what was packed."""
    try:
        found = unpacked(name, changed)
    except REFUSED:
        return True
    assert found == meant
    return False


def hunt(count):
    """`count` files of every codec: changed ones, changed and repaired ones, and noise."""
    for seed, (name, content, meant) in enumerate(byte_files()):
        draw = random.Random(seed)
        refused = 0
        share = count if name == "font" else count // 2
        for number in range(share):
            kind = number % 4
            if kind == 0:
                changed = mutated(draw, content)
            elif kind == 3:
                changed = content[: draw.randrange(40)] + draw.randbytes(draw.randrange(80))
            else:
                changed = repaired(draw, content)
            refused += tried(name, changed, meant)
        # the others were changed where nothing is kept: what a font's header says of how its grid was found
        assert refused > 0.8 * share, (name, refused)


def test_changed_files_are_refused_or_give_back_what_was_packed():
    hunt(QUICK)


@pytest.mark.slow
def test_very_many_changed_files_are_refused_or_give_back_what_was_packed():
    hunt(SLOW)


def test_no_changed_file_takes_more_memory_than_it_may():
    for seed, (name, content, meant) in enumerate(byte_files()):
        draw = random.Random(seed)
        tracemalloc.start()
        for _ in range(150):
            tried(name, repaired(draw, content), meant)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < ALLOWED, name


def test_the_hunt_finds_a_decoder_that_trusts_its_lengths(monkeypatch):
    """A planted fault: a decoder that gives what it has where the length is another."""
    from regraft.codecs import ulz

    def trusting(stored, raw):
        found = b"".join(stored[at : at + 1] for at in range(len(stored)))
        return (found * raw)[:raw]

    monkeypatch.setattr(ulz, "unpack_block", trusting)
    monkeypatch.setattr(frame.Digest, "check", lambda *_: None)
    name, content, meant = next(file for file in byte_files() if file[0] == "ulz")
    with pytest.raises(AssertionError):
        tried(name, content, meant)


def hunt_images(count):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3)).astype(np.uint8)
    made = image.fit_image(pixels, NetworkSize(2, 6, 2), ImagePlan(steps=2, places=64))
    out = io.BytesIO()
    image.pack_image(made, out)
    draw, refused = random.Random(1), 0
    for _ in range(count):
        try:
            found = image.read_image(io.BytesIO(repaired(draw, out.getvalue())), LIMIT)
            assert found.pixels.nbytes <= LIMIT
            assert found.weights == made.weights
        except REFUSED:
            refused += 1
    assert refused > count // 2


def hunt_models(count):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=4096, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, bos_token_id=0,
    )  # fmt: skip
    model = load(transformers.Qwen3ForCausalLM(config).eval(), load("specimen:qwen3").tokenizer)
    codec, data = regraft.codec("lm"), text(90)
    packed = codec.compress(data, model=model)
    draw, refused = random.Random(2), 0
    for _ in range(count):
        try:
            assert codec.decompress(repaired(draw, packed), LIMIT, model=model) == data
        except REFUSED:
            refused += 1
    assert refused > count // 2


def hunt_archives(count, folder):
    (folder / "tree").mkdir()
    (folder / "tree" / "text").write_bytes(text(5000))
    (folder / "tree" / "link").symlink_to("text")
    add(folder / "a", [folder / "tree"], level=1)
    whole = (folder / "a").read_bytes()
    source = io.BytesIO(whole)
    number, parameters = frame.read_header(source)
    blocks: list[StoredBlock] = []
    while kind := source.read(1):
        blocks.append(frame.read_block(source, kind[0], "", (3, 4, 5), frame.LARGEST_BLOCK))
    draw, refused = random.Random(3), 0
    for at in range(count):
        body = b""
        for one in blocks[:-1]:
            stored, raw = one.stored, one.raw
            if one.kind == archive_format.INDEX and draw.random() < 0.6:
                import zlib

                index = archive_format.json_text(
                    told(draw, archive_format.parsed(archive_format.opened_index(stored, raw)))
                ).encode()
                stored, raw = zlib.compress(index), len(index)
            elif draw.random() < 0.5:
                stored = mutated(draw, stored)
            body += frame.block(one.kind, raw, stored)
        changed = frame.header(number, parameters) + body
        changed += archive_format.seal(len(body), hashlib.sha256(body).digest())
        (folder / "b").write_bytes(changed)
        out = folder / "out" / str(at)
        try:
            extract(folder / "b", out, Choice(), LIMIT)
            file = out / "tree" / "text"
            assert not file.exists() or file.read_bytes() in (text(5000), b"")
        except REFUSED:
            refused += 1
            assert not out.exists()
    assert {path.name for path in folder.iterdir()} <= {"tree", "a", "b", "out"}
    assert refused > count // 3


def test_pictures_models_and_archives_with_repaired_checksums_are_refused(tmp_path):
    hunt_images(150)
    hunt_models(100)
    hunt_archives(40, tmp_path)


@pytest.mark.slow
def test_very_many_with_repaired_checksums_are_refused(tmp_path):
    hunt_images(2000)
    hunt_models(2000)
    hunt_archives(2000, tmp_path)
