# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights in and out: Hugging Face, NVIDIA, TensorFlow-converted and our own names.

Everything is checked before anything is assigned, omissions are reported, and no code in a file
runs (weight_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bertbench.common.data.tokenization import is_padded
from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.files import read_json, shown
from bertbench.common.model.bert import BertEncoder
from bertbench.common.model.config import SIZES, BertConfig, refuse_other_models
from bertbench.common.model.naming import (
    DECODER_BIAS,
    DECODER_WEIGHT,
    LAYER,
    SEARCH,
    WORD_EMBEDDING,
    Naming,
    huggingface_names,
    to_nvidia,
    unwrapped,
)
from bertbench.common.model.weight_files import find_prefix, is_finite, is_weight, read_weights

ENCODER = ("bert.embeddings.", "bert.encoder.")
POSITION = "bert.embeddings.position_embeddings.weight"
CLASSIFIER = "classifier."
"""The output layer of a classification task, in all three spellings."""
_ROBERTA_ROWS = (130, 258, 514, 1026, 2050, 4098)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsReport:
    """The match between a file and a model."""

    matched: tuple[str, ...]
    """Names in the file that were used."""
    missing: tuple[str, ...]
    """Hugging Face names that the model has and the file lacks: these keep their initial values."""
    unexpected: tuple[str, ...]
    """Names in the file that the model has no use for."""
    notes: tuple[str, ...]
    """Adaptations, in words: padding rows of the vocabulary, and where the weights were found."""


@dataclass(slots=True)
class _File:
    """The tensors of one file by Hugging Face name."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    original: dict[str, str] = field(default_factory=dict)
    """The same keys -> the names in the file."""
    unusable: set[str] = field(default_factory=set)
    """Names in the file of anything but dense floating-point tensors."""
    notes: list[str] = field(default_factory=list)
    """Where the file keeps the weights."""


def load_pretrained(
    model: nn.Module, path: Path, *, require: Literal["encoder", "all"] = "encoder",
    extend_positions: bool = False,
) -> WeightsReport:  # fmt: skip
    """Fill ``model``, whose ``encoder`` is a BertEncoder, from a ``.pt`` or ``.safetensors`` file.

    The file must cover the part ``require`` completely. The vocabulary may be padded in one of the
    two only: rows that the file lacks become zero. A classifier with another number of outputs is
    another task's: it is left out, with a note, unless ``require`` covers it. ``extend_positions``
    repeats the file's positions to the table's end, as Longformer's conversion does (Beltagy et al.
    2020). Raises BadInput, with the model untouched, when that part is not covered, a shape or the
    encoder's depth differs, the decoder is untied, a weight is not finite, the file holds no
    weights, or those of another architecture: one with more tensors in its encoder, or one that a
    configuration beside the file describes.
    """
    config = _config(model)
    _refuse_described_otherwise(path, config)
    file = _read(path, config.norm_position)
    targets: dict[str, Tensor] = {}
    for own, parameter in model.named_parameters():
        if own.startswith(SEARCH):
            continue
        names = huggingface_names(own, config.norm_position)
        targets.update(zip(names, parameter.detach().chunk(len(names)), strict=True))

    used = {name for name in targets if name in file.tensors}
    if require == "encoder":
        used -= _another_tasks_head(file, targets)
    missing = [name for name in targets if name not in used]
    _refuse_other_depth(file, config.num_hidden_layers)
    _refuse_uncovered(file, missing, len(targets), require)
    _refuse_more_than_bert(file, targets)
    extended = _extend_positions(file, targets[POSITION]) if extend_positions else []
    notes = [note for name in sorted(used) if (note := _check_shape(file, name, targets))]
    for name in used:
        if not is_finite(file.tensors[name]):
            raise BadInput(
                f"{path}: {file.original[name]} holds NaN or infinity: the file is of a run that "
                f"diverged, or damaged"
            )
    tied = _check_tied_decoder(file)

    for name in used:
        target, source = targets[name], file.tensors[name]
        rows = min(len(target), len(source))
        target[:rows].copy_(source[:rows])
        target[rows:].zero_()
    matched = {file.original[name] for name in used | tied}
    unexpected = (set(file.original.values()) | file.unusable) - matched
    return WeightsReport(
        matched=tuple(sorted(matched)),
        missing=tuple(missing),
        unexpected=tuple(sorted(unexpected)),
        notes=(*file.notes, *extended, *notes),
    )


def export_state_dict(
    model: nn.Module, naming: Naming = "huggingface", *, vocab_size: int | None = None
) -> dict[str, Tensor]:
    """Return a model's weights under ``other_names``."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    return other_names(named, _config(model).norm_position, naming, vocab_size=vocab_size)


def other_names(
    named: Mapping[str, Tensor], norm_position: str, naming: Naming = "huggingface", *,
    vocab_size: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the weights ``named`` our way under other names: views, not copies.

    The fused QKV [3H, H] becomes q, k and v [H, H]. The decoder's weight [V, H], tied to the word
    embedding, is listed again. ``vocab_size`` cuts a padded vocabulary to the true one. NVIDIA's
    scripts read the file that ``torch.save({"model": state}, path)`` writes. Raises Unsupported
    for a pre-LN model, which NVIDIA's naming does not cover.
    """
    if naming == "nvidia" and norm_position == "pre":
        raise Unsupported("a pre-LN model has no NVIDIA names; export with naming 'huggingface'")
    state: dict[str, Tensor] = {}
    for own, tensor in named.items():
        if own.startswith(SEARCH):
            continue
        names = huggingface_names(own, norm_position)
        state.update(zip(names, tensor.chunk(len(names)), strict=True))
    for name in (WORD_EMBEDDING, DECODER_BIAS):
        if vocab_size is not None and name in state:
            state[name] = state[name][:vocab_size]
    if DECODER_BIAS in state:
        state[DECODER_WEIGHT] = state[WORD_EMBEDDING]
    return {to_nvidia(name): t for name, t in state.items()} if naming == "nvidia" else state


def _config(model: nn.Module) -> BertConfig:
    encoder = model.encoder
    assert isinstance(encoder, BertEncoder)
    return encoder.config


# -- reading ----------------------------------------------------------------------------------
def _read(path: Path, norm_position: str) -> _File:
    raw, key = read_weights(path)
    prefix = find_prefix(path, map(str, raw))
    file = _File(path)
    usual = {"", "model"}  # the form that NVIDIA's scripts write and read
    for what, where in (("weights under", key), ("names without", prefix)):
        if where not in usual:
            file.notes.append(f"{what} {shown(where)!r}")
    for key, value in raw.items():
        label = shown(key)
        if not is_weight(value):
            file.unusable.add(label)
            continue
        names = huggingface_names(unwrapped(str(key)).removeprefix(prefix), norm_position)
        for name, tensor in zip(names, value.chunk(len(names)), strict=False):
            if name in file.tensors and not torch.equal(file.tensors[name], tensor):
                raise BadInput(
                    f"{path}: {file.original[name]} and {label} name the same parameter but "
                    f"differ; remove the wrong one"
                )
            file.tensors[name], file.original[name] = tensor, label
    return file


# -- checking ---------------------------------------------------------------------------------
def _refuse_other_depth(file: _File, layers: int) -> None:
    """Refuse a file of another depth, whose first layers alone would be a broken model."""
    numbers = [int(m.group(1)) + 1 for m in map(LAYER.match, file.tensors) if m]
    if numbers and max(numbers) != layers:
        raise BadInput(
            f"{file.path}: its encoder has {max(numbers)} layers, the model has {layers}. "
            f"Choose the recipe and model configuration that the weights were made with"
        )


def _refuse_described_otherwise(path: Path, config: BertConfig) -> None:
    """Refuse weights beside which a configuration says that they are of another model."""
    for name in ("config.json", "bert_config.json"):
        beside = path.with_name(name)
        try:
            raw = read_json(beside)
        except (OSError, ValueError):
            continue
        if isinstance(raw, dict) and {"model_type", "architectures", "hidden_size"} & raw.keys():
            refuse_other_models(beside, raw)
            if set(SIZES) <= raw.keys():
                config.check_agrees(beside)


def _refuse_more_than_bert(file: _File, targets: Mapping[str, Tensor]) -> None:
    """Refuse tensors within the encoder that a BERT does not have, and would compute without."""
    more = [
        file.original[name]
        for name in file.tensors
        if name.startswith(ENCODER) and name not in targets and not name.endswith("_ids")
    ]
    rows = len(file.tensors[POSITION])
    if rows in _ROBERTA_ROWS:
        raise BadInput(
            f"{file.path}: {file.original[POSITION]} has {rows} rows, as a RoBERTa has, whose "
            f"positions count from 2: it computes other numbers than a BERT. Give a BERT's weights"
        )
    if more:
        raise BadInput(
            f"{file.path}: {len(more)} tensors of its encoder are not a BERT's, such as {more[0]}: "
            f"it is of another architecture, or has adapters that must be merged first"
        )


def _refuse_uncovered(file: _File, missing: list[str], total: int, require: str) -> None:
    needed = [name for name in missing if require == "all" or name.startswith(ENCODER)]
    if needed:
        found = sorted(file.original.values())
        raise BadInput(
            f"{file.path}: lacks {len(needed)} of the model's {total} tensors, among them "
            f"{', '.join(needed[:3])}; it has {len(found)}"
            f"{', such as ' + ', '.join(found[:3]) if found else ''}. "
            f"Give the weights of a BERT that covers "
            f"{'the whole model, heads included' if require == 'all' else 'the whole encoder'}"
        )


def _another_tasks_head(file: _File, targets: Mapping[str, Tensor]) -> set[str]:
    """Return the classifier's names, and note it, where its number of outputs differs."""
    names = {name for name in targets if name.startswith(CLASSIFIER) and name in file.tensors}
    have, want = (
        {len(of[name]) for name in names if of[name].dim()} for of in (file.tensors, targets)
    )
    if have == want or not have:
        return set()
    file.notes.append(
        f"its head has {' or '.join(map(str, sorted(have)))} outputs and is another task's; this "
        f"task's, with {max(want)}, is new"
    )
    return names


def _check_shape(file: _File, name: str, targets: Mapping[str, Tensor]) -> str | None:
    """Return a note when only the vocabulary's padding differs; None for equal shapes."""
    source, target = file.tensors[name], targets[name]
    if source.shape == target.shape:
        return None
    have, want = len(source), len(target)
    vocabulary = name in (WORD_EMBEDDING, DECODER_BIAS) and _are_padded(have, want)
    if vocabulary and source.shape[1:] == target.shape[1:]:
        did = "added as zeros" if want > have else "dropped"
        return f"{file.original[name]}: {abs(want - have)} padding rows {did}"
    if name == POSITION and have < want and source.shape[1:] == target.shape[1:]:
        raise BadInput(
            f"{file.path}: {file.original[name]} has {have} positions and the model {want}. "
            f"--extend_positions tile repeats the learnt ones; else lower "
            f"--max_position_embeddings and --max_seq_length"
        )
    raise BadInput(
        f"{file.path}: {file.original[name]} has shape {list(source.shape)}, the model needs "
        f"{list(target.shape)}. Choose the recipe and model configuration that the weights were "
        f"made with"
    )


def _extend_positions(file: _File, target: Tensor) -> list[str]:
    """Repeat the file's positions to those of ``target`` [P, H]; return a note where that is done.

    Raises BadInput where the file has as many already.
    """
    source = file.tensors[POSITION]
    have, want = len(source), len(target)
    if have >= want:
        raise BadInput(
            f"{file.path}: {file.original[POSITION]} has {have} positions and the model {want}: "
            f"there are none to add. Leave out --extend_positions"
        )
    file.tensors[POSITION] = source.repeat(-(-want // have), 1)[:want]
    return [f"{file.original[POSITION]}: {have} positions repeated to {want}"]


def _are_padded(have: int, want: int) -> bool:
    """Return whether the two differ in padding: both of one multiple of 8, or one to a multiple."""
    small, large = sorted((have, want))
    return -(-small // 8) == -(-large // 8) or (large % 8 == 0 and is_padded(small, large))


def _check_tied_decoder(file: _File) -> set[str]:
    """Return the decoder's weight, if the file lists it, and refuse an untied one."""
    decoder, word = file.tensors.get(DECODER_WEIGHT), file.tensors.get(WORD_EMBEDDING)
    if decoder is None:
        return set()
    if word is None or not torch.equal(decoder, word):
        raise BadInput(
            f"{file.path}: {file.original[DECODER_WEIGHT]} differs from the word embedding. "
            f"This model ties the two; weights with an untied decoder cannot be represented"
        )
    return {DECODER_WEIGHT}
