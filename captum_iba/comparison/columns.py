"""The metrics of a comparison, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from captum_iba.comparison._column import Column
from captum_iba.comparison._other_columns import (
    BoundingBoxColumn,
    InfidelityColumn,
    SensitivityMaxColumn,
    SufficiencyColumn,
)
from captum_iba.comparison._removal_columns import AreaColumn, DegradationColumn, SensitivityNColumn
from captum_iba.errors import InvalidArgumentError, InvalidTypeError


def find_columns(metrics: str | Sequence[str | Column], n_steps: int | None, n_perturb_samples: int) -> list[Column]:
    """The metrics of a comparison.

    Args:
        metrics (str or Sequence): ``"paper"``: degradation 8x8 and 14x14, bounding box, sensitivity-n and sufficiency;
            ``"all"``: insertion, deletion and Captum's infidelity and sensitivity_max as well; or names and columns.
        n_steps (int, optional): points on the degradation curves.
        n_perturb_samples (int): sets of sensitivity-n for each n.

    Raises:
        InvalidArgumentError: an unknown name, one twice, or none.
        InvalidTypeError: something else.
    """
    own: list[Column] = [
        DegradationColumn(8, n_steps),
        DegradationColumn(14, n_steps),
        BoundingBoxColumn(),
        SensitivityNColumn(8, n_perturb_samples),
        SufficiencyColumn(),
        AreaColumn("insertion"),
        AreaColumn("deletion"),
        InfidelityColumn(),
        SensitivityMaxColumn(),
    ]
    by_name: Mapping[str, Column] = {column.info.name: column for column in own}
    if isinstance(metrics, str):
        metrics = {"paper": list(own[:5]), "all": list(own)}.get(metrics, [metrics])
    if not isinstance(metrics, Sequence):
        raise InvalidTypeError(f"metrics is a {type(metrics).__name__}; wanted 'paper', 'all' or names.")
    found = []
    for metric in metrics:
        if isinstance(metric, str) and metric not in by_name:
            raise InvalidArgumentError(f"There is no metric {metric!r}; known are {', '.join(by_name)}.")
        found.append(by_name[metric] if isinstance(metric, str) else metric)
    names = [column.info.name for column in found]
    if not found or len(set(names)) < len(names):
        raise InvalidArgumentError(f"metrics={names}; wanted at least one, each once.")
    return found
