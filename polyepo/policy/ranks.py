"""The processes that compute an update together: who does what, and what all of them know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One of `size` processes, all of which call every method below in the same order; alone, nothing is sent.

    What is decided on sums and maxima is decided alike everywhere: a rank that went its own way would leave the others
    waiting for it.
    """

    rank: int = 0
    size: int = 1
    num_local: int = 1
    """Ranks on the first node, which are the first: they alone have its files."""

    @property
    def local(self) -> bool:
        """Whether this rank is on the first node."""
        return self.rank < self.num_local

    def share(self, parts: Sequence[T]) -> list[T | None]:
        """This rank's parts of a whole, in their order; None where it has fewer than others.

        FSDP gathers weights and spreads gradients in every pass, so all ranks must make as many passes.
        """
        own: list[T | None] = list(parts[self.rank :: self.size])
        return own + [None] * (-(-len(parts) // self.size) - len(own))

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """Maxima over all ranks, in float64."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def fill(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of which each rank has computed some elements and left zeros elsewhere, whole. Exact: only zeros are
        added."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def tell(self, value: Any, group: dist.ProcessGroup | None = None) -> Any:
        """What the first rank says (JSON); what the others say is not heard."""
        if self.size == 1:
            return value
        told = json.dumps(value).encode() if self.rank == 0 else b""
        length = torch.tensor([len(told)])
        dist.broadcast(length, 0, group=group)
        content = torch.frombuffer(bytearray(told), dtype=torch.uint8) if told else torch.empty(int(length)).byte()
        dist.broadcast(content, 0, group=group)
        return json.loads(content.numpy().tobytes())

    def gather(self, text: str) -> list[str]:
        """What each rank says, by rank; all must say as many bytes."""
        said = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        heard = [torch.empty_like(said) for _ in range(self.size)]
        dist.all_gather(heard, said)
        return [tensor.numpy().tobytes().decode() for tensor in heard]

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.sum(0)

    def _reduced(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU: by gloo, whatever the device
        if self.size > 1:
            dist.all_reduce(tensor, operation)
        return tensor.tolist()


ALONE = Ranks()
"""This process by itself."""
