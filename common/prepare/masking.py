# SPDX-License-Identifier: Apache-2.0
"""MLPerf's procedure that turns documents into masked-language-model and next-sentence examples.

``create_samples_reference`` follows, draw by draw in Python, the scripts behind MLPerf's
dataset (google-research/bert and NVIDIA's input_preprocessing, create_pretraining_data.py, with
max_seq_length 512, max_predictions_per_seq 76, masked_lm_prob 0.15, short_seq_prob 0.1, dupe_factor
10 and one ``random.Random(12345)`` per text file). ``create_samples`` does the same in C, with the
same generator, and returns the same arrays bit for bit.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bertbench.common.data.samples import IntArray, Samples, from_lengths, token_dtype
from bertbench.common.data.tokenization import SpecialIds
from bertbench.common.errors import BadInput
from bertbench.common.native import NativeUnavailable, load

Implementation = str
"""``"c"``, or ``"python: <why not C>"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingOptions:
    """The procedure's parameters; the defaults are MLPerf's."""

    max_seq_length: int = 512
    """Most tokens of a sample, [CLS] and both [SEP] included."""
    max_predictions_per_seq: int = 76
    """Most masked tokens of a sample."""
    masked_lm_prob: float = 0.15
    """Share of the tokens that is masked."""
    short_seq_prob: float = 0.1
    """Share of the passes over a document that aim at a random shorter length."""
    dupe_factor: int = 10
    """Passes over the text, each with other cuts and masks."""
    random_seed: int = 12345
    """Of each part's generator; also of the order over the shards."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_seq_length", 5, 1 << 15),
            ("max_predictions_per_seq", 1, 1 << 15),
            ("masked_lm_prob", 0, 1),
            ("short_seq_prob", 0, 1),
            ("dupe_factor", 1, 1 << 15),
            ("random_seed", 0, (1 << 64) - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadInput(f"--{name} {value} is out of range: give {low} to {high}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedText:
    """D documents of S sentences of T tokens, laid end to end. No sentence is empty."""

    ids: IntArray
    """int32 [T]."""
    sentences: IntArray
    """int64 [S + 1], token offsets."""
    documents: IntArray
    """int64 [D + 1], sentence offsets, strictly ascending."""


def create_samples(
    text: TokenizedText, special: SpecialIds, options: MaskingOptions
) -> tuple[Samples, Implementation]:
    """Create the samples of one text, shuffled; in C, or in Python without a compiler."""
    try:
        library = load(Path(__file__).with_name("masking.c"), "create_samples", "collect_samples")
    except NativeUnavailable as reason:
        first_line = str(reason).splitlines()[0]
        return create_samples_reference(text, special, options), f"python: {first_line}"
    return _create_samples_c(library, text, special, options), "c"


@dataclass(slots=True)
class _Instance:
    ids: list[int]
    split: int
    positions: list[int]
    labels: list[int]
    random_next: bool


def create_samples_reference(
    text: TokenizedText, special: SpecialIds, options: MaskingOptions
) -> Samples:
    """Run the procedure in plain Python; :func:`create_samples` must return the same."""
    rng = random.Random(options.random_seed)
    ids, sentences = text.ids.tolist(), text.sentences.tolist()
    documents = [
        [ids[sentences[s] : sentences[s + 1]] for s in range(first, last)]
        for first, last in pairwise(text.documents.tolist())
    ]
    rng.shuffle(documents)
    instances: list[_Instance] = []
    for _ in range(options.dupe_factor):
        for index in range(len(documents)):
            instances += _from_document(documents, index, special, options, rng)
    rng.shuffle(instances)
    return _flat(instances, special.vocab_size)


def _from_document(
    documents: list[list[list[int]]],
    index: int,
    special: SpecialIds,
    options: MaskingOptions,
    rng: random.Random,
) -> list[_Instance]:
    """Gather a document's sentences up to a target length, then pair them."""
    document = documents[index]
    room = options.max_seq_length - 3  # [CLS] A [SEP] B [SEP]
    target = room
    if rng.random() < options.short_seq_prob:
        target = rng.randint(2, room)
    instances = []
    chunk: list[list[int]] = []
    gathered = 0
    at = 0
    while at < len(document):
        chunk.append(document[at])
        gathered += len(document[at])
        if at == len(document) - 1 or gathered >= target:
            num_a = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a = [token for sentence in chunk[:num_a] for token in sentence]
            random_next = len(chunk) == 1 or rng.random() < 0.5
            if random_next:
                b = _random_sentences(documents, index, target - len(a), rng)
                at -= len(chunk) - num_a  # the sentences not used are used again
            else:
                b = [token for sentence in chunk[num_a:] for token in sentence]
            _truncate(a, b, room, rng)
            tokens = [special.cls, *a, special.sep, *b, special.sep]
            positions, labels = _mask(tokens, len(a), special, options, rng)
            instances.append(_Instance(tokens, len(a) + 2, positions, labels, random_next))
            chunk, gathered = [], 0
        at += 1
    return instances


def _random_sentences(
    documents: list[list[list[int]]], index: int, wanted: int, rng: random.Random
) -> list[int]:
    """Return sentences of another document until ``wanted`` tokens, or its end."""
    for _ in range(10):  # with one document only, the tenth draw is kept although it is the same
        other = rng.randint(0, len(documents) - 1)
        if other != index:
            break
    tokens: list[int] = []
    for sentence in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
        tokens += sentence
        if len(tokens) >= wanted:
            break
    return tokens


def _truncate(a: list[int], b: list[int], room: int, rng: random.Random) -> None:
    """Drop tokens one by one from the longer side, at either end, until both fit."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _mask(
    tokens: list[int], num_a: int, special: SpecialIds, options: MaskingOptions, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Mask ``tokens`` in place; return positions, ascending, and the original ids."""
    second_sep = num_a + 1
    candidates = [i for i in range(1, len(tokens) - 1) if i != second_sep]
    rng.shuffle(candidates)
    wanted = max(1, round(len(tokens) * options.masked_lm_prob))
    chosen = candidates[: min(options.max_predictions_per_seq, wanted)]
    labels = {position: tokens[position] for position in chosen}
    for position in chosen:
        if rng.random() < 0.8:
            tokens[position] = special.mask
        elif rng.random() >= 0.5:  # else it is kept as it is
            tokens[position] = rng.randint(0, special.vocab_size - 1)
    return sorted(labels), [labels[position] for position in sorted(labels)]


def _flat(instances: list[_Instance], vocab_size: int) -> Samples:
    dtype = token_dtype(vocab_size)
    return Samples(
        input_ids=np.array([t for i in instances for t in i.ids], dtype),
        offsets=from_lengths(np.array([len(i.ids) for i in instances], np.int64)),
        split=np.array([i.split for i in instances], np.uint16),
        masked_positions=np.array([p for i in instances for p in i.positions], np.uint16),
        masked_labels=np.array([x for i in instances for x in i.labels], dtype),
        masked_offsets=from_lengths(np.array([len(i.positions) for i in instances], np.int64)),
        next_sentence_labels=np.array([i.random_next for i in instances], np.int8),
    )


class _Text(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ids", "sentences", "documents")),
        ("num_documents", ctypes.c_int64),
    ]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("masked_lm_prob", ctypes.c_double),
        ("short_seq_prob", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("max_seq_length", ctypes.c_int32),
        ("max_predictions", ctypes.c_int32),
        ("dupe_factor", ctypes.c_int32),
        ("cls", ctypes.c_int32),
        ("sep", ctypes.c_int32),
        ("mask", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
    ]


def _check_text(
    ids: IntArray, sentences: IntArray, documents: IntArray, special: SpecialIds
) -> None:
    """Raise ValueError for offsets that C must not follow, or ids beyond the vocabulary."""
    for name, offsets, end in (
        ("sentences", sentences, len(ids)),
        ("documents", documents, len(sentences) - 1),
    ):
        if len(offsets) < 2 or offsets[0] or offsets[-1] != end or np.diff(offsets).min() < 1:
            raise ValueError(f"{name}: not ascending offsets from 0 to {end}")
    if not 0 < special.vocab_size < 1 << 31 or ids.min() < 0 or ids.max() >= special.vocab_size:
        raise ValueError(f"the tokens are not ids of a vocabulary of {special.vocab_size}")


def _create_samples_c(
    library: ctypes.CDLL, text: TokenizedText, special: SpecialIds, options: MaskingOptions
) -> Samples:
    if not len(text.documents) > 1:
        return _flat([], special.vocab_size)
    ids = np.ascontiguousarray(text.ids, np.int32)
    sentences = np.ascontiguousarray(text.sentences, np.int64)
    documents = np.ascontiguousarray(text.documents, np.int64)
    _check_text(ids, sentences, documents, special)
    library.create_samples.restype = ctypes.c_void_p
    library.collect_samples.restype = None
    arrays = (array.ctypes.data for array in (ids, sentences, documents))
    source = _Text(*arrays, len(documents) - 1)
    settings = _Settings(
        masked_lm_prob=options.masked_lm_prob,
        short_seq_prob=options.short_seq_prob,
        seed=options.random_seed,
        max_seq_length=options.max_seq_length,
        max_predictions=options.max_predictions_per_seq,
        dupe_factor=options.dupe_factor,
        cls=special.cls,
        sep=special.sep,
        mask=special.mask,
        vocab_size=special.vocab_size,
    )
    sizes = np.zeros(3, np.int64)
    handle = library.create_samples(
        ctypes.byref(source), ctypes.byref(settings), ctypes.c_void_p(sizes.ctypes.data)
    )
    if not handle:
        raise MemoryError(f"no memory for the samples of {len(ids)} tokens; use smaller parts")
    dtype = token_dtype(special.vocab_size)
    num_samples, num_tokens, num_masked = sizes.tolist()
    tokens, masked = np.empty(num_tokens, dtype), np.empty(num_masked, dtype)
    lengths, counts = (np.empty(num_samples, np.int32) for _ in range(2))
    split = np.empty(num_samples, np.uint16)
    positions = np.empty(num_masked, np.uint16)
    labels = np.empty(num_samples, np.int8)
    library.collect_samples(
        ctypes.c_void_p(handle),
        int(dtype.itemsize == 2),
        *(
            ctypes.c_void_p(array.ctypes.data)
            for array in (tokens, lengths, split, positions, masked, counts, labels)
        ),
    )
    return Samples(
        input_ids=tokens,
        offsets=from_lengths(lengths),
        split=split,
        masked_positions=positions,
        masked_labels=masked,
        masked_offsets=from_lengths(counts),
        next_sentence_labels=labels,
    )
