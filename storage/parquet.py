"""Opening Parquet that somebody else may have written: what its footer says is held against the manifest first."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import CorruptArtifactError

_UNPACKED_BYTES = 1 << 30
"""What any file may unpack to. More than this is believed of files that are large themselves."""
_MOST_PACKED = 1000


def open_parquet(data: bytes, num_rows: int | None, path: str) -> pq.ParquetFile:
    """A Parquet file in memory, nothing of it decoded yet.

    Args:
        data: its content.
        num_rows: what the manifest says; None if it does not.
        path: what messages call it.

    Raises:
        CorruptArtifactError: it is no Parquet, has other rows than the manifest says, or would unpack to so much more
            than it is that it was made to.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(f"{path} is no valid Parquet: {str(error).splitlines()[0]}") from error
    footer = file.metadata
    if num_rows is not None and footer.num_rows != num_rows:
        raise CorruptArtifactError(f"{path} must have {num_rows} rows, but has {footer.num_rows}")
    unpacked = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    if unpacked > max(_UNPACKED_BYTES, _MOST_PACKED * len(data)):
        raise CorruptArtifactError(f"{path} has {len(data)} bytes and would unpack to {unpacked}: it is not read")
    return file
