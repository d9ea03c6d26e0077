"""What `regraft graft transcoder pareto` does: adapters of several weights of sparsity, and the controls,
fitted, measured, and set side by side."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from regraft.core.files import expanded, keeping, whole_file
from regraft.core.progress import tell
from regraft.core.strict_json import json_text
from regraft.export.graft_folder import read_about
from regraft.jobs.checks import named_texts
from regraft.jobs.transcoder_jobs import evaluate_transcoder, fit_transcoder, pair_of, trained_how
from regraft.jobs.transcoder_text import TextSource, text_of_source
from regraft.model.model import Model
from regraft.modules.backbone import Backbone
from regraft.reporting.page import page
from regraft.training.distributed import processes
from regraft.training.tasks.transcoder_task import TranscoderLoss
from regraft.training.trainer import TrainingPlan

PUBLISHED_L1 = (0.01, 0.003, 0.001, 0.0003, 0.0001)
"""The published weights of the features' sizes, the sparsest first."""
Control = Literal["base", "next-token", "random"]
"""What the adapters are held against: the base's backbone, the loss on the text alone, encoders as drawn."""
CONTROLS: dict[Control, str] = {
    "base": "base's backbone", "next-token": "next-token loss alone", "random": "random features",
}  # fmt: skip
"""Each in words."""
UNITS = {
    "l1": "weight of the features' sizes",
    "loss": "nats per token that counts",
    "kl": "nats per token from the target",
    "recovered": "share of the target's gain over the hybrid",
    "recovered_from_base": "share of the target's gain over the base",
    "active": "features above zero, of a token",
    "active_mean": "features above zero, of a token, mean over blocks",
    "never": "share of features that no token raised",
    "error": "squared error of the last stream over the target's",
}


@dataclass(frozen=True)
class Fit:
    """One fit of several: its name, where it lies, and how it differs."""

    name: str
    folder: Path
    backbone: Backbone
    weights: TranscoderLoss
    random_features: bool


def pareto_transcoder(
    base: Model,
    target: Model,
    out: Path | str,
    texts: Sequence[str] = (),
    *,
    l1: Sequence[float] = PUBLISHED_L1,
    controls: Sequence[Control] = (),
    control_l1: float = 0.001,
    held: Sequence[str] = (),
    backbone: Backbone = "target",
    features: int = 1024,
    weights: TranscoderLoss | None = None,
    plan: TrainingPlan | None = None,
    length: int = 256,
    solve: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Fit adapters for several weights of sparsity and measure each: one table, and the curve of divergence
    over active features. Fits that lie in the folder already are measured and not made again; one that was
    broken off goes on.

    Args:
        base: the model before it was tuned.
        target: the tuned model.
        out: a folder; each fit has one of its own in it, and `pareto.json` and `pareto.html` stand beside.
        texts: files and folders to train on; without them worked sums.
        l1: the weights of the features' sizes.
        controls: fits at `control_l1` beside: the `base`'s backbone, the loss on the text alone
            (`next-token`), encoders that stay as they were drawn (`random`).
        control_l1: the weight of the sizes for the controls.
        held: NAME=PATH of text to measure on; without it other worked sums.
        backbone: of every fit, as in `fit_transcoder`; as are those that follow.
        features: of every block.
        weights: of the parts of the loss.
        plan: how long and how fast.
        length: tokens of a sequence.
        seed: of everything drawn at random.
        solve: held-out worked sums that every model solves.

    Returns:
        For every weight and control: divergence in nats, active features of a token, and what was recovered.

    Raises:
        ValueError: no weight, a folder that holds adapters made otherwise, or what `fit_transcoder` refuses.

    Examples:
        >>> tuned, few = regraft.load("specimen:tuned"), {"plan": regraft.TrainingPlan(2, 2), "length": 64}
        >>> data = regraft.pareto_transcoder(model, tuned, "pareto", l1=[0.01, 0.001], features=32, **few)
        >>> dict(data.kl.sizes), data.kl.attrs["units"]
        ({'fit': 2, 'domain': 1}, 'nats per token from the target')
    """
    out, weights, plan = expanded(out), weights or TranscoderLoss(), plan or TrainingPlan(batch=8)
    _check_asked(base, target, l1, controls, held, length, out)
    fits = _fits(out, l1, controls, control_l1, backbone, weights)
    text = text_of_source(target, TextSource(texts, length=length, seed=seed), out / "text").digest()
    for fit in fits:
        _check_made_so(fit, pair_of(base, target, fit.backbone) | {"text_sha256": text}, plan, features, seed)
    found = []
    for fit in fits:
        if not (fit.folder / "graft").exists():
            tell(f"fitting {fit.name}")
            fit_transcoder(
                base, target, fit.folder, texts, backbone=fit.backbone, features=features,
                weights=fit.weights, plan=plan, length=length, seed=seed,
                random_features=fit.random_features, encoded=out / "text",
            )  # fmt: skip
        names: dict[str, Any] = {"base": base.source, "target": target.source, "device": str(base.device)}
        found.append(evaluate_transcoder(fit.folder / "graft", held, length=length, solve=solve, **names))
    data = _side_by_side(fits, found)
    given = {"control_l1": control_l1, "features": features, "length": length, "solve": solve, **asdict(plan)}
    lists = {"l1": [repr(one) for one in l1], "control": controls, "text": texts, "held": held}
    command = _command(
        {"out": out, "base": base.source, "target": target.source, **given, "seed": seed}, lists
    )
    html = page(target, [data], [command], data.attrs["seconds"], {})
    for name, whole in (("pareto.json", json_text(data.to_dict(), indent=1) + "\n"), ("pareto.html", html)):
        with keeping(data), whole_file(out / name) as part:
            part.write_text(whole, encoding="utf-8")
    return data


def _command(given: Mapping[str, Any], lists: Mapping[str, Sequence[str]]) -> str:
    """The command that makes the page again."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not False]
    words += [f"--{name}={value}" for name, values in lists.items() for value in values]
    return shlex.join(["regraft", "graft", "transcoder", "pareto", *words])


def _check_asked(
    base: Model, target: Model, l1: Sequence[float], controls: Sequence[Control], held: Sequence[str],
    length: int, out: Path,
) -> None:  # fmt: skip
    """Make sure, before the first fit, that all can be fitted and measured.

    Raises:
        ValueError: several processes, no weight or one below 0, a control that is not known, a live model, or
            text that cannot be measured on.
    """
    if processes().num_processes > 1:
        raise ValueError("fits are made one after the other: start without a launcher, or fit each by itself")
    if not l1 or min(l1) < 0:
        raise ValueError("there is no weight of sparsity to fit: name at least one, 0 or more")
    wrong = next((one for one in controls if one not in CONTROLS), None)
    if wrong is not None:
        raise ValueError(f"the control {wrong!r} is not known: choose of {', '.join(CONTROLS)}")
    for model in (base, target):
        if model.folder is None:
            raise ValueError(f"{model.name} is a live model, which is not found again: save it to a folder")
    for paths in named_texts(held).values():
        text_of_source(target, TextSource(paths, length=length), out / "text")


def _fits(
    out: Path, l1: Sequence[float], controls: Sequence[Control], control_l1: float, backbone: Backbone,
    weights: TranscoderLoss,
) -> list[Fit]:  # fmt: skip
    fits = [
        Fit(f"{one!r}", out / f"l1-{one!r}", backbone, replace(weights, l1=one), random_features=False)
        for one in dict.fromkeys(l1)
    ]
    alone = replace(weights, kl=0, bridge=0, nmse=0, l1=control_l1, next_token=1)
    for control in dict.fromkeys(controls):
        fits.append(
            Fit(
                f"{control_l1!r}, {CONTROLS[control]}", out / f"l1-{control_l1!r}-{control}",
                "base" if control == "base" else backbone,
                alone if control == "next-token" else replace(weights, l1=control_l1),
                random_features=control == "random",
            )
        )  # fmt: skip
    return fits


def _check_made_so(fit: Fit, pair: Mapping[str, Any], plan: TrainingPlan, features: int, seed: int) -> None:
    """Make sure that adapters which lie in a folder already are the ones that are asked for.

    Raises:
        ValueError: they were made for other models, or otherwise.
    """
    if not (fit.folder / "graft").exists():
        return
    about = read_about(fit.folder / "graft")
    wanted = {**pair, **trained_how(fit.weights, plan, seed, fit.random_features)}
    other = [name for name, value in wanted.items() if about["pair"].get(name) != value]
    if about["shape"]["features"] != features:
        other.append("features")
    if other:
        raise ValueError(
            f"{fit.folder} holds adapters that were made otherwise ({', '.join(other)}): name another --out"
        )


def _side_by_side(fits: Sequence[Fit], found: Sequence[xr.Dataset]) -> xr.Dataset:
    """One result of all fits, along `fit`."""
    rows = []
    for one in found:
        last = one.nmse.isel(depth=-1, drop=True)
        row = xr.Dataset({
            "loss": one.loss.sel(model="adapted", drop=True), "kl": one.kl.sel(model="adapted", drop=True),
            "recovered": one.recovered, "recovered_from_base": one.recovered_from_base, "active": one.active,
            "active_mean": one.active.mean("block"), "never": one.never.mean("block"), "error": last,
        })  # fmt: skip
        for name in ("right", "closed", "length"):
            if name in one:
                row[name] = one[name].sel(model="adapted", drop=True)
        rows.append(row)
    data = xr.concat(rows, dim=xr.DataArray([fit.name for fit in fits], dims="fit", name="fit"))
    assert isinstance(data, xr.Dataset)
    data["l1"] = ("fit", [fit.weights.l1 for fit in fits])
    data["beside"] = found[0].loss.sel(model=["base", "target", "hybrid"])
    for name, units in UNITS.items():
        data[name].attrs["units"] = units
    data["beside"].attrs["units"] = UNITS["loss"]
    data.attrs = {
        name: value
        for name, value in found[0].attrs.items()
        if all(one.attrs.get(name) == value for one in found)
    }
    seconds = float(sum(one.attrs["seconds"] for one in found))
    data.attrs |= {"experiment": "transcoder_pareto", "seconds": seconds}
    return data


def pareto_table(data: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, a row for each fit and domain."""
    head = ["λ_l1", "domain", "loss", "recovered", "of base's", "KL", "active", "never", "error"]
    rows = []
    for fit in map(str, data.fit.values):
        for domain in map(str, data.domain.values):
            one = data.sel(fit=fit, domain=domain)
            rows.append([
                fit, domain, f"{float(one.loss):.4f}", f"{float(one.recovered):.2%}",
                f"{float(one.recovered_from_base):.2%}", f"{float(one.kl):.4f}",
                f"{float(one.active_mean):.2f}", f"{float(one.never):.0%}", f"{float(one.error):.3f}",
            ])  # fmt: skip
    return head, rows
