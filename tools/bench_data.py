# SPDX-License-Identifier: Apache-2.0
"""Compare the speed of `bertbench data prepare` on one core with plain Python.

    python tools/bench_data.py TEXT... --vocab vocab.txt [--repeats 3] [--dupe_factor 10]

Both do the whole procedure on the same text (split sentences, tokenise, create samples, write
variable-length HDF5) in turns, in one process on one core. The baseline is plain Python: basic
tokeniser and WordPiece character by character, the Python reference of the masking procedure, and
h5py. Both must give the same samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bertbench.common.data.hdf5 import Limits, read
from bertbench.common.data.samples import from_lengths
from bertbench.common.data.schema import write_varlen
from bertbench.common.data.tokenization import SpecialIds, read_vocab
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.from_text import PrepareOptions, prepare
from bertbench.common.prepare.masking import MaskingOptions, TokenizedText, create_samples_reference
from bertbench.common.prepare.sources import input_files


def basic_tokens(text: str) -> list[str]:
    """Tokenise as BERT's uncased basic tokeniser: clean, lower-case, strip accents, split."""
    cleaned = []
    for c in text:
        if c in "\t\n\r" or c.isspace():
            cleaned.append(" ")
        elif ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
            continue
        elif is_cjk(ord(c)):
            cleaned += [" ", c, " "]
        else:
            cleaned.append(c)
    tokens = []
    for word in "".join(cleaned).split():
        # Character by character, so that no context (a final sigma) changes a letter.
        lowered = "".join(c.lower() for c in unicodedata.normalize("NFD", word))
        plain = "".join(c for c in lowered if unicodedata.category(c) != "Mn")
        current = ""
        for c in plain:
            if is_punctuation(c):
                tokens += [current, c]
                current = ""
            else:
                current += c
        tokens.append(current)
    return [token for token in tokens if token]


def is_punctuation(c: str) -> bool:
    """Return whether ``c`` is an ASCII sign or Unicode punctuation."""
    return (33 <= ord(c) < 127 and not c.isalnum()) or unicodedata.category(c).startswith("P")


def is_cjk(code: int) -> bool:
    """Return whether ``code`` is a CJK ideograph, which is a word."""
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B920 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def wordpieces(word: str, vocab: dict[str, int], unknown: int) -> list[int]:
    """Match greedily the longest pieces from the left; words over 100 characters are unknown."""
    if len(word) > 100:
        return [unknown]
    ids: list[int] = []
    start = 0
    while start < len(word):
        end = len(word)
        while end > start:
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocab:
                ids.append(vocab[piece])
                break
            end -= 1
        else:
            return [unknown]
        start = end
    return ids


def plain_python(files: list[Path], vocab: list[str], options: MaskingOptions, out: Path) -> None:
    """Do the whole procedure in plain Python: the baseline."""
    table = {token: number for number, token in enumerate(vocab)}
    flat: list[int] = []
    sentences, per_document = [], []
    for path in files:
        for document in documents(path):
            kept = 0
            for sentence in document.sentences:
                ids = []
                for word in basic_tokens(sentence):
                    ids += wordpieces(word, table, table["[UNK]"])
                if ids:
                    flat += ids
                    sentences.append(len(ids))
                    kept += 1
            if kept:
                per_document.append(kept)
    text = TokenizedText(
        ids=np.array(flat, np.int32),
        sentences=from_lengths(np.array(sentences, np.int64)),
        documents=from_lengths(np.array(per_document, np.int64)),
    )
    special = SpecialIds(
        cls=table["[CLS]"], sep=table["[SEP]"], mask=table["[MASK]"], vocab_size=len(vocab)
    )
    write_varlen(out, create_samples_reference(text, special, options))


def main() -> None:
    """Run both sides in turn and print seconds, throughput and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dupe_factor", type=int, default=10)
    parser.add_argument("--skip_plain_python", action="store_true")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for either side
    options = MaskingOptions(dupe_factor=args.dupe_factor)
    vocab, files = read_vocab(args.vocab), input_files(args.text)
    limits = Limits(vocab_size=len(vocab))
    seconds: dict[str, list[float]] = {"prepare": [], "plain_python": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats):
            output = Path(folder) / f"prepared{repeat}"
            start = time.process_time()
            manifest = prepare(
                PrepareOptions(
                    text=tuple(args.text),
                    output=output,
                    vocab=args.vocab,
                    masking=options,
                    eval_fraction=0,
                    num_shards=1,
                    processes=1,
                )
            )
            seconds["prepare"].append(time.process_time() - start)
            if args.skip_plain_python:
                continue
            target = Path(folder) / "plain.hdf5"
            start = time.process_time()
            plain_python(files, vocab, options, target)
            seconds["plain_python"].append(time.process_time() - start)
            (made,) = output.glob("*_shards_*/*.hdf5")
            one, two = read(made, limits), read(target, limits)
            assert np.array_equal(one.input_ids, two.input_ids)
            assert np.array_equal(one.masked_labels, two.masked_labels)
    median = {name: statistics.median(times) for name, times in seconds.items() if times}
    words = manifest["train"]["wordpieces"]
    result = {
        "cpu_seconds": seconds,
        "median_cpu_seconds": median,
        "wordpieces": words,
        "samples": manifest["train"]["samples"],
        "prepare_wordpieces_per_second": words / median["prepare"],
        "ratio": median["plain_python"] / median["prepare"] if len(median) == 2 else None,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
