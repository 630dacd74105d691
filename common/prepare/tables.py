# SPDX-License-Identifier: Apache-2.0
"""Read documents from Arrow and Parquet files, as Hugging Face's datasets saves and publishes them.

pyarrow reads columns only; no code in a file or beside it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertbench.common.errors import BadInput, Unsupported, install
from bertbench.common.files import shown

SUFFIXES = (".arrow", ".parquet")
METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Files of a saved data set that hold no text."""
COLUMNS = ("id", "title", "url", "text")


def is_table(path: Path) -> bool:
    """Return whether ``path`` is read as a table, by its name."""
    return path.suffix.lower() in SUFFIXES


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield COLUMNS of each row, those that there are; one batch is in memory at a time.

    Raises Unsupported without pyarrow, and BadInput for a damaged file or one without a column
    ``text`` of strings.
    """
    try:
        import pyarrow as arrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise Unsupported(
            f"{shown(path)} is a table: {error}; {install('arrow')}, or write it as JSON "
            f'lines with a "text" field'
        ) from error
    try:
        if path.suffix.lower() == ".parquet":
            file = parquet.ParquetFile(path, memory_map=True)
            names = _columns(path, file.schema_arrow)
            batches = file.iter_batches(columns=names)
        else:
            source = arrow.memory_map(str(path))
            try:  # a stream is what datasets saves
                reader = ipc.open_stream(source)
                batches = iter(reader)
            except arrow.ArrowInvalid:
                reader = ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            names = _columns(path, reader.schema)
        for batch in batches:
            yield from batch.select(names).to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise BadInput(
            f"{shown(path)} cannot be read: {shown(error)}. Fetch or save it again"
        ) from error


def _columns(path: Path, schema: Any) -> list[str]:
    """Return those of COLUMNS that a table has."""
    kind = str(schema.field("text").type) if "text" in schema.names else "missing"
    if kind not in ("string", "large_string", "string_view"):
        raise BadInput(
            f'{shown(path)}: its column "text" is {kind}; columns: '
            f"{', '.join(shown(n, 20) for n in schema.names[:9])}. Name the column of the text "
            f'"text" (datasets: rename_column)'
        )
    return [name for name in COLUMNS if name in schema.names]
