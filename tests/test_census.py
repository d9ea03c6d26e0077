"""The census of a checkpoint, what stands outside its blocks, what its configuration claims, its tokenizer's
ranges, and pickles by their shapes."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from families import FAMILIES
from header_files import dual_autoregressive, header_file, music
from regraft.checkpoint import headers, pickle_shapes
from regraft.checkpoint.census import kind_in_block, kind_outside
from regraft.checkpoint.claims import claims
from regraft.checkpoint.dissection import dissect
from regraft.checkpoint.locate import CheckpointError
from regraft.checkpoint.pickle_shapes import pickle_entries
from regraft.checkpoint.token_ranges import ranges, token_facts
from regraft.cli.anatomy_text import print_anatomy
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.jobs.inspection import inspect_headers
from regraft.model.load import load
from regraft.model.weights import open_weights


def facts(component):
    """Statements about a component by what they are about."""
    return {fact.what: fact for fact in component.facts}


def lines(component):
    """Lines of the census by part and kind."""
    return {(line.part, line.kind): line for line in component.census}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_census_of_every_family_holds_every_tensor_once(name, tmp_path):
    torch.manual_seed(0)
    hf = FAMILIES[name]()
    hf.save_pretrained(tmp_path)
    (found,) = dissect(str(tmp_path))
    file = tmp_path / "model.safetensors"
    header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
    header.pop("__metadata__", None)
    assert sum(line.tensors for line in found.census) == len(header)
    spans = [entry["data_offsets"] for entry in header.values()]
    assert sum(line.bytes for line in found.census) == sum(end - start for start, end in spans) == found.bytes
    assert sum(line.share for line in found.census) == pytest.approx(1, abs=1e-12)
    kinds = {line.kind for line in found.census}
    assert {"norm", "embedding"} <= kinds
    assert kinds & {"attention", "mixer"}
    assert "other" not in kinds, [line for line in found.census if line.kind == "other"]


def test_a_known_model_by_the_opened_one():
    """Attention and MLP of the specimen as its opened parts count them."""
    (found,) = dissect("specimen:gpt2")
    model = load("specimen:gpt2")
    told = lines(found)
    for kind, path in (("attention", "attn"), ("MLP", "mlp")):
        held = sum(p.numel() for b in model.blocks for p in b.module.get_submodule(path).parameters())
        (line,) = [line for (_, what), line in told.items() if what == kind]
        assert line.parameters == held


def test_a_dual_autoregressive_speech_model(tmp_path):
    """The published landmarks: 4,032 and 530 million in 358 tensors; shares of the slow part."""
    header_file(tmp_path / "model.safetensors", dual_autoregressive())
    config = {"audio_decoder_config": {"num_codebooks": 10, "codebook_size": 4096}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "codec.pth").write_bytes(b"x" * 77)
    (found,) = dissect(str(tmp_path))
    told = lines(found)
    sizes = {}
    for (part, _), line in told.items():
        sizes[part] = sizes.get(part, 0) + line.parameters
    slow, fast = "text_model.model.layers", "audio_decoder.layers"
    assert {part: round(size / 1e6) for part, size in sizes.items()} == {slow: 4032, fast: 530}
    assert sum(line.tensors for line in found.census) == 358
    shares = [told[slow, kind].parameters / sizes[slow] for kind in ("MLP", "attention", "embedding")]
    assert np.round(shares, 3).tolist() == [0.667, 0.234, 0.099]
    assert told[fast, "codebook"].parameters == 40_960 * 2560
    known = facts(found)
    assert known[f"head of {slow}"].value == "tied to the token table, or missing"
    assert "audio_decoder.output.weight" in known[f"head of {fast}"].value
    books = known["audio_decoder_config: codebooks"]
    assert (books.value, books.how) == ("10 of 4,096 codes", "certain")
    norms = {
        s.path: f.value
        for s in found.stacks
        for k in s.kinds
        for f in k.facts
        if f.what.startswith("norms of")
    }
    assert norms == {slow: "present", fast: "absent"}
    assert found.others == {"codec.pth": 77, "config.json": len(json.dumps(config))}


def test_a_music_diffusion_model(tmp_path):
    """The published landmarks: 1,510 million in the 456 tensors of the decoder's 24 blocks, two embeddings of
    time of 59.8 million in 12, a quantizer of 24 thousand."""
    header_file(tmp_path / "model.safetensors", music())
    config = {"sample_rate": 48_000, "downsampling_ratios": [2, 4, 4, 6, 10],
              "fsq_input_levels": [8, 8, 8, 5, 5, 5], "patch_size": 2, "num_experts": 8}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (found,) = dissect(str(tmp_path))
    stacks = {stack.path: stack for stack in found.stacks}
    decoder = stacks["decoder.layers"]
    assert decoder.count == 24
    assert round(decoder.parameters / 1e6) == 1510
    told = lines(found)
    assert sum(len(kind.blocks) * t.each for kind in decoder.kinds for t in kind.tensors) == 456
    times = told["decoder.layers", "time embedding"]
    assert (times.tensors, round(times.parameters / 1e6, 1)) == (12, 59.8)
    assert told["tokenizer.pooler.layers", "codebook"].parameters == pytest.approx(24e3, rel=0.12)
    known = facts(found)
    assert known["time embedding decoder.time_embed"].value == "256 → 2,048, 2,048 → 2,048, 2,048 → 12,288"
    assert known["equal modules"].value == "decoder.time_embed and decoder.time_embed_r"
    assert known["scalar quantizer tokenizer.quantizer"].value == "2,048 → 6 → 2,048"
    assert known["levels of the quantizer"].value == "8 x 8 x 8 x 5 x 5 x 5 = 64,000 codes"
    assert known["down-sampling"].value == "1,920: 48,000 Hz / 1,920 = 25 Hz"
    assert known["experts"].value == "8 configured, absent"
    convolution = known["convolution decoder.proj_in"]
    assert convolution.value == "kernel 2, 2,048 and 192 channels"
    assert convolution.why == "stride: config.json says patch_size 2"
    assert known["projector encoder.text_projector"].value == "1,024 → 2,048"
    assert known["learned vector encoder.special_token"].value == 2048
    (memory,) = [f for k in decoder.kinds for f in k.facts if f.what == "width of what is attended to"]
    assert memory.value == 2048


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("self_attn.q_norm.weight", (64,), "norm"),
        ("attn.q_proj.bias", (64,), "attention"),
        ("scale_shift_table", (1, 6, 64), "modulation"),
        ("conv.weight", (64, 64, 3), "convolution"),
        ("mlp.experts.gate_up_proj", (8, 64, 32), "MLP"),
        ("mixer.conv1d.weight", (64, 1, 4), "mixer"),
        ("what_is_this", (3, 5), "other"),
    ],
)
def test_kinds_inside_a_block(name, shape, kind):
    assert kind_in_block(name, shape) == kind


@pytest.mark.parametrize(
    ("name", "shape", "use", "kind"),
    [
        ("time_embed.linear_1.weight", (8, 4), "token table", "time embedding"),
        ("model.embed_tokens.weight", (99, 4), "token table", "embedding"),
        ("sometimes.weight", (8, 4), "other", "other"),
        ("vq.codes", (8, 4), "other", "codebook"),
        ("patch.weight", (8, 3, 2, 2), "other", "convolution"),
        ("mask_token", (1, 1, 8), "other", "other"),
    ],
)
def test_kinds_outside_the_blocks(name, shape, use, kind):
    assert kind_outside(name, shape, use) == kind


def test_ranges_of_a_tokenizer():
    held = {f"<|semantic:{n}|>": 100 + n for n in range(20)} | {"a": 0, "b": 1, "c": 3}
    added = [{"id": 120, "content": "<end>", "special": True}, {"id": 3, "content": "c", "special": False}]
    found = {
        f.what: f.value
        for f in token_facts({"model": {"vocab": held}, "added_tokens": added}, {"table": 128})
    }
    assert found == {
        "ordinary tokens": "22: 0 to 1, 100 to 119",
        "special tokens": "1: 120",
        "added tokens": "1: 3",
        "numbered tokens": "20: <|semantic:0|> to <|semantic:19|>, ids 100 to 119",
        "rows of table beyond the tokenizer": "7 of 128",
    }
    assert token_facts({"model": {"vocab": [["a", 0.0], ["b", -1.0]]}}, {})[0].value == "2: 0 to 1"
    assert token_facts({"model": 3}, {}) == token_facts(None, {"table": 4}) == ()
    assert ranges([9, 1, 3, 5, 7]) == "5 ranges between 1 and 9"


def test_numbers_out_of_order_are_no_run():
    held = {f"x{n}": place for place, n in enumerate([*range(15), 99, *range(16, 30)])}
    found = token_facts({"model": {"vocab": held}}, {})
    assert [fact.what for fact in found] == ["ordinary tokens"]


class Planted:
    """A pickle that would write a file where it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_by_its_shapes(tmp_path):
    """Every shape and type as torch itself has them, and what is planted in it does not run."""
    held = {
        "generator": {"conv.weight": torch.zeros(4, 3, 2), "half": torch.zeros(5, dtype=torch.bfloat16)},
        "list": [torch.zeros(2, 2, dtype=torch.int64)],
        "parameter": torch.nn.Parameter(torch.zeros(7)),
        "planted": Planted(tmp_path / "written"),
        "step": 3,
    }
    torch.save(held, tmp_path / "codec.pth")
    found = pickle_entries(tmp_path / "codec.pth")
    assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
        "generator.conv.weight": ((4, 3, 2), "F32"), "generator.half": ((5,), "BF16"),
        "list.0": ((2, 2), "I64"), "parameter": ((7,), "F32"),
    }  # fmt: skip
    assert not (tmp_path / "written").exists()
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert len(dissect(str(tmp_path))) == 1
    _, codec = dissect(str(tmp_path), pickle_shapes=True)
    assert (codec.name, codec.parameters) == ("codec.pth", 24 + 5 + 7)
    assert sum(line.bytes for line in codec.census) == 4 * 24 + 2 * 5 + 8 * 4 + 4 * 7


def test_pickles_that_cannot_be_told(tmp_path):
    def refused(data, words):
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            pickle_entries(tmp_path / "x.pth")

    def archive(name, data):
        with zipfile.ZipFile(tmp_path / "y", "w") as opened:
            opened.writestr(name, data)
        return (tmp_path / "y").read_bytes()

    refused(pickle.dumps({"a": 1}), "no whole archive")
    refused(archive("x/other", b""), "no data.pkl")
    refused(archive("x/data.pkl", pickle.dumps({"a": [1, 2]})[:-3]), "damaged")
    refused(archive("x/data.pkl", pickle.dumps({"a": 1})), "names no tensor")
    with pytest.raises(CheckpointError, match="no folder here"):
        dissect("specimen:gpt2", pickle_shapes=True)


def test_what_the_command_prints(tmp_path, capsys):
    """The lines' sum, shares of a part, and what can be done about a pickle."""
    header_file(tmp_path / "model.safetensors", dual_autoregressive())
    torch.save({"w": torch.zeros(3)}, tmp_path / "codec.pth")
    found = inspect_headers(str(tmp_path), pickle_shapes=True)
    print_anatomy("speech", found, Console())
    text = capsys.readouterr().out
    slow = next(line.split() for line in text.splitlines() if line.startswith("text_model.model.layers  MLP"))
    assert slow[-2:] == ["59.0%", "66.7%"]
    assert "sum                                 358      4,561,852,416  9,123,704,832  100.0%" in text
    assert "a pickle, not read; --pickle-shapes tells" in text
    assert "codec.pth: 12 bytes" in text


def test_spectra_of_a_folder_without_a_configuration(tmp_path):
    """Every matrix of two lists of blocks and outside them, as numpy finds them."""
    torch.manual_seed(0)
    held = {"decoder.norm.weight": torch.ones(16), "decoder.embed.weight": torch.randn(40, 16) + 0.5}
    for path, count in (("decoder.layers", 3), ("side.layers", 2)):
        for i in range(count):
            held[f"{path}.{i}.attention.wqkv.weight"] = torch.randn(48, 16)
            held[f"{path}.{i}.attention.wo.weight"] = torch.randn(16, 16)
            held[f"{path}.{i}.feed_forward.w2.weight"] = torch.randn(16, 24)
    save_file(held, tmp_path / "model.safetensors")
    data = run_experiment(experiments()["spectra"], open_weights(tmp_path), outside=True)
    assert sorted(data.tensor.values) == sorted(name for name in held if held[name].dim() == 2)
    for place, name in enumerate(data.tensor.values):
        values = held[name].double().numpy()
        sigma = np.linalg.svd(values, compute_uv=False)
        share = sigma / sigma.sum()
        wanted = {
            "entropy_rank": np.exp(-(share * np.log(share)).sum()), "top1_share": share[0],
            "norm_over_spectral": np.linalg.norm(values) / sigma[0], "frobenius_norm": np.linalg.norm(values),
            "weight_mean": values.mean(), "weight_std": values.std(),
        }  # fmt: skip
        for what, value in wanted.items():
            assert float(data[what][place]) == pytest.approx(value, rel=1e-5, abs=1e-8), (name, what)
    assert {"0", "1", "2", "side.layers.0", "side.layers.1"} == set(data.block.values)
    assert "no config.json" in data.attrs["notes"]
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(tmp_path)


def test_what_is_too_large_or_too_deep_in_a_pickle(tmp_path, monkeypatch):
    held = {"w": torch.zeros(2)}
    for _ in range(pickle_shapes.DEEPEST + 1):
        held = {"in": held}
    torch.save(held, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match="names no tensor"):
        pickle_entries(tmp_path / "deep.pth")
    torch.save(held["in"]["in"], tmp_path / "fits.pth")
    assert len(pickle_entries(tmp_path / "fits.pth")) == 1
    monkeypatch.setattr(pickle_shapes, "LARGEST_JSON", 10)
    with pytest.raises(CheckpointError, match="larger than any list"):
        pickle_entries(tmp_path / "fits.pth")


def test_what_is_no_scalar_quantizer_and_no_equal_module(tmp_path):
    """Too many channels, one tensor alone, other shapes: each says nothing."""
    tensors = {"vq.a.weight": (33, 64), "vq.b.weight": (64, 33), "x.w": (9, 9), "y.w": (9, 9),
               "m.w": (9, 9), "m.v": (9,), "n.w": (9, 9), "n.v": (8,)}  # fmt: skip
    header_file(tmp_path / "model.safetensors", tensors)
    (found,) = dissect(str(tmp_path))
    assert not [f for f in found.facts if f.what.startswith(("scalar quantizer", "equal modules"))]


def test_sections_of_a_configuration_are_looked_into_six_deep():
    """A window seven sections down is no setting of a model; six down it is claimed."""

    def nested(depth):
        config = {"sliding_window": 128}
        for number in range(depth, 0, -1):
            config = {f"part{number}": config}
        return [fact.what for fact in claims(config, {}, False) if "window" in fact.what]

    assert len(nested(6)) == 1
    assert nested(7) == []


def test_a_tokenizer_is_read_in_a_folder_and_not_fetched_from_a_hub(tmp_path, monkeypatch):
    """Megabytes for a page of ranges: of a hub's repository headers and settings alone are asked for."""
    header_file(tmp_path / "model.safetensors", {"embed.weight": (8, 4)})
    told = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    local = headers._local(str(tmp_path))
    assert local is not None
    asked = []

    def counted(name):
        asked.append(name)
        return local.json(name)

    away = headers._Store("owner/name", local.sizes, local.header, counted, local=False)
    monkeypatch.setattr(headers, "_remote", lambda source: away)
    (here,), (there,) = headers.read_headers(str(tmp_path)), headers.read_headers("owner/name")
    assert here.tokenizer == told
    assert there.tokenizer is None
    assert asked == []
