"""Artifacts on a local disk or object storage: a commit protocol, and readers that trust nothing but manifests."""

from polyepo.extras import require

require("pipeline", "pyarrow", "duckdb", "fsspec")

from storage.catalog import Catalog, connect, rows
from storage.errors import CorruptArtifactError, StoreError
from storage.layout import ArtifactKey, ModelKey
from storage.manifest import Manifest, Provenance
from storage.store import Store, open_store

__all__ = [
    "ArtifactKey",
    "Catalog",
    "CorruptArtifactError",
    "Manifest",
    "ModelKey",
    "Provenance",
    "Store",
    "StoreError",
    "connect",
    "open_store",
    "rows",
]
