"""What a name opens: a model as it is, or the model that transcoder adapters were trained in, with them at
hand; and a model opened again with grafts in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from regraft.export.graft_description import ABOUT, read_about
from regraft.export.graft_folder import put_in
from regraft.export.published_adapters import is_published, read_published
from regraft.jobs.checks import check_model
from regraft.jobs.transcoder_jobs import name_features, opened_pair
from regraft.model.load import load
from regraft.model.model import Model
from regraft.modules.graft_kinds import TRANSCODER, Graft
from regraft.modules.transcoder import Transcoders
from regraft.modules.tree_head import TreeHead
from regraft.studio.limits import RefusedError
from regraft.studio.places import Places


@dataclass(frozen=True)
class Opened:
    """A model without grafts, and those that its folder brought along."""

    model: Model
    grafts: dict[Path, Graft] = field(default_factory=dict)


def check_source(source: str, places: Places) -> None:
    """Make sure that a name may be opened, and what its folder names too.

    Raises:
        RefusedError: it names a model outside the folders, or is a graft that is no model by itself.
        ValueError: there is no model.
    """
    if not has_adapters(source):
        check_model(source)
    elif not is_published(Path(source)):
        pair = read_about(Path(source))["pair"]
        for name in (pair["base"], pair["target"]):
            check_model(places.model(str(name)))


def has_adapters(source: str) -> bool:
    """Whether a name is a folder of transcoder adapters.

    Raises:
        RefusedError: it is a folder of another graft.
    """
    folder = Path(source)
    if not (folder / ABOUT).is_file():
        return is_published(folder)
    about = read_about(folder)
    if about["kind"] != TRANSCODER or "pair" not in about:
        raise RefusedError(
            f"{folder.name} is a {about['kind']} of {about['model']}: open that model and switch it on there"
        )
    return True


def check_is_model(source: str) -> None:
    """Make sure that a name is a model by itself, which a command could open.

    Raises:
        RefusedError: it is a folder of adapters.
    """
    folder = Path(source)
    if (folder / ABOUT).is_file() and has_adapters(source):
        raise RefusedError(
            "experiments take a model's folder, and these are adapters: write the whole model with"
            f" `regraft graft transcoder export --graft {folder.name} --save NEW`, then open that"
        )


def open_plain(source: str) -> Opened:
    """A model by its name; by a folder of adapters the model that they stand in, not yet with them.

    Raises:
        ValueError: it cannot be opened; the sentence says why.
    """
    folder = Path(source)
    if not has_adapters(source):
        return Opened(load(source))
    if is_published(folder):
        model, graft = read_published(folder)
    else:
        standing = opened_pair(folder)
        model, graft = standing.carrier, standing.graft
    return Opened(model, {folder: graft})


def open_grafted(plain: Model, grafts: Sequence[Graft]) -> tuple[Model, Callable[[], None]]:
    """A model opened and checked anew with grafts in the places of its parts; what is returned beside it
    takes them out.

    Raises:
        ValueError: two grafts for one part, or one that the model lacks; a tree head, behind which no lens
            can read.
    """
    if any(isinstance(graft, TreeHead) for graft in grafts):
        raise RefusedError(
            "a tree head is no matrix that a lens could read through: measure it with"
            " `regraft graft head eval`"
        )
    with ExitStack() as undone:
        undone.callback(put_in(plain, grafts))
        source = plain.hf if plain.tokenizer is None else (plain.hf, plain.tokenizer)
        adapters = [graft for graft in grafts if isinstance(graft, Transcoders)]
        model = load(source, pack=not adapters)
        model.name = f"{plain.name} with {'adapters' if adapters else 'grafts'}"
        for graft in adapters:
            name_features(model, graft)
        return model, undone.pop_all().close
