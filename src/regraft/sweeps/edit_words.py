"""Edits as words of a command line: a site, what is done there, and at which positions.

`5.mlp_out=0` sets to 0, `5.head.2*0.5` multiplies, `6.resid_post+4*vector.npy` adds a vector, once or several
times; `@prompt`, `@new` or `@-1,3` behind it say where, and nothing means everywhere.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from regraft.core.files import expanded
from regraft.core.runs import OUR_MARK, open_run
from regraft.sweeps.variants import NEW, PROMPT, Add, Edit, Position, Scale, Zero

FORM = (
    "write SITE=0, SITE*FACTOR, SITE+VECTOR or SITE+TIMES*VECTOR, and @prompt, @new or @-1,3 behind it;"
    " VECTOR is a file .npy or .safetensors, or the folder of a run of steer"
)
_WORD = re.compile(r"^(?P<site>[\w.]+)(?P<does>[=*+])(?P<what>[^@]+)(?:@(?P<where>.+))?$")
_TIMES = re.compile(r"^(?P<times>[-+.\deE]+)\*(?P<file>.+)$")


def edit_of(word: str) -> Edit:
    """The edit that a word says.

    Raises:
        ValueError: it says none; a number or a position that is none; a vector that cannot be read.
    """
    match = _WORD.match(word)
    if not match:
        raise ValueError(f"{word!r} is no edit: {FORM}")
    site, does, what, where = match["site"], match["does"], match["what"].strip(), match["where"]
    position = _position(word, where)
    if does == "=":
        if _number(word, what) != 0:
            raise ValueError(f"{word!r} sets a site to {what}, and only 0 can be set: {FORM}")
        return Zero(site, position)
    if does == "*":
        return Scale(site, _number(word, what), position)
    scaled = _TIMES.match(what)
    times, file = (_number(word, scaled["times"]), scaled["file"]) if scaled else (1.0, what)
    return Add(site, times * read_vector(expanded(file), site, word), position)


def _number(word: str, given: str) -> float:
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"{given!r} in {word!r} is no number: {FORM}") from error


def _position(word: str, where: str | None) -> Position:
    if where is None or where in (PROMPT, NEW):
        return where
    try:
        return [int(place) for place in where.split(",")]
    except ValueError as error:
        raise ValueError(f"{where!r} in {word!r} is no position: {FORM}") from error


def read_vector(file: Path, site: str, word: str) -> np.ndarray:
    """The numbers of a file; of a run of steer those of the site's block; `word` is what named it.

    Raises:
        ValueError: it cannot be read, or holds no single vector.
    """
    try:
        if (file / OUR_MARK).is_file():
            return _of_run(word, site, file)
        if file.suffix == ".npy":
            found = _array(word, file)
        elif file.suffix == ".safetensors":
            tensors = load_file(file)
            if len(tensors) != 1:
                raise ValueError(f"{file} holds {len(tensors)} tensors: give a file of one")
            (found,) = tensors.values()
        else:
            raise ValueError(f"{file} in {word!r} is no file of a vector: {FORM}")
    except (OSError, EOFError, SafetensorError) as error:
        raise ValueError(f"{file} in {word!r} cannot be read: {' '.join(str(error).split())}") from error
    if found.dtype.kind != "f" or found.ndim not in (1, 2):
        raise ValueError(f"{file} holds {found.dtype} of shape {found.shape}: give one vector of floats")
    return found.astype(np.float64)


def _array(word: str, file: Path) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file} in {word!r} cannot be read: it holds no plain array of numbers") from error


def _of_run(word: str, site: str, folder: Path) -> np.ndarray:
    run = open_run(folder)
    block = site.rpartition(".")[0]
    if "vector" not in run or block not in run.block.values:
        there = f"blocks {', '.join(map(str, run.block.values))}" if "vector" in run else "no vector"
        raise ValueError(f"the run {folder} in {word!r} has {there}, not one for {site}")
    return run["vector"].sel(block=block).values.astype(np.float64)
