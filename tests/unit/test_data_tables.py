# SPDX-License-Identifier: Apache-2.0
"""Text in Arrow and Parquet files, in the folders that Hugging Face's datasets saves."""

from __future__ import annotations

import json
import sys

import pytest

from bertbench.common.errors import BadInput, Unsupported
from bertbench.common.prepare.corpus import documents
from bertbench.common.prepare.sources import input_files
from bertbench.common.prepare.tables import records

COLUMNS = {
    "id": ["7", "8", "9"],
    "text": ["It is. It was!\nMore of it here.", None, "One. Two? Three!"],
    "number": [1, 2, 3],
}


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="the extra 'arrow' is not installed")


def save(arrow, path, columns=COLUMNS, *, stream=True):
    """Write a table as ``save_to_disk`` does (a stream), as an Arrow file or as Parquet."""
    from pyarrow import ipc, parquet

    table = arrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
        return path
    new = ipc.new_stream if stream else ipc.new_file
    with arrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize(
    ("name", "stream"), [("a.arrow", True), ("b.arrow", False), ("c.parquet", 1)]
)
def test_each_row_is_a_document(arrow, tmp_path, name, stream):
    found = list(documents(save(arrow, tmp_path / name, stream=stream)))
    assert [one.key for one in found] == ["7", "9"]
    assert found[0].sentences == ["It is.", "It was!", "More of it here."]
    assert found[1].sentences == ["One.", "Two?", "Three!"]


def test_a_saved_data_set_is_read_without_its_metadata(arrow, tmp_path):
    part = tmp_path / "train"
    part.mkdir()
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    for name in ("state.json", "dataset_info.json"):
        (part / name).write_text("{}")
    path = save(arrow, part / "data-00000-of-00001.arrow")
    assert input_files([tmp_path]) == [path]


def test_what_cannot_be_read_is_refused_in_one_line(arrow, tmp_path):
    other = save(arrow, tmp_path / "a.parquet", {"body": ["x"], "text": [3]})
    with pytest.raises(BadInput, match=r'"text" is int64; columns: body, text\. .*rename_column'):
        list(documents(other))
    for name in ("b.parquet", "c.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 no table" * 9)
        with pytest.raises(BadInput, match=r"cannot be read: .* Fetch or save it again"):
            list(documents(tmp_path / name))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unsupported, match=r"pip install 'bertbench\[arrow\]', or .*JSON lines"):
        next(records(tmp_path / "a.parquet"))
