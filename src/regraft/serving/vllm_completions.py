"""Greedy completions written by vLLM, in an environment that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.checkpoint.locate import weights_digest
from regraft.data.generation import end_tokens
from regraft.model.block_call import longest_input
from regraft.model.model import Model

INSTALL = "pip install 'regraft[vllm]' in an environment of its own, then call that environment's regraft"


def check_vllm(model: Model) -> None:
    """Make sure that vLLM can write for a model.

    Raises:
        ImportError: this environment has no vLLM.
        ValueError: the model has no folder that vLLM could open, or was changed since it was read.
    """
    _vllm()
    if model.folder is None:
        raise ValueError(f"vLLM opens a folder, and {model.name} has none: save it first")
    if model.weights_sha256 != weights_digest(model.folder):
        raise ValueError(f"the weights of {model.name} were changed since they were read: save it first")


def _vllm() -> Any:
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"--backend vllm needs vLLM, which is not installed here: {INSTALL}") from error
    return vllm


def write_with_vllm(model: Model, rows: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Token ids behind each row, at most `limit` of them, end tokens included.

    The model's folder is opened a second time, by vLLM, in the same type of numbers; generation settings of
    the checkpoint do not count, the end tokens do.

    Raises:
        ImportError: this environment has no vLLM.
        ValueError: the model has no folder.
    """
    check_vllm(model)
    assert model.folder is not None
    vllm = _vllm()
    room = max(map(len, rows)) + limit
    most = longest_input(model.hf.config)
    engine = vllm.LLM(
        model=str(model.folder), tokenizer=str(model.folder), skip_tokenizer_init=model.tokenizer is None,
        dtype=str(model.dtype).removeprefix("torch."), max_model_len=min(room, most) if most else room,
        generation_config="vllm", enforce_eager=model.device.type == "cpu", seed=0,
    )  # fmt: skip
    how = vllm.SamplingParams(
        temperature=0.0, max_tokens=limit, detokenize=False, stop_token_ids=end_tokens(model) or None
    )
    asked = [{"prompt_token_ids": list(row)} for row in rows]
    return [list(answer.outputs[0].token_ids) for answer in engine.generate(asked, how)]
