"""Methods of `Model`, `Recording` and results whose work lies in rooms further down: the one way back up.

People look for `model.generate(...)` on the model, and writing text under edits needs edits and routes, which
know the model. So the method is a name and a signature, and what it does is found here when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

METHODS = {
    "generate": "export.changed_model",
    "changed": "export.changed_model",
    "activations": "jobs.activations_job",
    "gradients": "sweeps.gradients",
    "unfinished_run": "sweeps.kept_sweeps",
    "run_experiment": "experiments.running",
    "figure": "reporting.notebook",
    "table": "reporting.notebook",
    "model_html": "reporting.notebook",
    "recording_html": "reporting.notebook",
}
"""Every such method and the module in `regraft` that has the function of its name."""


def later(name: str) -> Any:
    """The function behind a method, imported now."""
    return getattr(import_module(f"regraft.{METHODS[name]}"), name)
