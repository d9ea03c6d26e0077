"""Completions: what the model itself says next, the text that every loss here is measured on."""

from __future__ import annotations

from typing import Literal

import xarray as xr

from regraft.core.defaults import COMPLETION_TOKENS
from regraft.data.evaluation import evaluation
from regraft.export.changed_model import generate
from regraft.model.model import Model
from regraft.serving.vllm_completions import check_vllm, write_with_vllm
from regraft.sweeps.edit_words import edit_of
from regraft.sweeps.live_edits import check_live


def completions(
    model: Model,
    prompts: list[str] | None = None,
    count: int = 50,
    tokens: int = COMPLETION_TOKENS,
    edit: list[str] | None = None,
    backend: Literal["transformers", "vllm"] = "transformers",
) -> xr.Dataset:
    """Write the model's own greedy completion of each prompt, with categories and token counts.

    Temperature 0, the chat template applied where the tokenizer has one. Completions are kept between runs,
    keyed by the weights, the configuration, the token ids and the limit.

    Args:
        prompts: texts to complete; without them, prompts that suit the model.
        count: how many of the suiting prompts.
        tokens: longest completion, in tokens.
        edit: changes under which each prompt is completed once more: SITE=0, SITE*FACTOR, SITE+VECTOR or
            SITE+TIMES*VECTOR, with @prompt, @new or @-1,3 behind it; a vector is a file .npy or .safetensors,
            or the folder of a run of steer.
        backend: who writes completions that are not kept yet; vllm needs an environment that has it.

    Raises:
        ValueError: the model does not write text from left to right, or an edit that is none.
        ImportError: there is no vLLM in this environment.

    Examples:
        >>> data = regraft.completions(model, prompts=["The capital of France is"], tokens=3)
        >>> dict(data["completion_tokens"].sizes), data["completion_tokens"].attrs["units"]
        ({'prompt': 1}, 'tokens')
    """
    edits = [edit_of(word) for word in edit or ()]
    check_live(model, edits)
    if backend == "vllm":
        check_vllm(model)
    text = evaluation(model, prompts, count, tokens, write=write_with_vllm if backend == "vllm" else None)
    texts = text.flat
    changed = {}
    if edits:
        ids = [list(c.prompt_ids) for c in texts]
        written = generate(model, ids, edits=edits, tokens=tokens, attention_mask="all")
        units = f"what it says under {', '.join(edit or ())}"
        changed["changed"] = ("prompt", list(written.texts), {"units": units})
    return xr.Dataset(
        {
            "text": ("prompt", [c.prompt for c in texts], {"units": "the prompt"}),
            "completion": (
                "prompt",
                ["".join(model.token_text(i) for i in c.completion_ids) for c in texts],
                {"units": "what the model says next"},
            ),
            **changed,
            "prompt_tokens": (
                "prompt",
                [len(c.prompt_ids) for c in texts],
                {"units": "tokens, template included"},
            ),
            "completion_tokens": ("prompt", [len(c.completion_ids) for c in texts], {"units": "tokens"}),
            "category": ("prompt", [c.category for c in texts], {"units": "kind of prompt"}),
        },
        coords={"prompt": range(len(texts))},
        attrs={"scored_tokens": text.scored_tokens, "backend": backend},
    )
