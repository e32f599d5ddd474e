"""The embedding provider, as the product needs it: texts in, one checked matrix out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]  # (N, D)


class Embedder(Protocol):
    """Turns texts into vectors. No state of the sync; may be repeated at the price of its tokens."""

    async def embed(self, texts: Sequence[str]) -> tuple[Matrix, int]:
        """float32 (N, D) in the order of texts, and tokens billed. N >= 1, no text empty. The answer has been checked:
        count, order, dimension, finite, not zero.

        Raises ItemRefused, ProviderWrong, TransientError, PermissionRefused."""
        ...

    async def close(self) -> None: ...
