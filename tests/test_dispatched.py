"""Live models that accelerate dispatched: offloaded to memory or disk, all or half, the same numbers."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

from families import FAMILIES
from regraft import Route, Scale, Variant, Zero, load, loss, sweep
from regraft.core.registry import experiments
from regraft.experiments.running import run_experiment
from regraft.model.dispatched import taken_over
from small import ids
from stores import alike

CPU = torch.device("cpu")


def made(name):
    torch.manual_seed(1)
    return FAMILIES[name]().eval()


def in_part(hf, folder):
    """All blocks but the first on disk, hooks on everything."""
    blocks = [n for n, m in hf.named_modules() if n.rpartition(".")[2].isdigit() and n.count(".") <= 3]
    half = blocks[1:]
    rest = [n for n, m in hf.named_modules() if not list(m.children()) and not n.startswith(tuple(half))]
    owners = [n.rpartition(".")[0] for n, _ in hf.named_parameters() if not n.startswith(tuple(half))]
    places = {n: "cpu" for n in (*rest, *owners)} | {n: "disk" for n in half}
    return dispatch_model(hf, places, main_device="cpu", offload_dir=folder, force_hooks=True)


WAYS = {
    "memory": lambda hf, folder: cpu_offload(hf, CPU),
    "disk": lambda hf, folder: disk_offload(hf, folder, CPU),
    "part": in_part,
    "hooks alone": lambda hf, folder: dispatch_model(hf, {"": "cpu"}, force_hooks=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
def test_a_dispatched_model_opens_and_sweeps(name, way, tmp_path):
    plain, hf = load(made(name)), WAYS[way](made(name), tmp_path)
    model = load(hf)
    assert (model.streamed is None) == (way == "hooks alone")
    assert any("offloaded by accelerate" in note for note in model.notes) == (way != "hooks alone")
    variants = [
        Variant([Zero("1.mlp_out")]), Variant([Scale("0.attn_out", 0.5, 2)]),
        Variant(route=Route.skip(len(model.blocks), {1})), Variant(route=Route.swap(len(model.blocks), 0, 1)),
    ]  # fmt: skip
    wanted, found = (sweep(one.record([ids(7, 1), ids(4, 2)]), variants, loss()) for one in (plain, model))
    torch.testing.assert_close(found.values["loss"], wanted.values["loss"], atol=1e-5, rtol=1e-4)
    assert model.weights_sha256 == plain.weights_sha256
    tokens = torch.tensor([ids(6, 3)])
    with torch.no_grad():
        torch.testing.assert_close(hf(tokens).logits, plain.hf(tokens).logits, atol=1e-5, rtol=1e-4)
    again = load(hf)
    assert again.streamed is model.streamed, "opened once more, it is the same model"
    torch.testing.assert_close(again.record([ids(5, 4)])["logits"], plain.record([ids(5, 4)])["logits"])


@pytest.mark.parametrize("way", ["memory", "part"])
def test_blocks_that_were_elsewhere_leave_again(way, tmp_path):
    model = load(WAYS[way](made("llama"), tmp_path))
    model.record([ids(7, 1)])
    filled = [any(not p.is_meta for p in b.module.parameters() if p.dim() > 1) for b in model.blocks]
    assert sum(filled) <= (2 if way == "memory" else 3) < len(model.blocks)
    assert way == "memory" or filled[0], "what was in memory stays"
    assert model.streamed.bytes_read > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_linearity")
def test_experiments_of_a_dispatched_model(tmp_path):
    plain, model = load(made("llama")), load(disk_offload(made("llama"), tmp_path, CPU))
    for name, given in (("geometry", {}), ("linearity", {}), ("quantize", {"bits": [4]})):
        names = [p.name for p in experiments()[name].parameters]
        asked = {"prompts": ["3,4,5,6,7,8"], "tokens": 2} | given
        known = {key: value for key, value in asked.items() if key in names}
        wanted, found = (run_experiment(experiments()[name], one, **known) for one in (plain, model))
        for key in wanted.data_vars:
            if wanted[key].dtype.kind == "f":
                near = pytest.approx(wanted[key].values, rel=1e-3, abs=1e-4, nan_ok=True)
                assert found[key].values == near, (name, key)


def test_matrices_of_a_dispatched_model_are_read_where_they_are():
    plain, model = load(made("llama")), load(cpu_offload(made("llama"), CPU))
    wanted, found = (run_experiment(experiments()["spectra"], one) for one in (plain, model))
    alike(found, wanted)
    with pytest.raises(ValueError, match="shuffle compares the weights of all blocks, and this model is"):
        run_experiment(experiments()["shuffle"], model)


def test_several_devices_are_refused(tmp_path):
    hf = cpu_offload(made("llama"), CPU)
    hf.model.layers[1].mlp.up_proj._hf_hook.execution_device = 0
    with pytest.raises(ValueError, match="computes with this LlamaForCausalLM on cpu and cuda:0: dispatch"):
        load(hf)
    assert taken_over(made("llama")) is None
