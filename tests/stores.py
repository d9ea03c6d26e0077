"""Stores and results of runs, for the tests that compare them."""

from __future__ import annotations

import hashlib

import numpy as np


def chunks(folder):
    """Digests of all chunks of a store, whatever says when it was written left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(("zarr", ".z")):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def alike(found, wanted):
    """Make sure that two results have the same names and texts, and numbers within rounding."""
    assert set(found.variables) == set(wanted.variables)
    for name, variable in wanted.variables.items():
        if variable.dtype.kind == "f":
            np.testing.assert_allclose(found[name], variable, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert (found[name].values == variable.values).all(), name
