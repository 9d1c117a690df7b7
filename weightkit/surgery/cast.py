"""Cast: a tensor in another type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightkit.dtypes import Array, DType
from weightkit.errors import EditError
from weightkit.tensor import Derived


@dataclass(frozen=True)
class Cast(Derived):
    """A tensor read in another type, each number rounded once, to nearest even."""

    to: DType

    @property
    def dtype(self) -> DType:
        """The new type."""
        return self.to

    def read(self, start: int, stop: int) -> Array:
        """Stored elements of the new type. EditError where a number does not fit."""
        try:
            return self.to.encode(self.base.dtype.decode(self.base.read(start, stop), np.float64))
        except EditError as error:
            raise EditError(f"{self.name}: {error}") from None
