"""What `regraft graft transcoder fit | eval | export` do once their options are read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from regraft.core.files import check_empty, expanded, keeping, whole_file
from regraft.core.randomness import drawing_from
from regraft.data.problems import Problem, read_problems, worked_problems
from regraft.data.records import Records
from regraft.data.windows import Windows
from regraft.export.graft_description import CERTIFICATE, read_about
from regraft.export.graft_folder import attach, read_certificate, save_graft, write_certificate
from regraft.export.grafted_model import write_grafted
from regraft.export.published_adapters import is_published, read_published
from regraft.export.solved_problems import add_problem_rates, problem_sentence
from regraft.export.transcoder_certificate import Standing, certify_transcoders
from regraft.jobs.checks import named_texts
from regraft.jobs.transcoder_text import LONGEST, ROWS, TextSource, text_of_source, worked_sums
from regraft.model.block_call import longest_input
from regraft.model.dictionary import Dictionary
from regraft.model.load import load
from regraft.model.model import Model
from regraft.modules.backbone import Backbone, carrier_of, check_pair, mlp_paths, mlps_of
from regraft.modules.graft_kinds import TRANSCODER, put, sizes
from regraft.modules.transcoder import Transcoders, TranscoderShape
from regraft.reporting.page import page
from regraft.training.distributed import processes
from regraft.training.tasks.transcoder_task import TranscoderLoss, TranscoderTask
from regraft.training.trainer import TrainingPlan, train

UNSEEN = 4711
"""Seed of the worked sums that models are asked to solve."""
NEW_TOKENS = 96
"""Tokens written behind a problem at most; a worked sum takes fewer."""
HELD = 200
"""Worked sums that are measured on where no text is named."""


def fit_transcoder(
    base: Model,
    target: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    *,
    backbone: Backbone = "target",
    features: int = 1024,
    weights: TranscoderLoss | None = None,
    plan: TrainingPlan | None = None,
    length: int = LONGEST,
    prompts_count: bool = True,
    shares: Mapping[str, float] | None = None,
    dataset: str = "",
    rows: int = ROWS,
    seed: int = 0,
    random_features: bool = False,
    encoded: Path | None = None,
) -> str:
    """Train an adapter beside every MLP on what tuning changed, and write them to `out/graft`; the run's
    checkpoints and log stand in `out/run`.

    Args:
        base: the model before it was tuned, whose MLPs stay.
        target: the tuned model, which teaches.
        out: the folder.
        texts: files and folders to train on, plain text or chat records (JSONL with `conversations` or
            `messages`: complete reasoning traces of at most `length` tokens are kept); without them worked
            sums.
        backbone: whose attention, norms, embeddings and head.
        features: of every block.
        weights: how much each part of the loss counts.
        plan: how long and how fast.
        length: tokens of a sequence.
        prompts_count: whether predictions of the questions' tokens count.
        shares: of the domains that chat records name.
        dataset: a folder or hub id that the library `datasets` opens, in the place of `texts`: rows with
            turns, as chat records have, or with `text`.
        rows: read of it at most.
        seed: of everything drawn at random.
        random_features: encoders stay as they were drawn, and only decoders learn: what trained features are
            held against.
        encoded: folder that text is encoded into, once for all fits that share it; None: the run's own.

    Returns:
        What came out, in a sentence or two.

    Raises:
        ValueError: the models are no pair, or the text has no token.
        RunFolderError: there are adapters already.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "adapters", features=32, plan=few, length=64)
        >>> print(fitted)
        150,144 parameters beside 12 MLPs; after 2 steps the divergence from specimen:tuned is ... nats
        per token, ...
    """
    weights, plan, out = weights or TranscoderLoss(), plan or TrainingPlan(batch=8), expanded(out)
    check_empty(out / "graft", "--out")
    if features < 1:
        raise ValueError(f"features is {features}: an adapter has at least 1")
    carrier = carrier_of(base, target, backbone)
    with drawing_from(seed):
        graft = Transcoders(TranscoderShape(carrier.width, features, len(mlps_of(carrier))))
    graft = graft.to(carrier.device)
    for adapter in graft:
        adapter.enc.requires_grad_(not random_features)
    pair = pair_of(base, target, backbone) | trained_how(weights, plan, seed, random_features)
    source = TextSource(texts, dataset, rows, length, prompts_count, shares or {}, seed)
    text = text_of_source(target, source, encoded or out / "run")
    pair |= {"text_sha256": text.digest()}
    task = TranscoderTask(carrier, target, graft, weights, batches=plan.steps * plan.accumulate)
    with drawing_from(seed):
        log = train(task, text, plan, out / "run", origin={**pair, "graft": sizes(graft)})
    if not processes().is_main_process:
        return ""
    save_graft(graft, carrier, out / "graft", pair=pair)
    return _said_of(log, graft, target.name, weights.kl, out)


def _said_of(
    log: Sequence[Mapping[str, float]], graft: Transcoders, target: str, kl: float, out: Path
) -> str:
    """What a fit came to, over its last steps, and the command that goes on; `kl` weighs the divergence."""
    last = {name: float(np.mean([line[name] for line in log[-20:]])) for name in log[-1]}
    words = ["regraft", "graft", "transcoder", "eval", "--graft", str(out / "graft")]
    divergence = f"the divergence from {target} is {last['kl'] / kl:.4f} nats per token, " if kl else ""
    return (
        f"{sum(p.numel() for p in graft.parameters()):,} parameters beside {graft.shape.blocks} MLPs; after"
        f" {len(log)} steps {divergence}the same first token in {last['agreement']:.1%} of cases,"
        f" {last['active']:.1f} of {graft.shape.features} features are active. Next: `{shlex.join(words)}`"
    )


PAIR = ("base", "base_sha256", "target", "target_sha256", "backbone", "dtype")
"""What a certificate says of the pair."""


def pair_of(base: Model, target: Model, backbone: Backbone) -> dict[str, Any]:
    """What adapters say of the models that they were made for."""
    return {
        "base": base.source, "base_sha256": base.weights_sha256,
        "target": target.source, "target_sha256": target.weights_sha256, "backbone": backbone,
        "dtype": str(target.dtype).removeprefix("torch."),
    }  # fmt: skip


def trained_how(weights: TranscoderLoss, plan: TrainingPlan, seed: int, random: bool) -> dict[str, Any]:
    """What adapters say of how they were trained."""
    return {"loss": asdict(weights), "plan": asdict(plan), "seed": seed, "random_features": random}


def opened_pair(folder: Path, base: str = "", target: str = "", device: str = "cpu") -> Standing:
    """The models that the adapters of a folder were made for, and the adapters.

    Args:
        base, target: other names of the same weights, where the folder's do not open here.

    Raises:
        CheckpointError: no adapters are there, or they were made for other weights.
    """
    about = read_about(folder)
    told = about.get("pair", {})
    # in the type that they were trained beside: the hybrid is known by its numbers, which differ in another
    how = {"device": device, "dtype": told.get("dtype", "")}
    first, second = (load(name, **how) for name in (base or told["base"], target or told["target"]))
    check_pair(first, second)
    carrier = carrier_of(first, second, told["backbone"])
    graft = attach(folder, carrier, TRANSCODER)
    assert isinstance(graft, Transcoders)
    hybrid = carrier if told["backbone"] == "target" else carrier_of(first, second, "target")
    return Standing(first, second, hybrid, carrier, graft)


def open_transcoder(
    folder: Path | str, base: str = "", target: str = "", device: str = "cpu"
) -> tuple[Model, Transcoders]:
    """The adapted model of a folder, opened with its adapters in their places, and the adapters.

    Its features are sites (`5.feature`, `5.feature.317`), read and edited in sweeps and while text is
    written; `graft.switch(...)` turns adapters off, scales them, ablates or clamps features, whoever runs
    the model.

    A folder in the layout of the published adapters, a whole model with adapters in it, opens too.

    Args:
        folder: of the adapters.
        base: another name of the same weights.
        target: another name of the tuned ones.
        device: where to run.

    Returns:
        The adapted model, and its adapters.

    Raises:
        CheckpointError: no adapters are there, or they were made for other weights.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "opened", features=32, plan=few, length=64)
        >>> adapted, adapters = regraft.open_transcoder("opened/graft")
        >>> adapted.record("Anna has 12 coins")["5.feature"].shape  # (B, T, F)
        torch.Size([1, 8, 32])
    """
    if is_published(expanded(folder)):
        carrier, graft = read_published(expanded(folder), device)
    else:
        standing = opened_pair(expanded(folder), base, target, device)
        carrier, graft = standing.carrier, standing.graft
    put(graft, carrier.hf, mlp_paths(carrier))
    model = load((carrier.hf, carrier.tokenizer) if carrier.tokenizer is not None else carrier.hf, pack=False)
    model.name = f"{carrier.name} with adapters"
    name_features(model, graft, str(folder))
    return model, graft


def name_features(model: Model, adapters: Transcoders, source: str = "") -> None:
    """Make the features of adapters that stand in a model sites of it (`5.feature.317`)."""
    for block, adapter in zip(model.main_blocks, adapters, strict=True):
        bias = adapter.dec.bias
        model.dictionaries[block.index] = Dictionary(
            "standard", "mlp_in", "mlp_out", adapter.enc.weight.detach().T.float(),
            adapter.enc.bias.detach().float(), adapter.dec.weight.detach().T.float(),
            torch.zeros(adapters.shape.width) if bias is None else bias.detach().float(), source=source,
        )  # fmt: skip


def evaluate_transcoder(
    folder: Path | str,
    texts: Sequence[str] = (),
    *,
    base: str = "",
    target: str = "",
    length: int = LONGEST,
    most: int = HELD,
    prompts_count: bool = True,
    solve: int = 0,
    problems: Path | str = "",
    new_tokens: int = NEW_TOKENS,
    device: str = "cpu",
) -> xr.Dataset:
    """Measure what adapters recover, on text by domain (NAME=PATH), by default on worked sums that they were
    not trained on. The certificate is written beside them, as JSON and as a page.

    Args:
        folder: of the adapters.
        base: another name of the same weights.
        target: another name of the tuned ones.
        texts: NAME=PATH of each domain.
        length: tokens of a sequence.
        most: sequences of each domain.
        prompts_count: whether predictions of the questions' tokens count.
        solve: held-out problems that every model writes on behind; 0: none, or all of `problems`.
        problems: JSONL with `question` and `answer`; without it worked sums.
        new_tokens: tokens written behind a problem at most.
        device: where to run.

    Returns:
        Losses of base, target, hybrid and adapted model in nats per token, what is recovered, and how
        many features are active.

    Raises:
        CheckpointError: no adapters are there, or the models are not theirs.
        ValueError: there is no text.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "measured", features=32, plan=few, length=64)
        >>> data = regraft.evaluate_transcoder("measured/graft", length=64, most=2)
        >>> dict(data.loss.sizes), data.loss.attrs["units"]
        ({'domain': 1, 'model': 4}, 'nats per token that counts')
    """
    folder = expanded(folder)
    if solve < 0:
        raise ValueError(f"solve is {solve}: write 0 or more")
    standing = opened_pair(folder, base, target, device)
    domains: dict[str, Windows | Records] = {
        name: text_of_source(
            standing.target,
            TextSource(paths, length=length, prompts_count=prompts_count),
            folder / "text",
        )
        for name, paths in named_texts(texts).items()
    }
    domains = domains or {"worked sums": worked_sums(standing.target, HELD, 99, prompts_count)}
    tried = _problems(standing, solve, problems, new_tokens)
    data = certify_transcoders(standing, domains, most)
    if tried:
        add_problem_rates(data, standing, tried, new_tokens)
    about = read_about(folder)
    data.attrs |= {"grafts": TRANSCODER, **{f"pair_{k}": about["pair"].get(k, "") for k in PAIR}}
    data.attrs |= {f"loss_{name}": value for name, value in about["pair"]["loss"].items()}
    with keeping(data):
        write_certificate(data, [folder])
    words = ["regraft", "graft", "transcoder", "eval", "--graft", str(folder)]
    words += [*(f"--text={t}" for t in texts), *([f"--solve={len(tried)}"] if tried else [])]
    given = {"problems": problems, "base": base, "target": target}
    words += [f"--{name}={value}" for name, value in given.items() if value]
    words += [f"--length={length}", f"--windows={most}", f"--new-tokens={new_tokens}"]
    words += [] if prompts_count else ["--no-prompts-count"]
    text = page(standing.carrier, [data], [shlex.join(words)], data.attrs["seconds"], {})
    with keeping(data), whole_file(folder / "certificate.html") as part:
        part.write_text(text, encoding="utf-8")
    return data


def export_transcoder(folder: Path | str, target: Path | str, remote_code: bool = False) -> str:
    """Write the model with the adapters in it as a Hugging Face folder; adapters that were not measured are
    measured first, on worked sums.

    Args:
        folder: of the adapters.
        target: the folder to write.
        remote_code: carry regraft's own files along, so that `trust_remote_code=True` opens the folder
            without regraft.

    Returns:
        What was written and how it was read back, in a sentence.

    Raises:
        CheckpointError: no adapters are there.
        RunFolderError: the target is not empty.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), regraft.TrainingPlan(steps=2, batch=2)
        >>> fitted = regraft.fit_transcoder(model, tuned, "to-write", features=32, plan=few, length=64)
        >>> data = regraft.evaluate_transcoder("to-write/graft", length=64, most=2)
        >>> print(regraft.export_transcoder("to-write/graft", "adapted"))
        adapted opens with transformers behind `import regraft`; read again, its tensors are the grafts'
        to the bit ...
    """
    folder, target = expanded(folder), expanded(target)
    check_empty(target, "--save")
    if not (folder / CERTIFICATE).exists():
        evaluate_transcoder(folder)
    certificate, standing = read_certificate([folder]), opened_pair(folder)
    return write_grafted(standing.carrier, [standing.graft], certificate, target, remote_code)


def _problems(standing: Standing, solve: int, file: Path | str, new_tokens: int) -> list[Problem]:
    """Problems to solve, looked at before anything is measured.

    Raises:
        ValueError: a problem that is longer, with what is written behind it, than a model reads.
    """
    tokenizer = standing.target.tokenizer
    found = read_problems(expanded(file), tokenizer) if file else worked_problems(solve, UNSEEN)
    found = found[:solve] if solve else found
    longest = longest_input(standing.target.hf.config)
    needed = max((len(tokenizer(one.prompt)["input_ids"]) for one in found), default=0) + new_tokens
    if longest and found and needed > longest:
        raise ValueError(
            f"a problem and {new_tokens} tokens behind it make {needed}, more than the {longest} that"
            f" {standing.target.name} reads: lower --new-tokens, or leave the problem out"
        )
    return found


def transcoder_sentences(data: xr.Dataset) -> list[str]:
    """What was measured, in words."""
    lines = []
    for name in map(str, data.domain.values):
        one = data.sel(domain=name)
        losses = ", ".join(f"{m} {float(one.loss.sel(model=m)):.4f}" for m in map(str, data.model.values))
        lines.append(
            f"{name}: loss {losses} nats per token; {float(one.recovered):.1%} of the target's gain over the"
            f" hybrid, {float(one.recovered_from_base):.1%} of that over the base is recovered; divergence"
            f" {float(one.kl.sel(model='adapted')):.4f} nats per token,"
            f" {float(one.active.mean()):.1f} active features of {data.attrs['features']}"
        )
    if "right" in data:
        lines.append(problem_sentence(data))
    return lines
