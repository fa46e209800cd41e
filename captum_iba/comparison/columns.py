"""The metrics of a comparison, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from captum_iba.comparison._column import Column
from captum_iba.comparison._other_columns import (
    BoundingBoxColumn,
    InfidelityColumn,
    SensitivityMaxColumn,
    SufficiencyColumn,
)
from captum_iba.comparison._removal_columns import AreaColumn, DegradationColumn, SensitivityNColumn
from captum_iba.comparison._token_columns import Removal, TokenAccuracyColumn, TokenDegradationColumn
from captum_iba.comparison._types import Baseline
from captum_iba.comparison.example import KINDS, Kind
from captum_iba.errors import InvalidArgumentError, InvalidTypeError

PAPER_METRICS = ("degradation 8x8", "degradation 14x14", "bounding box", "sensitivity-n", "sufficiency")
FURTHER_METRICS = ("insertion", "deletion", "infidelity", "sensitivity max")
_REMOVALS: tuple[Removal, ...] = ("mask", "delete")
TEXT_METRICS = ("degradation mask", "degradation delete", "accuracy mask", "accuracy delete")


def find_columns(
    metrics: str | Sequence[str | Column] | None,
    n_steps: int | None,
    n_perturb_samples: int,
    baselines: Baseline = "mean",
    kind: Kind = "image",
) -> list[Column]:
    """The metrics of a comparison.

    Args:
        metrics (str or Sequence): ``"paper"``: degradation 8x8 and 14x14, bounding box, sensitivity-n and sufficiency;
            ``"text"``: degradation and accuracy with tokens masked, and deleted; ``"all"``: those for this kind of
            examples, on images with insertion, deletion and Captum's infidelity and sensitivity_max, on text with
            sufficiency; or names and columns. None: ``"paper"`` on images, ``"text"`` on text.
        n_steps (int, optional): points on the degradation curves.
        n_perturb_samples (int): sets of sensitivity-n for each n.
        baselines (str or float, optional): what degradation and deletion put in a removed part's place.
            Default: ``"mean"``.
        kind (str, optional): of the examples. Default: ``"image"``.

    Raises:
        InvalidArgumentError: an unknown name, one twice, or none; or a number out of range.
        InvalidTypeError: something else.
    """
    is_number = isinstance(baselines, (int, float)) and not isinstance(baselines, bool) and math.isfinite(baselines)
    if baselines not in ("mean", "zero", "blur") and not is_number:
        raise InvalidArgumentError(f"baselines={baselines!r}; wanted 'mean', 'zero', 'blur' or a number.")
    _assert_at_least_two("n_perturb_samples", n_perturb_samples)
    if n_steps is not None:
        _assert_at_least_two("n_steps", n_steps)
    own: list[Column] = [
        DegradationColumn(8, n_steps, baselines),
        DegradationColumn(14, n_steps, baselines),
        BoundingBoxColumn(),
        SensitivityNColumn(8, n_perturb_samples),
        SufficiencyColumn(),
        AreaColumn("insertion", baselines="blur"),
        AreaColumn("deletion", baselines=baselines),
        InfidelityColumn(),
        SensitivityMaxColumn(),
        *(TokenDegradationColumn(removal, n_steps) for removal in _REMOVALS),
        *(TokenAccuracyColumn(removal, n_steps) for removal in _REMOVALS),
    ]
    by_name: Mapping[str, Column] = {column.info.name: column for column in own}
    metrics = {"image": "paper", "text": "text"}[kind] if metrics is None else metrics
    if isinstance(metrics, str):
        every = tuple(name for name, column in by_name.items() if kind in getattr(column, "kinds", KINDS))
        sets = {"paper": PAPER_METRICS, "text": TEXT_METRICS, "all": every}
        metrics = list(sets.get(metrics, (metrics,)))
    if not isinstance(metrics, Sequence):
        raise InvalidTypeError(f"metrics is a {type(metrics).__name__}; wanted 'paper', 'all' or names.")
    found = []
    for metric in metrics:
        if isinstance(metric, str) and metric not in by_name:
            raise InvalidArgumentError(f"There is no metric {metric!r}; known are {', '.join(by_name)}.")
        if not isinstance(metric, str) and not all(hasattr(metric, name) for name in ("info", "measure", "gather")):
            raise InvalidTypeError(f"A metric is a {type(metric).__name__}; wanted its name, or a column.")
        found.append(by_name[metric] if isinstance(metric, str) else metric)
    names = [column.info.name for column in found]
    if not found or len(set(names)) < len(names):
        raise InvalidArgumentError(f"metrics={names}; wanted at least one, each once.")
    return found


def _assert_at_least_two(name: str, value: object) -> None:
    if type(value) is not int or value < 2:
        raise InvalidArgumentError(f"{name}={value!r}; wanted an integer of at least 2.")
