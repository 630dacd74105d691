# SPDX-License-Identifier: Apache-2.0
"""Reading an exported model's folder, and refusing one that is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bertbench.common.errors import BadInput
from bertbench.common.model.config import BertConfig
from bertbench.engines.exported import DESCRIPTION, read_export

MODEL = BertConfig(
    vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
GOOD = {
    "format": 1, "model": dataclasses.asdict(MODEL), "max_seq_length": 384, "doc_stride": 128,
    "max_query_length": 64, "lowercase": True, "quantization": "int8", "weight_sparsity": "2:4",
    "parameters": 1234, "run": None, "recipe_hash": "0" * 16, "metrics": {"f1": 91.2},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in ("model.onnx", "vocab.txt"):
        (tmp_path / name).write_text("x")

    def write(**changed):
        content = {k: v for k, v in (GOOD | changed).items() if v is not ...}
        (tmp_path / DESCRIPTION).write_text(json.dumps(content))
        return tmp_path

    return write


def test_all_fields_are_read(folder):
    found = read_export(folder())
    assert found.model == MODEL and found.metrics == {"f1": 91.2}
    assert (found.quantization, found.weight_sparsity, found.run) == ("int8", "2:4", None)
    assert found.onnx.read_text() == "x"


def test_the_hash_covers_weights_outside_the_model(folder):
    before = read_export(folder()).hash()
    (read_export(folder()).folder / "model.onnx.data").write_text("weights")
    assert read_export(folder()).hash() != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 2}, "its format is 2"),
        ({"quantization": "int4"}, 'quantization is "int4"'),
        ({"weight_sparsity": True}, "weight_sparsity is true"),
        ({"max_seq_length": 513}, "above the model's 512"),
        ({"max_seq_length": 384.0}, "max_seq_length is 384.0"),
        ({"lowercase": 1}, "lowercase is 1"),
        ({"step": "2"}, 'step is "2"'),
        ({"metrics": {"f1": None}}, "metrics is"),
        ({"doc_stride": ...}, "doc_stride missing"),
        ({"more": 1}, "unknown field more"),
        ({"model": []}, "model is"),
        ({"model": GOOD["model"] | {"layers": 2}}, "unknown field model.layers"),
        ({"model": GOOD["model"] | {"hidden_size": 9}}, "not a multiple"),
    ],
)
def test_a_wrong_description_is_refused_with_its_field(folder, changed, message):
    with pytest.raises(BadInput, match=message):
        read_export(folder(**changed))


def test_a_folder_without_its_files_is_refused(folder, tmp_path):
    path = folder()
    (path / "vocab.txt").unlink()
    with pytest.raises(BadInput, match=r"lacks vocab\.txt"):
        read_export(path)
    (path / DESCRIPTION).write_text("[")
    (path / "vocab.txt").write_text("x")
    with pytest.raises(BadInput, match=r"export\.json"):
        read_export(path)
    with pytest.raises(BadInput, match="no such folder"):
        read_export(tmp_path / "none")
