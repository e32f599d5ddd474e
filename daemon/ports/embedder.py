"""The embedding provider, as the product needs it: texts in, one checked matrix out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from daemon.core.model import Rates
from daemon.errors import TransientError

Matrix = npt.NDArray[np.float32]  # (N, D)


@dataclass(frozen=True, slots=True)
class Embedded:
    """An answer. vectors: float32 (N, D) in the order of the texts. tokens: billed, 0 where the answer does not say.
    model: as the answer names it. rates: what its headers said of the budgets."""

    vectors: Matrix
    tokens: int
    model: str | None = None
    rates: Rates = field(default_factory=Rates)


class Throttled(TransientError):
    """The provider asks for fewer requests. rates: what the refusal's headers said of the budgets."""

    rates: Rates = Rates()


class Embedder(Protocol):
    """Turns texts into vectors. No state of the sync; may be repeated at the price of its tokens."""

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One request. N >= 1, no text empty. The answer has been checked: count, order, dimension, finite, not zero,
        length against the contract.

        Raises ItemRefused, ProviderWrong, TransientError (with the wait that the provider named; Throttled where it
        asks for fewer requests), PermissionRefused."""
        ...

    async def close(self) -> None: ...
