"""What a studio shows is what regraft measures, what its Python lines do, and what a page may ask for."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket

import pytest
import torch

import regraft
from regraft.core.registry import experiments
from regraft.core.tolerance import gap
from regraft.studio.bench import Bench
from regraft.studio.code import code
from regraft.studio.forms import command_line, options_of, settings_of
from regraft.studio.gate import Gate
from regraft.studio.limits import Limits, RefusedError
from regraft.studio.maps import head_map, neuron_map
from regraft.studio.places import Places
from regraft.studio.port import listening
from regraft.studio.readings import Asked, live_streams, read, recorded, variant_of, walked_streams
from regraft.studio.touches import Touch, second_position

PROMPT, SECOND = "The capital of France is", "The big capital of Italy is"
LIMITS = Limits()
TOUCHES = {
    "a head": Touch("6.head.2", "zero"),
    "a neuron": Touch("3.neuron.7", "scale", 2, 300.0),
    "a cell": Touch("5.resid_post", "second", 4),
    "a direction": Touch("4.resid_post", "token", 3, 2.0, " Paris"),
    "a difference": Touch("2.mlp_out", "difference", 4, 1.5),
}


@pytest.fixture(scope="module")
def model():
    return regraft.load()


@pytest.fixture(scope="module")
def recordings(model):
    return recorded(model, PROMPT, LIMITS), recorded(model, SECOND, LIMITS)


def effects(reading):
    return {one.name: (one.clean, one.changed) for one in reading.effects}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_what_is_shown_of_a_touch_is_what_the_live_model_says_under_it(model, recordings, touch):
    asked = Asked(PROMPT, SECOND, touches=(touch,))
    reading = read(model, asked, LIMITS)
    variant = variant_of(asked, *recordings)
    with model.changed(variant):
        logits_V = model.run(**recordings[0].inputs).logits[0, -1].float()
    shares = logits_V.softmax(-1)
    assert reading.next_changed[0][0] == model.token_text(int(shares.argmax()))
    assert gap(torch.tensor(reading.next_changed[0][1]), shares.max()) <= model.rounding
    target = model.single_token(" Paris")
    assert gap(torch.tensor(effects(reading)["logit of the answer"][1]), logits_V[target]) <= model.rounding
    assert reading.lens_changed is not None
    assert reading.lens_changed.words[-1][-1] == reading.next_changed[0][0]
    assert effects(reading)["KL from the clean next token"][1] > 0


@pytest.mark.parametrize("order", [(0, 1, 3, 2, *range(4, 12)), (*range(12), 11), tuple(range(11)), (5, 5)])
def test_the_lens_along_a_route_is_that_of_the_live_model(model, recordings, order):
    clean = recordings[0]
    variant = variant_of(Asked(PROMPT, order=order), clean, None)
    walked, live = walked_streams(clean, order), live_streams(clean, variant, order)
    assert len(walked) == len(live) == len(order) + 1
    for one, other in zip(walked, live, strict=True):
        assert gap(one, other) <= model.rounding


def test_a_touch_in_front_of_a_block_that_comes_twice_is_read_both_times(model, recordings):
    asked = Asked(PROMPT, touches=(Touch("5.mlp_out", "zero"),), order=(*range(6), *range(5, 12)))
    with_touch = live_streams(recordings[0], variant_of(asked, *recordings), asked.order)
    without = walked_streams(recordings[0], asked.order)
    apart = [gap(one, other) > model.rounding for one, other in zip(with_touch, without, strict=True)]
    assert apart == [False] * 6 + [True] * (len(asked.order) - 5)


@pytest.mark.parametrize("order", [None, (0, 1, 3, 2, *range(4, 12))])
def test_the_lines_of_python_measure_what_is_shown(model, recordings, order):
    asked = Asked(PROMPT, SECOND, touches=tuple(TOUCHES.values()), order=order)
    reading = read(model, asked, LIMITS)
    target = model.single_token(" Paris")
    written = code(("specimen:qwen3", ()), asked, *recordings, target, 4)
    there, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(written, there)
    result = there["result"]
    for name, shown in (("loss", "loss on the prompt"), ("logit", "logit of the answer")):
        wanted = torch.tensor(effects(reading)[shown][1])
        assert gap(result.mean(name)[0], wanted) <= model.rounding
    assert len(said.getvalue().splitlines()) > 2


def test_the_second_prompt_is_read_at_the_same_distance_from_its_end(recordings):
    clean, other = recordings
    assert other.positions == clean.positions + 1
    assert second_position(4, clean, other) == 5
    with pytest.raises(RefusedError, match="write a longer one"):
        second_position(0, other, clean)
    with pytest.raises(RefusedError, match="no second prompt"):
        second_position(0, clean, None)


REFUSED = [
    (Asked(" "), "is empty"),
    (Asked("word " * 400), "tokens, and a page takes 256"),
    (Asked("w" * 9000), "characters"),
    (Asked(PROMPT, answer=" Paris is"), "token"),
    (Asked(PROMPT, order=()), "no block is left"),
    (Asked(PROMPT, order=(12,)), "there is no block 12"),
    (Asked(PROMPT, order=(0,) * 300), "too long"),
    (Asked(PROMPT, touches=(Touch("99.mlp_out", "zero"),)), "99"),
    (Asked(PROMPT, touches=(Touch("nonsense", "zero"),)), "is no site"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "zero", 77),)), "there is no token 77"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "scale", 0, float("inf")),)), "out of bounds"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "second", 0),)), "no second prompt"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "melt", 0),)), "nothing is called"),
    (Asked(PROMPT, touches=(Touch("5.head.1", "token", 0, 1.0, " Paris"),)), "not as wide"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "zero"),) * 40), "too many"),
    (Asked(PROMPT, touches=(Touch("5.mlp_out", "zero"),), order=(0, 1)), "never reached"),
]


@pytest.mark.parametrize(("asked", "why"), REFUSED)
def test_what_cannot_be_is_refused_with_its_reason(model, asked, why):
    with pytest.raises(ValueError, match=why):
        read(model, asked, LIMITS)


def test_a_model_that_predicts_no_next_token_is_told_why():
    two = regraft.load("specimen:t5")
    with pytest.raises(RefusedError, match="has an encoder and a decoder"):
        read(two, Asked("a text"), LIMITS)


def test_maps_name_the_parts_whose_numbers_they_show(model, recordings):
    clean = recordings[0]
    heads, neurons = head_map(clean, 2), neuron_map(clean, 2)
    assert heads.sites[6][1] == "6.head.1"
    assert gap(torch.tensor(heads.values[6][1]), clean["6.head.1"][0, 2].norm()) <= model.rounding
    block, number = neurons.sites[3][0].split(".neuron.")
    found = clean[f"{block}.mlp_act"][0, 2]
    assert int(found.abs().argmax()) == int(number)
    assert gap(torch.tensor(neurons.values[3][0]), found[int(number)]) <= model.rounding


@pytest.mark.parametrize(
    ("name", "inside"),
    [("run", True), ("run/../run", True), ("..", False), ("/etc", False), ("link", False), ("a\x00b", False)],
)
def test_no_path_outside_the_folders_is_followed(tmp_path, name, inside):
    (tmp_path / "runs" / "run").mkdir(parents=True)
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    places = Places(tmp_path / "runs")
    if inside:
        assert places.inside(name) == (tmp_path / "runs" / "run").resolve()
        assert places.model(name) == str(tmp_path / "runs" / "run")
    else:
        with pytest.raises(RefusedError):
            places.inside(name)
        with pytest.raises(RefusedError):
            places.model(name)


def test_models_by_name_need_no_folder(tmp_path):
    places = Places(tmp_path)
    assert [places.model(name) for name in ("specimen:gpt2", "owner/name")] == ["specimen:gpt2", "owner/name"]
    with pytest.raises(RefusedError, match="no model is named"):
        places.model(" ")


def test_a_form_says_what_the_command_line_would(tmp_path):
    experiment, places = experiments()["knockout"], Places(tmp_path)
    given = {"count": 3.0, "prompts": "one\n\ntwo\n", "tokens": "", "limit": None}
    options = options_of(experiment, given, places, LIMITS)
    usual = {one.name: one.default for one in experiment.parameters}
    assert options == {**usual, "count": 3, "prompts": ["one", "two"]}
    settings = settings_of(experiment, "specimen:gpt2", options, 0)
    assert command_line(settings, tmp_path / "a b") == (
        f"regraft knockout --model specimen:gpt2 --prompts one --prompts two --count 3 --out '{tmp_path}/a b'"
    )
    for field, value, why in (("count", "many", "no number"), ("count", 1.5, "whole number"),
                              ("count", "nan", "finite"), ("mode", "sideways", "one of")):  # fmt: skip
        with pytest.raises(RefusedError, match=why):
            options_of(experiment, {field: value}, places, LIMITS)
    with pytest.raises(RefusedError, match="outside"):
        options_of(experiments()["lens"], {"tuned": "/etc"}, places, LIMITS)


def answered(path="/secret/page", kind="http", **headers):
    """What the gate lets through or says: a status, or None where the application was reached."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["root_path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:80", **headers}
    scope = {"type": kind, "path": path, "headers": [(k.encode(), v.encode()) for k, v in given.items() if v]}
    asyncio.run(Gate(app, "secret", ("127.0.0.1", "localhost"), 80)(scope, None, send))
    return reached, sent


def test_the_gate_lets_in_who_has_the_token_and_tells_nobody_the_address():
    for headers in ({}, {"origin": "http://127.0.0.1:80"}, {"host": "LOCALHOST:80"}):
        reached, sent = answered(**headers)
        assert reached == ["/secret"]
        assert (b"referrer-policy", b"no-referrer") in sent[0]["headers"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "/"},
        {"path": "/secretly/page"},
        {"path": "/secret"},
        {"path": "/other/secret/"},
        {"path": "/Secret/page"},
        {"path": "/sécret/"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:81"},
        {"origin": "https://127.0.0.1:80"},
        {"origin": "null"},
        {"host": "evil.example:80"},
        {"host": "127.0.0.1"},
        {"host": ""},
    ],
)
def test_the_gate_says_nothing_to_anybody_else(kind, wrong):
    reached, sent = answered(kind=kind, **wrong)
    assert reached == []
    if kind == "websocket":
        assert sent == [{"type": "websocket.close", "code": 1008}]
    else:
        assert sent[0]["status"] == 403
        assert b"".join(one.get("body", b"") for one in sent) == b""


def test_a_port_that_is_taken_is_told_with_its_holder():
    import os

    taken = listening("127.0.0.1", 0)
    with contextlib.closing(taken), pytest.raises(RefusedError, match=f"process {os.getpid()}"):
        listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(RefusedError, match="cannot be listened on"):
        listening("203.0.113.7", 0)
    free = listening("127.0.0.1", 0)
    with contextlib.closing(free):
        assert free.family == socket.AF_INET


def test_pages_see_one_state_and_no_question_is_lost():
    async def played():
        told = []
        bench = Bench("specimen:qwen3", LIMITS, lambda: told.append(bench.asked), lambda: None)
        before = bench.plain.fingerprint()
        await bench.ask(lambda asked: asked)
        one = bench.touch(Touch("3.mlp_out", "zero", 1))
        other = bench.touch(Touch("4.mlp_out", "zero", 1))
        assert list(await asyncio.gather(one, other)) == ["", ""]
        assert [touch.site for touch in bench.asked.touches] == ["3.mlp_out", "4.mlp_out"]
        assert told[-1] == bench.asked
        kept = bench.reading
        why = await bench.ask(lambda asked: Asked(""))
        assert "is empty" in why
        assert bench.reading is kept
        both = [bench.touch(Touch("5.mlp_out", "zero", 1)), bench.ask(lambda asked: Asked(""))]
        assert [bool(why) for why in await asyncio.gather(*both)] == [False, True]
        assert [touch.site for touch in bench.asked.touches][-1] == "5.mlp_out"
        bench.busy = LIMITS.asked
        assert "questions to answer" in await bench.ask(lambda asked: Asked("lost"))
        bench.busy = 0
        await bench.touch(Touch("3.mlp_out", "zero", 1))
        assert len(bench.asked.touches) == 3
        await bench.ask(lambda asked: Asked(PROMPT))
        await bench._writing
        assert bench.texts == {"clean": bench.plain.generate(PROMPT, tokens=24).texts[0], "changed": ""}
        await bench.close()
        assert bench.plain.fingerprint() == before

    asyncio.run(played())
