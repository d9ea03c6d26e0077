"""What people give as prompts: every form is read as it is meant, or refused. Truth: plain forwards of the
prompts alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from families import FAMILIES
from regraft.core.tolerance import gap
from regraft.model.load import load
from regraft.sweeps.metrics import loss, token_logit
from regraft.sweeps.prefix_cache import cone_holds
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant, Zero
from small import ids, opened, recorded

TEXTS = ["The capital of France is Paris.", "It was not clean; it was dirty, and that is all."]


@pytest.fixture(scope="module")
def gpt2():
    return load("specimen:gpt2", pack=False)


def alone(model, row):
    """The official logits of one row of ids, unpadded."""
    with torch.no_grad():
        return model.hf(torch.tensor([row])).logits[0]


def is_of(model, recording, rows):
    """Whether each prompt of a recording has the logits that its ids have alone."""
    found = recording["logits"]
    assert recording.lengths_B.tolist() == [len(row) for row in rows]
    return all(gap(found[b, : len(row)], alone(model, row)) <= model.rounding for b, row in enumerate(rows))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("form", ["encoding", "dict", "tensor and mask", "lists and mask"])
def test_a_tokenizers_output_is_taken_whole(gpt2, form, side):
    rows = [gpt2.encode(text) for text in TEXTS]
    tokenizer = gpt2.tokenizer
    given = tokenizer(TEXTS, padding=True, return_tensors="pt", padding_side=side)
    assert not bool(given["attention_mask"].all())
    recording = {
        "encoding": lambda: gpt2.record(given),
        "dict": lambda: gpt2.record({name: tensor.numpy() for name, tensor in given.items()}),
        "tensor and mask": lambda: gpt2.record(given["input_ids"], attention_mask=given["attention_mask"]),
        "lists and mask": lambda: gpt2.record(
            given["input_ids"].tolist(), attention_mask=given["attention_mask"].tolist()
        ),
    }[form]()
    assert is_of(gpt2, recording, rows)
    losses = sweep(recording, [], loss())
    wanted = [torch.nn.functional.cross_entropy(alone(gpt2, row)[:-1], torch.tensor(row[1:])) for row in rows]
    assert losses.clean["loss"].tolist() == pytest.approx([float(w) for w in wanted], abs=1e-5)


def test_padded_ids_without_a_mask_are_refused(gpt2):
    given = gpt2.tokenizer(TEXTS, padding=True, return_tensors="pt")
    for ids_BT in (
        given["input_ids"],
        given["input_ids"].tolist(),
        given["input_ids"].numpy(),
        {"input_ids": given["input_ids"]},
    ):
        with pytest.raises(
            ValueError, match=r"hold the pad token \d+: say which are tokens with attention_mask="
        ):
            gpt2.record(ids_BT)
    with pytest.raises(ValueError, match="hold the pad token"):
        gpt2.record(TEXTS, given["input_ids"])
    meant = gpt2.record(given["input_ids"], attention_mask="all")
    assert meant.lengths_B.tolist() == [given["input_ids"].shape[1]] * 2
    assert not is_like(gpt2, meant)


def is_like(model, recording):
    return any(
        gap(recording["logits"][0, : len(row)], alone(model, row)) > 1 for row in [model.encode(TEXTS[0])]
    )


def test_token_types_reach_an_encoder():
    model = opened("bert")
    row, types = ids(8, 3), [0, 0, 0, 1, 1, 1, 1, 1]
    found = model.record({"input_ids": [row, row[:5]], "token_type_ids": [types, types[:5]]})
    with torch.no_grad():
        wanted = model.hf(torch.tensor([row]), token_type_ids=torch.tensor([types])).logits
        other = model.hf(torch.tensor([row])).logits
    assert gap(found["logits"][:1], wanted) <= model.rounding
    assert gap(other, wanted) > 100 * model.rounding
    edited = sweep(found, [Variant()], token_logit(7, 2))
    assert edited.values["logit"][0, 0] == pytest.approx(float(wanted[0, 2, 7]), abs=model.rounding * 10)


def test_positions_reach_a_decoder_and_its_suffixes():
    model = opened("gpt2")
    row, places = ids(40, 3), list(range(7, 47))
    found = model.record({"input_ids": torch.tensor([row]), "position_ids": torch.tensor([places])})
    with torch.no_grad():
        wanted = model.hf(torch.tensor([row]), position_ids=torch.tensor([places])).logits
    assert gap(found["logits"], wanted) <= model.rounding
    assert gap(alone(model, row), wanted[0]) > 100 * model.rounding
    assert cone_holds(model)
    variants = [Variant([Zero(f"{b}.resid_pre", position=p)]) for b in range(3) for p in range(12, 40)]
    fast, exact = (sweep(found, variants, token_logit(7), exact=how) for how in (False, True))
    assert fast.work.planned < exact.work.planned / 2, "suffixes are used"
    assert torch.allclose(
        fast.values["logit"], exact.values["logit"], atol=10 * model.rounding * model.check.largest
    )
    usual = model.record({"input_ids": [row], "position_ids": [list(range(40))]})
    assert "position_ids" not in usual.inputs, "what the model takes anyway is not said to it"


def test_a_chat_is_written_out_by_its_template(gpt2):
    chat = [{"role": "user", "content": "The capital of France is"}]
    with pytest.raises(ValueError, match="has no chat template"):
        gpt2.record(chat)
    tokenizer = load("specimen:gpt2", pack=False).tokenizer
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[answer]"
    model = load(gpt2.hf, tokenizer, pack=False)
    text = "[user] The capital of France is\n[answer]"
    one, two = model.record(chat), model.record([chat, chat])
    assert one.ids_BT[0].tolist() == tokenizer(text)["input_ids"]
    assert two.prompts == 2
    assert "a chat was written out by the tokenizer's template" in sweep(one, [Variant()], loss()).notes[0]


def test_a_second_begin_token_is_said(gpt2):
    tokenizer = load("specimen:gpt2", pack=False).tokenizer
    begin = tokenizer.bos_token = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    model = load(gpt2.hf, tokenizer, pack=False)
    assert not model.record("The capital").notes
    assert "begins with two begin tokens" in model.record(begin + "The capital").notes[0]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (b"The capital", "bytes is not text"),
        ([b"The capital"], "bytes among the prompts is neither text"),
        (torch.tensor([1.0, 2.0]), "no row of token ids: give whole numbers"),
        (np.array([[1.0, 2.0]]), "no row of token ids"),
        (torch.tensor([True, False]), "no row of token ids"),
        ([1.5, 2], "float among the prompts is neither text nor a row"),
        ([7, 1.5], r"1.5 among the prompt's ids is no token id"),
        ([7, True], "True among the prompt's ids is no token id"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "are no prompts: give"),
        ({"text": "words"}, "has no input_ids: give a tokenizer's output"),
        ({"input_ids": [5, 6], "pixel_values": [1.0]}, "pixel_values cannot be recorded"),
        ({"input_ids": [[5, 6]], "token_type_ids": [[0]]}, "token_type_ids do not have the shape"),
        (7, "a int is no prompt"),
        (None, "a NoneType is no prompt"),
        ([], "there is no prompt"),
        ((word for word in ("a", "b")), "a generator is no prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(gpt2, prompt, words):
    with pytest.raises(ValueError, match=words):
        gpt2.record(prompt)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1]], "a hole between tokens"),
        ([[1, 1]], "the attention_mask has 1 rows"),
        ([[0.5, 1, 1]], "other numbers than 0 and 1"),
        ("some", "is not known: give a mask"),
        ([[0, 0, 0]], "the prompt is empty"),
    ],
)
def test_masks_that_do_not_fit_are_refused(gpt2, mask, words):
    with pytest.raises(ValueError, match=words):
        gpt2.record([[5, 6, 7]], attention_mask=mask)
    with pytest.raises(ValueError, match="belongs to token ids"):
        gpt2.record("The capital", attention_mask=[[1]])


@pytest.mark.parametrize("scored", [torch.ones(1, 3), torch.ones(5), torch.full((1, 5), 2), torch.ones(2, 5)])
def test_scored_must_be_a_mask_of_the_recordings_shape(scored):
    model = opened("llama")
    with pytest.raises(ValueError, match=r"scored= has shape .*: give booleans of shape \(1, 5\)"):
        model.record([ids(5, 1)], scored=scored)
    right = model.record([ids(5, 1)], scored=torch.tensor([[False, False, True, False, True]]))
    logp = alone(model, ids(5, 1)).log_softmax(-1)
    wanted = -(logp[1, ids(5, 1)[2]] + logp[3, ids(5, 1)[4]]) / 2
    assert float(sweep(right, [], loss()).clean["loss"]) == pytest.approx(float(wanted), abs=1e-5)


def test_an_empty_completion_has_no_loss():
    model = opened("llama")
    both = model.record([ids(5, 1), ids(6, 2)], [[7, 8], []])
    with pytest.raises(ValueError, match="no token of prompt 1 is scored"):
        sweep(both, [Variant()], loss())
    assert both.prompts == 2


def spaced(prepend):
    """A SentencePiece-like tokenizer; with `prepend` its normalizer marks a space in front of whatever it is
    given."""
    words = [
        "<unk>",
        "</s>",
        "<s>",
        "▁",
        "▁the",
        "▁capital",
        "▁is",
        "▁Paris",
        "▁.",
        ".",
        "P",
        "a",
        "r",
        "i",
        "s",
        "Paris",
        "1",
    ]
    merges = [("P", "a"), ("Pa", "r"), ("Par", "i"), ("Pari", "s")]
    vocabulary = {
        w: i for i, w in enumerate([*words, "Pa", "Par", "Pari", "▁P", "▁Pa", "▁Par", "▁Pari", *"thecpl\n"])
    }
    merges = [
        *merges, ("▁", "Paris"), ("▁", "."), ("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "capital"),
        ("▁", "is"),
        ("c", "a"), ("ca", "p"), ("cap", "i"), ("capi", "t"), ("capit", "a"), ("capita", "l"), ("i", "s"),
    ]  # fmt: skip
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁")] if prepend else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " ")])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", bos_token="<s>"
    )


def test_a_completion_is_cut_as_behind_other_text():
    """A normalizer that puts a space mark in front of everything must not put one into the seam."""
    torch.manual_seed(0)
    model = load(FAMILIES["llama"]().eval(), spaced(prepend=True), pack=False)
    words = model.tokenizer.convert_ids_to_tokens
    assert words(model.tokenizer(" Paris .", add_special_tokens=False)["input_ids"])[0] == "▁"
    recording = model.record("the capital is", " Paris .")
    assert words(recording.ids_BT[0].tolist()) == ["▁the", "▁capital", "▁is", "▁Paris", "▁."]
    assert recording.ids_BT[0].tolist() == model.tokenizer("the capital is Paris .")["input_ids"]
    assert words([model.single_token(" Paris")]) == ["▁Paris"]
    assert words([model.single_token("Paris")]) == ["Paris"], "what is one token behind others is that token"
    assert words([model.single_token("is")]) == ["is"]
    plain = load(model.hf, spaced(prepend=False), pack=False)
    assert words(plain.continuation(" Paris")) == ["▁Paris"]
    assert words(plain.continuation("Paris")) == ["Paris"]


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_byte_level_texts_are_cut_as_before(name):
    model = load(f"specimen:{name}", pack=False)
    for text in (" Paris", "Paris", " 57.", ", and so on", "\nnew", " yes", "ing"):
        assert model.continuation(text) == model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_end_token_that_the_tokenizer_adds_is_not_read_behind(gpt2):
    """The default metrics read the last position: behind an end token the model would be asked what follows
    everything."""
    tokenizer = load("specimen:gpt2", pack=False).tokenizer
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    model = load(gpt2.hf, tokenizer, pack=False)
    assert tokenizer("The capital of France is")["input_ids"][-1] == tokenizer.eos_token_id
    assert model.encode("The capital of France is") == gpt2.encode("The capital of France is")
    trunk = load(gpt2.hf.transformer, tokenizer, pack=False)
    assert trunk.encode("The capital of France is")[-1] == tokenizer.eos_token_id, (
        "a model without a head may read there"
    )
    meant = model.encode("The capital of France is" + end)
    assert meant[-1] == tokenizer.eos_token_id
    assert meant[-2] != tokenizer.eos_token_id


def test_unequal_batches_of_texts_and_ids_may_stand_together(gpt2):
    rows = [gpt2.encode(TEXTS[0]), [11, 12, 13, 14]]
    assert is_of(gpt2, gpt2.record([TEXTS[0], torch.tensor(rows[1])]), rows)
    assert recorded(opened("llama"), 5, 7).lengths_B.tolist() == [5, 7]
