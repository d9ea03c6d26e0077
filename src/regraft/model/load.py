"""Open a model: the embedded specimen, a folder, a hub id, or a live Hugging Face model."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from regraft.checkpoint.hub import resolve
from regraft.checkpoint.locate import DEFAULT_SPECIMEN, CheckpointError, check_folder
from regraft.core.silence import silent
from regraft.model.block_call import CANNOT, learn_batched, text_config, without_cache
from regraft.model.cpu_pack import pack_if_it_pays
from regraft.model.dispatched import taken_over
from regraft.model.from_files import from_files, refuse_adapted_folder
from regraft.model.model import Model
from regraft.model.part_search import find_parts
from regraft.model.parts import Parts
from regraft.model.selfcheck import LENGTH, check, sample_ids
from regraft.model.session import hold_of
from regraft.model.sites import Taps
from regraft.model.streamed import Streamed
from regraft.model.trace import Trace, trace
from regraft.model.wrappers import refuse_adapter_folder, refuse_elsewhere, unwrapped


def load(
    source: str | Path | nn.Module | tuple[nn.Module, Any] | None = None,
    tokenizer: Any = None,
    *,
    target_tokenizer: Any = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str | None = None,
    remote_code: bool = False,
    pack: bool = True,
    stream: bool = False,
    memory: str | int | None = None,
) -> Model:
    """Open a transformer, find its parts, and prove on a short input that they are what they seem.

    Args:
        source: nothing for the embedded specimen, `"specimen:tuned"`, `"specimen:recall"`,
            `"specimen:gpt2"` or `"specimen:t5"`, a folder, a hub id, or a live Hugging Face model (then
            `tokenizer` may go with it, or both as a pair). A wrapper (an adapter, a sentence encoder, a
            compiled or data-parallel model) is opened through what it wraps, which the notes say.
        tokenizer: a tokenizer, or the folder or hub id of one; by default the model's own.
        target_tokenizer: a tokenizer, or the folder or hub id of one, of what an encoder-decoder writes,
            where that is not the one of what it reads.
        device: where to put the weights, for example `"cuda"`; by default the CPU. A live model stays where
            it is.
        dtype: floating type; by default float32 on a CPU and the checkpoint's own elsewhere.
        attention: `"sdpa"` (the default), or `"eager"`, which alone returns attention patterns.
        remote_code: run modelling code that comes with the checkpoint. Only where you trust it.
        pack: on a CPU, pack linear layers for sweeps where a trial shows that it pays.
        stream: leave the blocks on disk and read each one when it runs; as many stay as memory allows.
        memory: the most that the process may hold, `"3GiB"` or a number of bytes; by itself it streams a
            checkpoint that does not fit.

    Returns:
        The opened model; its notes say what was done on the way, `model.check` what was proved.

    Raises:
        ValueError: the checkpoint is damaged, incomplete, not safetensors, no transformer was found in it, or
            two of its blocks do not fit into the memory.

    Examples:
        >>> model = regraft.load("specimen:gpt2")
        >>> len(model.blocks), model.width, model.vocabulary
        (4, 128, 4096)
        >>> regraft.load("./no-such-folder")
        Traceback (most recent call last):
        ...
        regraft.checkpoint.locate.NoCheckpointError: ...
    """
    notes: list[str] = []
    source, tokenizer = _source_of(source, tokenizer)
    streamed: Streamed | None = None
    if isinstance(source, nn.Module):
        _check_live(bool(stream or memory), bool(device or dtype))
        inner, notes = unwrapped(source)
        hf, folder, name = cast(Any, inner), None, type(inner).__name__
        streamed = taken_over(hf)
        if streamed is None:
            refuse_elsewhere(hf)
        tokenizer = tokenizer or _own_tokenizer(source, inner)
        if attention:
            hf.set_attn_implementation(attention)
    else:
        folder, name = resolve(source)
        refuse_adapter_folder(folder)
        check_folder(folder)
        refuse_adapted_folder(folder)
        hf, streamed = from_files(folder, device or "cpu", dtype, attention, remote_code, stream, memory)
        tokenizer = tokenizer or read_tokenizer(folder, remote_code)
    tokenizer, target_tokenizer = (_named_tokenizer(t, remote_code) for t in (tokenizer, target_tokenizer))
    model = open_live(hf, tokenizer, name, folder, pack and streamed is None, streamed)
    notes += [] if streamed is None else [streamed.in_words()]
    model.notes, model.target_tokenizer = notes, target_tokenizer
    if target_tokenizer is not None and not model.two_stacks:
        raise ValueError(
            f"{name} writes what it reads: a tokenizer of its own for what is written belongs to an"
            " encoder-decoder"
        )
    model.source = name if isinstance(source, nn.Module) else str(source or DEFAULT_SPECIMEN)
    return model


def _check_live(streamed: bool, moved: bool) -> None:
    """Make sure that nothing is asked of a live model that opening files alone can do.

    Raises:
        ValueError: it is to be streamed, or to go to another device or type.
    """
    if streamed:
        raise ValueError("a live model is in memory already: to stream one, name its folder or hub id")
    if moved:
        raise ValueError(
            "a live model is opened as it is: move it or change its dtype before, then load it without them"
        )


def _source_of(source: Any, tokenizer: Any) -> tuple[str | Path | nn.Module | None, Any]:
    """A source and a tokenizer from what was given, be it both in one pair.

    Raises:
        ValueError: it is neither a name nor a model, or there are two tokenizers.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2:
        if tokenizer is not None:
            raise ValueError("there are two tokenizers, one in the pair and one beside it: give one")
        source, tokenizer = source
    if source is None or isinstance(source, (str, Path, nn.Module)):
        return source, tokenizer
    raise ValueError(
        f"a {type(source).__name__} cannot be opened: give a folder, a hub id, a specimen's name, a live"
        " Hugging Face model, or a pair of a model and its tokenizer"
    )


def _named_tokenizer(given: Any, remote_code: bool) -> Any:
    """A tokenizer, read where it is named."""
    return read_tokenizer(resolve(str(given))[0], remote_code) if isinstance(given, (str, Path)) else given


def _own_tokenizer(source: nn.Module, inner: nn.Module) -> Any:
    """The tokenizer that a wrapper carries beside its model."""
    return None if source is inner else getattr(source, "tokenizer", None)


def open_live(
    hf: nn.Module,
    tokenizer: Any,
    name: str,
    folder: Path | None,
    pack: bool,
    streamed: Streamed | None = None,
) -> Model:
    """Find the parts of a live model and check them; it is left in the mode, training or evaluation, that it
    was in."""
    with hold_of(hf).on(hf):
        return _opened(hf, tokenizer, name, folder, pack, streamed)


def _opened(
    hf: nn.Module, tokenizer: Any, name: str, folder: Path | None, pack: bool, streamed: Streamed | None
) -> Model:
    if streamed is None:
        _refuse_nonfinite(hf)
    traced, probe = _probed(hf, _device(hf, streamed))
    parts = find_parts(hf, traced, torch.tensor([sample_ids(_table_rows(hf), probe)]))
    del traced
    if streamed is not None:
        _refuse_other_blocks(parts, streamed)
    attention = getattr(hf.config, "_attn_implementation", None) or "eager"
    with streamed.store.any_numbers() if streamed else nullcontext():
        inputs_of = partial(_probe_inputs, hf, _device(hf, streamed), probe)
        batched = learn_batched(hf, parts, inputs_of)
    model = Model(
        hf, tokenizer, name, folder, parts, Taps(parts, hf.config, attention), batched, attention, probe,
        streamed=streamed,
    )  # fmt: skip
    try:
        model.check = check(model)
    except CANNOT as error:
        if isinstance(error, ValueError):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"the blocks of {name} cannot be called again by themselves ({reason}): it cannot be opened"
        ) from error
    if pack and model.device.type == "cpu":
        model.packed = pack_if_it_pays(hf)
    return model


def _device(hf: nn.Module, streamed: Streamed | None) -> torch.device:
    return next(hf.parameters()).device if streamed is None else streamed.device


def _refuse_other_blocks(parts: Parts, streamed: Streamed) -> None:
    """The blocks that are read one by one must be those that hand the stream on, in their order."""
    found = [block.module for block in parts.blocks]
    if found != [unit.module for unit in streamed.store.units]:
        raise ValueError(
            "this model has lists of modules beside its blocks, or in another order: it cannot be streamed"
        )


def _probe_inputs(
    hf: nn.Module, device: torch.device, length: int, batch: int, padded: bool
) -> dict[str, Any]:
    """The same few ids for every row; with `padded`, the last one is masked."""
    ids = torch.tensor([sample_ids(_table_rows(hf), length)] * batch, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, **without_cache(hf)}
    if padded:
        inputs["attention_mask"] = torch.tensor([[1] * (length - 1) + [0]] * batch, device=device)
    if getattr(hf.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
        if padded:
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
    return inputs


def _probed(hf: nn.Module, device: torch.device) -> tuple[Trace, int]:
    """A traced run of a few ids, fewer where the model has fewer positions, and how many they were.

    Raises:
        ValueError: the model cannot be run on token ids.
    """
    first: Exception | None = None
    for length in range(LENGTH, 1, -1):
        try:
            return trace(hf, _probe_inputs(hf, device, length, 1, False)), length
        except CheckpointError:
            raise
        except CANNOT as error:
            first = first or error
    reason = (str(first) or type(first).__name__).strip().splitlines()[0]
    raise ValueError(
        f"{type(hf).__name__} cannot be run on token ids alone ({reason}): models that read text are opened,"
        " and of a model of images or sound the part that reads text"
    ) from first


def _table_rows(hf: nn.Module) -> int:
    """Rows of the smallest embedding that could be the token table, so that sample ids exist in it."""
    declared = getattr(text_config(hf.config), "vocab_size", None)
    if isinstance(declared, int):
        return declared
    tables = [module.num_embeddings for module in hf.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise ValueError("this model has no embedding table: it cannot be opened")
    return tables[0]


def _refuse_nonfinite(hf: nn.Module) -> None:
    for name, tensor in hf.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            what = "NaN (not a number)" if bool(torch.isnan(tensor).any()) else "infinite values"
            raise CheckpointError(
                f"the weights hold {what}, first in {name}: nothing measured would mean much"
            )
    for name, tensor in hf.named_buffers():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(
                f"the buffers hold NaN (not a number), first in {name}: nothing measured would mean much"
            )


_TOKENIZER_REMEDY = "fetch its files again, or name another one with --tokenizer"


def read_tokenizer(folder: Path, remote_code: bool) -> Any:
    """The tokenizer of a folder, or None where it has none: then token ids still work.

    Raises:
        CheckpointError: its files are damaged, or need a library that is not installed, or code that is not
            allowed.
    """
    known = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "tokenizer_config.json",
    )
    if not any((folder / name).is_file() for name in known):
        return None
    try:
        with silent():
            return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except Exception as error:  # tokenizers raises a bare Exception for what is damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"the tokenizer of {folder.name} does not open ({reason}): {_TOKENIZER_REMEDY}"
        ) from error
