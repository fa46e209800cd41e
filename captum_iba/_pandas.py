"""pandas, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from captum_iba.errors import MissingDependencyError

if TYPE_CHECKING:
    from pandas import DataFrame


def as_dataframe(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> DataFrame:
    """A data frame of columns, or of rows.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "to_dataframe needs pandas. Install it: pip install 'captum_iba[report]'."
        ) from error
    return pd.DataFrame(data)
