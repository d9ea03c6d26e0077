"""The language-model codec: the size that the model's own probabilities say, exactly back, and only where the
same numbers are computed."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import regraft
from codec_cases import noise, text
from naive_codecs import coded_symbols
from regraft.codecs import lm, lm_machine
from regraft.codecs.arithmetic import decode_start, decode_step, encode_end, encode_step
from regraft.codecs.frame import DamagedFileError, header, read_header
from regraft.codecs.lm_machine import OtherMachineError, check_arithmetic
from regraft.codecs.lm_steps import Steps
from regraft.model.load import load

CODEC = regraft.codec("lm")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tokenizer = load("specimen:qwen3").tokenizer
    return load(transformers.Qwen3ForCausalLM(config).eval(), tokenizer)


@pytest.fixture(scope="module")
def specimen():
    return load("specimen:qwen3")


def symbols(rows, may, steps):
    state, write = np.array([0, 2**64 - 1], np.uint64), 0
    out = np.empty(4 * steps.size + 64, np.uint8)
    for weights, step in zip(rows, steps, strict=True):
        write = encode_step(weights, may, step, state, out, write)
    return out[: encode_end(state, out, write)].tobytes()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5), st.integers(0, 40), st.floats(0.1, 30)
)
def test_arithmetic_coding_is_what_whole_numbers_of_any_size_make(seed, size, streams, steps, sharp):
    """Also under shares so small that the range grows narrow across a border between bytes."""
    draw = np.random.default_rng(seed)
    logits = sharp * draw.standard_normal((steps, streams, size))
    rows = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    may = draw.random(size) < 0.8
    may[0] = True
    meant = draw.choice(np.flatnonzero(may), (steps, streams))
    meant[draw.random((steps, streams)) < 0.2] = -1
    coded = symbols(rows, may, meant)
    assert coded == coded_symbols(rows.tolist(), may.tolist(), meant.tolist())
    state, data = np.zeros(3, np.uint64), np.frombuffer(coded, np.uint8)
    read = decode_start(data, state)
    for weights, step in zip(rows, meant, strict=True):
        found = np.where(step < 0, -1, 0)
        read = decode_step(weights, may, found, state, data, read)
        assert (found == step).all()


def test_the_code_is_as_long_as_the_probabilities_say():
    draw = np.random.default_rng(0)
    shares = draw.dirichlet(np.full(300, 0.05))
    meant = draw.choice(300, (4000, 1), p=shares)
    bits = -np.log2(shares[meant]).sum()
    coded = symbols(np.broadcast_to(shares, (4000, 1, 300)), np.ones(300, bool), meant)
    assert bits <= 8 * len(coded) < bits * 1.001 + 64


@pytest.mark.parametrize("kind", ["text", "noise", "no utf-8", "empty", "one byte", "several texts"])
def test_any_bytes_come_back(model, kind, monkeypatch):
    monkeypatch.setattr(lm, "TEXT", 200)
    data = {
        "text": text(400), "noise": noise(300),
        "no utf-8": b"abc\xff\xfe\x80 d" * 20 + "größe 漢".encode()[:-1],
        "empty": b"", "one byte": b"\n", "several texts": text(1500),
    }[kind]  # fmt: skip
    packed = CODEC.compress(data, model=model, block_size=1024)
    assert CODEC.decompress(packed, model=model) == data


def test_encoding_runs_the_decoders_own_steps(model, monkeypatch):
    """Same batches, same tokens, same probabilities to the bit: heard where both ask for them."""
    monkeypatch.setattr(lm, "TEXT", 300)
    heard: list[list[tuple]] = [[], []]
    own = Steps.next
    side = 0

    def listening(self, tokens_B):
        found = own(self, tokens_B)
        heard[side].append((tokens_B.tolist(), found.numpy().tobytes()))
        return found

    monkeypatch.setattr(Steps, "next", listening)
    packed = CODEC.compress(text(1000), model=model)
    side = 1
    assert CODEC.decompress(packed, model=model) == text(1000)
    assert heard[0] == heard[1]
    assert {len(tokens) for tokens, _ in heard[0][9:]} == {4}


def test_the_file_is_as_long_as_the_models_own_bits(specimen):
    """Against one plain forward of each window, with the same tokens in front: not only near, within one in a
    hundred."""
    data = text(450)
    coder = lm.Coder(specimen, 64, 1)
    stored = coder.pack_block(data)
    ids = lm.tokens_of(coder.ids, data)
    bits = 0.0
    context = [0]
    held = 0
    with torch.no_grad():
        for number in ids:
            if held == 64:
                context, held = context[-32:], 0
            logits = specimen.hf(input_ids=torch.tensor([context])).logits[0, -1].double()
            logits[~torch.from_numpy(coder.may_V)] = -math.inf
            bits -= float(torch.log_softmax(logits, -1)[number]) / math.log(2)
            held = len(context) if held == 0 else held + 1
            context.append(number)
    code = 8 * (len(stored) - 4 - 4)
    assert bits < code < 1.01 * bits + 64
    assert 8 * len(stored) / len(data) < 3
    assert coder.unpack_block(stored, len(data)) == data


def test_a_window_that_is_full_goes_on_with_its_later_half(model):
    """Against plain forwards of the tokens that a step may see."""
    steps = Steps(model, 2, 8)
    tokens = torch.randint(1, 4000, (30, 2), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        steps.first()
        seen = [torch.zeros(2, dtype=torch.long)]
        for row in tokens:
            found = steps.next(row)
            seen = [*seen, row] if len(seen) < 8 else [*seen[-3:], row]
            logits = model.hf(input_ids=torch.stack(seen, 1)).logits[:, -1]
            torch.testing.assert_close(found, torch.softmax(logits, -1), rtol=1e-4, atol=1e-7)


def test_texts_are_cut_at_spaces_and_whole_characters():
    data = ("wörter, " * 3000).encode()
    parts = lm.cut(data)
    assert b"".join(parts) == data
    assert all(part[:1] == b" " for part in parts[1:])
    solid = ("ö" * 6000).encode()
    assert b"".join(lm.cut(solid)) == solid
    assert all(part.decode() for part in lm.cut(solid))
    assert lm.cut(b"") == []
    assert len(b"".join(lm.cut(bytes([0x80]) * 9000))) == 9000


def test_another_process_with_other_threads_unpacks_it(specimen, tmp_path, request):
    """The header says how many threads computed; they are taken, whatever the process has."""
    data = text(60)
    before = torch.get_num_threads()
    packed = CODEC.compress(data, model=specimen, workers=2)
    assert torch.get_num_threads() == before
    (tmp_path / "x").write_bytes(packed)
    code = (
        "import sys, torch, regraft; torch.set_num_threads(1); m = regraft.load('specimen:qwen3');"
        " data = open(sys.argv[1], 'rb').read();"
        " sys.stdout.buffer.write(regraft.codec('lm').decompress(data, model=m));"
        " assert torch.get_num_threads() == 1"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, check=False)
    if request.config.getoption("--other-library"):  # planted here alone: the other differs
        assert done.returncode
        assert b"differ in their last bits" in done.stderr
    else:
        assert done.stdout == data


def changed_header(packed, change):
    source = io.BytesIO(packed)
    number, parameters = read_header(source)
    return header(number, {**parameters, **change(parameters)}) + source.read()


def computed(**other):
    """The arithmetic of a header changed."""
    return lambda p: {"arithmetic": {**p["arithmetic"], **other}}


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (lambda p: {"model": "0" * 64}, OtherMachineError, "packed with another model"),
        (lambda p: {"probe": "0" * 32}, OtherMachineError, "differ in their last bits"),
        (
            lambda p: {"arithmetic": {**p["arithmetic"], "torch": "1.0"}},
            OtherMachineError,
            "torch '1.0', here",
        ),
        (
            lambda p: {"arithmetic": {**p["arithmetic"], "processor": "Z80"}},
            OtherMachineError,
            "processor 'Z80'",
        ),
        (
            lambda p: {"arithmetic": {**p["arithmetic"], "threads": 10**9}},
            DamagedFileError,
            "how many threads",
        ),
        (lambda p: {"arithmetic": 5}, DamagedFileError, "how many threads"),
        (lambda p: {"window": "x"}, DamagedFileError, "no window"),
        (lambda p: {"window": 10**9}, ValueError, "reads from 4 to 64"),
    ],
)
def test_another_machine_or_model_is_refused_before_anything_is_written(model, change, kind, said):
    packed = changed_header(CODEC.compress(text(60), model=model), change)
    out = io.BytesIO()
    with pytest.raises(kind, match=said):
        CODEC.unpack(io.BytesIO(packed), out, model=model)
    assert not out.getvalue()


def test_the_specimen_is_the_default_and_no_other_model_is_opened_because_a_file_says_so(monkeypatch):
    packed = CODEC.compress(b"It is dark.")
    assert CODEC.decompress(packed) == b"It is dark."
    for name in ("owner/name", "", "specimen:none", 5):
        with pytest.raises(ValueError, match="name that with --model"):
            CODEC.decompress(changed_header(packed, lambda _, name=name: {"name": name}))


def test_other_weights_are_refused(model):
    packed = CODEC.compress(text(60), model=model)
    with torch.no_grad():
        model.hf.lm_head.weight[0, 0] += 1
    with pytest.raises(OtherMachineError, match="another model"):
        CODEC.decompress(packed, model=model)
    with torch.no_grad():
        model.hf.lm_head.weight[0, 0] -= 1


def test_a_probe_tells_numbers_that_differ_in_one_bit(model, monkeypatch):
    before = lm.Coder(model, 32, 1).probe()
    assert before == lm.Coder(model, 32, 1).probe()
    own = Steps.next

    def nudged(self, tokens_B):
        found = own(self, tokens_B)
        found[0, 5] = torch.nextafter(found[0, 5], torch.tensor(2.0))
        return found

    monkeypatch.setattr(Steps, "next", nudged)
    assert lm.Coder(model, 32, 1).probe() != before


def test_settings_of_libraries_are_part_of_the_arithmetic(monkeypatch):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    told = lm_machine.arithmetic(2, torch.float32)
    assert check_arithmetic(json.loads(json.dumps(told)), torch.float32) == 2
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    with pytest.raises(OtherMachineError, match="settings"):
        check_arithmetic(told, torch.float32)


def test_models_that_cannot_code_are_refused(model):
    with pytest.raises(ValueError, match="does not predict the next token"):
        CODEC.compress(b"abc", model=load("specimen:t5"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        CODEC.compress(b"abc", model=load(model.hf))
    with pytest.raises(ValueError, match="reads from 4 to 64"):
        CODEC.compress(b"abc", model=model, window=65)


def test_scores_that_are_no_numbers_are_refused(model, monkeypatch):
    monkeypatch.setattr(torch, "softmax", lambda scores, dim: scores * float("nan"))
    with pytest.raises(ValueError, match="are not finite"):
        CODEC.compress(b"abc", model=model)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (b"", "ends inside its lengths"),
        (b"\xff\xff\xff\xff", "has another number"),
        (np.array([2, 50, 50], "<u4").tobytes(), "has another number"),
        (np.array([1, 101], "<u4").tobytes(), "more tokens than bytes"),
        (np.array([1, 50], "<u4").tobytes()[:6], "ends inside its lengths"),
    ],
)
def test_lengths_that_lie_are_refused(model, stored, said):
    with pytest.raises(DamagedFileError, match=said):
        lm.Coder(model, 32, 1).unpack_block(stored, 100)


def test_one_text_of_a_block_has_no_more_tokens_than_it_can_have_bytes(model):
    """A block of many short texts and one that would take as many steps as all bytes."""
    raw = 100 * lm.TEXT
    honest = [len(part) for part in lm.cut(b"x" * raw)]
    assert max(honest) <= raw // 100 + 1 + lm.SEARCHED
    stored = np.array([100, raw - 99, *[1] * 99], "<u4").tobytes()
    with pytest.raises(DamagedFileError, match="more tokens than bytes"):
        lm.Coder(model, 32, 1).unpack_block(stored, raw)


def test_a_block_has_no_more_texts_than_ours(model):
    texts = lm.MOST_TEXTS + 1
    stored = np.array([texts, *[0] * texts], "<u4").tobytes()
    with pytest.raises(DamagedFileError, match="another number"):
        lm.Coder(model, 32, 1).unpack_block(stored, texts * lm.TEXT)
