"""Text written under edits and routes, token by token against plain hooks on whole forwards."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers

import naive
from regraft.export.route_model import rebuilt
from regraft.model.load import load
from regraft.sweeps.executor import route_logits
from regraft.sweeps.metrics import loss
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import NEW, PROMPT, Add, Apply, Noise, Replace, Scale, Variant, Zero
from small import ids, opened

TOKENS = 6
FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "qwen3_5", "bloom", "t5")


def vector(model, seed, size=3.0):
    return torch.randn(model.width, generator=torch.Generator().manual_seed(seed)) * size


def placed(edit, prompt, total):
    """The same edit with the positions that it means in a text, or None where it means none yet."""
    wanted = edit.position
    if wanted == PROMPT:
        wanted = list(range(min(prompt, total)))
    elif wanted == NEW:
        wanted = list(range(prompt, total))
    elif wanted is not None:
        wanted = [p + prompt if p < 0 else p for p in ([wanted] if isinstance(wanted, int) else wanted)]
        wanted = [p for p in wanted if p < total]
    if wanted == []:
        return None
    made = object.__new__(type(edit))
    made.__dict__.update({**edit.__dict__, "position": wanted})
    return made


def by_hooks(model, prompt, edits, count=TOKENS):
    """The most likely token at every step, each from a whole forward with plain hooks."""
    written = []
    for _ in range(count):
        if model.two_stacks:
            recording, own = model.record([prompt], [list(written)], attention_mask="all"), 1
        else:
            recording, own = model.record([[*prompt, *written]], attention_mask="all"), len(prompt)
        total = recording.positions
        here = [made for edit in edits if (made := placed(edit, own, total)) is not None]
        logits = naive.logits(model, recording, Variant(here))
        written.append(int(logits[0, -1].argmax()))
    return written


def until_end(model, row):
    end = model.hf.generation_config.eos_token_id
    return row[: row.index(end)] or row[:1] if end in row else row


def cases(model):
    last = len(model.main_blocks) - 1
    at = "decoder." if model.two_stacks else ""
    several = torch.stack([vector(model, 7), vector(model, 8)])
    return {
        "all": [Add(f"{at}1.resid_post", vector(model, 1))],
        "new": [Add(f"{at}2.resid_pre", vector(model, 2), NEW)],
        "prompt": [Scale(f"{at}1.mlp_out", -2.0, PROMPT)],
        "one of each": [Replace(f"{at}1.resid_post", several[0], 0), Zero(f"{at}{last}.mlp_out", NEW)],
        "behind the prompt": [Add(f"{at}{last}.resid_post", several, [0, 3 if model.two_stacks else 8])],
    }


PROMPTS = [ids(7, 3), ids(4, 4), ids(7, 5)]


def read_by(what):
    return PROMPTS if what != "behind the prompt" else PROMPTS[::2]


@functools.cache
def texts_by_hooks(name):
    """What plain hooks write under every case: slow, and the same with a cache and without."""
    model = opened(name)
    return {
        what: [tuple(until_end(model, by_hooks(model, prompt, edits))) for prompt in read_by(what)]
        for what, edits in cases(model).items()
    }


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("name", FAMILIES)
def test_text_under_edits_is_that_of_plain_hooks(name, cache):
    model = opened(name)
    plain = model.generate(PROMPTS, tokens=TOKENS, cache=cache).ids
    differs = 0
    for what, edits in cases(model).items():
        own = read_by(what)
        found = model.generate(own, edits=edits, tokens=TOKENS, cache=cache).ids
        assert list(found) == texts_by_hooks(name)[what], what
        differs += list(found) != [plain[PROMPTS.index(prompt)] for prompt in own]
    assert differs >= 3, "the edits change what is written"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt_neox", "t5"])
def test_every_site_of_a_block_is_passed(name):
    """Heads, neurons, projections, the stream between the branches, embedding, last norm, logits."""
    model, prompt = opened(name), ids(6, 3)
    at = "decoder.1" if model.two_stacks else "1"
    width, half = model.tap(f"{at}.mlp_act").module.weight.shape[-1], model.width
    edits = [
        Scale(f"{at}.head.1", -3.0),
        Scale(f"{at}.neuron.2", 30.0, NEW),
        Add(f"{at}.mlp_act", torch.linspace(-2, 2, width), NEW),
        Scale(f"{at}.z", -2.0, PROMPT),
        Scale(f"{at}.v", 3.0),
        Scale(f"{at}.attn_out", -2.0, NEW),
        Add("final_norm", vector(model, 3), NEW),
        Add("logits", torch.linspace(0, 3, model.vocabulary), NEW),
        Add("encoder.2.resid_mid" if model.two_stacks else "embed", torch.linspace(-3, 3, half)),
    ]
    if not model.blocks[-1].parallel:
        edits.append(Add(f"{at}.resid_mid", vector(model, 4), NEW))
    plain = model.generate([prompt], tokens=TOKENS).ids
    changes = 0
    for edit in edits:
        if model.two_stacks and edit.site.startswith("encoder"):
            edit = Add(edit.site, edit.value, [0, 2])
        found = model.generate([prompt], edits=edit, tokens=TOKENS).ids
        assert list(found) == [tuple(until_end(model, by_hooks(model, prompt, [edit])))], edit.site
        changes += found != plain
    assert changes >= len(edits) // 2


def test_a_function_of_ones_own_is_passed_while_text_is_written():
    model, prompt = opened("llama"), ids(6, 3)
    shift = vector(model, 1)
    own = model.generate([prompt], edits=Apply("2.resid_post", lambda x: x + shift, NEW), tokens=TOKENS)
    assert own.ids == model.generate([prompt], edits=Add("2.resid_post", shift, NEW), tokens=TOKENS).ids

    def halved(x):
        return x[..., :16]

    cut = Apply("2.resid_post", halved)
    with pytest.raises(ValueError, match=r"function halved of the edit at 2.resid_post returned \(1, 6, 16"):
        model.generate([prompt], edits=cut, tokens=2)
    with pytest.raises(ValueError, match="returned numbers that are not finite"):
        model.generate([prompt], edits=Apply("2.resid_post", lambda x: x / 0), tokens=2)
    with pytest.raises(ValueError, match="returned str for an activation of"):
        model.generate([prompt], edits=Apply("2.resid_post", lambda x: "x"), tokens=2)
    with pytest.raises(ValueError, match="takes a function of the activation, not a float"):
        Apply("2.resid_post", 2.0)


def test_a_function_of_ones_own_sees_what_it_changes_and_nothing_else():
    """No padding, whose numbers may be none, and no token that it was not asked to change."""
    model, prompts, seen = opened("llama"), [ids(5, 3), ids(3, 4)], []
    batch = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])

    def doubled(x):
        seen.append(tuple(x.shape))
        return 2 * x

    for position, wanted in ((None, [(1, 8, 8)]), (-1, [(1, 2, 8)]), (NEW, []), ([0, 2], [(1, 4, 8)])):
        seen.clear()
        with model.changed(Apply("1.head.2", doubled, position)):
            own = model.hf(batch, attention_mask=mask).logits
        assert seen == wanted
        with model.changed(Scale("1.head.2", 2.0, position)):
            torch.testing.assert_close(own, model.hf(batch, attention_mask=mask).logits)


def test_users_own_runs_pass_through_the_edits_of_a_padded_batch():
    """As other libraries call it: padded on the left, sampled or not, beams, plain forwards one after the
    other."""
    model = opened("llama")
    prompts = [ids(7, 3), ids(4, 4)]
    edits = [Add("2.resid_post", vector(model, 2), NEW), Scale("1.mlp_out", -2.0, -1)]
    apart = [model.generate([p], edits=edits, tokens=TOKENS).ids[0] for p in prompts]
    batch = torch.tensor([prompts[0], [0] * 3 + prompts[1]])
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    options = {"attention_mask": mask, "max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    with model.changed(Variant(edits)):
        out = model.hf.generate(batch, **options)
        again = model.hf.generate(batch, use_cache=False, **options)
        beams = model.hf.generate(batch, num_beams=2, **options)
        tall = model.hf(batch.flip(0), attention_mask=mask.flip(0)).logits
    assert [tuple(until_end(model, row[7:])) for row in out.tolist()] == apart
    assert torch.equal(again, out)
    assert beams.shape[0] == 2
    single = naive.logits(
        model,
        model.record([prompts[0]], attention_mask="all"),
        Variant(edits[1:2] and [Scale("1.mlp_out", -2.0, 6)]),
    )
    torch.testing.assert_close(tall[1], single[0], atol=1e-5, rtol=1e-4)


def test_draws_are_those_of_the_seed_and_of_no_other_generator():
    model, prompts = opened("llama"), [ids(5, 3), ids(6, 4)]
    edits = [Add("2.resid_post", vector(model, 2), NEW)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (
        model.generate(prompts, edits=edits, tokens=12, temperature=1.0, seed=seed).ids for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert one == two != other
    narrow = model.generate(prompts, edits=edits, tokens=12, temperature=1.0, top_p=1e-6).ids
    cold = model.generate(prompts, edits=edits, tokens=12, temperature=1e-4).ids
    assert narrow == cold == model.generate(prompts, edits=edits, tokens=12).ids
    torch.manual_seed(9)
    with model.changed(edits), torch.random.fork_rng():
        torch.manual_seed(1)
        plain = model.hf.generate(
            torch.tensor([prompts[0]]), attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=12,
            do_sample=True, top_k=0, pad_token_id=0,
        )  # fmt: skip
    assert one[0] == tuple(until_end(model, plain[0, 5:].tolist()))


ROUTES = {
    "without one": lambda n: Route.skip(n, [1]),
    "without the first": lambda n: Route.skip(n, [0]),
    "one twice": lambda n: Route.repeat(n, 2, 2),
    "two exchanged": lambda n: Route.swap(n, 0, n - 1),
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3_5", "bloom"])
@pytest.mark.parametrize("route", ROUTES)
def test_text_along_a_route_is_that_of_the_model_written_to_disk(name, route, tmp_path):
    """With a cache and without; and the model is as it was afterwards."""
    model = opened(name)
    count, first = len(model.main_blocks), model.parts.stacks[-1].first
    order = [stop.block for stop in ROUTES[route](count).stops]
    way = Route.order([*range(first), *(first + block for block in order)])
    prompts = [ids(7, 3), ids(5, 4)]
    plain, config = model.generate(prompts, tokens=TOKENS), model.hf.config.to_dict()
    found = model.generate(prompts, route=way, tokens=TOKENS)
    assert found.ids == model.generate(prompts, route=way, tokens=TOKENS, cache=False).ids
    blocks = [model.main_blocks[block] for block in order]
    written = _written(model, blocks, tmp_path)
    assert found.ids == written.generate(prompts, tokens=TOKENS).ids
    assert model.generate(prompts, tokens=TOKENS).ids == plain.ids
    assert model.hf.config.to_dict() == config


def _written(model, blocks, folder):
    changed = rebuilt(model, blocks)
    changed.save_pretrained(folder)
    return load(type(changed).from_pretrained(folder).eval(), pack=False)


def test_edits_on_a_route_are_passed_wherever_the_block_runs():
    model, prompt = opened("llama"), ids(6, 3)
    shift = vector(model, 2)
    way = Route.order([0, 2, 2, 3])
    found = model.generate([prompt], edits=Add("2.resid_post", shift), route=way, tokens=TOKENS).ids
    with torch.no_grad():
        written = list(prompt)
        for _ in range(TOKENS):
            recording = model.record([written], attention_mask="all")
            stream = recording.pre(0)
            for block in (0, 2, 2, 3):
                stream = recording.run_block(block, stream, 1) + (shift if block == 2 else 0)
            written.append(int(recording.head(stream)[0, -1].argmax()))
    assert list(found) == [tuple(until_end(model, written[6:]))]


def test_what_no_run_passes_is_refused_before_anything_is_written():
    model, eager = opened("llama"), opened("bert")
    prompt = [ids(6, 3)]

    def refused(match, **options):
        with pytest.raises(ValueError, match=match):
            model.generate(prompt, **{"tokens": 3, **options})

    refused("1.pattern", edits=Zero("1.pattern"))
    refused("there are 4 blocks here", edits=Zero("9.mlp_out"))
    refused("never passed: the route leaves its block out", edits=Zero("1.mlp_out"), route=Route.skip(4, [1]))
    refused("position 8 of the edit at 1.mlp_out is never passed", edits=Zero("1.mlp_out", 8))
    refused("position -7 of the edit at 1.mlp_out is never passed", edits=Zero("1.mlp_out", -7))
    refused("position 'old' of the edit at 1.mlp_out is not known", edits=Zero("1.mlp_out", "old"))
    refused("would be drawn anew in every call", edits=Noise("1.mlp_out", 0.1))
    refused("the value of the edit at 1.mlp_out is 7 wide", edits=Add("1.mlp_out", torch.ones(7)))
    refused(r"has shape \(1, 2, 32\)", edits=Add("1.mlp_out", torch.ones(2, 32), NEW))
    refused("the route is empty", route=Route.order([]))
    refused("is no module", route=Route.replace(4, {1: lambda x: x}))
    refused("there is no block 7", route=Route.order([0, 7]))
    refused("0 tokens cannot be written", tokens=0)
    with pytest.raises(ValueError, match="the ids hold the pad token 0"):
        model.generate([[0, 5, 6]], tokens=3)
    padded = model.generate([[0, 5, 6]], tokens=3, attention_mask=[[0, 1, 1]])
    assert padded.ids == model.generate([[5, 6]], tokens=3).ids
    assert padded.prompt_ids == ((5, 6),)
    assert model.generate([[0, 5, 6]], tokens=3, attention_mask="all").prompt_ids == ((0, 5, 6),)
    refused("draws nothing", temperature=-1.0)
    refused("draws nothing", temperature=1.0, top_p=0.0)
    refused("tokens behind the longest prompt do not fit into the model: ask for 122", tokens=200)
    with pytest.raises(ValueError, match="may never end"):
        Route.order(iter(int, 1))
    with pytest.raises(ValueError, match="does not write text from left to right"):
        eager.generate(prompt, tokens=3)
    recording = model.record(prompt)
    with pytest.raises(ValueError, match=r"position 'new' of the edit at 1.mlp_out is one of text"):
        sweep(recording, [Zero("1.mlp_out", NEW)], loss())


def test_a_model_that_does_not_run_a_route_by_itself_is_refused_it():
    """The first block of this decoder holds the distances of all; and its cache counts the encoder's
    blocks."""
    model, prompt = opened("t5"), [ids(5, 3)]
    count, first = len(model.main_blocks), model.parts.stacks[-1].first
    before = model.generate(prompt, tokens=2).ids
    exchanged = Route.order([*range(first), first + 1, first, *range(first + 2, first + count)])
    with pytest.raises(ValueError, match="does not run this route by itself: its outputs differ by"):
        model.generate(prompt, route=exchanged, tokens=2)
    twice = Route.order([*range(first + count), first + count - 1])
    with pytest.raises(ValueError, match=r"cannot keep keys and values along this route \(IndexError"):
        model.generate(prompt, route=twice, tokens=2)
    assert model.generate(prompt, route=twice, tokens=2, cache=False).ids
    with pytest.raises(ValueError, match="varies the last stack only"):
        model.generate(prompt, route=Route.order([1, 0, *range(2, first + count)]), tokens=2)
    assert model.generate(prompt, tokens=2).ids == before


def test_what_a_block_knows_of_its_number_goes_with_it():
    """Scores of this model are divided by the number of the block."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=64, n_embd=32, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True
    )
    model = load(transformers.GPT2LMHeadModel(config).eval(), pack=False)
    recording, way = model.record([ids(5, 3)], attention_mask="all"), Route.order([0, 2, 3])
    with model.changed(way):
        out = model.run(input_ids=recording.ids_BT).logits
    torch.testing.assert_close(out, route_logits(recording, way), atol=1e-5, rtol=1e-4)
