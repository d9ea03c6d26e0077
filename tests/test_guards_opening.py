"""Models as they are opened: of one block, packed or not, their rounding, what closes a block, where a text
is cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from families import _DECODER, VOCAB
from regraft.core.tolerance import rounding
from regraft.model import load as opening
from regraft.model.branches import _closes
from regraft.model.inputs import _spoken
from regraft.model.load import load
from regraft.model.selfcheck import SelfCheck, _check_values
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Scale, Variant, Zero
from small import METRIC, opened, recorded, reference


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{**_DECODER, "num_hidden_layers": 1})), "embed"),
        (
            lambda: hf.GPT2LMHeadModel(
                hf.GPT2Config(
                    vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2
                )
            ),
            "embed",
        ),
        (
            lambda: hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=VOCAB,
                    d_model=32,
                    d_kv=8,
                    d_ff=48,
                    num_heads=4,
                    num_layers=1,
                    num_decoder_layers=1,
                    decoder_start_token_id=0,
                )
            ),
            "encoder.0.resid_pre",
        ),
    ],
    ids=["llama", "gpt2", "t5"],
)
def test_a_stack_may_have_one_block(make, first):
    """Nothing looks at a second block: each kind of edit equals a full forward with hooks."""
    torch.manual_seed(1)
    model = load(make().eval(), pack=False)
    recording = recorded(model, 7, 5)
    count, last = len(model.blocks), model.blocks[-1].address
    variants = [
        Variant([Scale(first, 2.0)]),
        Variant([Zero(f"{last}.mlp_out")]),
        Variant([Zero(f"{model.blocks[0].address}.head.1")]),
        Variant([Scale("final_norm", 0.5)]),
        Variant(route=Route.skip(count, {count - 1})),
    ]
    found = sweep(recording, variants, METRIC)
    near = 2 * model.rounding * model.check.largest
    assert float((found.values["d"] - reference(model, recording, variants)).abs().max()) <= near
    assert float((found.values["d"] - found.clean["d"]).abs().amax(1).min()) > 10 * near, "every edit is felt"


def test_a_begin_token_is_told_of_only_where_there_are_two():
    def notes(begin, ids):
        said: list[str] = []
        reader = SimpleNamespace(encode=lambda text: ids, tokenizer=SimpleNamespace(bos_token_id=begin))
        assert _spoken(reader, "a text", said) == ids
        return len(said)

    assert [notes(7, ids) for ids in ([7, 7, 5], [7, 5, 7], [5, 7, 7], [7], [])] == [1, 0, 0, 0, 0]
    assert notes(0, [0, 0]) == 1
    assert notes(None, [5, 5]) == 0


def test_layers_are_packed_only_where_that_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(opening, "pack_if_it_pays", lambda live: asked.append(live) or {})
    live = opened("llama").hf
    load(live, pack=False)
    assert not asked
    load(live, pack=True)
    assert asked == [live]


@pytest.mark.parametrize(("name", "longest"), [("llama", 48), ("gpt2", 128)])
def test_the_rounding_is_that_of_the_longest_sum(name, longest):
    assert opened(name).rounding == rounding(torch.float32, 4, longest)


@pytest.mark.parametrize(
    ("pre", "out", "post", "closed"),
    [
        ([0.0, 0.0], [1.0, 0.0], [1.0 + 9e-5, 0.0], True),
        ([0.0, 0.0], [1.0, 0.0], [1.0 + 11e-5, 0.0], False),
        ([0.0, 4.0], [1.0, 0.0], [1.0 + 11e-5, 4.0], False),
        ([1.0, 0.0], [0.0, 0.0], [1.0, 5e-11], True),
        ([1.0, 0.0], [0.0, 0.0], [1.0, 2e-10], False),
    ],
)
def test_branches_close_within_a_share_of_what_the_block_adds(pre, out, post, closed):
    """1e-4 of the largest addition; where nothing is added, 1e-10 of the largest value."""
    pre, out, post = (torch.tensor([[values]], dtype=torch.float64).float() for values in (pre, out, post))
    assert _closes((SimpleNamespace(sum_norm=None),), pre, [out], post) == closed


def test_a_text_behind_others_is_cut_as_behind_the_first_that_stays_whole():
    """Behind "a" the text changes what stands before it; behind "." and the others it is cut in different
    ways."""
    cuts = {
        "x": [9],
        "a": [1],
        ".": [2],
        "\n": [3],
        "1": [4],
        "ax": [5],
        ".x": [2, 7],
        "\nx": [3, 8],
        "1x": [4, 8],
    }
    model = opened("llama")
    model.tokenizer = lambda text, add_special_tokens: {"input_ids": cuts[text]}
    assert model.continuation("x") == [7]
    cuts["1x"] = [4, 9]
    assert model.continuation("x") == [9], "as it is cut alone, if that happens at all"
    cuts.update({".x": [5], "\nx": [6], "1x": [7]})
    assert model.continuation("x") == [9], "no text stays whole"


def test_positions_of_prompts_go_with_prompts_alone():
    model = opened("gpt2")
    given = {"input_ids": [5, 6, 7], "position_ids": [3, 4, 5]}
    assert model.record(given).inputs["position_ids"].tolist() == [[3, 4, 5]]
    with pytest.raises(ValueError, match="position_ids are known for the prompts only"):
        model.record(given, [8, 9])
    assert model.record({"input_ids": [5, 6, 7]}, [8, 9]).positions == 5


@pytest.mark.parametrize("site", ["v", "z"])
def test_values_are_compared_with_heads_only_where_both_are_offered(site):
    model = opened("llama")
    single, found = model.record([5]), SelfCheck()
    model.taps.refuse(1, site, "taken away by this test")
    for block in model.blocks:
        _check_values(model, single, block, found, model.rounding)
    assert found == SelfCheck()
    assert model.taps.exists(1, "q")
    assert model.taps.exists(2, "v")
