"""Rows: a list of dataclasses of one kind, which pandas can have as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Row = TypeVar("Row")


class Rows(list[Row]):
    """A list of rows; `frame` has one line for each and one column for each of their fields, even without any."""

    def __init__(self, kind: type[Row], rows: Iterable[Row] = ()) -> None:
        super().__init__(rows)
        self.kind = kind

    def frame(self) -> pd.DataFrame:
        """The rows as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(list(self), columns=[field.name for field in dataclasses.fields(self.kind)])  # type: ignore[arg-type]
