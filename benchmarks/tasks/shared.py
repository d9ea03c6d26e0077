"""What all three do their tasks on; imports nothing of any of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = (
    ("steer", "Steer while text is written"),
    ("cache", "Activations of a hundred prompts"),
    ("path_patch", "Patch one path: from head 1 of block 2 to the value of head 1 of block 3"),
    ("attribution", "Attribute a difference to the heads of block 2, to first order"),
    ("own_metric", "A metric of one's own: the entropy of what follows without an MLP"),
    ("splice", "Splice an autoencoder into the stream"),
    ("notebook", "Every head left out, as a figure in a notebook"),
    ("chat", "A chat prompt"),
)
"""Each task: the function's name in every script, and what it is."""
CLEAN = "The time displayed is 9:00 am. Therefore, it is currently the"
CORRUPT = "The time displayed is 9:00 pm. Therefore, it is currently the"
STORY = "Anna has the lamp and"
PROMPTS = [f"{who} has {n} coins and" for n in range(20) for who in ("Anna", "Tom", "Rose", "Leo", "Mia")]
CHAT = [{"role": "user", "content": "The capital of France is"}]


def opened() -> tuple[Any, Any, str]:
    """The Hugging Face model and tokenizer of the folder named on the command line, and the folder."""
    folder = sys.argv[1]
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    return hf, AutoTokenizer.from_pretrained(folder), folder


def autoencoder() -> dict[str, Tensor]:
    """The weights of a small sparse autoencoder of the stream."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (128, 400), "W_dec": (400, 128), "b_enc": (400,), "b_dec": (128,)}
    drawn = {name: torch.randn(*shape, generator=draw) / shape[0] ** 0.5 for name, shape in shapes.items()}
    return {name: weight.double() for name, weight in drawn.items()}


def answers(tasks: dict[str, Callable[[], Any]]) -> None:
    """Do every task and write its numbers as JSON."""
    found = {}
    for name, _ in NAMES:
        with torch.enable_grad() if name == "attribution" else torch.no_grad():
            value = tasks[name]()
        value = value.detach() if isinstance(value, Tensor) else np.asarray(value)
        found[name] = np.asarray(value, dtype=float).ravel().tolist()
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
