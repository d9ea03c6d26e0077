"""Reading in one process, writing in another: the same tokens, bytes as computed, an error where it ends."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch

import regraft
from families import FAMILIES
from regraft.experiments.observe import disaggregate as module
from regraft.reporting.figures.disaggregate_figures import (
    disaggregate_figures,
    disaggregate_finding,
    disaggregate_panels,
)
from regraft.systems import apart
from regraft.systems.apart import (
    BLOCKS,
    CODES,
    WAYS,
    WHOLE,
    ApartError,
    check_apart,
    formula_bytes,
    paired,
    prefill,
    together,
)
from regraft.systems.apart_run import measured, served
from regraft.systems.serving_queue import Request
from regraft.systems.transport import PeerGoneError, TcpLink

TOKENS, LENGTH = 6, 37


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("apart") / "llama"
    FAMILIES["llama"]().save_pretrained(folder)
    return regraft.load(str(folder))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(5, 90, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def pair(model):
    with paired(model, "tcp", torch.get_num_threads()) as made:
        yield made


def likeliest(model, ids, written):
    """Whether each token is the likeliest one, within rounding, by the model's own forward on the whole text
    without a cache: of two that are as good as equal another order of sums may take either."""
    with torch.no_grad(), model.held():
        logits = model.hf(input_ids=torch.tensor([[*ids, *written]]), use_cache=False).logits[0]
    told = logits[len(ids) - 1 : -1]
    below = told.max(-1).values - told[range(len(written)), written]
    return bool((below <= model.rounding * logits.abs().max()).all())


def test_reading_hands_each_block_on_and_writing_goes_on_from_it(model, ids):
    found = []
    first = prefill(
        model, ids, lambda block, keys, values: found.append((block, keys.clone(), values.clone()))
    )
    assert [block for block, _, _ in found] == list(range(len(model.blocks)))
    with torch.no_grad(), model.held():
        cache = model.hf(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    for block, keys, values in found:
        assert torch.equal(keys, cache.layers[block].keys)
        assert torch.equal(values, cache.layers[block].values)
    one = together(model, ids, TOKENS)
    assert first == one.first
    assert likeliest(model, ids, [first, *one.ids])
    assert not likeliest(model, ids, [first, *one.ids[:-1], (one.ids[-1] + 1) % 90])
    assert len(one.between_s) == TOKENS - 1
    assert one.exposed_s == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_another_process_writes_is_the_same_and_bytes_are_as_computed(model, pair, ids, way):
    alone = together(model, ids, TOKENS)
    moved = pair.answer(pair.ask(ids, TOKENS, way, number=WAYS.index(way)))
    assert moved.first == alone.first
    if way in (WHOLE, BLOCKS):
        assert moved.ids == alone.ids
    assert len(moved.ids) == TOKENS - 1
    assert moved.payload == formula_bytes(model, LENGTH, way)
    assert moved.payload < moved.wire < moved.payload + 1000 * (len(model.blocks) + 1)
    assert moved.began < moved.read <= moved.there < moved.at[0]


def test_codes_are_what_the_other_process_reads(model, pair, ids, monkeypatch):
    """Two bits write otherwise than the model's own numbers: what is read there is what was sent."""
    alone = together(model, ids, 24)
    two = pair.answer(pair.ask(ids, 24, "int2", number=40))
    assert two.ids != alone.ids
    monkeypatch.setattr(apart, "_kept", lambda numbers, way, axis: ([numbers * 0], {}))
    none = pair.answer(pair.ask(ids, 24, BLOCKS, number=41))
    assert none.ids not in (alone.ids, two.ids)


def test_requests_that_come_together_are_answered_each(model, pair, ids):
    requests = [Request(0.0, length, 4) for length in (5, LENGTH, 9)]
    prompts = {request.prompt: ids[: request.prompt] for request in requests}
    answers = served(pair, requests, prompts)
    for moved, request in zip(answers, requests, strict=True):
        assert likeliest(model, prompts[request.prompt], [moved.first, *moved.ids])
    assert answers[0].there <= answers[1].there <= answers[2].there
    told = measured(pair, ids, TOKENS, BLOCKS, 2, together(model, ids, TOKENS))
    assert (told.same, told.payload) == (1.0, formula_bytes(model, LENGTH, BLOCKS))


def test_a_process_that_dies_is_an_error(model, ids):
    with paired(model, "shared", torch.get_num_threads()) as pair:
        assert pair.answer(pair.ask(ids, TOKENS)).ids == together(model, ids, TOKENS).ids
        pair.process.kill()
        with pytest.raises(PeerGoneError):
            _asked_until_it_fails(pair, ids)


def _asked_until_it_fails(pair, ids):
    for number in range(1, 4):
        pair.answer(pair.ask(ids, TOKENS, BLOCKS, number))


def test_a_process_that_cannot_start_says_why(model, monkeypatch):
    monkeypatch.setattr(apart.sys, "executable", "/bin/false")
    with pytest.raises(PeerGoneError, match="did not start"), paired(model):
        pass


def test_a_process_that_does_not_connect_is_given_up(model, monkeypatch):
    monkeypatch.setattr(apart, "START_S", 0.0)
    with pytest.raises(PeerGoneError, match="did not connect"), paired(model):
        pass


class Living:
    """A process as far as waiting for its connection looks at it."""

    def poll(self):
        return None


def test_a_stranger_is_sent_away():
    """A connection without the secret gets nothing, and the right one is still waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stranger, right = (TcpLink(socket.create_connection(listening.getsockname())) for _ in range(2))
        stranger.send("data", told={"secret": "guessed"})
        right.send("data", told={"secret": "s3"})
        name, channel = apart._accepted(listening, Living(), "s3")
    assert name == "data"
    with pytest.raises(PeerGoneError):
        stranger.receive()
    channel.send("how", told={"over": "tcp"})
    assert right.receive().told == {"over": "tcp"}
    for link in (stranger, right, channel):
        link.close()


def test_what_cannot_be_moved_is_refused(model):
    with pytest.raises(ApartError, match="did you mean blocks"):
        check_apart(model, ["block"], ["tcp"])
    with pytest.raises(ApartError, match="did you mean shared"):
        check_apart(model, [WHOLE], ["share"])
    with pytest.raises(ApartError, match="live model"):
        check_apart(regraft.load(FAMILIES["llama"]()), [WHOLE], ["tcp"])
    with pytest.raises(ValueError, match="at most"):
        regraft.disaggregate(model, lengths=[100_000])
    with pytest.raises(ValueError, match="two tokens"):
        regraft.disaggregate(model, lengths=[8], tokens=1)


@pytest.mark.parametrize(
    ("family", "why"), [("gemma2", "window"), ("bert", "sees|see|head"), ("qwen3_5", "recurrent")]
)
def test_models_whose_cache_is_another_are_refused(family, why, tmp_path):
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(tmp_path / family)
    opened = regraft.load(str(tmp_path / family))
    with pytest.raises(ValueError, match=why):
        check_apart(opened, [WHOLE], ["tcp"])


def test_formula_of_whole_blocks_is_two_for_each_head_and_token(model):
    config = model.hf.config
    width = config.hidden_size // config.num_attention_heads
    whole = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 4 * LENGTH
    assert formula_bytes(model, LENGTH, WHOLE) == formula_bytes(model, LENGTH, BLOCKS) == whole
    assert formula_bytes(model, LENGTH, "bf16") == whole // 2
    smaller = [formula_bytes(model, LENGTH, way) for way in (BLOCKS, *CODES)]
    assert smaller == sorted(smaller, reverse=True)


def test_the_command_measures_simulates_and_draws(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SIMULATED", 60)
    monkeypatch.setattr(module, "REAL", 3)
    monkeypatch.setattr(
        module, "text_rows", lambda model, text, seed, length, count: [[5 + i % 80 for i in range(length)]]
    )
    before = torch.get_num_threads()
    data = regraft.disaggregate(
        model, lengths=[8, 24], tokens=3, over=["tcp"], ways=[WHOLE, BLOCKS, "int8"], repeats=1
    )
    assert torch.get_num_threads() == before
    assert (data.bytes == data.formula_bytes).all()
    assert (data.same_tokens.sel(way=[WHOLE, BLOCKS]) == 1).all()
    assert (data.exposed.sel(way=WHOLE) > 0).all(), "what is sent afterwards hides nothing"
    assert (data.hidden.sel(way=WHOLE) == 0).all()
    assert data.goodput.dims == ("mix", "arrangement", "rate")
    assert (data.goodput <= data.rate * 1.5).all()
    assert {"real_first_ms", "simulated_first_ms", "machine", "threads"} <= set(data.attrs)
    assert len(disaggregate_figures(data)) == 3
    assert len(disaggregate_panels(data)) == 3
    told = data.copy(deep=True)
    told.pays_from.values[:] = np.nan
    assert "never answers more" in disaggregate_finding(told)
    told.pays_from.values[1, 2] = 12.5
    assert "from 12.5 a second on" in disaggregate_finding(told)
    told.same_tokens.values[:] = 0.5
    assert "at least 50% of tokens" in disaggregate_finding(told)
