"""Guards of work and of folders: a block corrected in a row runs once and again when another came between,
and a folder that is full is refused before anything is done."""

from __future__ import annotations

import pytest
import torch
import xarray as xr

import regraft
from regraft.core.files import RunFolderError
from regraft.export import route_model
from regraft.export.route_model import route_of, save_blocks
from regraft.model.recording import Recording
from regraft.reporting import build as building
from regraft.sweeps.routes import Route
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Variant, Zero
from small import METRIC, opened, recorded, reference


@pytest.fixture
def swept(monkeypatch):
    """Sweeps variants; gives the result and the blocks that were read for corrections, in order."""

    def run(recording, variants):
        read, real = [], Recording.read_all

        def counted(self, block, taps):
            read.append(block)
            return real(self, block, taps)

        sweep(recording, variants, METRIC)  # the proof of the columns reads the block, once for a recording
        with monkeypatch.context() as counting:
            counting.setattr(Recording, "read_all", counted)
            result = sweep(recording, variants, METRIC)
        assert result.work.preparation == len(read) * recording.prompts * recording.positions
        assert torch.allclose(result.values["d"], reference(recording.model, recording, variants), atol=1e-5)
        return result, read

    return run


@pytest.mark.parametrize(
    ("name", "sites"),
    [("llama", ["1.neuron.0", "1.mlp_out"]), ("gpt_neox", ["1.neuron.0", "1.mlp_out", "1.z", "1.attn_out"])],
)
def test_a_block_that_is_corrected_in_several_ways_in_a_row_is_read_once(name, sites, swept):
    _, read = swept(recorded(opened(name), 7, 5), [Variant([Zero(site)]) for site in sites])
    assert read == [1]


def test_a_block_that_is_read_again_after_another_is_counted_again(swept):
    """Rows behind a skipped block are corrected where those of the block itself are, a batch later."""
    model = opened("llama")
    plain = [Variant([Zero(f"1.neuron.{n}")]) for n in range(3)]
    later, skipping = Variant([Zero("2.neuron.0")]), Variant([Zero("1.neuron.5")], Route.skip(4, {2}))
    _, read = swept(recorded(model, 7, 5), [*plain, later, skipping])
    assert read == [1, 2, 1]


def test_blocks_are_not_copied_for_a_folder_that_is_full(monkeypatch, tmp_path):
    model, copied, real = opened("llama"), [], route_model.rebuilt
    monkeypatch.setattr(route_model, "rebuilt", lambda *given: copied.append(1) or real(*given))
    loss = ("state", [1.0, 1.0], {"units": "nats"})
    measured = xr.Dataset({"loss": loss}, attrs={"change": "changed"})
    blocks = list(model.parts.stacks[-1].blocks)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "note.txt").write_text("mine")
    how = (model, blocks, route_of(model, blocks, range(4)), measured)
    with pytest.raises(RunFolderError, match="is not empty: choose another with --save"):
        save_blocks(*how, str(tmp_path / "made"))
    assert copied == []
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "note.txt"]
    assert "gives the route's logits" in save_blocks(*how, str(tmp_path / "new"))
    assert copied == [1]


def test_a_report_is_not_begun_in_a_folder_of_another(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "CHAPTERS", (("spectra", {}),))
    model, begun = opened("gpt2"), []
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("dear")

    def report(of, out):
        return regraft.report(of, out, chapter=lambda name, done, total: begun.append(name))

    with pytest.raises(RunFolderError, match="is not empty and is no run of regraft"):
        report(model, letters)
    assert begun == []
    assert [path.name for path in letters.iterdir()] == ["dear.txt"]
    page, missing = report(model, tmp_path / "report")
    assert missing == []
    assert report(model, tmp_path / "report")[0] == page, "its own is written anew"
    written, count = page.read_bytes(), len(begun)
    with pytest.raises(RunFolderError, match="holds a run of another model"):
        report(opened("gpt2", seed=2), tmp_path / "report")
    assert (page.read_bytes(), len(begun)) == (written, count)
