"""Spectra: known spectra, files against live models, packed against separate, one matrix at a time."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from families import FAMILIES
from regraft.cli.main import app
from regraft.core.registry import experiments
from regraft.experiments.observe.spectra import singular_values, spectra
from regraft.experiments.observe.spectrum_measures import measures, power_law
from regraft.experiments.running import run_experiment
from regraft.model import weights as weights_module
from regraft.model.load import load
from regraft.model.packed import layouts_from_config, layouts_of
from regraft.model.weights import Weights, live_weights, open_weights
from small import opened

SEVEN = ["q", "k", "v", "o", "gate", "up", "down"]


def held(tensors):
    """Weights planted by hand."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    read = lambda name, expert: tensors[name] if tensors[name].dim() == 2 else tensors[name][expert]  # noqa: E731
    return Weights(
        "planted", "planted", shapes, read, lambda: ({}, ""), lambda: "0", torch.device("cpu"), "float32"
    )


def with_spectrum(sigma, rows, columns):
    torch.manual_seed(0)
    u = torch.linalg.qr(torch.randn(rows, len(sigma)).double()).Q
    v = torch.linalg.qr(torch.randn(columns, len(sigma)).double()).Q
    return u @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ v.t()


def test_known_spectra_have_their_measures():
    flat = measures(np.ones(16))
    assert [flat[name] for name in ("effective_rank", "entropy_rank", "stable_rank")] == pytest.approx(
        [16, 16, 16]
    )
    assert flat["energy_8"] == pytest.approx(0.5)
    assert flat["energy_128"] == pytest.approx(1.0)
    two = measures(np.array([2.0, 1.0, 0.0, 0.0]))
    assert two["effective_rank"] == pytest.approx(25 / 17)
    assert two["effective_rank_ratio"] == pytest.approx(25 / 17 / 4)
    assert two["stable_rank"] == pytest.approx(1.25)
    p = np.array([2 / 3, 1 / 3])
    assert two["entropy_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert two["condition"] == float("inf")
    assert measures(np.array([6.0, 3.0]))["condition"] == pytest.approx(2.0)
    assert all(np.isnan(v) for v in measures(np.zeros(4)).values())


def test_the_power_law_of_a_power_law_is_its_exponent():
    exponent, fit = power_law(np.arange(1, 200.0) ** -0.7)
    assert exponent == pytest.approx(0.7)
    assert fit == pytest.approx(1.0)
    tail = np.concatenate([np.arange(1, 51.0) ** -0.7, np.full(150, 1e-3)])
    assert power_law(tail)[0] == pytest.approx(0.7), "the tail does not count"
    assert power_law(np.exp(-np.arange(200) / 20.0))[1] < 0.95


def test_singular_values_keep_the_smallest():
    sigma = [3.0, 1.0, 1e-3, 1e-9]
    for shape in ((4, 9), (9, 4)):
        assert np.allclose(
            singular_values(with_spectrum(sigma, *shape)).numpy(), sigma, rtol=1e-5, atol=1e-15
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_what_the_loaded_model_gives(name, tmp_path):
    model = opened(name)
    live = spectra(live_weights(model))
    model.hf.save_pretrained(tmp_path)
    stored = spectra(open_weights(tmp_path))

    def rows(d):
        keys = zip(
            d.matrix_block.values,
            d.matrix_role.values,
            d.expert.values,
            range(d.sizes["matrix"]),
            strict=True,
        )
        return sorted((block, role, int(expert), row) for block, role, expert, row in keys)

    assert [r[:3] for r in rows(live)] == [r[:3] for r in rows(stored)]
    for mine, theirs in zip(rows(live), rows(stored), strict=True):
        a, b = live.singular_values.values[mine[3]], stored.singular_values.values[theirs[3]]
        size = min(live["rows"].values[mine[3]], live["columns"].values[mine[3]])
        assert np.abs(a[:size] - b[:size]).max() <= 1e-5 * b[0], mine
    if name not in ("mamba2",):
        assert {"q", "k", "v", "o"} <= set(live.role.values)
        assert "qkv" not in live.role.values
        assert "gate_up" not in live.role.values
        assert set(live.block.values) == {block.address for block in model.blocks}


def test_all_seven_roles_of_every_block_of_the_specimen():
    found = run_experiment(experiments()["spectra"], open_weights("specimen:qwen3"))
    assert list(found.role.values) == SEVEN
    assert np.isfinite(found.rank_ratio.values).all()
    assert found.sizes["matrix"] == 7 * found.sizes["block"] == 84
    model = load()
    for role, leaf in (("q", "self_attn.q_proj"), ("down", "mlp.down_proj")):
        weight = model.blocks[3].module.get_submodule(leaf).weight.detach().double()
        sigma = np.linalg.svd(weight.numpy(), compute_uv=False)
        row = (found.matrix_block.values == "3") & (found.matrix_role.values == role)
        assert float(found.effective_rank.values[row][0]) == pytest.approx(
            (sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-5
        )


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "bloom"])
def test_a_packed_projection_gives_its_separate_parts(name):
    """The queries that the packed rows make are the model's own queries: read from the wrong rows they are
    not."""
    model = opened(name)
    recording = model.record([[5, 9, 6, 11]])
    block = model.blocks[1]
    layout = next(v for v in layouts_of(model).values() if "q" in v.parts)
    packed = model.tap("1.q").module
    whole = packed.weight.detach()
    seen = []
    handle = packed.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    recording.run_block(block.index, recording.pre(block.index), 1)
    handle.remove()
    for role in "qkv":
        part = layout.take(whole, role)
        made = seen[0] @ (part.t() if layout.axis == 0 else part)
        bias = 0 if packed.bias is None else packed.bias.detach()[layout.parts[role]]
        wanted = recording[f"1.{role}"].flatten(-2)
        assert torch.allclose(made.reshape(wanted.shape) + bias, wanted, atol=1e-5), role
        rolled = layout.take(whole.roll(1, layout.axis), role)
        wrong = seen[0] @ (rolled.t() if layout.axis == 0 else rolled)
        assert not torch.allclose(wrong.reshape(wanted.shape) + bias, wanted, atol=1e-3), role


@pytest.mark.parametrize("name", ["phi3", "mixtral", "gpt_oss", "modernbert"])
def test_gate_and_up_are_told_apart_by_what_they_do(name):
    """The layouts of the four known ways to pack them: halves, gate first, and row by row."""
    model = opened(name)
    layout = next(v for v in layouts_of(model).values() if "gate" in v.parts)
    interleaved = layout.parts["up"][:3].tolist() == [1, 3, 5]
    assert interleaved == (name == "gpt_oss")
    assert sorted([*layout.parts["gate"].tolist(), *layout.parts["up"].tolist()]) == list(
        range(2 * len(layout.parts["up"]))
    )
    assert layout.axis == (1 if name == "gpt_oss" else 0)


def test_phi3_gate_rows_equal_a_separate_gate(tmp_path):
    model = opened("phi3")
    model.hf.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    packed = stored["model.layers.2.mlp.gate_up_proj.weight"]
    found = spectra(open_weights(tmp_path))
    for role, rows in (("gate", packed[: len(packed) // 2]), ("up", packed[len(packed) // 2 :])):
        row = (found.matrix_block.values == "2") & (found.matrix_role.values == role)
        assert np.allclose(
            found.singular_values.values[row][0], torch.linalg.svdvals(rows.double()), atol=1e-6
        )


def test_where_no_layout_is_proved_a_packed_matrix_stays_whole(tmp_path):
    model = opened("phi3")
    model.hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "model_type": "unheard_of", "architectures": ["Unheard"]})
    )
    found = run_experiment(experiments()["spectra"], open_weights(tmp_path))
    assert {"qkv", "gate_up"} <= set(found.role.values)
    assert "shown whole: no small model of this configuration" in found.attrs["notes"]
    assert layouts_from_config(tmp_path)[0] == {}


def test_one_matrix_is_in_memory_at_a_time(tmp_path, monkeypatch):
    model = opened("mixtral")
    model.hf.save_pretrained(tmp_path)
    held_now = open_weights(tmp_path)
    alive, most, original = weakref.WeakSet(), [], held_now.read

    def counting(name, expert):
        tensor = original(name, expert)
        alive.add(tensor)
        most.append(len(alive))
        return tensor

    held_now.read = counting
    spectra(held_now)
    assert len(most) == held_now_count(held_now)
    assert max(most) == 1
    most.clear()
    spectra(held_now, roles=["q"])
    assert len(most) == 4, "only what is asked for is read"


def held_now_count(held_now):
    return len({(m.tensor, m.expert) for m in held_now.matrices})


def test_files_of_a_sharded_checkpoint_and_a_changed_model(tmp_path):
    model = opened("llama")
    model.hf.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole = spectra(open_weights(tmp_path))
    assert whole.sizes["matrix"] == 28
    loaded = load(tmp_path, pack=False)
    before = spectra(loaded)
    with torch.no_grad():
        loaded.blocks[0].module.self_attn.q_proj.weight.mul_(3)
    after = spectra(loaded)
    row = (after.matrix_block.values == "0") & (after.matrix_role.values == "q")
    assert float(after.largest.values[row][0]) == pytest.approx(
        3 * float(before.largest.values[row][0]), rel=1e-5
    )


def test_code_of_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    model = opened("gpt2")
    model.hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    planted = {
        "model_type": "mystery",
        "auto_map": {"AutoConfig": "cfg.MyConfig", "AutoModel": "cfg.MyModel"},
    }
    (tmp_path / "config.json").write_text(json.dumps({**config, **planted}))
    (tmp_path / "cfg.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')")
    monkeypatch.setattr("builtins.input", lambda *a: "y")
    found = spectra(open_weights(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert "qkv" in found.role.values


def test_an_invalid_configuration_leaves_packed_matrices_whole(tmp_path):
    model = opened("gpt2")
    model.hf.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in (None, "four"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": wrong}))
        assert "qkv" in spectra(open_weights(tmp_path)).role.values


def test_quantized_and_broken_weights_are_refused_by_name(tmp_path):
    model = opened("llama")
    model.hf.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, file)
    with pytest.raises(
        ValueError, match=r"stored quantized \(model.layers.1.self_attn.q_proj.weight is F8_E4M3\)"
    ):
        open_weights(tmp_path)
    save_file({**tensors, name: tensors[name] / 0}, file)
    with pytest.raises(ValueError, match=r"q_proj.weight holds NaN or infinite values"):
        spectra(open_weights(tmp_path))
    for device in ("cuda", "nonsense", "meta"):
        with pytest.raises(ValueError, match="device"):
            open_weights("specimen:gpt2", device)


def test_other_lists_of_blocks_keep_the_models_own_names(tmp_path):
    """A further list with attention, a head of several layers, two towers: none renames or hides the model's
    own blocks."""
    model = opened("qwen3")
    model.hf.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"mtp.layers.0.self_attn.q_proj.weight": torch.eye(8), "score.0.weight": torch.eye(8)}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors")
    found = spectra(open_weights(tmp_path))
    assert set(found.block.values) == {"0", "1", "2", "3", "mtp.layers.0"}
    towers = {
        f"{tower}.encoder.layers.{n}.self_attn.q_proj.weight": torch.eye(4)
        for tower in ("vision_model", "text_model")
        for n in range(2 + (tower == "text_model"))
    }
    assert {m.block for m in held(towers).matrices} == {
        "0",
        "1",
        "2",
        "vision_model.encoder.layers.0",
        "vision_model.encoder.layers.1",
    }
    sides = {
        f"{side}.block.{n}.layer.0.SelfAttention.q.weight": torch.eye(4)
        for side in ("encoder", "decoder")
        for n in range(2)
    }
    assert {m.block for m in held(sides).matrices} == {"encoder.0", "encoder.1", "decoder.0", "decoder.1"}
    loaded = load(tmp_path, pack=False)
    assert {"0", "1", "2", "3"} <= set(spectra(loaded).block.values)


def test_tables_of_biases_norms_and_routers_are_no_roles():
    planted = held(
        {
            "m.layers.0.self_attn.q_proj.weight": torch.eye(4),
            "m.layers.0.attn.relative_attention_bias.weight": torch.eye(4),
            "m.layers.0.norm.weight": torch.ones(4),
            "m.layers.0.mlp.gate.weight": torch.eye(4),
            "m.layers.0.mlp.experts.3.w1.weight": torch.eye(4),
            "m.embed_tokens.weight": torch.eye(4),
        }
    )
    assert {(m.role, m.expert) for m in planted.matrices} == {("q", -1), ("router", -1), ("gate", 3)}
    with pytest.raises(ValueError, match="no matrix of the role nothing here: the roles are gate, q, router"):
        spectra(planted, roles=["nothing"])


def test_the_command_builds_no_model(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr("regraft.model.from_files.read_checkpoint", refuse)
    monkeypatch.setattr(weights_module, "layouts_from_config", refuse)
    done = CliRunner().invoke(app, ["spectra", "--roles", "q", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "12 matrices" in done.output.replace("\n", " ")
    again = CliRunner().invoke(app, ["spectra", "--model", str(tmp_path / "nowhere")])
    assert again.exit_code == 2
    assert "not a folder" in again.output
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    empty = CliRunner().invoke(app, ["spectra", "--model", str(tmp_path)])
    assert empty.exit_code == 2
    assert "the roles are none" in empty.output
