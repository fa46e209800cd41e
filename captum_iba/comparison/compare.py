"""Every method, every metric, one call."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from captum_iba._processes import from_all, process_group, rank, world_size
from captum_iba._warn import Warner
from captum_iba.attr._model import device_of, evaluation_mode
from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.comparison._arguments import ordered
from captum_iba.comparison._calibration_batches import Calibration
from captum_iba.comparison._calibration_data import CalibrationData
from captum_iba.comparison._column import Column
from captum_iba.comparison._configuration import describe, shown, versions
from captum_iba.comparison._gather import gather
from captum_iba.comparison._runner import Plan, Runner, assert_logits
from captum_iba.comparison._text_calibration import TextCalibration
from captum_iba.comparison._types import Baseline
from captum_iba.comparison.columns import find_columns
from captum_iba.comparison.context import Context
from captum_iba.comparison.dataset import ExampleSet, as_examples
from captum_iba.comparison.example import AnyExample, Kind
from captum_iba.comparison.methods import Explainer, Method, find_methods
from captum_iba.comparison.report import Report
from captum_iba.comparison.store import ExampleRecord, Store
from captum_iba.errors import CaptumIBAError, InvalidArgumentError, InvalidTypeError, UnreadableExampleError


def compare(
    model: nn.Module,
    dataset: object,
    methods: str | Sequence[str | Method] | Mapping[str, Explainer] | None = None,
    metrics: str | Sequence[str | Column] | None = None,
    layer: nn.Module | str | None = None,
    *,
    gradcam_layer: nn.Module | str | None = None,
    embedding: nn.Module | str | None = None,
    statistics: FeatureStatistics | None = None,
    calibration: Iterable[Any] | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    baselines: Baseline = "mean",
    n_steps: int | None = None,
    n_perturb_samples: int = 100,
    name: str | None = None,
    categories: Sequence[str] | None = None,
    to_display: Callable[[Tensor], Tensor] | None = None,
    n_pictures: int = 40,
    store: str | os.PathLike[str] | None = None,
    max_examples_per_batch: int | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> Report:
    """Compare attribution methods on a model and a data set.

    Examples are explained one by one, and each one's results are written to ``store`` as they come: a run that is
    interrupted, or killed, goes on where it was when it is started again with the same arguments. Under ``torchrun``
    the examples are shared out among the processes. A method that cannot run on the model is a row with its reason.

    Args:
        model (torch.nn.Module): returns logits (N, classes), or an object with ``logits``, as the models of
            transformers do. For one output z, pass a module that returns (0, z).
        dataset (object): tensors (images, targets) or (images, targets, masks); a torch Dataset of (image, target) or
            (image, target, mask); a :class:`PhotoFolder`; the demo's canvases; see :func:`as_examples`. Or texts:
            :class:`TextFile`, :class:`TextExamples`.
        methods (str, Sequence or Mapping, optional): ``"paper"``; ``"text"``; ``"all"`` for this kind of data, with
            those of :func:`register_method`; names; or functions ``explain(inputs, target) -> maps`` by name, which on
            text may have parameters ``additional_forward_args``, ``baselines`` and ``feature_mask``. Of a function,
            name and code are watched when a run is resumed, not what it refers to. Default: None: ``"paper"`` on
            images, ``"text"`` on text.
        metrics (str or Sequence, optional): ``"paper"``: degradation 8x8 and 14x14, bounding box (on examples with a
            mask), sensitivity-n, sufficiency; ``"text"``: degradation and accuracy with tokens masked, and deleted;
            ``"all"`` for this kind of data: images with insertion, deletion, and Captum's infidelity and
            sensitivity_max, text with sufficiency; or names. Default: None: ``"paper"`` on images, ``"text"`` on text.
        layer (torch.nn.Module or str, optional): of the bottleneck, of LayerGradientXActivation, and of sufficiency.
            Default: None: :func:`suggest_layer`, which knows none for text.
        gradcam_layer (torch.nn.Module or str, optional): Default: None: the last feature map; of a vision transformer
            the last block whose patches the class score depends on.
        embedding (torch.nn.Module or str, optional): of the token ids. Default: None: ``model.get_input_embeddings()``
            where there is one, else the ``nn.Embedding`` that is given the ids.
        statistics (FeatureStatistics, optional): of ``layer``. Default: None: from ``calibration``.
        calibration (Iterable, optional): batches of images, or tuples that begin with them, which can be iterated
            again: for the statistics, for PatternAttribution, and to train LayerReadoutIBA on (in each process for
            itself). For text another :class:`TextFile` or :class:`TextExamples`, texts, lists of them, or mappings from
            the tokenizer, whose padding is left out. Default: None: up to 1000 of the data set's own, with a warning.
        method_options (Mapping, optional): further arguments by method, such as ``{"LayerIBA": {"beta": 1.0}}``: those
            of Captum's ``attribute``, of ``fit`` for PatternAttribution, ``epsilon`` for LRP, and for LayerReadoutIBA
            ``path``, a file of a trained one, or those of its constructor and ``fit``. At token layers of vision
            transformers ``grid`` and ``n_prefix`` of :func:`captum_iba.attr.tokens_to_map` too. On texts LayerIBA has
            :data:`captum_iba.attr.TOKEN_RANKING`, but for what is given here. Default: None.
        baselines (str or float, optional): what stands for nothing in an image: ``"mean"``, its mean colour;
            ``"zero"``; ``"blur"``; or a number. For degradation and deletion, and for the methods that compare with a
            baseline. Sensitivity-n has zero, as in the paper. Texts have a token of their own for it, see
            :class:`TextExamples`. Default: ``"mean"`` (paper).
        n_steps (int, optional): points on the degradation curves. Default: None: every tile or token.
        n_perturb_samples (int, optional): sets of sensitivity-n for each n. Default: 100 (paper).
        name (str, optional): of the model, for the report. Default: None: its class.
        categories (Sequence[str], optional): names of the classes, for the report. Default: None: their numbers.
        to_display (Callable, optional): undoes the normalisation of an image, for the pictures. Default: None: the
            data set's own, or no pictures.
        n_pictures (int, optional): number of examples, from the first, whose pictures are kept. Default: 40.
        store (str or PathLike, optional): SQLite file of the results. Default: None: in memory, so that nothing can be
            resumed.
        max_examples_per_batch (int, optional): most rows in one forward pass; out of memory it is halved.
            Default: None: as many as run fastest, see :func:`captum_iba.metrics.degradation`.
        seed (int, optional): of everything random. Default: 0.
        show_progress (bool, optional): show a progress bar with the time left. Default: False.

    Returns:
        Report: table, curves, pictures; the same on all processes.

    Raises:
        InvalidTypeError: model is no module, or an argument of another type.
        InvalidArgumentError: an argument that cannot be used; ``store`` belongs to another configuration; no example
            could be read.

    Examples::

        >>> from captum_iba.demo import LAYER, load_canvases, load_model
        >>> report = compare(load_model(), load_canvases("test", 2), ["LayerIBA", "Saliency"], ["bounding box"],
        ...                  layer=LAYER, calibration=[load_canvases("train", 1000).images])
        >>> report.mean("LayerIBA", "bounding box") > report.mean("Saliency", "bounding box")
        True
    """
    _assert_arguments(model, n_pictures, max_examples_per_batch, seed)
    if statistics is not None and not isinstance(statistics, FeatureStatistics):
        raise InvalidTypeError(f"statistics is a {type(statistics).__name__}; wanted FeatureStatistics.")
    examples = as_examples(dataset, to_display=to_display)
    first = _first(examples)
    chosen = find_methods(methods, first.kind)
    columns = find_columns(metrics, n_steps, n_perturb_samples, baselines, first.kind)
    _assert_options(method_options, chosen)
    warner = Warner()
    with process_group(), evaluation_mode([model], warner):
        device = device_of([model]) or torch.device("cpu")
        example = first.inputs[None].to(device)
        arguments = {argument: value[None].to(device) for argument, value in first.arguments.items()}
        context = Context(
            model,
            example,
            _calibration(first.kind, calibration, examples, model, example, warner),
            layer=_module(model, layer, "layer"),
            gradcam_layer=_module(model, gradcam_layer, "gradcam_layer"),
            embedding=_module(model, embedding, "embedding"),
            additional_forward_args=ordered(model, arguments),
            statistics=statistics,
            rows=max_examples_per_batch,
            seed=seed,
            baselines=baselines,
            options=method_options,
        )
        assert_logits(context, categories)
        plan = Plan(chosen, columns, context, categories, frozenset(list(examples.keys)[:n_pictures]))
        configuration = describe(plan, examples, n_pictures, name, watched=store is not None)
        records = _run(plan, examples, store, configuration, show_progress)
    return Report(gather(records, chosen, columns, shown(configuration), versions(), first.kind))


def _calibration(
    kind: Kind, source: Iterable[Any] | None, examples: ExampleSet, model: nn.Module, example: Tensor, warner: Warner
) -> Calibration:
    if kind == "text":
        return TextCalibration(source, examples, model, example.device, warner)
    return CalibrationData(source, examples, example, warner)


def _assert_arguments(model: object, n_pictures: int, max_examples_per_batch: int | None, seed: int) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"model is a {type(model).__name__}; wanted a torch.nn.Module, as some methods change copies of its parts."
        )
    for name, value, least in (
        ("n_pictures", n_pictures, 0),
        ("max_examples_per_batch", 1 if max_examples_per_batch is None else max_examples_per_batch, 1),
        ("seed", seed, 0),
    ):
        if type(value) is not int or value < least:
            raise InvalidArgumentError(f"{name}={value!r}; wanted an integer of at least {least}.")


def _assert_options(options: object, methods: Sequence[Method]) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping) or not all(isinstance(own, Mapping) for own in options.values()):
        raise InvalidTypeError('method_options: wanted arguments by method, such as {"LayerIBA": {"beta": 1.0}}.')
    names = [method.name for method in methods]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise InvalidArgumentError(
            f"method_options names {', '.join(map(repr, unknown))}, which is not compared; compared are "
            f"{', '.join(names)}."
        )


def _first(examples: ExampleSet) -> AnyExample:
    """The first example that can be read."""
    reason = "there are none"
    for index in range(len(examples.keys)):
        try:
            return examples.load(index)
        except UnreadableExampleError as error:
            reason = str(error)
    raise InvalidArgumentError(f"No example of the data set can be read: {reason}")


def _module(model: nn.Module, layer: nn.Module | str | None, argument: str) -> nn.Module | None:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer is None:
        return None
    if isinstance(layer, nn.Module) and layer in modules.values():
        return layer
    if isinstance(layer, str) and layer in modules and layer:
        return modules[layer]
    children = ", ".join(name for name in modules if name and "." not in name)
    raise InvalidArgumentError(
        f"{argument}={layer if isinstance(layer, str) else type(layer).__name__!r} is not in the model; its children "
        f"are {children}, and dotted names reach further in."
    )


def _run(
    plan: Plan,
    examples: ExampleSet,
    path: str | os.PathLike[str] | None,
    configuration: Mapping[str, object],
    show_progress: bool,
) -> list[ExampleRecord]:
    """Records of all examples, in the order of the data; those that are stored are not computed again."""
    own_file = _own_file(path)
    with ExitStack() as stack:
        store = _opened(stack, own_file, path, configuration)
        done = set().union(*from_all(store.keys()))
        todo = [index for index, key in enumerate(examples.keys) if key not in done]
        mine = todo[rank() :: world_size()]
        bar = tqdm(
            total=len(examples.keys) * len(plan.methods) if world_size() == 1 else len(mine) * len(plan.methods),
            initial=(len(examples.keys) - len(todo)) * len(plan.methods) if world_size() == 1 else 0,
            desc="compare",
            unit="map",
            disable=not show_progress or rank() > 0,
        )
        with bar:
            runner = Runner(plan, bar.update)
            for index in mine:
                store.add(runner.measure(examples, index))
        records = {record.info.key: record for of_rank in from_all(list(store.read())) for record in of_rank}
        if rank() == 0:
            for key in records.keys() - store.keys():
                store.add(records[key])
    from_all(None)  # until the first process has everything
    if rank() > 0 and own_file is not None:
        own_file.unlink(missing_ok=True)
    return [records[key] for key in examples.keys]


def _opened(
    stack: ExitStack, own_file: Path | None, path: str | os.PathLike[str] | None, configuration: Mapping[str, object]
) -> Store:
    """This process's file of results; if the first process refuses its own, no other one makes any."""
    refusal: str | None = None
    if rank() == 0:
        try:
            store = stack.enter_context(Store(own_file, configuration))
            if path is not None:
                _import_others(store, Path(path), configuration)
        except CaptumIBAError as error:
            if world_size() == 1:
                raise
            refusal = str(error)
    refusals = from_all(refusal)
    if refusals[0] is not None:
        raise InvalidArgumentError(refusals[0])
    return store if rank() == 0 else stack.enter_context(Store(own_file, configuration))


def _own_file(path: str | os.PathLike[str] | None) -> Path | None:
    """The file of this process: two processes never write to one, which might be on two machines."""
    if path is None or rank() == 0:
        return None if path is None else Path(path)
    return Path(path).with_name(f"{Path(path).stem}.rank{rank()}{Path(path).suffix}")


def _import_others(store: Store, path: Path, configuration: Mapping[str, object]) -> None:
    """Take over what an earlier run of more processes left behind."""
    known = store.keys()
    name = re.compile(rf"{re.escape(path.stem)}\.rank(\d+){re.escape(path.suffix)}")
    found = {other: name.fullmatch(other.name) for other in sorted(path.resolve().parent.iterdir())}
    for other, number in found.items():
        if number is None:
            continue
        with Store(other, configuration) as left:
            for record in left.read():
                if record.info.key not in known:
                    store.add(record)
                    known.add(record.info.key)
        if int(number[1]) >= world_size():  # no process of this run writes to it
            other.unlink()
