"""What `regraft graft embedding fit | bake`, and `eval` and `export` of every graft, do once their options
are read."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from regraft.core.defaults import SEQUENCE_LENGTH
from regraft.core.files import check_empty, expanded, keeping, whole_file
from regraft.core.randomness import drawing_from
from regraft.data.token_bytes import token_bytes
from regraft.data.windows import Windows, cut, windows
from regraft.export.baked_embedding import bake
from regraft.export.certificate import certify
from regraft.export.graft_folder import (
    attach,
    make_embedding,
    read_certificate,
    save_graft,
    swaps_of,
    write_certificate,
)
from regraft.export.grafted_model import write_grafted
from regraft.export.probe_sentences import NEXT, PROBES, probe_quantities
from regraft.jobs.checks import named_texts
from regraft.model.model import Model
from regraft.modules.byte_codes import cut_share
from regraft.modules.byte_embedding import ByteConfig, ByteEmbedding, parameters
from regraft.modules.graft_kinds import EMBEDDING, HEAD, kind_of, sizes
from regraft.reporting.page import page
from regraft.reporting.shell_commands import next_step, source_words
from regraft.specimens import almanac
from regraft.training.checkpointing import newest
from regraft.training.distributed import processes
from regraft.training.sensitivity import sensitivity
from regraft.training.tasks.embedding_task import (
    EmbeddingTask,
    LossWeights,
    check_depths,
    embedded_rows,
    warm_up,
)
from regraft.training.trainer import TrainingPlan, train

HELD_CHARACTERS = 200_000
"""Characters of the almanac that are measured on where no text is given: more windows than are read."""


def training_text(model: Model, texts: Sequence[str], length: int, folder: Path, seed: int) -> Windows:
    """Windows over files and folders, encoded into `folder` by the first process, or over an almanac where
    none is named."""
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer to read text with: name one with --tokenizer")
    with processes().main_process_first():
        return (
            windows(model, texts, length, folder, seed)
            if texts
            else almanac_windows(model, length, 0, 2_000_000)
        )


def fit_embedding(
    model: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    config: ByteConfig | None = None,
    plan: TrainingPlan | None = None,
    weights: LossWeights | None = None,
    *,
    length: int = SEQUENCE_LENGTH,
    warm: int = 1200,
    felt: bool = True,
    depths: Sequence[int] = (),
    seed: int = 0,
    opened: Mapping[str, Any] | None = None,
) -> str:
    """Train a byte embedding and write it to `out/graft`; the run's checkpoints and log stand in `out/run`.

    Args:
        model: an opened model with a tokenizer.
        out: the folder.
        texts: files and folders to train on; without them an almanac.
        config: sizes of the embedding.
        plan: how long and how fast.
        weights: how much each part of the loss counts.
        length: tokens of a sequence.
        warm: steps of regression on the table before.
        felt: warm up in the metric that the model's predictions feel on the text.
        depths: numbers of blocks behind which the stream is compared; by default a quarter, a half and all.
        seed: of everything drawn at random.
        opened: how the model was opened, for the command that is named as the next.

    Returns:
        What came out, in a sentence or two; of several processes the first writes and has something to say.

    Raises:
        ValueError: sizes that do not fit the model, or no tokenizer.
        RunFolderError: there is a graft already.

    Examples:
        >>> print(regraft.fit_embedding(model, "bytes", plan=regraft.TrainingPlan(2, 2), warm=2, length=16))
        410,976 parameters, 0.52 of the table's; ...
    """
    config, plan, weights = config or ByteConfig(), plan or TrainingPlan(), weights or LossWeights()
    out = expanded(out)
    check_empty(out / "graft", "--out")
    with drawing_from(seed):
        graft = make_embedding(model, config)
    task = EmbeddingTask(model, graft, check_depths(model, depths), weights)
    weights_sha256 = model.weights_sha256
    table = token_bytes(model.tokenizer, model.table_rows)
    text = training_text(model, texts, length, out / "run", seed)
    errors: list[float] = []
    if newest(out / "run") is None:
        metric = sensitivity(model, text) if felt and model.parts.head is not None else None
        errors = warm_up(graft, embedded_rows(model), warm, metric, seed=seed, matrices=plan.matrices)
    origin = {
        "model": weights_sha256,
        "graft": sizes(graft),
        "weights": asdict(weights),
        "warm-up": [warm, felt],
        **({"depths": list(depths)} if depths else {}),
        "seed": seed,
    }
    with drawing_from(seed):
        log = train(task, text, plan, out / "run", origin=origin)
    if not processes().is_main_process:
        return ""
    save_graft(graft, model, out / "graft", weights_sha256)
    share = parameters([graft]) / model.parts.embedding.weight.numel()
    warmed = f"the warm-up left {errors[-1]:.3f} of the table's mean square, " if errors else ""
    last = np.mean([line["loss"] for line in log[-20:]])
    agreement = np.mean([line.get("agreement", np.nan) for line in log[-20:]])
    head = " The head was tied to the table: it keeps the old matrix as its own." if model.parts.tied else ""
    going_on = next_step(["graft", "embedding", "eval"], model, ("graft", out / "graft"), opened or {})
    return (
        f"{parameters([graft]):,} parameters, {share:.2f} of the table's;"
        f" {cut_share(table, config.group):.2%} of the tokens have more than {config.group} bytes and are"
        f" cut; {warmed}after {len(log)} steps the loss is {last:.3f}, the same first token in"
        f" {agreement:.1%} of cases.{head} {going_on}"
    )


def evaluate_grafts(
    model: Model,
    folders: Sequence[Path | str],
    texts: Sequence[str] = (),
    *,
    length: int = SEQUENCE_LENGTH,
    most: int = 64,
    opened: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Certify one graft or two on text by domain (NAME=PATH), by default on an almanac of the specimens'
    kind.

    The certificate is written beside the first, as JSON and as a page.

    Args:
        model: an opened model.
        folders: of one graft, or of two that stand in their places together.
        texts: NAME=PATH of each domain; without them an almanac.
        length: tokens of a sequence.
        most: sequences of each domain.
        opened: how the model was opened, for the command that is named as the next.

    Returns:
        The certificate: bits per byte, divergence, agreement and costs by domain, with units.

    Raises:
        CheckpointError: no graft is there, or it was made for another model.
        ValueError: there is no text.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "short", plan=few, warm=2, length=16)
        >>> certificate = regraft.evaluate_grafts(model, ["short/graft"], length=16, most=2)
        >>> certificate.bits_per_byte_after.attrs["units"], certificate.kl.attrs["units"]
        ('bits per byte of text, with the graft', 'nats per token from the model as it was')
    """
    folders = [expanded(folder) for folder in folders]
    grafts = [attach(folder, model) for folder in folders]
    domains = {
        name: windows(model, paths, length, folders[0] / "text") for name, paths in named_texts(texts).items()
    }
    domains = domains or {"almanac": almanac_windows(model, length, 99, HELD_CHARACTERS)}
    table = token_bytes(model.tokenizer, model.table_rows)
    swaps = swaps_of(model, grafts)
    data = certify(model, swaps, domains, table, most).assign(probe_quantities(model, swaps))
    if "probe" in data.dims:
        data = data.assign_coords(probe=list(PROBES), place=range(1, NEXT + 1))
    data.attrs["grafts"] = " and ".join(kind_of(graft) for graft in grafts)
    with keeping(data):
        write_certificate(data, folders)
    kind = "head" if kind_of(grafts[0]) == HEAD else "embedding"
    words = [
        "regraft",
        "graft",
        kind,
        "eval",
        "--graft",
        str(folders[0]),
        *(["--with", str(folders[1])] if folders[1:] else []),
    ]
    for text in texts:
        words += ["--text", text]
    words += ["--length", str(length), "--windows", str(most), *source_words(model, opened or {})]
    text = page(model, [data], [shlex.join(words)], data.attrs["seconds"], opened)
    with keeping(data), whole_file(folders[0] / "certificate.html") as part:
        part.write_text(text, encoding="utf-8")
    return data


def bake_embedding(model: Model, folder: Path | str, target: Path | str) -> str:
    """Write the model with the graft's table.

    Args:
        model: an opened model.
        folder: of the byte embedding, measured before.
        target: the folder to write.

    Returns:
        What was written and how it was read back, in a sentence.

    Raises:
        CheckpointError: no byte embedding is there, or it was made for another model.
        RunFolderError: the target is not empty.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "to-bake", plan=few, warm=2, length=16)
        >>> certificate = regraft.evaluate_grafts(model, ["to-bake/graft"], length=16, most=2)
        >>> print(regraft.bake_embedding(model, "to-bake/graft", "baked"))
        baked opens with transformers and gives the graft's outputs ...
    """
    folder, target = expanded(folder), expanded(target)
    graft = attach(folder, model, EMBEDDING)
    assert isinstance(graft, ByteEmbedding)
    return bake(model, graft, folder, target)


def export_grafts(
    model: Model, folders: Sequence[Path | str], target: Path | str, remote_code: bool = False
) -> str:
    """Write the model with one graft or two in it.

    Args:
        model: an opened model.
        folders: of one graft, or of two that stand in their places together, measured before.
        target: the folder to write.
        remote_code: carry regraft's own files along: `trust_remote_code=True` then opens the folder without
            regraft.

    Returns:
        What was written and how it was read back, in a sentence.

    Raises:
        CheckpointError: no graft is there, or it was made for another model.
        RunFolderError: the target is not empty.
        ValueError: a graft was not measured yet.

    Examples:
        >>> few = regraft.TrainingPlan(steps=2, batch=2)
        >>> made = regraft.fit_embedding(model, "to-export", plan=few, warm=2, length=16)
        >>> certificate = regraft.evaluate_grafts(model, ["to-export/graft"], length=16, most=2)
        >>> print(regraft.export_grafts(model, ["to-export/graft"], "exported"))
        exported opens with transformers behind `import regraft`; read again, its tensors are the grafts'
        to the bit ...
    """
    folders, target = [expanded(folder) for folder in folders], expanded(target)
    grafts = [attach(folder, model) for folder in folders]
    return write_grafted(model, grafts, read_certificate(folders), target, remote_code)


def almanac_windows(model: Model, length: int, seed: int, characters: int) -> Windows:
    """Windows over an almanac made with a seed: sentences whose facts are known, at hand without any file."""
    ids: list[int] = []
    for text in almanac.corpus(characters, seed + 1):
        ids += model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return cut(np.array(ids, dtype=np.uint32), length)


def sentences(data: xr.Dataset) -> Iterable[str]:
    """A certificate in words and as rows."""
    for name in map(str, data.domain.values):
        one: Any = data.sel(domain=name)
        before, after = float(one.bits_per_byte_before), float(one.bits_per_byte_after)
        yield (
            f"{name}: {before:.4f} bits per byte become {after:.4f} ({after - before:+.4f}),"
            f" {float(one.kl):.3f} nats per token of divergence, the same first token in"
            f" {float(one.top1):.1%}, of the first five {float(one.top5):.1%}"
        )
    count, ours = (int(v) for v in data.part_parameters.values)
    yield f"the part: {count:,} parameters before, {ours:,} after"
    for name, what in (("forward", "forward pass"), ("step", "training step of the part")):
        seconds = [1e3 * float(value) for value in data[name].values]
        peaks = [float(value) / 2**20 for value in data[f"{name}_peak"].values]
        yield (
            f"{what}: {seconds[0]:.0f} ms and {peaks[0]:.1f} MiB beyond the weights before,"
            f" {seconds[1]:.0f} ms and {peaks[1]:.1f} MiB after"
        )
    if "probe" in data:
        alike, rates = float(data.probe_shared.mean()), data.decode_rate.values
        yield (
            f"{data.sizes['probe']} fixed sentences: of the {NEXT} most probable next tokens {alike:.1f} are"
            f" the same, {_same_texts(data)} are written on with the same tokens, at {rates[0]:.1f} tokens/s"
            f" before and {rates[1]:.1f} after"
        )
    token, context = str(data.token.values[0]), str(data.context.values[0])
    yield f"worst: {token!r} after {context!r} ({float(data.excess.values[0]):+.2f} nats)"


def _same_texts(data: xr.Dataset) -> int:
    """Sentences that both states write on with the same text."""
    before, after = data.continuation.values
    return int(np.sum(before == after))
