"""Files that are streamed: shards, damage, what is missing, what is no number."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from families import FAMILIES
from regraft.checkpoint.locate import CheckpointError
from regraft.cli.main import app, prepared
from regraft.model import streamed
from regraft.model.load import load
from regraft.streaming import shards
from regraft.sweeps.metrics import loss
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Zero
from small import ids
from streamed_models import PLENTY, bare, least, near, saved

__all__ = ["bare"]


def test_shards_of_an_index_are_read(tmp_path):
    folder = saved(tmp_path, "llama", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    whole, model = load(folder, pack=False), least(folder)
    near(model.record([ids(6, 1)])["logits"], whole.record([ids(6, 1)])["logits"])


def test_damaged_files_are_named_before_any_work(tmp_path):
    folder = saved(tmp_path / "m", "llama", max_shard_size="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    kept = shards[2].read_bytes()
    shards[2].write_bytes(kept[:-100])
    with pytest.raises(CheckpointError, match=rf"{shards[2].name} is cut short"):
        load(folder, stream=True)
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of its \d+ shards: {shards[2].name}"):
        load(folder, stream=True)
    pickled = tmp_path / "p"
    pickled.mkdir()
    shutil.copy(folder / "config.json", pickled)
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds its weights only as a pickle"):
        load(pickled, stream=True)
    with pytest.raises(ValueError, match="a live model is in memory already"):
        load(FAMILIES["llama"](), stream=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.layers.2.mlp.up_proj.weight"), r"lack model\.layers\.2\.mlp\.up_proj"),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")), "hold NaN .*layers.1.mlp"),
        (lambda t: t["model.norm.weight"].fill_(float("inf")), "infinite values, first in model.norm.weight"),
        (lambda t: t.pop("model.norm.weight"), r"the files lack model\.norm\.weight"),
        (lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(3)}), "does not call for"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(3, 5)}),
            r"shapes of .*layers\.1\.mlp\.up_proj",
        ),
    ],
)
def test_tensors_that_do_not_make_the_model_are_refused(change, said, tmp_path):
    file = saved(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        least(tmp_path)


def test_files_that_were_written_anew_are_noticed(tmp_path):
    model = least(saved(tmp_path, "llama"))
    recording = model.record([ids(5, 1)])
    os.utime(tmp_path / "model.safetensors", (1, 1))
    with pytest.raises(ValueError, match="have changed since this recording was made"):
        sweep(recording, Zero("1.mlp_out"), loss())


def test_the_command_line_streams(tmp_path):
    words = ["knockout", "--model", "specimen:gpt2", "--prompts", "14 + 43 =", "--tokens", "4", "--json"]
    done = CliRunner().invoke(app, prepared([*words, "--stream", "--memory", "10GiB"]))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "read from disk once" in told["attrs"]["opened"]
    for memory, said in (("1MiB", "are left for weights: allow"), ("much", "is no size of memory")):
        done = CliRunner().invoke(app, prepared([*words, "--stream", "--memory", memory]))
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.split())


def test_without_a_limit_a_share_of_what_is_free_is_taken(tmp_path, monkeypatch):
    folder = saved(tmp_path, "llama")
    sizes = load(folder, stream=True, memory=PLENTY).streamed.sizes
    enough = int(sizes.whole / streamed.SHARE) + 2
    monkeypatch.setattr(streamed, "free_now", lambda device: enough)
    assert load(folder, stream=True).streamed.store.all_stay
    monkeypatch.setattr(streamed, "free_now", lambda device: enough - 8)
    assert not load(folder, stream=True).streamed.store.all_stay


def test_what_cannot_be_streamed_is_refused(tmp_path, monkeypatch):
    folder = saved(tmp_path, "llama")
    with monkeypatch.context() as other:
        other.delitem(shards.TYPES, "F32")
        with pytest.raises(CheckpointError, match=r"as F32, which cannot be streamed"):
            load(folder, stream=True)
    found = streamed._units
    monkeypatch.setattr(streamed, "_units", lambda *words: found(*words)[::-1])
    with pytest.raises(ValueError, match="lists of modules beside its blocks, or in another order"):
        load(folder, stream=True)


def test_large_tensors_are_the_files_own_pages(tmp_path, monkeypatch):
    """Nothing is copied where it need not be; a write stays with the tensor; what cannot be mapped is
    copied."""
    torch.manual_seed(0)
    tensors = {name: torch.randn(600, 600) for name in ("a", "b")} | {"odd": torch.ones(3, dtype=torch.int8)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    before = (tmp_path / "model.safetensors").read_bytes()
    copied, real = [], shards.Shards._into
    monkeypatch.setattr(
        shards.Shards, "_into", lambda self, *words: copied.append(words[1]) or real(self, *words)
    )
    opened_shards = shards.Shards(tmp_path)
    found = {name: opened_shards.read(name) for name in tensors}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [place.shape for place in copied] == [(3,)]
    assert opened_shards.bytes_read == sum(t.numel() * t.element_size() for t in tensors.values())
    monkeypatch.setattr(shards, "POPULATE_READ", 12345)
    assert torch.equal(opened_shards.read("b"), tensors["b"]), "on a kernel that does not know the advice"
    found["a"].add_(1)
    assert torch.equal(opened_shards.read("a"), tensors["a"])
    assert (tmp_path / "model.safetensors").read_bytes() == before
    opened_shards.pages.pinned = True
    monkeypatch.setattr("regraft.streaming.pages.pin", lambda address, size: None)
    monkeypatch.setattr("regraft.streaming.pages.unpin", lambda address: None)
    assert torch.equal(opened_shards.read("b"), tensors["b"])
    assert len(copied) == 2, "for a card they are copied into pages that it reads by itself"
