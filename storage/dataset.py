"""Tables on object storage as DuckDB reads them: through Arrow, since DuckDB asks for every file by name first."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds  # takes longer to import than a local root takes to open
import pyarrow.fs

from storage.files import PARALLEL_REQUESTS, Files

_WHOLE_BYTES = 4 << 20
"""Up to this size a file is read in one request, and ahead of whoever reads one after the other."""
_POOL = ThreadPoolExecutor(PARALLEL_REQUESTS, "read-ahead")


class TableFile(NamedTuple):
    """A file of a table, and the step that all of its rows are of."""

    path: str
    """Relative to the root."""
    size: int
    step: int


def dataset(schema: pa.Schema, table: Sequence[TableFile], files: Files) -> ds.Dataset:
    """The files of a table as one Arrow dataset; columns that an older version did not write are null."""
    # A query of one step opens that step's files alone.
    step_of = [ds.field("step") == file.step if "step" in schema.names else ds.scalar(True) for file in table]
    return ds.FileSystemDataset.from_paths(
        [file.path for file in table],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=pa.fs.PyFileSystem(_Reader(files, table)),  # type: ignore[abstract]
        partitions=step_of,
    )


class _Reader(pa.fs.FSSpecHandler):
    """Opens files whose sizes are known. Arrow reads few at a time, and each takes long: the next are fetched ahead."""

    def __init__(self, files: Files, table: Sequence[TableFile]) -> None:
        super().__init__(files.fs)
        self._files = files
        self._table = table
        self._place = {file.path: place for place, file in enumerate(table)}
        self._lock = threading.Lock()
        self._newest = -2
        self._ahead: dict[int, Future[bytes]] = {}

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file for reading at any place."""
        place = self._place[path]
        if self._table[place].size > _WHOLE_BYTES:
            file = self._files.fs.open(self._files.url(path), "rb", size=self._table[place].size)
            return pa.PythonFile(file, mode="r")
        with self._lock:
            in_order = place - self._newest in (1, 2)
            self._newest = place
            if in_order:
                self._read_ahead(place)
            coming = self._ahead.pop(place, None)
        return pa.PythonFile(io.BytesIO(coming.result() if coming else self._files.read(path)), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """The same."""
        return self.open_input_file(path)

    def _read_ahead(self, place: int) -> None:
        """Ask for what comes after a place, and forget what was passed over."""
        self._ahead = {at: coming for at, coming in self._ahead.items() if at >= place}
        for at, file in enumerate(self._table[place : place + PARALLEL_REQUESTS], place):
            if at not in self._ahead and file.size <= _WHOLE_BYTES:
                self._ahead[at] = _POOL.submit(self._files.read, file.path)
