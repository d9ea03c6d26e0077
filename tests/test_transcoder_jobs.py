"""Adapters from two checkpoints to a certificate, a Hugging Face folder, a page of features and a graph."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import regraft
from regraft.cli.main import app, prepared
from regraft.core.interrupts import StoppedError
from regraft.data.records import COUNTED, PROMPT
from regraft.export.graft_folder import attach
from regraft.export.transcoder_certificate import certify_transcoders
from regraft.features.descriptions import Endpoint
from regraft.jobs import feature_jobs, transcoder_jobs
from regraft.jobs.transcoder_jobs import fit_transcoder, opened_pair
from regraft.jobs.transcoder_text import worked_sums
from regraft.modules.backbone import mlps_of
from regraft.modules.transcoder import beside
from regraft.training.tasks.transcoder_task import TranscoderLoss
from regraft.training.trainer import TrainingPlan

pytestmark = pytest.mark.usefixtures("quick_pairs")
SHORT = TrainingPlan(steps=3, batch=2, warmup=1, rate=1e-2)


@pytest.fixture(scope="module")
def models():
    return regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """Adapters of a few steps, with a certificate."""
    out = tmp_path_factory.mktemp("adapters")
    weights = TranscoderLoss(l1=0.01)
    fit_transcoder(*models, out, features=16, plan=SHORT, weights=weights, seed=5)
    regraft.evaluate_transcoder(out / "graft", most=6)
    return out / "graft"


def weights_of(folder):
    return load_file(folder / "graft.safetensors")


def margins_of(hf, ids, written):
    """How far each written token's score lies over the next best."""
    with torch.no_grad():
        logits = hf(torch.cat([ids[0], written])[None]).logits[0, ids.shape[1] - 1 : -1]
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_weights_and_so_does_a_run_that_was_stopped(
    models, folder, tmp_path, monkeypatch
):
    stopped, weights = tmp_path / "stopped", TranscoderLoss(l1=0.01)
    plan = TrainingPlan(**{**SHORT.__dict__, "save_every": 1})
    real = transcoder_jobs.train

    def broken(*words, **more):
        def watch(step):
            if step == 1:
                raise StoppedError("here")

        return real(*words, watch=watch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(transcoder_jobs, "train", broken)
        with pytest.raises(StoppedError):
            fit_transcoder(*models, stopped, features=16, plan=plan, weights=weights, seed=5)
    assert not (stopped / "graft").exists()
    fit_transcoder(*models, stopped, features=16, plan=plan, weights=weights, seed=5)
    assert same(weights_of(stopped / "graft"), weights_of(folder)), "gone on with, and in one go"
    other = tmp_path / "other"
    fit_transcoder(*models, other, features=16, plan=SHORT, weights=weights, seed=6)
    assert not same(weights_of(other / "graft"), weights_of(folder))


def test_the_certificate_is_what_plain_runs_give(models, folder):
    base, target = models
    standing = opened_pair(folder)
    text = worked_sums(target, 5, 77)
    data = certify_transcoders(standing, {"sums": text}, most=5).isel(domain=0)
    batch = text.rows(range(5))
    losses = {name: [] for name in ("base", "target", "hybrid", "adapted")}
    divergences = []
    for row in batch:
        length = int((row[1] > 0).sum())
        ids = row[:1, :length]
        with torch.no_grad():
            wanted = target.hf(ids).logits[0].log_softmax(-1)
            found = {"base": base.hf, "hybrid": standing.hybrid.hf}
            found = {name: hf(ids).logits[0].log_softmax(-1) for name, hf in found.items()}
            with beside(standing.carrier.hf, mlps_of(standing.carrier), standing.graft):
                found["adapted"] = standing.carrier.hf(ids).logits[0].log_softmax(-1)
        found["target"] = wanted
        for name, logp in found.items():
            losses[name] += (-logp[:-1].gather(-1, ids[0, 1:, None])[:, 0]).tolist()
        divergences += (wanted.exp() * (wanted - found["adapted"])).sum(-1)[:-1].tolist()
    means = {name: float(np.mean(values)) for name, values in losses.items()}
    for name, value in means.items():
        assert float(data.loss.sel(model=name)) == pytest.approx(value, rel=1e-4), name
    gain = (means["hybrid"] - means["adapted"]) / (means["hybrid"] - means["target"])
    assert float(data.recovered) == pytest.approx(gain, rel=1e-3)
    from_base = (means["base"] - means["adapted"]) / (means["base"] - means["target"])
    assert float(data.recovered_from_base) == pytest.approx(from_base, rel=1e-3)
    assert float(data.kl.sel(model="adapted")) == pytest.approx(np.mean(divergences), rel=1e-3)
    assert float(data.kl.sel(model="target")) == 0.0
    assert float(data.off_difference) <= standing.carrier.rounding, "off, they are the hybrid"
    assert int(data.tokens) == len(divergences)
    assert float(data.nmse[0]) == 0.0, "the embedding is the target's"


def test_text_without_a_token_that_counts_is_refused(models, folder):
    standing, text = opened_pair(folder), worked_sums(models[1], 2, 1)
    with pytest.raises(ValueError, match="there is no text to measure on"):
        certify_transcoders(standing, {})
    text.kinds_NT[:] = PROMPT
    with pytest.raises(ValueError, match="the text sums has no token whose prediction counts"):
        certify_transcoders(standing, {"sums": text})


def test_adapters_belong_to_their_pair(models, folder, tmp_path):
    with pytest.raises(ValueError, match=r"was made for .* not for"):
        attach(folder, models[0])
    with pytest.raises(ValueError, match="are of different shapes in"):
        opened_pair(folder, base="specimen:gpt2")
    with pytest.raises(ValueError, match="was made for"):
        opened_pair(folder, base="specimen:tuned")
    with pytest.raises(ValueError, match="features is 0: an adapter has at least 1"):
        fit_transcoder(*models, tmp_path / "none", features=0)


def test_the_exported_folder_opens_and_generates(folder, tmp_path):
    told = regraft.export_transcoder(folder, tmp_path / "plain")
    assert "its tensors are the grafts' to the bit" in told
    regraft.export_transcoder(folder, tmp_path / "remote", remote_code=True)
    standing = opened_pair(folder)
    ids = torch.tensor([standing.target.encode("Problem: Tom has 3 coins, buys 4 and finds 5. How many?")])
    with torch.no_grad(), beside(standing.carrier.hf, mlps_of(standing.carrier), standing.graft):
        wanted = standing.carrier.hf(ids).logits
        text = standing.carrier.hf.generate(ids, max_new_tokens=6, do_sample=False)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, wanted, atol=1e-5, rtol=1e-4)
        assert torch.equal(opened.generate(ids, max_new_tokens=6, do_sample=False), text)
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    assert half(ids).logits.dtype == torch.bfloat16
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "recovered of the gain over the hybrid" in card
    code = (
        "import sys, torch, transformers; m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1],"
        " trust_remote_code=True, dtype=torch.float32); assert 'regraft' not in sys.modules;"
        " print(m(torch.tensor([eval(sys.argv[2])])).logits.sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "remote"), str(ids[0].tolist())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(float(wanted.sum()), rel=1e-4)


def test_adapters_that_were_not_measured_are_measured_before_they_are_written(models, tmp_path, monkeypatch):
    monkeypatch.setattr(transcoder_jobs, "HELD", 3)
    fit_transcoder(*models, tmp_path, features=4, plan=SHORT)
    assert not (tmp_path / "graft" / "certificate.json").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    with pytest.raises(regraft.core.files.RunFolderError, match="is not empty"):
        regraft.export_transcoder(tmp_path / "graft", tmp_path / "full")
    assert not (tmp_path / "graft" / "certificate.json").exists(), "refused before the expensive step"
    regraft.export_transcoder(tmp_path / "graft", tmp_path / "model")
    measured = (tmp_path / "graft" / "certificate.json").read_text()
    assert '"experiment": "transcoder"' in measured
    assert (tmp_path / "model" / "certificate.json").exists()
    (tmp_path / "graft" / "certificate.json").write_text(
        measured.replace('"grafts_sha256": "', '"grafts_sha256": "0')
    )
    with pytest.raises(ValueError, match="was measured on other tensors: measure again"):
        regraft.export_transcoder(tmp_path / "graft", tmp_path / "again")


def test_the_commands_go_from_two_checkpoints_to_pages(tmp_path):
    def run(*words):
        done = CliRunner().invoke(app, prepared(["graft", "transcoder", *words]))
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    out = tmp_path / "tc"
    told = run("fit", "--out", str(out), "--features", "12", "--steps", "2", "--batch", "2")
    assert "of 12 features are active. Next: `regraft graft transcoder eval" in told
    told = run("eval", "--graft", str(out / "graft"), "--windows", "4")
    assert "of the target's gain over the hybrid" in told
    page = (out / "graft" / "certificate.html").read_text()
    assert "Loss of base, target, hybrid and adapted model" in page
    words = ["--graft", str(out / "graft"), "--sequences", "6", "--kept", "3", "--neighbours"]
    told = run("features", *words, "--out", str(out / "features"))
    assert "features were above zero" in told
    for name in (
        "page/index.html",
        "page/block-11.js",
        "features/index.json.gz",
        "circuit-tracer/config.yaml",
    ):
        assert (out / "features" / name).is_file(), name
    prompt = "Problem: Ann has 2 cups, buys 3 and finds 4. How many? <think> First, 2 + 3 = 5."
    told = run("attribute", "--graft", str(out / "graft"), "--out", str(out / "graph"), "--prompt", prompt)
    assert "added up to the score within" in told
    graph = json.loads((out / "graph" / "graph.json").read_text())
    assert graph["metadata"]["prompt"] == prompt
    for wrong, said in (
        (["fit", "--features", "0"], "--features is 0: write 1 or more"),
        (["fit", "--l1", "-1"], "--l1 is -1.0: write 0 or more"),
        (["eval", "--graft", str(tmp_path)], "holds no graft"),
        (["features", "--graft", str(out / "graft"), "--out", str(out / "features")], "is not empty"),
        (["attribute", "--graft", str(out / "graft"), "--prompt", "a", "--nodes", "2"], "--nodes is 2"),
    ):
        done = CliRunner().invoke(app, prepared(["graft", "transcoder", *wrong]))
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split()), done.stderr


def test_packed_features_are_found_again(folder, tmp_path):
    from regraft.features.neighbour_files import read_packed_feature

    data = regraft.describe_features(folder, tmp_path / "f", most=8, k=4, neighbours=True)
    live = np.argwhere(data.frequency.values > 0)
    block, feature = (int(i) for i in live[0])
    one = read_packed_feature(tmp_path / "f" / "features", block, feature)
    assert one["index"] == feature
    assert one["act_max"] == pytest.approx(float(data.largest[block, feature]), abs=1e-3)
    top = one["examples_quantiles"][0]["examples"][0]
    assert max(top["tokens_acts_list"]) == pytest.approx(one["act_max"], abs=1e-3)
    index = json.loads(gzip.decompress((tmp_path / "f" / "features" / "index.json.gz").read_bytes()))
    assert len(index["0"]["offsets"]) == 17
    sae = tmp_path / "f" / "saelens" / "block-3"
    model = opened_pair(folder).carrier
    assert model.add_sae(sae) == "3.sae", "our own reader takes what is written for SAELens"
    x = torch.randn(2, 192)
    adapter = opened_pair(folder).graft[3]
    known = model.dictionaries[3]
    torch.testing.assert_close(known.encode(x), torch.relu(adapter.enc(x)).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(known.reconstruct(x), adapter(x).detach(), atol=1e-5, rtol=1e-4)


def test_worked_sums_part_question_and_answer(models):
    text = worked_sums(models[1], 3, 1, prompts_count=False)
    row = text.rows(range(1))[0]
    counted = row[0][row[1] == COUNTED].tolist()
    assert models[1].tokenizer.decode(counted).startswith(" <think>")


def test_features_are_sites_of_the_adapted_model(folder):
    """Read and edited in sweeps and while text is written, as the switch changes them."""
    model, graft = regraft.open_transcoder(folder)
    with torch.no_grad():
        for adapter in graft:
            adapter.dec.weight.mul_(20)
    for block, adapter in zip(model.main_blocks, graft, strict=True):
        model.dictionaries[block.index].decoder_FE = adapter.dec.weight.detach().T
    recording = model.record("Problem: Tom has 3 coins, buys 4 and finds 5. How many?")
    values = recording["5.feature"]
    assert values.shape[-1] == 16
    feature = int((values[0] > 0).sum(0).argmax())
    torch.testing.assert_close(recording[f"5.feature.{feature}"][..., 0], values[..., feature])
    edits = [
        regraft.Zero(f"5.feature.{feature}"), regraft.Scale(f"5.feature.{feature}", 3.0),
        regraft.Replace(f"5.feature.{feature}", 2.0),
    ]  # fmt: skip
    found = regraft.sweep(recording, edits, regraft.loss(), read=["11.resid_post"]).reads["11.resid_post"]
    clean = recording.post(11)
    switches = [
        {"scaled": {(5, feature): 0.0}}, {"scaled": {(5, feature): 3.0}}, {"clamped": {(5, feature): 2.0}}
    ]  # fmt: skip
    for switched, stream in zip(switches, found, strict=True):
        with graft.switch(**switched):
            wanted = model.record("Problem: Tom has 3 coins, buys 4 and finds 5. How many?").post(11)
        assert not torch.allclose(wanted, clean)
        torch.testing.assert_close(stream, wanted, atol=1e-4, rtol=1e-4)
    prompt = "Problem: Tom has 3 coins, buys 4 and finds 5. How many? <think>"
    written = model.generate(prompt, edits=regraft.Replace(f"5.feature.{feature}", 1.0), tokens=8).ids[0]
    ids = torch.tensor([model.encode(prompt)])
    with graft.switch(clamped={(5, feature): 1.0}):
        wanted = model.hf.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        margins = margins_of(model.hf, ids, wanted)
    sure = int((margins > 1e-2).cumprod(0).sum())
    assert sure >= 3, "what follows is not decided by rounding"
    assert list(written)[-8:][:sure] == wanted.tolist()[:sure]
    with pytest.raises(ValueError, match="has 16 features"):
        model.site("5.feature.16")


def test_pages_are_written_without_an_endpoint_that_does_not_answer(folder, tmp_path, monkeypatch):
    nobody = Endpoint("http://127.0.0.1:9", "m")
    monkeypatch.setattr(feature_jobs, "OFTEN", 0.0)
    none = regraft.describe_features(folder, tmp_path / "none", most=8, k=8, endpoint=nobody)
    assert none.attrs["descriptions"].startswith("0 features are described by m"), "all are too frequent"
    monkeypatch.setattr(feature_jobs, "OFTEN", 1.1)
    data = regraft.describe_features(folder, tmp_path / "f", most=8, k=8, endpoint=nobody, described=2)
    assert data.attrs["described"] == 0
    assert "127.0.0.1:9 does not answer" in data.attrs["descriptions"]
    assert "127.0.0.1:9 does not answer" in (tmp_path / "f" / "page" / "index.html").read_text()


def test_adapters_train_beside_models_in_half_precision(tmp_path, monkeypatch):
    """As on a card, where a checkpoint is opened in its own type: the adapters stay in theirs."""
    monkeypatch.setattr(transcoder_jobs, "HELD", 2)
    models = [regraft.load(f"specimen:{name}", dtype="bfloat16") for name in ("qwen3", "tuned")]
    told = fit_transcoder(*models, tmp_path / "t", features=4, plan=SHORT)
    assert "of 4 features are active" in told
    assert weights_of(tmp_path / "t" / "graft")["adapters.0.enc.weight"].dtype == torch.float32
    told = regraft.export_transcoder(tmp_path / "t" / "graft", tmp_path / "model")
    assert "its tensors are the grafts' to the bit" in told, "opened again in the type that they stand beside"
    assert opened_pair(tmp_path / "t" / "graft").carrier.dtype == torch.bfloat16


def test_chat_records_are_named_on_the_line_and_wrong_words_are_told_before_models_are_opened(tmp_path):
    file = tmp_path / "chat.jsonl"
    line = {"messages": [{"content": "1 + 1?"}, {"content": "<think> 2 </think> 2"}]}
    file.write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    words = ["fit", "--text", str(file), "--features", "4", "--steps", "1", "--batch", "2"]
    done = CliRunner().invoke(app, prepared(["graft", "transcoder", *words, "--out", str(tmp_path / "t")]))
    assert done.exit_code == 0, done.output
    missing = ["--base", "no-such-model"]
    for wrong, said in (
        (["fit", *missing, "--text", str(file), "--dataset", "x"], "--text and --dataset are both given"),
        (["fit", *missing, "--share", "math=1"], "--share is for chat records: name some with --text or"),
        (["fit", *missing, "--text", str(file), "--share", "math=0.5"], "sum to 0.5: they must sum to 1"),
        (["fit", *missing, "--ramp", "2"], "ramp is 2.0: it is a share of the steps, 0 to 1"),
        (["eval", "--graft", str(tmp_path / "t" / "graft"), *missing, "--problems", "none.jsonl"],
         "there is no file none.jsonl: name one with a question"),
    ):  # fmt: skip
        done = CliRunner().invoke(app, prepared(["graft", "transcoder", *wrong]))
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.stderr.split()), done.stderr
