"""Features of dictionaries as sites: formulas written out, plain hooks, folders as SAELens writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regraft.model.sites import SiteError
from regraft.sweeps.metrics import stream_distance
from regraft.sweeps.sweep import sweep
from regraft.sweeps.variants import Add, Apply, Noise, Replace, Scale, Variant, Zero
from small import ids, opened

FEATURES, BLOCK = 24, 1


def weights(read, written, kind="standard", skip=False, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=draw)

    found = {
        "W_enc": numbers(read, FEATURES) / read**0.5,
        "W_dec": numbers(FEATURES, written),
        "b_dec": 0.1 * numbers(written),
        "b_enc": 0.1 * numbers(FEATURES),
    }
    if kind == "gated":
        found |= {
            "b_gate": found.pop("b_enc"),
            "r_mag": 0.1 * numbers(FEATURES),
            "b_mag": 0.1 * numbers(FEATURES),
        }
    if kind == "jumprelu":
        found["threshold"] = 0.3 * numbers(FEATURES).abs()
    if skip:
        found["W_skip"] = numbers(written, read)
    return found


def saved(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    told = {"architecture": "standard", "d_in": len(tensors["W_enc"]), "d_sae": FEATURES, **config}
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def encoded(x, w, kind="standard", subtract=True, k=4, by_norm=False):
    """What SAELens computes, written out."""
    x = x - w["b_dec"] if subtract else x
    if kind == "gated":
        gate = x @ w["W_enc"] + w["b_gate"] > 0
        return gate * (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    before = x @ w["W_enc"] + w["b_enc"]
    if kind == "jumprelu":
        return before.relu() * (before > w["threshold"])
    if kind == "topk":
        before = before * w["W_dec"].norm(dim=1) if by_norm else before
        least = before.sort(-1, descending=True).values[..., k - 1 : k]
        return before.relu() * (before >= least)
    return before.relu()


def hooked(model, module, side, change, text, where):
    """The stream at an address when a module's input or output goes through a function: plain hooks."""

    def before(module, args):
        return (change(args[0]), *args[1:])

    def after(module, args, outcome):
        if isinstance(outcome, tuple):
            return (change(outcome[0]), *outcome[1:])
        return change(outcome)

    handle = (
        module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after)
    )
    try:
        return model.activations([text], where)[where].values
    finally:
        handle.remove()


PLACES = {
    "resid_post": "blocks.1.hook_resid_post",
    "mlp_out": "blocks.1.hook_mlp_out",
    "z": "blocks.1.attn.hook_z",
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "gated"])
@pytest.mark.parametrize("place", list(PLACES))
def test_features_are_read_and_edited_as_the_formulas_say(family, kind, place, tmp_path):
    if place == "z" and kind != "standard":
        place = "resid_post"
    model, text = opened(family), ids(6, 3)
    recording = model.record([text])
    base = f"1.{place}"
    clean = recording[base].flatten(2)
    w = weights(clean.shape[-1], clean.shape[-1], kind)
    extra = {"k": 4, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    folder = saved(tmp_path / "sae", w, architecture=kind, metadata={"hook_name": PLACES[place]}, **extra)
    before = model.fingerprint()
    assert model.add_sae(folder) == "1.sae"
    wanted = encoded(clean, w, kind, by_norm=bool(extra))
    torch.testing.assert_close(recording["1.sae"], wanted, atol=1e-5, rtol=1e-4)
    live = int(wanted.sum((0, 1)).argmax())
    torch.testing.assert_close(recording[f"1.sae.{live}"], wanted[..., [live]], atol=1e-5, rtol=1e-4)
    read = model.activations([text], ["1.sae", f"1.sae.{live}", base])
    np.testing.assert_allclose(read["1.sae"], wanted[0], atol=2e-5)
    np.testing.assert_allclose(read[f"1.sae.{live}"], wanted[0][:, [live]], atol=2e-5)
    rows = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True) if extra else w["W_dec"]
    given = clean[0]

    def edited(new, position=None):
        """The activation when the features become `new` at a position, or at all."""
        changed = given + (new - wanted[0]) @ rows
        return (
            changed
            if position is None
            else torch.cat([given[:position], changed[[position]], given[position + 1 :]])
        )

    one = wanted[0].clone()
    one[:, live] = 3.0
    zero = wanted[0].clone()
    zero[:, live] = 0.0
    added = wanted[0].clone()
    added[:, live] += 2.0
    variants = {
        Replace(f"1.sae.{live}", 3.0): edited(one),
        Zero(f"1.sae.{live}", position=2): edited(zero, 2),
        Add(f"1.sae.{live}", [2.0], position=-1): edited(added, 5),
        Scale("1.sae", 0.5): edited(wanted[0] / 2),
        Apply("1.sae", lambda f: f.clamp_max(0.2)): edited(wanted[0].clamp_max(0.2)),
    }
    tap = model.tap(base)
    exact = sweep(recording, list(variants), stream_distance(), read=[base, "1.sae"])
    fast = sweep(recording, list(variants), stream_distance())
    last = f"{len(model.blocks) - 1}.resid_post"
    for number, (edit, activation) in enumerate(variants.items()):
        found = exact.reads[base][number].flatten(2)[0]
        torch.testing.assert_close(found, activation, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(
            exact.reads["1.sae"][number],
            encoded(activation, w, kind, by_norm=bool(extra))[None],
            atol=2e-4,
            rtol=1e-3,
        )
        under = model.activations([text], [base, last], variant=edit)
        np.testing.assert_allclose(under[base].values.reshape(6, -1), activation, atol=2e-4, rtol=1e-3)
        plain = hooked(
            model, tap.module, tap.side, lambda x, a=activation: a.reshape(x.shape) / tap.factor, text, last
        )
        np.testing.assert_allclose(under[last].values, plain, atol=2e-3, rtol=1e-3)
        assert float(fast.values["stream_distance"][number, 0]) == pytest.approx(
            float(exact.values["stream_distance"][number, 0]), rel=1e-3, abs=1e-6
        )
    assert model.fingerprint() == before, "the model itself is not changed"


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2"])
@pytest.mark.parametrize(
    ("architecture", "skip"), [("transcoder", False), ("jumprelu_skip_transcoder", True)]
)
def test_a_transcoder_reads_what_the_mlp_is_given_and_writes_what_it_adds(
    family, architecture, skip, tmp_path
):
    model, text = opened(family), ids(6, 3)
    recording = model.record([text])
    given, out = recording["1.mlp_in"][0], recording["1.mlp_out"][0]
    kind = "jumprelu" if "jumprelu" in architecture else "standard"
    w = weights(model.width, model.width, kind, skip)
    told = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    model.add_sae(saved(tmp_path / "t", w, architecture=architecture, metadata=told))
    wanted = encoded(given, w, kind, subtract=False)
    torch.testing.assert_close(recording["1.sae"][0], wanted, atol=1e-5, rtol=1e-4)
    live = int(wanted.sum(0).argmax())
    known = model.dictionaries[1]
    skipped = given @ w["W_skip"].T if skip else 0.0
    torch.testing.assert_close(
        known.reconstruct(given), wanted @ w["W_dec"] + w["b_dec"] + skipped, atol=1e-4, rtol=1e-4
    )
    changed = out.clone()
    changed[4] = out[4] + (3.0 - wanted[4, live]) * w["W_dec"][live]
    edit = Replace(f"1.sae.{live}", 3.0, position=4)
    shift = Add("1.mlp_out", torch.ones(model.width), position=1)
    both = changed.clone()
    both[1] += 1.0
    result = sweep(recording, [edit, Variant([edit, shift])], stream_distance(), read=["1.mlp_out"])
    torch.testing.assert_close(result.reads["1.mlp_out"][0][0], changed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.reads["1.mlp_out"][1][0], both, atol=1e-4, rtol=1e-4)
    plain = sweep(recording, [edit, Replace("1.mlp_out", changed)], stream_distance()).values[
        "stream_distance"
    ]
    assert float(plain[0, 0]) == pytest.approx(float(plain[1, 0]), rel=1e-4)
    live_run = model.activations([text, ids(4, 9)], "1.mlp_out", variant=Replace(f"1.sae.{live}", 3.0, -1))
    longer = out[5] + (3.0 - wanted[5, live]) * w["W_dec"][live]
    np.testing.assert_allclose(live_run["1.mlp_out"].values[5], longer, atol=1e-4, rtol=1e-4)


def test_features_are_steered_while_text_is_written(tmp_path):
    """Token by token what a hook writes that adds the feature's direction."""
    model, text = opened("llama"), ids(5, 3)
    w = weights(model.width, model.width)
    model.add_sae(saved(tmp_path / "s", w, metadata={"hook_name": "blocks.1.hook_resid_post"}))
    found = model.generate([text], edits=Replace("1.sae.3", 40.0, "new"), tokens=6)
    ids_BT = torch.tensor([text])
    start = len(text)

    def steer(module, args, outcome):
        x = outcome[0] if isinstance(outcome, tuple) else outcome
        feature = encoded(x, w)[..., 3:4]
        changed = x + (40.0 - feature) * w["W_dec"][3]
        changed = torch.cat([x[:, :start], changed[:, start:]], dim=1)
        return (changed, *outcome[1:]) if isinstance(outcome, tuple) else changed

    handle = model.blocks[1].module.register_forward_hook(steer)
    try:
        with torch.no_grad():
            for _ in range(6):
                likely = model.hf(ids_BT).logits[:, -1].topk(2)
                assert float(likely.values.diff().abs()) > 1e-3, "the choice does not hang on rounding"
                ids_BT = torch.cat([ids_BT, likely.indices[:, :1]], dim=1)
    finally:
        handle.remove()
    assert list(found.ids[0]) == ids_BT[0, start:].tolist()
    assert found.ids != model.generate([text], tokens=6).ids


@pytest.mark.parametrize("scaled", ["constant_norm_rescale", "layer_norm"])
def test_scaled_activations(scaled, tmp_path):
    model = opened("llama")
    recording = model.record([ids(5, 3)])
    x = recording["1.resid_post"]
    w = weights(model.width, model.width)
    model.add_sae(
        saved(
            tmp_path / "s",
            w,
            normalize_activations=scaled,
            metadata={"hook_name": "blocks.1.hook_resid_post"},
        )
    )
    if scaled == "layer_norm":
        mean, std = x.mean(-1, keepdim=True), (x - x.mean(-1, keepdim=True)).std(-1, keepdim=True)
        inside = (x - mean) / (std + 1e-5)
        wanted = encoded(inside, w)
        back = (wanted @ w["W_dec"] + w["b_dec"]) * std + mean
        unit = std
    else:
        unit = x.norm(dim=-1, keepdim=True) / model.width**0.5
        wanted = encoded(x / unit, w)
        back = (wanted @ w["W_dec"] + w["b_dec"]) * unit
    torch.testing.assert_close(recording["1.sae"], wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.dictionaries[1].reconstruct(x), back, atol=1e-5, rtol=1e-4)
    read = sweep(recording, Add("1.sae.2", 1.0), stream_distance(), read=["1.resid_post"]).reads[
        "1.resid_post"
    ][0]
    torch.testing.assert_close(read, x + unit * w["W_dec"][2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "model.layers.1"])
def test_a_bias_that_is_not_subtracted_and_a_place_told_outside_the_metadata(hook, tmp_path):
    model = opened("llama")
    recording = model.record([ids(5, 3)])
    w = weights(model.width, model.width)
    model.add_sae(saved(tmp_path / "s", w, hook_name=hook, apply_b_dec_to_input=False))
    x = recording["1.resid_post"]
    plain = encoded(x, w, subtract=False)
    torch.testing.assert_close(recording["1.sae"], plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, encoded(x, w), atol=1e-2)


def test_weights_that_were_made_on_centred_streams(tmp_path):
    """A model that writes centred (TransformerLens's default) is this one, each stream's mean off."""
    model = opened("gpt2")
    recording = model.record([ids(5, 3)])
    x = recording["1.resid_pre"]
    w = weights(model.width, model.width)
    told = {
        "hook_name": "blocks.1.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    model.add_sae(saved(tmp_path / "s", w, metadata=told))
    torch.testing.assert_close(
        recording["1.sae"], encoded(x - x.mean(-1, keepdim=True), w), atol=1e-5, rtol=1e-4
    )
    inside = recording["1.mlp_out"]
    told["hook_name"] = "blocks.1.hook_mlp_out"
    model.add_sae(saved(tmp_path / "m", w, metadata=told))
    torch.testing.assert_close(recording["1.sae"], encoded(inside, w), atol=1e-5, rtol=1e-4)
    assert not model.dictionaries[1].centred, "what is no stream has no mean that was taken off"


def test_what_is_no_dictionary_is_refused(tmp_path):
    model = opened("llama")
    width = model.width
    recording = model.record([ids(5, 3)])
    place = {"hook_name": "blocks.1.hook_resid_post"}
    with pytest.raises(SiteError, match=r"1\.sae\.3 does not exist here: attach a sparse autoencoder"):
        recording["1.sae.3"]
    with pytest.raises(ValueError, match="is no folder of a sparse autoencoder"):
        model.add_sae(tmp_path / "none")
    cases = {
        "is of another width: 1.resid_post has": (weights(width + 1, width + 1), {"metadata": place}),
        "which is not known here: standard": (
            weights(width, width),
            {"architecture": "temporal", "metadata": place},
        ),
        "an average that is not in the folder": (
            weights(width, width),
            {"normalize_activations": "expected_average_only_in", "metadata": place},
        ),
        "which is no activation of a block here": (
            weights(width, width),
            {"metadata": {"hook_name": "hook_embed"}},
        ),
        "belongs to block 99": (
            weights(width, width),
            {"metadata": {"hook_name": "blocks.99.hook_resid_pre"}},
        ),
        "has no threshold": (weights(width, width), {"architecture": "jumprelu", "metadata": place}),
        "b_enc is": (weights(width, width) | {"b_enc": torch.zeros(3)}, {"metadata": place}),
        "do not fit together": (
            weights(width, width) | {"W_dec": torch.zeros(3, width)},
            {"metadata": place},
        ),
    }
    for number, (said, (tensors, config)) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=said):
            model.add_sae(saved(tmp_path / str(number), tensors, **config))
    assert not model.dictionaries, "nothing that was refused is kept"
    (tmp_path / "0" / "sae_weights.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors cannot be read"):
        model.add_sae(tmp_path / "0")
    (tmp_path / "0" / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        model.add_sae(tmp_path / "0")
    model.add_sae(saved(tmp_path / "good", weights(width, width)), site="1.resid_post")
    with pytest.raises(SiteError, match="has 24 features, 0 to 23"):
        recording["1.sae.24"]
    for edit, said in (
        (Noise("1.sae.2", 0.1), "Noise at 1.sae.2 is not offered"),
        (Replace("1.sae", torch.zeros(5)), r"give one number, or \(24,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep(recording, edit, stream_distance())
        with pytest.raises(ValueError, match=said), model.changed(edit):
            pass
    with pytest.raises(SiteError, match="is no activation of the model's own"):
        model.tap("1.sae.2")
    with pytest.raises(ValueError, match="is no place of a sparse autoencoder"):
        model.add_sae(tmp_path / "good", site="5.head.2")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "mixtral", "t5"])
def test_what_an_mlp_is_given_gives_what_it_adds(family):
    """And where it is changed, the MLP answers to the change."""
    model = opened(family)
    block = model.main_blocks[1]
    recording = model.record([ids(5, 3)], [ids(4, 4)] if model.two_stacks else None)
    given = recording[f"{block.address}.mlp_in"]
    read = sweep(
        recording, Replace(f"{block.address}.mlp_in", torch.zeros(given.shape[-1])), stream_distance(),
        read=[f"{block.address}.mlp_out"],
    ).reads[f"{block.address}.mlp_out"][0]  # fmt: skip
    tap = model.tap(f"{block.address}.mlp_in")
    with torch.no_grad():
        out = tap.module(torch.zeros_like(given))
        out = out[0] if isinstance(out, tuple) else out
        norm = block.branch("mlp").out_norm
        out = norm(out) if norm is not None else out
    torch.testing.assert_close(read, out.reshape(read.shape), atol=1e-4, rtol=1e-4)
