"""Weights of model directories, compared tensor by tensor: no model is built, and one tensor at a time is in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open


def weights_digest(directory: Path) -> str:
    """SHA-256 over names, shapes and bytes of all tensors of a model directory, in name order."""
    digest = hashlib.sha256()
    for name, tensor in open_tensors(directory):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compare_changes(before: Path, own: Path, other: Path) -> tuple[float, float, float]:
    """Two changes of the weights in `before`, in float64: their cosine similarity (NaN if one is none), their norms."""
    dot = square_own = square_other = 0.0
    for (_, start), (_, one), (_, two) in zip(
        open_tensors(before), open_tensors(own), open_tensors(other), strict=True
    ):
        change_own, change_other = one.double() - start.double(), two.double() - start.double()
        dot += float((change_own * change_other).sum())
        square_own += float(change_own.square().sum())
        square_other += float(change_other.square().sum())
    norms = math.sqrt(square_own), math.sqrt(square_other)
    return dot / (norms[0] * norms[1]) if all(norms) else math.nan, *norms


def open_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor with its name, in name order."""
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), path)
    for name in sorted(files):
        with safe_open(str(files[name]), framework="pt") as opened:
            yield name, opened.get_tensor(name)
