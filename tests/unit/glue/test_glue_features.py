# SPDX-License-Identifier: Apache-2.0
"""Texts become what Hugging Face's tokeniser makes of them, without the padding."""

from __future__ import annotations

import numpy as np
import pytest
from glue_files import TOKENS, WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bertbench.benchmarks.glue.features import Encoder, cut_lengths
from bertbench.benchmarks.glue.formats import Examples
from bertbench.benchmarks.glue.task import collate
from bertbench.common.errors import BadInput


def examples(tmp_path, *texts):
    return Examples(
        path=tmp_path / "f.tsv", sha256="", texts=texts, labels=np.zeros(len(texts[0]), np.int64),
        index=[str(i) for i in range(len(texts[0]))],
    )  # fmt: skip


def peer(longest):
    ids = {token: number for number, token in enumerate(TOKENS)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_truncation(longest, strategy="longest_first")
    return made


@pytest.mark.parametrize("longest", [5, 6, 9, 12, 40])
@pytest.mark.parametrize("pair", [False, True])
def test_ids_segments_and_cuts_are_hugging_faces(tmp_path, vocab, longest, pair):
    random = np.random.default_rng(longest)

    def text():
        return " ".join(random.choice([*WORDS, "THE", "zebra"], random.integers(0, 16)))

    first = [text() for _ in range(200)]
    second = [text() for _ in first]
    encoder = Encoder(vocab, lowercase=True, max_seq_length=longest)
    made, cut = encoder.features(examples(tmp_path, *((first, second) if pair else (first,))))
    theirs = peer(longest).encode_batch(list(zip(first, second, strict=True)) if pair else first)
    assert made.lengths.tolist() == [len(e.ids) for e in theirs]
    assert made.input_ids.tolist() == [i for e in theirs for i in e.ids]
    tokens = collate(made, np.arange(200)).tokens
    assert tokens.segment_ids.tolist() == [i for e in theirs for i in e.type_ids]
    assert cut == sum(bool(e.overflowing) for e in theirs)


def test_what_is_kept_of_a_pair():
    a, b = np.array([10, 10, 3, 3, 0]), np.array([10, 3, 10, 3, 10])
    first, second = cut_lengths([a, b], 3 + 5)
    assert list(zip(first, second, strict=True)) == [(2, 3), (3, 2), (2, 3), (2, 3), (0, 5)]


def test_a_vocabulary_without_mask_is_refused(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    with pytest.raises(BadInput, match=r"lacks \[MASK\]"):
        Encoder(path, lowercase=True, max_seq_length=8)
