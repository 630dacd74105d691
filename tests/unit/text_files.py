# SPDX-License-Identifier: Apache-2.0
"""Small texts and vocabularies for the tests of data preparation."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from bertbench.common.data.samples import Samples, from_lengths
from bertbench.common.prepare.masking import TokenizedText

WORDS = "the a river stone runs sings under over old green night city and of people".split()
VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "##s", "##ing", "ru", "##n"),
    *sorted(set(WORDS)),
]
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "text"
SAMPLE = SHARED / "mlperf-wiki-sample.tar.xz"


def articles(count: int, seed: int = 0, sentences: int = 8) -> list[list[str]]:
    """``count`` documents of 1 to ``sentences`` sentences; every sentence of all is different."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        size = rng.randint(1, sentences)
        made.append(
            [
                " ".join([f"A{number}x{s}", *rng.choices(WORDS, k=rng.randint(2, 12)), "."])
                for s in range(size)
            ]
        )
    return made


def write_plain(path: Path, documents: list[list[str]]) -> Path:
    """One sentence a line, a blank line between documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join("\n".join(d) for d in documents) + "\n", encoding="utf-8")
    return path


def write_wiki(path: Path, documents: list[list[str]], first_id: int = 1) -> Path:
    """WikiExtractor's layout, a document one paragraph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, sentences in enumerate(documents, first_id):
            file.write(
                f'<doc id="{number}" url="https://x.org/?curid={number}" title="T{number}">\n'
            )
            file.write(f"T{number}\n\n" + " ".join(sentences) + "\n</doc>\n")
    return path


def write_vocab(path: Path, tokens: list[str] | None = None) -> Path:
    """A vocab.txt."""
    path.write_text("\n".join(tokens or VOCAB) + "\n", encoding="utf-8")
    return path


def tokenized(documents: list[list[list[int]]]) -> TokenizedText:
    """Documents of sentences of ids, laid flat."""
    sentences = [sentence for document in documents for sentence in document]
    return TokenizedText(
        ids=np.array([i for s in sentences for i in s], np.int32),
        sentences=from_lengths(np.array([len(s) for s in sentences], np.int64)),
        documents=from_lengths(np.array([len(d) for d in documents], np.int64)),
    )


def rows(samples: Samples) -> list[bytes]:
    """Each sample as bytes."""
    made = []
    for i in range(len(samples)):
        tokens = slice(samples.offsets[i], samples.offsets[i + 1])
        masked = slice(samples.masked_offsets[i], samples.masked_offsets[i + 1])
        arrays = (
            samples.input_ids[tokens],
            samples.masked_positions[masked],
            samples.masked_labels[masked],
        )
        scalars = bytes([int(samples.split[i]), int(samples.next_sentence_labels[i])])
        made.append(b"".join(array.tobytes() for array in arrays) + scalars)
    return made
