"""Exported adapters served by vLLM in an environment of its own, held to transformers (`make test-vllm`)."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers

import regraft
from regraft.core.caching import without_cache
from regraft.core.randomness import drawing_from
from regraft.export.graft_folder import save_graft
from regraft.jobs.transcoder_jobs import pair_of
from regraft.modules.backbone import carrier_of, mlps_of
from regraft.modules.transcoder import AdaptedMLP, Transcoders, TranscoderShape
from test_transcoder_jobs import margins_of

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".vllm" / "bin" / "python"
NEAR = 1e-4
"""Nats by which log-probabilities may differ; the plain model's differ by 3e-6 where that was tried."""
WRITTEN = 12
PROMPTS = (
    "Problem: Anna has 12 coins, buys 9 and finds 5. How many? <think>",
    "The capital of",
    "Problem: Tom has 3 cups, buys 14 and finds 25. How many? <think> First, 3 + 14 = 27.",
)
RUNS = (
    None,
    {"strength": 0.0},
    {"strength": 0.5},
    {
        "scaled": {"5.feature.3": 0.0, "8.feature.9": 2.5},
        "clamped": {"3.feature.1": 1.5, "9.feature.15": 0.25},
    },
    {},
)
"""As the folder opens, off, halved, single features at both ends of what two processes hold, and back."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The specimen pair's hybrid with adapters that add as much as MLPs do, exported."""
    out = tmp_path_factory.mktemp("adapters")
    base, target = regraft.load("specimen:qwen3"), regraft.load("specimen:tuned")
    carrier = carrier_of(base, target, "target")
    with drawing_from(3), torch.no_grad():
        graft = Transcoders(TranscoderShape(carrier.width, 16, len(mlps_of(carrier))))
        for adapter in graft:
            adapter.dec.weight.normal_(0, 0.2)
            adapter.dec.bias.normal_(0, 0.1)
    save_graft(graft, carrier, out / "graft", pair=pair_of(base, target, "target") | {"loss": {}})
    regraft.evaluate_transcoder(out / "graft", most=2)
    regraft.export_transcoder(out / "graft", out / "model")
    return out / "model"


def served(folder, runs, parallel=1, overrides=None, switchable=True):
    """What vLLM writes for every run, and the prompts that it was asked."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    request = {
        "folder": str(folder), "prompts": ids, "tokens": WRITTEN, "parallel": parallel, "runs": runs,
        "overrides": overrides or {}, "switchable": switchable,
    }  # fmt: skip
    asked, answer = folder.parent / "request.json", folder.parent / "answer.json"
    asked.write_text(json.dumps(request))
    words = [str(PYTHON), str(ROOT / "tools" / "serve_with_vllm.py"), str(asked), str(answer)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder.parent)
    return done, ids, json.loads(answer.read_text()) if done.returncode == 0 else None


def opened(folder, switches):
    """The folder in transformers, its adapters run as a request says."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    adapters = [module.adapter for module in model.modules() if isinstance(module, AdaptedMLP)]
    for adapter in adapters:
        adapter.strength = switches.get("strength", 1.0)
    for kind, how in (("scaled", "scale"), ("clamped", "set")):
        for name, value in switches.get(kind, {}).items():
            block, _, feature = name.split(".")
            adapters[int(block)].switched[int(feature)] = (how, value)
    return model


@torch.no_grad()
def check(model, ids, answer):
    """The same greedy tokens, as far as the margin between the best two decides, and their probabilities."""
    row = torch.tensor([[*ids, *answer["written"]]])
    logits = model(row).logits[0, :-1]
    logp = logits.log_softmax(-1)
    found = logp.gather(-1, row[0, 1:, None])[:, 0]
    wanted = torch.tensor([*answer["prompt_logprobs"], *answer["logprobs"]])
    assert float((found - wanted).abs().max()) < NEAR
    best = logits[len(ids) - 1 :].topk(2, dim=-1)
    decided = best.values[:, 0] - best.values[:, 1] > NEAR
    assert decided.sum() > WRITTEN // 2, "margins decide most of the tokens"
    assert torch.equal(best.indices[decided, 0], torch.tensor(answer["written"])[decided])


@pytest.mark.parametrize("parallel", [1, 2])
def test_adapters_on_off_and_switched_are_those_of_transformers(folder, parallel):
    done, ids, answers = served(folder, list(RUNS), parallel)
    assert done.returncode == 0, done.stderr[-3000:]
    for switches, of_run in zip(RUNS, answers, strict=True):
        model = opened(folder, switches or {})
        for row, answer in zip(ids, of_run, strict=True):
            check(model, row, answer)
    on, off, half, single, again = ([one["prompt_logprobs"] for one in of_run] for of_run in answers)
    for other in (off, half, single):
        assert max(abs(a - b) for a, b in zip(on[0], other[0], strict=True)) > 100 * NEAR, "a switch shows"
    assert max(abs(a - b) for a, b in zip(on[0], again[0], strict=True)) < NEAR, "and goes"


def test_switches_from_the_start_are_options_of_the_engine(folder):
    done, ids, answers = served(folder, [None], overrides={"switched": {"strength": 0.5}})
    assert done.returncode == 0, done.stderr[-3000:]
    check(opened(folder, {"strength": 0.5}), ids[0], answers[0][0])


@pytest.mark.parametrize(
    ("switches", "switchable", "said"),
    [
        (
            {"scaled": {"5.feature.16": 0.0}},
            True,
            "there is no feature 5.feature.16: there are blocks 0 to 11",
        ),
        ({"scaled": {"resid": 0.0}}, True, "'resid' is no feature: write BLOCK.feature.NUMBER"),
        ({"strength": 0.5}, False, "this engine cannot be switched while it runs: make it with worker_ext"),
    ],
)
def test_wrong_switches_are_refused(folder, switches, switchable, said):
    done, _, _ = served(folder, [switches], switchable=switchable)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_server_of_the_readme_answers(folder):
    """As the README starts it; `vllm serve` itself does not start from the build for CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (line,) = re.findall(r"python (-m vllm\.\S+) --model adapted", (ROOT / "README.md").read_text())
    words = [str(PYTHON), *line.split(), "--model", str(folder), "--served-model-name", "adapted"]
    words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--port", str(port)]
    words += ["--hf-overrides", json.dumps({"switched": {"strength": 0.5}})]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    log = folder.parent / "server.log"
    with log.open("w") as stream, subprocess.Popen(words, stdout=stream, stderr=stream, env=env) as server:
        try:
            found = asked_of(port, server, {"model": "adapted", "prompt": PROMPTS[0], "max_tokens": WRITTEN,
                                            "temperature": 0, "ignore_eos": True})  # fmt: skip
        finally:
            server.terminate()
    assert found is not None, log.read_text()[-3000:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer([PROMPTS[0]], add_special_tokens=False)["input_ids"])
    model = opened(folder, {"strength": 0.5})
    wanted = model.generate(ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False)
    written = wanted[0, ids.shape[1] :]
    assert float(margins_of(model, ids, written).min()) > 10 * NEAR, "no token hangs on rounding"
    assert found == tokenizer.decode(written)


def asked_of(port, server, question):
    """The text that a server answers with once it is up; None where it ends before."""
    address = f"http://127.0.0.1:{port}/v1/completions"
    body = json.dumps(question).encode()
    while server.poll() is None:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())["choices"][0]["text"]
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(2)
    return None


def test_completions_of_vllm_are_kept_where_every_experiment_finds_them(tmp_path, monkeypatch):
    """Written in vLLM's environment, found in this one, and the tokens that this one writes itself."""
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    words = [str(PYTHON), "-m", "regraft", "completions", "--backend", "vllm", "--count", "6"]
    done = subprocess.run(
        [*words, "--tokens", str(WRITTEN)], capture_output=True, text=True, check=False,
        env=env | {"REGRAFT_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "completions").iterdir()
    model = regraft.load()
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    found = regraft.completions(model, count=6, tokens=WRITTEN)
    assert list((tmp_path / "completions").iterdir()) == [file]
    with without_cache():
        own = regraft.completions(model, count=6, tokens=WRITTEN)
    assert found.completion.values.tolist() == own.completion.values.tolist()
