"""Mutual information of two variables, or of all pairs of two matrices' columns, by any estimator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from captum_iba._numbers import assert_integer
from captum_iba._warn import Warner
from captum_iba.errors import InvalidArgumentError
from captum_iba.information.binning import Binning
from captum_iba.information.estimate import BITS_PER_NAT, Estimate, Unit, assert_unit, no_information
from captum_iba.information.estimator import Estimator, as_estimator
from captum_iba.information.generators import generator_of
from captum_iba.information.nearest_neighbours import KSG
from captum_iba.information.noise_channel import NoiseChannel
from captum_iba.information.permutation import NULL_QUANTILE, permutation_estimates
from captum_iba.information.variables import as_variable, assert_pairs, is_labels, rank_gaussianize, varying

Transform = Literal["auto", "rank", "none"]


def mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: str | Estimator = "auto",
    unit: Unit = "bits",
    return_details: bool = False,
    *,
    transform: Transform = "auto",
    n_permutations: int = 0,
    seed: int = 0,
) -> Any:
    r"""Estimate the mutual information of two variables from examples of both.

    Warns wherever the value may mislead: near the largest value that the estimator can return, where a trained critic
    knows its examples by heart, where nearest neighbours fail. A variable that determines the other (infinite
    information) is noticed where the link is one to one; else, as with y = x², look whether the value grows with the
    number of examples. No estimator that holds for all distributions can
    guarantee more than about ln n nats from n examples (McAllester and Stratos 2020). Columns are rank-Gaussianised
    for the estimators that gain by it: mutual information does not depend on strictly monotone maps of columns, and
    ties, scales and heavy tails stop to matter. It is 0 by definition, with a warning, if a variable is constant.

    Args:
        x (Tensor): (n,) or (n, dx), floating point; or integers or booleans, which are taken as names of classes (rows
            of several are one name). Pass counts and other numbers that are integers as ``x.double()``.
        y (Tensor): likewise, n examples of the other variable, on the same device.
        estimator (str or Estimator, optional): ``"ksg"``, ``"gaussian"``, ``"binning"``; ``"kde"`` and ``"noise"``,
            for y = s(x) with noise added to it; ``"neural"``, ``"mine"``, ``"infonce"``, ``"smile"``, ``"nwj"``,
            ``"dv"``, ``"js"``, critics trained and judged on different examples; or an object of
            :mod:`captum_iba.information` with settings of yours, such as ``KSG(k=5)``. Default: ``"auto"``: counts for
            two sets of labels, KSG for two single columns or a column and labels, ``"neural"`` else.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        return_details (bool, optional): return an :class:`Estimate` with standard error, cap, held-out and in-sample
            value, and the null distribution's quantile. Default: False, the value alone.
        transform (str, optional): ``"rank"`` to rank-Gaussianise, ``"none"`` to leave the columns as they are.
            Default: ``"auto"``, as the estimator prefers.
        n_permutations (int, optional): repeat the estimate so often with y exchanged among the examples; the details
            then say what the estimator finds where there is nothing. Default: 0, as it costs as many estimates.
        seed (int, optional): of everything random; the global generators are left alone. Default: 0.

    Returns:
        Tensor: 0-dimensional, float64, in ``unit``, at least 0; or an :class:`Estimate`.

    Raises:
        InvalidArgumentError: an argument or a shape that cannot be used, too few examples, too many ties.
        InvalidTypeError: no tensor, no estimator.
        MismatchedArgumentsError: x and y have different numbers of examples, or lie on different devices.
        NonFiniteError: a NaN or an infinity.

    Examples::

        >>> import torch
        >>> from captum_iba.information import mutual_information
        >>> generator = torch.Generator().manual_seed(2)
        >>> x = torch.randn(2000, generator=generator)
        >>> y = x + torch.randn(2000, generator=generator)
        >>> f"{mutual_information(x, y):.1f} bits"  # 1/2 log2(1 + 1) for normal variables
        '0.5 bits'
        >>> found = mutual_information(x, y > 0, return_details=True, n_permutations=19)
        >>> bool(found.value > found.null_quantile)
        True
    """
    assert_unit(unit)
    assert_integer("n_permutations", n_permutations, least=0)
    generator = generator_of(seed)
    left, right = as_variable("x", x), as_variable("y", y)
    chosen = as_estimator(estimator) if estimator != "auto" else _automatic(left, right)
    assert_pairs(left, right, chosen.at_least)
    _assert_takes(chosen, left, right)
    kept_x, kept_y = varying(left, x.dtype), varying(right, y.dtype)
    if not bool(kept_x.any() and kept_y.any()):
        found = _of_a_constant(chosen, "y" if bool(kept_x.any()) else "x", (), len(left), left.device)
        if n_permutations:  # every permutation finds as little
            found = _against(found, torch.zeros_like(found.value).expand(n_permutations))
    else:
        left, right = _select(left, kept_x), _select(right, kept_y)
        left, right = _prepared(chosen, transform, left, right, generator)
        left, right = (right, left) if _labels_come_first(chosen, left, right) else (left, right)
        found = chosen.estimate(left, right, generator)
        if n_permutations:
            _assert_pairs_matter(chosen, left, right)
            null = permutation_estimates(chosen, left, right, n_permutations, generator)
            found = _against(found, null)
    return finished(found, unit, return_details)


def mutual_information_matrix(
    x: Tensor,
    y: Tensor | None = None,
    estimator: str | Estimator = "ksg",
    unit: Unit = "bits",
    return_details: bool = False,
    *,
    transform: Transform = "auto",
    n_permutations: int = 0,
    seed: int = 0,
) -> Any:
    """Estimate the mutual information of each column of x with each column of y.

    Work that pairs share is done once: distances of a column, the matrix of correlations, one batch for all critics.

    Args:
        x (Tensor): (n, dx), or labels as in :func:`mutual_information` ((n,), one column).
        y (Tensor or None, optional): (n, dy), or labels. Default: None, x with itself; a column with itself is at the
            estimator's cap.
        estimator (str or Estimator, optional): as in :func:`mutual_information`. Default: ``"ksg"``, made for pairs of
            single columns.
        unit (str, optional): ``"bits"`` or ``"nats"``. Default: ``"bits"``.
        return_details (bool, optional): return an :class:`Estimate` whose tensors are (dx, dy). Default: False.
        transform (str, optional): as in :func:`mutual_information`. Default: ``"auto"``.
        n_permutations (int, optional): as in :func:`mutual_information`; each time all pairs are estimated, so that the
            details have each pair's own quantile and p-value. Default: 0.
        seed (int, optional): of everything random. Default: 0.

    Returns:
        Tensor: (dx, dy), float64, at least 0; 0 for constant columns. Or an :class:`Estimate`.

    Raises:
        CaptumIBAError: as :func:`mutual_information`.

    Examples::

        >>> import torch
        >>> from captum_iba.information import mutual_information_matrix
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> mutual_information_matrix(x, x[:, :2] + x[:, 1:], "gaussian").round(decimals=1).tolist()
        [[0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
    """
    assert_unit(unit)
    assert_integer("n_permutations", n_permutations, least=0)
    generator = generator_of(seed)
    left = as_variable("x", x)
    right, dtype = (left, x.dtype) if y is None else (as_variable("y", y), y.dtype)
    # pairs of single columns
    chosen = as_estimator(estimator) if estimator != "auto" else _automatic(*map(_first, (left, right)))
    assert_pairs(left, right, chosen.at_least)
    _assert_takes(chosen, left, right)
    kept_x, kept_y = varying(left, x.dtype), varying(right, dtype)
    shape = (len(kept_x), len(kept_y))
    if not bool(kept_x.any() and kept_y.any()):
        found = _of_a_constant(chosen, "y" if bool(kept_x.any()) else "x", shape, len(left), left.device)
        return finished(found, unit, return_details)
    left_kept = _select(left, kept_x)
    if y is None:  # ties must be broken in the same way on both sides
        left_kept, _ = _prepared(chosen, transform, left_kept, left_kept, generator)
        right_kept = left_kept
    else:
        left_kept, right_kept = _prepared(chosen, transform, left_kept, _select(right, kept_y), generator)
    found = _all_pairs(chosen, left_kept, right_kept, generator)
    if n_permutations:
        _assert_pairs_matter(chosen, left, right)
        orders = [torch.randperm(len(left), generator=generator).to(left.device) for _ in range(n_permutations)]
        null = [_all_pairs(chosen, left_kept, right_kept[order], generator).value for order in orders]
        found = _against(found, torch.stack(null))
    found = _each_table(found, functools.partial(_spread, kept_x=kept_x, kept_y=kept_y))
    return finished(found, unit, return_details)


def finished(found: Estimate, unit: Unit, return_details: bool) -> Any:
    """What the caller gets of an estimate in nats: at least 0, in the unit, with warnings given."""
    if bool(found.saturated.any()):
        cap = float(found.cap[found.saturated].min())
        caps = f"{cap * (BITS_PER_NAT if unit == 'bits' else 1):.2f} {unit}"
        found = replace(
            found,
            warnings=(
                *found.warnings,
                f"{found.estimator} is near its largest value for {found.n} examples, {caps}: the true information may "
                "be anything above (infinite, if one variable determines the other). Take more examples, or add noise "
                'to the variables: estimator="kde" and "noise" are made for it.',
            ),
        )
    warner = Warner()
    for message in found.warnings:
        warner.once(message, message)
    found = replace(found, value=found.value.clamp_min(0.0), held_out=_or(found.held_out, found.value)).to(unit)
    return found if return_details else found.value


def _or(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first


def _automatic(x: Tensor, y: Tensor) -> Estimator:
    """Counts for labels, neighbours for one column each, a critic else."""
    n_labels = is_labels(x) + is_labels(y)
    if n_labels == 2:
        return Binning()
    n_columns = sum(1 if is_labels(v) else v.shape[1] for v in (x, y))
    return KSG() if n_columns == 2 else as_estimator("neural")


def _first(variable: Tensor) -> Tensor:
    return variable if is_labels(variable) else variable[:, :1]


def _assert_takes(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Refuse labels where an estimator has no use for them."""
    allowed = {"none": 0, "one": 1, "both": 2}[estimator.takes_labels]
    n_labels = is_labels(x) + is_labels(y)
    if n_labels > allowed:
        which = "x and y are" if n_labels == 2 else ("x is" if is_labels(x) else "y is")
        other = '"binning"' if n_labels == 2 else '"ksg" or "neural"'
        raise InvalidArgumentError(
            f"{which} of an integer dtype and thus taken as names of classes, with which {estimator!r} cannot work. "
            f"Take estimator={other}, or pass numbers as a floating-point tensor."
        )


def _select(variable: Tensor, kept: Tensor) -> Tensor:
    return variable if is_labels(variable) else variable[:, kept]


def _prepared(
    estimator: Estimator, transform: Any, x: Tensor, y: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both variables, ranked if that is wanted; labels second, where an estimator takes them on one side only."""
    if transform not in ("auto", "rank", "none"):
        raise InvalidArgumentError(f'transform={transform!r}; wanted "auto", "rank" or "none".')
    if transform == "rank" or (transform == "auto" and estimator.ranked):
        ranked = rank_gaussianize(x, generator)
        x, y = ranked, ranked if y is x else rank_gaussianize(y, generator)
    return x, y


def _assert_pairs_matter(estimator: Estimator, x: Tensor, y: Tensor) -> None:
    """Refuse a null distribution of what does not depend on who is paired with whom."""
    if isinstance(estimator, NoiseChannel) and not (is_labels(x) or is_labels(y)):
        raise InvalidArgumentError(
            f"n_permutations has no meaning with {estimator!r} and inputs that are numbers: y is taken as a function "
            "of x, whatever stands beside what. Leave it at 0, or pass labels."
        )


def _labels_come_first(estimator: Estimator, x: Tensor, y: Tensor) -> bool:
    """Whether x and y are to change places, for an estimator that wants numbers first."""
    return estimator.takes_labels == "one" and is_labels(x) and not is_labels(y)


def _against(found: Estimate, null: Tensor) -> Estimate:
    """The estimate with the null distribution's quantile and its own place in it."""
    p_value = (1 + (null >= found.value).sum(dim=0)).double() / (1 + len(null))
    return replace(found, null_quantile=null.quantile(NULL_QUANTILE, dim=0).clamp_min(0.0), p_value=p_value)


def _of_a_constant(chosen: Estimator, name: str, shape: tuple[int, ...], n: int, device: torch.device) -> Estimate:
    reason = f"{name} is constant over the {n} examples: it has no information with anything, 0 by definition."
    return no_information(shape, n, repr(chosen), reason, device)


def _all_pairs(estimator: Estimator, x: Tensor, y: Tensor, generator: torch.Generator) -> Estimate:
    """Estimates of all pairs of columns, (dx, dy)."""
    if _labels_come_first(estimator, x, y):
        return _each_table(estimator.pairwise(y, x, generator), lambda table, _: table.T)
    return estimator.pairwise(x, y, generator)


def _each_table(found: Estimate, change: Callable[[Tensor, str], Tensor]) -> Estimate:
    """The estimate with each of its tables of pairs changed."""
    names = ("value", "standard_error", "cap", "slack", "in_sample", "held_out", "null_quantile", "p_value")
    tables = {name: getattr(found, name) for name in names}
    changed: dict[str, Any] = {name: change(table, name) for name, table in tables.items() if table is not None}
    return replace(found, **changed)


def _spread(table: Tensor, name: str, kept_x: Tensor, kept_y: Tensor) -> Tensor:
    """A table of the columns that vary, as the table of all columns."""
    at_constant = {"cap": float("inf"), "p_value": 1.0}.get(name, 0.0)
    out = table.new_full((len(kept_x), len(kept_y)), at_constant)
    out[kept_x[:, None] & kept_y] = table.flatten()
    return out
