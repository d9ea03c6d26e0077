"""The live model changed for a while: another route, edits at sites, whoever runs it; and text written under
such changes.

Shapes: B prompts, T positions.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regraft.core.defaults import COMPLETION_TOKENS
from regraft.core.randomness import drawing_from
from regraft.data.generation import Sampling, check_writes, room, until_end, write_on
from regraft.export.live_route import live_route
from regraft.model.block_call import CANNOT
from regraft.model.inputs import rows_of
from regraft.model.model import Model
from regraft.sweeps.live_edits import Copies, check_live, live_edits
from regraft.sweeps.routes import Route, whole_number
from regraft.sweeps.variants import Edit, Variant, listed, variants_of
from regraft.systems.kept_cache import kept_cache


@contextmanager
def changed(model: Model, variant: Variant | Edit | Route | Sequence[Edit]) -> Iterator[Model]:
    """While inside, the live Hugging Face model takes another route and passes through edits, whoever runs
    it: `hf.generate`, a plain forward, another library.

    Edits count positions over the prompt and what is written behind it; `"prompt"` and `"new"` mean all of
    either. Blocks on a route are the model's own weights; keys and values are kept for each place. The model
    is held, and put back as it was whatever is raised.

    Args:
        model: an opened model.
        variant: a `Variant`, a route, an edit or several.

    Returns:
        A context; inside, the model.

    Raises:
        ValueError: a site that a run does not pass, or a route that this model cannot run by itself.

    Examples:
        >>> ids = model.record("The capital of France is").ids_BT
        >>> with regraft.changed(model, regraft.Zero("6.mlp_out")):
        ...     changed = model.hf(ids).logits
        >>> bool((changed == model.hf(ids).logits).all())
        False
    """
    with changed_copies(model, variant):
        yield model


@contextmanager
def changed_copies(model: Model, variant: Variant | Edit | Route | Sequence[Edit] | None) -> Iterator[Copies]:
    """The same; yields what runs in the place of each module that a route has moved."""
    if variant is None:
        with model.held():
            yield {}
        return
    (wanted,) = variants_of(variant) if isinstance(variant, (Variant, Edit, Route)) else [Variant(variant)]
    _check_passed(model, wanted)
    with model.held(), ExitStack() as stack:
        copies = stack.enter_context(live_route(model, wanted.route)) if wanted.route else {}
        stack.enter_context(live_edits(model, wanted.edits, copies))
        yield copies


@dataclass(frozen=True)
class Generated:
    """What was written behind each prompt: token ids, up to the end token, and their text.

    Examples:
        >>> written = model.generate(["The capital of France is", "It is dark"], tokens=2)
        >>> len(written.texts), [len(ids) for ids in written.ids]
        (2, [2, 2])
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.texts)


def generate(
    model: Model,
    prompts: Any,
    *,
    edits: Edit | Sequence[Edit] = (),
    route: Route | None = None,
    tokens: int = COMPLETION_TOKENS,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    cache: bool | str = True,
    attention_mask: Any = None,
) -> Generated:
    """Write on behind prompts while the model passes through edits and along a route.

    Prompts of one length go together, so that none is padded. Sampling draws from a generator of its own.

    Args:
        model: a model that writes text.
        prompts: a text, token ids, a chat, or a list of them.
        edits: changes of activations; `position` counts over prompt and answer, `"prompt"` and `"new"` mean
            all tokens of either, and none means all.
        route: another sequence of blocks.
        tokens: how many at most.
        temperature: of the draw of each token; 0 takes the most likely one.
        top_p: draw among the most likely tokens that have this share.
        seed: of the draw.
        cache: keep keys and values between tokens; or a strategy that says what is kept of the prompt: words
            such as "int4:recent=32" or "h2o:budget=25%" (`regraft cache` measures them).
        attention_mask: for token ids, 1 on tokens and 0 on padding; "all" where the pad token is meant as
            one.

    Returns:
        Token ids and texts of what was written, one for each prompt.

    Raises:
        ValueError: a model that writes no text, an edit that no token passes, a route that cannot be run, no
            room for the tokens.

    Examples:
        >>> written = regraft.generate(model, "The capital of France is", tokens=1)
        >>> written.texts
        (' Paris',)
        >>> without = regraft.Route.skip(12, {0})
        >>> written != regraft.generate(model, "The capital of France is", route=without, tokens=1)
        True
    """
    rows = rows_of(model, prompts, attention_mask).ids
    given = (edits,) if isinstance(edits, Edit) else tuple(edits)
    how = Sampling(whole_number(tokens, "number of tokens"), temperature, top_p, cache is not False)
    if isinstance(cache, str) and (given or route is not None):
        raise ValueError(
            f"cache={cache!r} keeps what an unchanged prompt has: write with edits or a route, or with it"
        )
    _check_asked(model, how, rows, given)
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_length[len(row)].append(number)
    found: dict[int, list[int]] = {}
    with drawing_from(seed):
        for numbers in by_length.values():
            batch = torch.tensor([rows[number] for number in numbers], device=model.device)
            own = [_of_prompts(edit, numbers, len(rows)) for edit in given]
            with changed(model, Variant(own, route)):
                if isinstance(cache, str):
                    how = replace(how, past=kept_cache(model, batch, cache))
                if route is not None and how.cache:
                    _check_keeps(model, batch[:1])
                written = write_on(model, batch, how)
            found |= dict(zip(numbers, (until_end(model, row) for row in written), strict=True))
    ids = tuple(tuple(found[number]) for number in range(len(rows)))
    texts = tuple("".join(map(model.token_text, row)) for row in ids)
    return Generated(tuple(map(tuple, rows)), ids, texts)


def _check_asked(model: Model, how: Sampling, rows: list[list[int]], edits: Sequence[Edit]) -> None:
    """Make sure that the model writes text, that the tokens fit, and that every edit is passed.

    Raises:
        ValueError: they do not.
    """
    how.check()
    check_writes(model)
    if room(model, rows, how.tokens) < how.tokens:
        raise ValueError(
            f"{how.tokens} tokens behind the longest prompt do not fit into the model: ask for"
            f" {room(model, rows, how.tokens)} at most"
        )
    _check_reached(model, edits, rows, how.tokens)


def _check_keeps(model: Model, prompt_1T: Tensor) -> None:
    """Make sure that the model keeps keys and values along its route: the second token is the first that
    reads them.

    Raises:
        ValueError: it does not.
    """
    why = "with keys and values kept it writes other tokens than without"
    try:
        kept, whole = (write_on(model, prompt_1T, Sampling(2, cache=cache)) for cache in (True, False))
        if kept == whole:
            return
    except CANNOT as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    raise ValueError(
        f"{type(model.hf).__name__} cannot keep keys and values along this route ({why}): write without them"
        " (cache=False)"
    )


def _check_passed(model: Model, variant: Variant) -> None:
    """Make sure that the route passes every edited block.

    Raises:
        ValueError: it does not.
    """
    check_live(model, variant.edits)
    if variant.route is None:
        return
    own = {stop.block for stop in variant.route.stops if stop.module is None}
    for edit in variant.edits:
        block = model.site(edit.site).block
        if block is not None and block not in own:
            raise ValueError(f"the edit at {edit.site} is never passed: the route leaves its block out")


def _check_reached(model: Model, edits: Sequence[Edit], rows: list[list[int]], tokens: int) -> None:
    """Make sure that every position is one of the prompt or of what is written.

    Raises:
        ValueError: one lies behind both, or before the prompt.
    """
    shortest = 1 if model.two_stacks else min(map(len, rows))
    for edit in edits:
        for position in [] if isinstance(edit.position, str) else listed(edit.position) or []:
            # The last token that is written is not read any more.
            if isinstance(position, int) and not -shortest <= position < shortest + tokens - 1:
                raise ValueError(
                    f"position {position} of the edit at {edit.site} is never passed: a prompt of {shortest}"
                    f" tokens and {tokens} written behind it have {-shortest} to {shortest + tokens - 2}"
                )


def _of_prompts(edit: Edit, numbers: list[int], count: int) -> Edit:
    """An edit for some of the prompts: a value that is given prompt by prompt is cut to theirs."""
    value = vars(edit).get("value")
    if not isinstance(value, Tensor) or value.dim() != 3 or len(value) != count:
        return edit
    made = copy.copy(edit)
    object.__setattr__(made, "value", value[numbers])
    return made
