"""Anatomy from headers alone: every family, checkpoints that nobody has code for, a hub by range requests, damage."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from families import FAMILIES
from regraft.model.dissect import component, dissect, numbered
from regraft.model.files import CheckpointError
from regraft.model.headers import Entry, Headers
from regraft.model.load import load, resolve
from regraft.model.shapes import section
from regraft.report.diagram import svg

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I64": 8, "I32": 4}


def header_file(path, tensors, dtype="BF16"):
    """A safetensors file with the right header and no data but a hole of the right length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end, header = 0, {}
    for name, shape in tensors.items():
        kind, shape = shape if isinstance(shape[0], str) else (dtype, shape)
        size = SIZES[kind]
        for n in shape:
            size *= n
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return path


def speech(dim=2560, codes=40_960):
    """The shape of a dual-autoregressive speech model: a slow stack of 36 blocks, a fast one of 4, packed wqkv."""

    def block(path, heads, groups, width, inner, norms):
        return {
            f"{path}.attention.wqkv.weight": ((heads + 2 * groups) * width, dim),
            f"{path}.attention.wo.weight": (dim, heads * width),
            **({f"{path}.attention.{n}_norm.weight": (width,) for n in "qk"} if norms else {}),
            f"{path}.feed_forward.w1.weight": (inner, dim),
            f"{path}.feed_forward.w3.weight": (inner, dim),
            f"{path}.feed_forward.w2.weight": (dim, inner),
            f"{path}.attention_norm.weight": (dim,),
            f"{path}.ffn_norm.weight": (dim,),
        }

    tensors = {"embeddings.weight": (155_776, dim), "codebook_embeddings.weight": (codes, dim), "norm.weight": (dim,)}
    for i in range(36):
        tensors |= block(f"layers.{i}", 32, 8, 128, 9728, norms=True)
    for i in range(4):
        tensors |= block(f"fast_layers.{i}", 32, 8, 128, 9728, norms=False)
    return tensors | {
        "fast_embeddings.weight": (4096, dim), "fast_norm.weight": (dim,), "fast_output.weight": (4096, dim),
    }  # fmt: skip


def write_diffusion(folder):
    """A diffusion transformer with modulation and cross-attention, and its text encoder in a folder beside."""
    tensors = {"x_embedder.proj.weight": (1536, 64, 2, 2), "x_embedder.proj.bias": (1536,), "time_embed.0.weight": (1536, 256)}
    tensors |= {"time_embed.2.weight": (1536, 1536), "proj_out.weight": (256, 1536), "norm_out.linear.weight": (3072, 1536)}
    for i in range(24):
        path = f"transformer_blocks.{i}"
        tensors |= {f"{path}.attn1.{n}.weight": (1536, 1536) for n in ("to_q", "to_k", "to_v", "to_out.0")}
        tensors |= {f"{path}.attn1.norm_{n}.weight": (64,) for n in "qk"}
        tensors |= {f"{path}.cross_attn.{n}.weight": (1536, 1536 if n == "to_q" else 1024) for n in ("to_q", "to_k", "to_v")}
        tensors |= {f"{path}.cross_attn.to_out.0.weight": (1536, 1536), f"{path}.adaln_modulation.1.weight": (9216, 1536)}
        tensors |= {f"{path}.ff.fc1.weight": (6144, 1536), f"{path}.ff.fc2.weight": (1536, 6144), f"{path}.norm1.weight": (1536,)}
    header_file(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors, "F16")
    text = {"shared.weight": (32_128, 1024), "encoder.final_layer_norm.weight": (1024,)}
    for i in range(12):
        path = f"encoder.block.{i}.layer"
        text |= {f"{path}.0.SelfAttention.{n}.weight": (1024, 1024) for n in "qkvo"} | {f"{path}.0.layer_norm.weight": (1024,)}
        text |= {f"{path}.1.DenseReluDense.{n}.weight": (2816, 1024) for n in ("wi_0", "wi_1")}
        text |= {f"{path}.1.DenseReluDense.wo.weight": (1024, 2816), f"{path}.1.layer_norm.weight": (1024,)}
        if i == 0:
            text[f"{path}.0.SelfAttention.relative_attention_bias.weight"] = (32, 16)
    header_file(folder / "text_encoder" / "model.safetensors", text, "F32")
    return folder


def facts_of(stack):
    """Facts by name over all kinds of blocks; what one kind knows wins over what another does not."""
    found = {fact.what: fact for fact in stack.facts}
    for kind in stack.kinds:
        for fact in kind.facts:
            if fact.what not in found or found[fact.what].how == "unknown":
                found[fact.what] = fact
    return found


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_from_headers_alone(name, with_config, tmp_path):
    torch.manual_seed(0)
    hf = FAMILIES[name]()
    config = hf.config
    hf.save_pretrained(tmp_path)
    if not with_config:
        (tmp_path / "config.json").unlink()
    (found,) = dissect(str(tmp_path))
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        held = sum(opened.get_tensor(key).numel() for key in opened.keys())  # noqa: SIM118
    assert found.parameters == held
    model = load(hf, pack=False)
    stacks = {stack.path.removeprefix(prefix): stack for stack in found.stacks for prefix in ("", hf.base_model_prefix + ".")}
    assert len(found.stacks) == len(model.parts.stacks)
    for stack in model.parts.stacks:
        ours = stacks.get(stack.path) or stacks[stack.path.removeprefix(hf.base_model_prefix + ".")]
        assert ours.count == len(stack.blocks)
        facts = facts_of(ours)
        assert facts["width"].value == model.width
        heads = facts.get("heads")
        if heads is not None and heads.how == "unknown":
            assert re.search(rf"\b{_heads(config)} of ", heads.why) or heads.why == "no shape tells"
        elif heads is not None:
            assert heads.value == _heads(config)
            assert facts["key/value heads"].value == (getattr(config, "num_key_value_heads", None) or _heads(config))
        if with_config and heads is not None:
            assert heads.how in ("certain", "inferred")
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        assert ("experts" in facts) == bool(experts)
        if experts:
            assert facts["experts"].value == experts
    head = next(fact for fact in found.facts if fact.what == "head")
    own = model.parts.head is not None and not model.parts.tied
    assert head.value.startswith("a matrix of its own") == own
    rows = [fact.value for fact in found.facts if fact.what.startswith("rows of")]
    assert model.parts.embedding.weight.shape[0] in rows
    assert len(found.odd) == 0


def _heads(config):
    for name in ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    raise AssertionError(config)


def test_a_speech_model_that_nobody_has_code_for(tmp_path):
    tensors = speech()
    header_file(tmp_path / "model.safetensors", tensors)
    (found,) = dissect(str(tmp_path))
    stacks = {stack.path: stack for stack in found.stacks}
    assert {path: stack.count for path, stack in stacks.items()} == {"layers": 36, "fast_layers": 4}
    slow, fast = facts_of(stacks["layers"]), facts_of(stacks["fast_layers"])
    assert (slow["width"].value, slow["width"].how) == (2560, "inferred")
    assert slow["attention"].value == "packed q, k, v: 4,096 + 1,024 + 1,024 rows"
    assert [slow[what].value for what in ("heads", "width of a head", "key/value heads")] == [32, 128, 8]
    assert slow["heads"].how == "inferred"
    assert fast["heads"].how == "unknown", "nothing in the fast stack tells one head from another"
    assert "32 of 128" in fast["heads"].why
    assert slow["neurons"].value == 9728
    assert slow["MLP"].value == "gated"
    rows = {fact.what: fact.value for fact in found.facts}
    assert rows["rows of codebook_embeddings.weight"] == 40_960
    assert found.parameters == sum(a * (b[0] if b else 1) for a, *b in tensors.values())
    drawn = svg("speech", [found])
    for words in ("36 x layers", "4 x fast_layers", "codebook_embeddings.weight   40,960 x 2,560", "fast_output.weight"):
        assert words in drawn
    assert drawn.index("36 x layers") < drawn.index("4 x fast_layers")
    assert drawn.count("<rect") == 1 + 7, "tables, blocks, norm for the slow stack; tables, blocks, norm, head for the fast one"


def test_a_diffusion_transformer_with_its_text_encoder(tmp_path):
    text, picture = dissect(str(write_diffusion(tmp_path)))
    assert [text.name, picture.name] == ["text_encoder", "transformer"]
    (blocks,) = picture.stacks
    facts = facts_of(blocks)
    assert blocks.count == 24
    assert (facts["width"].value, facts["heads"].value, facts["width of a head"].value) == (1536, 24, 64)
    assert "modulation" in facts
    assert "cross-attention" in facts
    assert picture.dtypes == {"F16": picture.parameters}
    facts = facts_of(text.stacks[0])
    assert (text.stacks[0].count, facts["width"].value, facts["heads"].value, facts["MLP"].value) == (12, 1024, 16, "gated")


def test_experts_gaps_and_odd_tensors_are_told():
    shapes = {f"blocks.{i}.{n}.weight": (8, 8) for i in range(10) if i != 4 for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    shapes |= {f"blocks.{i}.experts.{e}.w2.weight": (8, 24) for i in range(10) if i != 4 for e in range(3)}
    shapes |= {"blocks.7.extra.weight": (8, 8), "embed.weight": (50, 8), "nothing": (0, 8), "head.0.weight": (8, 8)}
    shapes |= {"head.2.weight": (3, 8)}
    entries = {name: Entry(name, "F32", shape, "a") for name, shape in shapes.items()}
    found = component(Headers("", entries, None))
    (stack,) = found.stacks
    assert stack.count == 9
    assert facts_of(stack)["experts"].value == 3
    said = " | ".join(found.odd)
    assert "blocks has no block 4, though there is a block 9" in said
    assert "blocks.7 differs from most blocks of its list in extra.weight" in said
    assert "nothing is empty, 0 x 8" in said
    lists, rest = numbered([Entry(f"head.{i}.weight", "F32", (8, 8), "a") for i in (0, 2)])
    assert not lists
    assert len(rest) == 2


def test_what_a_config_says_against_the_shapes_is_not_believed(tmp_path):
    FAMILIES["llama"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3, "hidden_size": 64}))
    (found,) = dissect(str(tmp_path))
    facts = facts_of(found.stacks[0])
    assert facts["heads"].how == "unknown"
    assert "config.json says 3 with 2 key/value heads, which the shapes cannot have" in facts["heads"].why
    assert (facts["width"].value, facts["width"].how) == (32, "inferred")
    assert "config.json says 64, which no shape bears out" in facts["width"].why


def test_a_config_of_several_models_speaks_of_each_stack_by_its_own_section(tmp_path):
    """A picture model of 12 heads beside a text model of 8, both of which the shapes allow; encoder and decoder likewise."""
    tensors = {"text_model.embeddings.token_embedding.weight": (500, 512), "vision_model.embeddings.class_embedding": (768,)}
    for side, width in (("text_model", 512), ("vision_model", 768)):
        for i in range(3):
            path = f"{side}.encoder.layers.{i}"
            tensors |= {f"{path}.self_attn.{n}_proj.weight": (width, width) for n in ("q", "k", "v", "out")}
            tensors |= {f"{path}.mlp.fc1.weight": (4 * width, width), f"{path}.mlp.fc2.weight": (width, 4 * width)}
            tensors |= {f"{path}.layer_norm1.weight": (width,), f"{path}.layer_norm2.weight": (width,)}
    header_file(tmp_path / "model.safetensors", tensors)
    sections = {"text_config": {"num_attention_heads": 8}, "vision_config": {"num_attention_heads": 12}}
    (tmp_path / "config.json").write_text(json.dumps(sections))
    (found,) = dissect(str(tmp_path))
    told = {stack.path.split(".")[0]: facts_of(stack) for stack in found.stacks}
    assert (told["text_model"]["heads"].value, told["vision_model"]["heads"].value) == (8, 12)
    assert told["vision_model"]["heads"].how == "inferred", "the shapes allow it, they do not say it"
    sides = {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "d_model": 32}
    assert section(sides, "model.decoder.layers")["num_attention_heads"] == 2
    assert section(sides, "model.encoder.layers")["num_attention_heads"] == 4
    assert section({"text_config": "x"}, "layers") == {"text_config": "x"}


def test_adapters_and_single_rows_are_no_widths_and_no_tables(tmp_path):
    tensors = {}
    for i in range(3):
        path = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors |= {f"{path}.lora_A.weight": (16, 4096), f"{path}.lora_B.weight": (4096, 16)}
    header_file(tmp_path / "adapter_model.safetensors", tensors)
    (found,) = dissect(str(tmp_path))
    assert all(fact.what != "width" for stack in found.stacks for kind in stack.kinds for fact in kind.facts)
    entries = {"embeddings.mask_token": Entry("embeddings.mask_token", "F32", (1, 64), "a")}
    assert [o.use for o in component(Headers("", entries, None)).outside] == ["other"]


# damage -------------------------------------------------------------------------------------------------------------


def sharded(folder, drop=""):
    tensors = {f"layers.{i}.attn.q_proj.weight": (8, 8) for i in range(4)} | {"embed.weight": (9, 8)}
    names = list(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, some in parts.items():
        header_file(folder / file, {name: tensors[name] for name in some if name != drop})
    weight_map = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        dissect(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_checkpoints_are_refused_with_a_sentence(tmp_path):
    folder = sharded(tmp_path / "missing")
    (folder / "b.safetensors").unlink()
    assert "lacks 1 of its 2 shards: b.safetensors" in refused(folder)
    assert "names embed.weight (and 0 more), which no shard holds" in refused(sharded(tmp_path / "lost", "embed.weight"))
    good = header_file(tmp_path / "good" / "model.safetensors", {"a": (4, 4), "b": (4,)}).read_bytes()

    def broken(name, data):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
        return refused(tmp_path / name)

    assert "header length does not fit" in broken("cut", good[:40])
    assert "header length does not fit" in broken("absurd", struct.pack("<Q", 2**63 - 1) + good[8:])
    assert "header length does not fit" in broken("empty", b"")
    nested = b"[" * 100_000
    assert "its header cannot be read" in broken("deep", struct.pack("<Q", len(nested)) + nested)
    overlapping = good.replace(b'"data_offsets": [32, 40]', b'"data_offsets": [30, 38]')
    assert overlapping != good
    assert "tensor b does not lie where its shape says" in broken("overlap", overlapping)
    assert "is cut short" in broken("short", good[:-4])
    assert "holds no safetensors file" in refused(_made(tmp_path / "none"))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    assert "only as a pickle (pytorch_model.bin)" in refused(tmp_path / "pickled")
    assert "is not a folder" in refused(tmp_path / "no" / "such" / "place")
    listed = good.replace(b'"dtype": "BF16"', b'"dtype": ["F32"]', 1)
    assert "its entry for tensor a cannot be read" in broken(
        "listed", struct.pack("<Q", len(listed) - len(good) + struct.unpack("<Q", good[:8])[0]) + listed[8:]
    )
    digits = b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    assert "its header cannot be read" in broken("digits", struct.pack("<Q", len(digits)) + digits + b"1234")
    strange = header_file(tmp_path / "strange" / "m.safetensors", {"layers.².q": (4, 4), "bad\ud800name": (4,)})
    assert strange.is_file()
    (found,) = dissect(str(tmp_path / "strange"))
    assert svg("strange", [found]).encode()
    (tmp_path / "strange" / "config.json").write_text("[1]")
    assert "config.json of" in refused(tmp_path / "strange")
    _made(tmp_path / "bad")
    header_file(tmp_path / "bad" / "m.safetensors", {"a": (4, 4)})
    (tmp_path / "bad" / "config.json").write_text("{")
    assert "config.json is damaged" in refused(tmp_path / "bad")


def _made(folder):
    folder.mkdir()
    return folder


def test_an_absurd_header_is_not_read_into_memory(tmp_path):
    """A file that says its header is 60 GB long, and is as long: refused by the bound, not by the memory."""
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 60_000_000_000))
        stream.truncate(60_000_000_100)
    assert "header length does not fit" in refused(tmp_path)


# a hub --------------------------------------------------------------------------------------------------------------


class RangeHub(BaseHTTPRequestHandler):
    """Answers as the hub does for one repository, and counts the bytes of weight files that it sends."""

    folder: Path
    sent = 0
    ranges = True

    def do_GET(self) -> None:
        files = sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())
        if self.path.startswith("/api/models/owner/speech"):
            tree = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "b" * 40} for n in files]
            return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        name = self.path.partition("/resolve/main/")[2]
        if not self.path.startswith("/owner/speech/resolve/main/") or name not in files:
            return self.answer(404, b"", {})
        file, size = self.folder / name, (self.folder / name).stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not self.ranges or asked is None:
            return self.answer(200, b"x" * 10, {})
        start, stop = int(asked[1]), min(int(asked[2]) + 1, size)
        with file.open("rb") as stream:
            stream.seek(start)
            body = stream.read(stop - start)
        type(self).sent += len(body) * name.endswith(".safetensors")
        return self.answer(206, body, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def range_hub(tmp_path):
    folder = tmp_path / "repository"
    header_file(folder / "model.safetensors", speech())
    (folder / "config.json").write_text('{"model_type": "nobody_knows"}')
    handler = type("Handler", (RangeHub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def inspected(hub, *words):
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", "from regraft.cli import main; main()", "inspect", *words, "--weights-only"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_hub_is_asked_for_headers_only(range_hub, tmp_path):
    endpoint, handler = range_hub
    done = inspected(endpoint, "owner/speech", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["components"]
    assert {stack["path"]: stack["count"] for stack in found["stacks"]} == {"layers": 36, "fast_layers": 4}
    assert found["bytes"] > 8_000_000_000
    assert handler.sent < 200_000, "of nine gigabytes, the header alone"
    again = inspected(endpoint, "owner/speech", "--out", str(tmp_path / "drawn"))
    assert again.returncode == 0
    assert (tmp_path / "drawn" / "anatomy.svg").read_text().startswith("<svg")
    assert "fast_layers: blocks" in again.stdout


def test_a_hub_that_sends_no_ranges_or_knows_nothing_is_refused(range_hub):
    endpoint, handler = range_hub
    unknown = inspected(endpoint, "owner/other")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("regraft: owner/other is neither a folder here nor a repository that the hub shows us")
    assert unknown.stderr.count("\n") == 1
    handler.ranges = False
    whole = inspected(endpoint, "owner/speech")
    assert whole.returncode == 1
    assert "the hub does not send a part of" in whole.stderr


def test_the_drawing_of_a_specimen_and_its_refusals(tmp_path):
    from typer.testing import CliRunner

    from regraft.cli import app

    run = CliRunner().invoke
    done = run(app, ["inspect", "specimen:qwen3", "--weights-only", "--out", str(tmp_path / "drawn")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "drawn" / "anatomy.json").read_text())["components"][0]["parameters"] == 6_297_024
    again = run(app, ["inspect", "specimen:qwen3", "--weights-only", "--out", str(tmp_path / "drawn")])
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert run(app, ["inspect", "specimen:qwen3", "--out", str(tmp_path / "x")]).exit_code == 2
    assert resolve("specimen:qwen3")[1] == "specimen:qwen3"
