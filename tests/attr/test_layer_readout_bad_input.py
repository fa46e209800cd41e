"""Laws of failure, as in test_bad_input, for LayerReadoutIBA: class, message, no trace in network or random states."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_iba import FeatureStatistics
from captum_iba import errors as E
from captum_iba.attr import LayerReadoutIBA
from tests.attr.test_bad_input import BUILTIN, INF, NAN, Bad, Call, Network, images, network, poisoned, state_of

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = {"max_steps": 1, "show_progress": False}


def make(model: Network, layer: str = "conv", **kwargs: Any) -> LayerReadoutIBA:
    layers = {"readout_layers": ["conv", "classify"], "hidden_channels": (4, 4)}
    return LayerReadoutIBA(model, model.get_submodule(layer), **layers | kwargs)


def ready(model: Network, layer: str = "conv", **kwargs: Any) -> LayerReadoutIBA:
    return make(model, layer, **kwargs).estimate(images(6))


def labelled(n: int = 4) -> list[Any]:
    return [(images(n), torch.arange(n) % 3)]


def trained(model: Network, **kwargs: Any) -> LayerReadoutIBA:
    return ready(model, **kwargs).fit(labelled(), **SHORT)


def construct(layer: str = "conv", **kwargs: Any) -> Call:
    return lambda model, _folder: make(model, layer, **kwargs)


def estimate(
    data: Any = None, layer: str = "conv", make_arguments: dict[str, Any] | None = None, **kwargs: Any
) -> Call:
    def call(model: Network, _folder: Path) -> object:
        return make(model, layer, **make_arguments or {}).estimate(images(6) if data is None else data, **kwargs)

    return call


def reads(*layers: Any) -> Call:
    return estimate(make_arguments={"readout_layers": list(layers)})


def fit(data: Callable[[], Any] = labelled, layers: list[str] | None = None, **kwargs: Any) -> Call:
    def call(model: Network, _folder: Path) -> object:
        return ready(model, readout_layers=layers or ["conv"]).fit(data(), **SHORT | kwargs)

    return call


def explain(inputs: Callable[[], Any] = images, **kwargs: Any) -> Call:
    return lambda model, _folder: trained(model).attribute(inputs(), **kwargs)


def evaluate(data: Callable[[], Any] = labelled, **kwargs: Any) -> Call:
    return lambda model, _folder: trained(model).evaluate(data(), **kwargs)


def on_file(write: Callable[[LayerReadoutIBA, Path], object], use: str = "load") -> Call:
    """Write a file with a trained readout at hand, and load it or train on from it."""

    def call(model: Network, folder: Path) -> object:
        path = folder / "file.safetensors"
        readout = trained(model)
        write(readout, path)
        return make(model).load(path) if use == "load" else readout.fit(labelled(), checkpoint=path, **SHORT)

    return call


def truncated(readout: LayerReadoutIBA, path: Path) -> None:
    readout.save(path)
    path.write_bytes(path.read_bytes()[:-7])


def header(content: str | None, **changes: Any) -> Callable[[LayerReadoutIBA, Path], None]:
    """A file of the right format whose content is replaced, or changed in some entries."""

    def write(readout: LayerReadoutIBA, path: Path) -> None:
        readout.save(path)
        raw = path.read_bytes()
        metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        new = content if content is not None else json.dumps(json.loads(metadata["content"]) | changes)
        metadata = {key: metadata[key] for key in ("format", "version")} | ({"content": new} if new else {})
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)

    return write


def of_another_side(model: Network, folder: Path) -> object:
    trained(model).save(folder / "file")
    return make(model).load(folder / "file", attribute_to_layer_input=True)


def of_another_layer(model: Network, folder: Path) -> object:
    trained(model).save(folder / "file")
    return make(model, "norm").load(folder / "file")


def of_another_network(model: Network, folder: Path) -> object:
    trained(model).save(folder / "file")
    with torch.random.fork_rng():
        wider = network()
        wider.conv = nn.Conv2d(3, 5, 3, padding=1)
    return make(wider).load(folder / "file")


def of_a_network_without_the_layer(model: Network, folder: Path) -> object:
    trained(model).save(folder / "file")
    with torch.random.fork_rng():
        other = nn.Sequential(nn.Conv2d(3, 4, 3))
    return LayerReadoutIBA(other, other[0], readout_layers=["0"]).load(folder / "file")


def another_training(model: Network, folder: Path) -> object:
    readout = ready(model).fit(labelled(), checkpoint=folder / "file", **SHORT)
    return readout.fit(labelled(), checkpoint=folder / "file", beta=3.0, **SHORT)


def other_pixels(model: Network, _folder: Path) -> object:
    return trained(model).attribute(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def once() -> Iterator[Any]:
    yield from labelled()


def labels(value: Any, n: int = 4) -> Callable[[], Any]:
    return lambda: [(images(n), value)]


def statistics(*names: str) -> dict[str, FeatureStatistics]:
    return {name: FeatureStatistics.from_features(images(5)[:, [0, 1, 2, 0]], channel_dim=1) for name in names}


def argument(call: Callable[..., Call], name: str, value: Any, *words: str, error: Any = E.InvalidArgumentError) -> Bad:
    return Bad(call(**{name: value}), error, (re.escape(f"{name}={value!r}"), *(words or ("wanted",))))


def mean_loss(output: Tensor, target: Any) -> Tensor:
    return nn.functional.cross_entropy(output, target)


TABLE = {
    # what the object is made of
    "readout_layers a number": Bad(construct(readout_layers=5), E.InvalidTypeError, ("readout_layers is 5", "'auto'")),
    "readout_layers one name": Bad(construct(readout_layers="conv"), E.InvalidTypeError, ("'conv'", "list")),
    "readout_layers numbers": Bad(construct(readout_layers=[1]), E.InvalidTypeError, (r"\[1\]", "list")),
    "readout_layers empty": Bad(construct(readout_layers=[]), E.InvalidArgumentError, ("empty", "at least one")),
    **{
        f"hidden_channels {value}": argument(construct, "hidden_channels", value, "two widths", "'published'")
        for value in (5, (4,), (0, 4), (4, 2.5), "paper", (True, 4))
    },
    "sigma below 0": argument(construct, "sigma", -1.0, "at least 0"),
    "sigma NaN": argument(construct, "sigma", NAN, "finite"),
    "initial_alpha infinite": argument(construct, "initial_alpha", INF, "finite"),
    "relu 1": argument(construct, "relu", 1, "True or False"),
    "align_corners text": argument(construct, "align_corners", "no", "True or False"),
    "statistics of one layer": Bad(
        construct(statistics=statistics("conv")["conv"]), E.InvalidTypeError, ("FeatureStatistics", "by name", "load")
    ),
    "statistics of paths": Bad(
        construct(statistics={"conv": "file"}), E.InvalidTypeError, ("statistics", "by name", "load")
    ),
    "statistics of another model": Bad(
        construct(statistics=statistics("conv", "stem")), E.StatisticsError, (r"\['stem'\]", "no modules", "dotted")
    ),
    "statistics of too few layers": Bad(
        construct(statistics=statistics("conv")), E.StatisticsError, ("'classify'", "found", "Call estimate")
    ),
    "statistics without the bottleneck's": Bad(
        construct(statistics=statistics("classify"), readout_layers="auto"), E.StatisticsError, ("'conv'", "estimate")
    ),
    # layers
    "layer of another model": Bad(
        lambda model, _f: LayerReadoutIBA(model, nn.ReLU()).estimate(images()),
        E.LayerNotExecutedError,
        ("ReLU", "Pass"),
    ),
    "name of a layer": Bad(
        lambda model, _f: LayerReadoutIBA(model, "conv").fit(labelled()), E.InvalidTypeError, ("str", "named_modules")
    ),
    "two devices": Bad(
        lambda model, _f: make(model, device_ids=[0, 1]).fit(labelled()),
        E.DeviceError,
        (r"device_ids=\[0, 1\]", "Pass"),
    ),
    "layer never executed": Bad(estimate(layer="unused"), E.LayerNotExecutedError, ("'unused'", "Pass a layer")),
    "layer never executed, auto": Bad(
        estimate(layer="unused", make_arguments={"readout_layers": "auto"}), E.LayerNotExecutedError, ("Pass a layer",)
    ),
    "reads a layer never executed": Bad(reads("unused"), E.LayerNotExecutedError, ("'unused'", "Pass a layer")),
    "reads a layer executed twice": Bad(
        lambda model, _f: LayerReadoutIBA(
            lambda x: model(model.same(x)), model.conv, readout_layers=[model.same, model.classify]
        ).estimate(images(6)),
        E.LayerReusedError,
        ("'same'", "more than once", "choose a layer"),
    ),
    "reads an unknown name": Bad(
        reads("stem"), E.InvalidArgumentError, ("readout_layers: 'stem'", "not part", "children", "conv")
    ),
    "reads a stranger": Bad(reads(nn.ReLU()), E.InvalidArgumentError, ("readout_layers: ReLU", "not part", "children")),
    "reads a layer twice": Bad(reads("conv", "conv"), E.InvalidArgumentError, ("'conv'", "twice", "each once")),
    "reads words": Bad(reads("words"), E.NoTensorError, ("'words'", "str", "Choose a layer")),
    "reads integers": Bad(reads("codes"), E.IntegerFeaturesError, ("'codes'", "int64", "Choose")),
    "auto out of sight": Bad(
        lambda model, _f: LayerReadoutIBA(lambda x, box=(model,): box[0](x), model.conv).estimate(images(6)),
        E.InvalidArgumentError,
        ("readout_layers='auto'", "hides", "Pass"),
    ),
    "reads time before batch": Bad(
        fit(layers=["lstm"]), E.MismatchedArgumentsError, (r"'lstm' \(LSTM\)", r"\[36, 6, 4\]"), "time first"
    ),
    "reads time before batch, as many steps as examples": Bad(
        lambda model, _f: (
            make(model, readout_layers=["lstm"])
            .estimate(images(4)[..., :2, :2])
            .fit([(images(4)[..., :2, :2], [0, 1, 2, 0])], **SHORT)
        ),
        E.MismatchedArgumentsError,
        (r"'lstm' \(LSTM\)",),
        "time first",
    ),
    "reads a layer that runs again later": Bad(
        lambda model, _f: make(model, readout_layers=[model.same]).estimate(
            [None], input_fn=lambda _: (images(6), torch.ones(6))
        ),
        E.LayerReusedError,
        ("'same'", "more than once", "choose a layer"),
        "same twice",
    ),
    "reads tokens of another number": Bad(
        lambda model, _f: ready(model, "conv", readout_layers=[model.attend]).fit(labelled(), **SHORT),
        E.UnsupportedModelError,
        ("'attend'", "36 positions", "6 x 6 positions", "readout_layers"),
        "tokens",
    ),
    # estimate
    "one example": Bad(estimate(images(1)), E.StatisticsError, ("2 examples", "found 1", "Pass")),
    "nothing to estimate": Bad(estimate([]), E.StatisticsError, ("2 examples", "found 0", "Pass")),
    "data of strings": Bad(estimate(["a"]), E.InvalidTypeError, ("data", "str", "input_fn")),
    "data a number": Bad(estimate(5), E.InvalidTypeError, ("data is a int", "iterable")),
    "max_examples 1": argument(estimate, "max_examples", 1, "at least 2"),
    "unknown per": argument(estimate, "per", "pixel", "'channel'"),
    "channel_dim 0": argument(estimate, "channel_dim", 0, "'conv'", "1 to 3"),
    "NaN while estimating": Bad(reads("log"), E.StatisticsError, ("NaN", "Check"), "nan"),
    # fit
    "fit before estimate": Bad(
        lambda model, _f: make(model).fit(labelled()), E.StatisticsError, ("output", "'conv'", "Call estimate")
    ),
    "fit before estimate of the input": Bad(
        fit(attribute_to_layer_input=True), E.StatisticsError, ("input of layer 'conv'", "attribute_to_layer_input")
    ),
    "epochs 0": argument(fit, "epochs", 0, "at least 1"),
    "epochs float": argument(fit, "epochs", 1.5, "integer"),
    "learning_rate 0": argument(fit, "learning_rate", 0, "above 0"),
    "beta below 0": argument(fit, "beta", -1.0, "at least 0"),
    "beta NaN": argument(fit, "beta", NAN, "finite"),
    "max_steps 0": argument(fit, "max_steps", 0, "at least 1"),
    "checkpoint_every 0": argument(fit, "checkpoint_every", 0, "at least 1"),
    "seed below 0": argument(fit, "seed", -1, "from 0"),
    "seed float": argument(fit, "seed", 0.5, "integer"),
    "seed too large": argument(fit, "seed", 2**64, "wanted"),
    "mixed_precision text": argument(fit, "mixed_precision", "yes", "True, False or None"),
    "unknown targets": argument(fit, "targets", "label", "'predictions'"),
    "unknown objective": argument(fit, "objective", "logits", "'probability'"),
    "class_dim 0": argument(fit, "class_dim", 0, "axis"),
    "class_dim 2": argument(fit, "class_dim", 2, "no axis", r"\[4, 3\]"),
    "class_dim 2, predictions": Bad(
        fit(class_dim=2, targets="predictions"), E.InvalidArgumentError, ("class_dim=2", "no axis", r"\[4, 3\]")
    ),
    "objective of one loss": Bad(fit(objective=mean_loss), E.InvalidArgumentError, ("objective", "reduction='none'")),
    "train_data a number": Bad(fit(lambda: 5), E.InvalidTypeError, ("train_data is a int", "iterable")),
    "val_data a number": Bad(fit(val_data=5), E.InvalidTypeError, ("val_data is a int", "iterable")),
    "train_data empty": Bad(fit(list), E.InvalidArgumentError, ("train_data has 0 batches", "wanted")),
    "val_data empty": Bad(fit(val_data=[]), E.InvalidArgumentError, ("val_data has 0 batches", "wanted")),
    "a generator for two epochs": Bad(
        fit(once, epochs=2, max_steps=5), E.InvalidArgumentError, ("train_data has 0 batches in epoch 1", "only once")
    ),
    "train_data of strings": Bad(fit(lambda: ["a"], targets="predictions"), E.InvalidTypeError, ("str", "input_fn")),
    "batch of no examples": Bad(
        fit(lambda: labelled(0)), E.InvalidArgumentError, ("train_data", "without examples", "at least one")
    ),
    "no labels": Bad(
        fit(lambda: [images()]), E.InvalidTypeError, ("train_data has no labels", "targets='predictions'")
    ),
    "no labels in a mapping": Bad(
        fit(lambda: [{"x": images()}]), E.InvalidTypeError, ("no labels", "NoneType", "dict", "'labels'")
    ),
    "fewer labels": Bad(
        fit(labels(torch.zeros(3).long())), E.MismatchedArgumentsError, ("4 inputs", r"\[3\]", "one each")
    ),
    "one label for all": Bad(
        fit(labels(torch.tensor(1))), E.MismatchedArgumentsError, ("4 inputs", r"\[\]", "one each")
    ),
    "label too large": Bad(fit(labels([0, 1, 2, 3])), E.TargetIndexError, ("to 3", "from 0 to 2")),
    "label below 0": Bad(fit(labels([0, 1, 2, -1])), E.TargetIndexError, ("from -1", "wanted class indices")),
    "label below 0, one example": Bad(fit(labels([-1], 1)), E.TargetIndexError, ("from -1", "wanted class indices")),
    "labels of two axes": Bad(fit(labels(torch.zeros(4, 1).long())), E.TargetError, (r"\[4, 1\]",)),
    "NaN in the data": Bad(
        fit(lambda: [(poisoned(NAN)(), [0, 1])]), E.NonFiniteError, ("train_data holds NaN or infinity", "Clean")
    ),
    "inf in val_data": Bad(
        fit(val_data=[(poisoned(INF)(), [0, 1])]), E.NonFiniteError, ("val_data holds NaN or infinity", "Clean")
    ),
    "loss of NaN": Bad(
        fit(objective=lambda output, _t: output[:, 0] * NAN), E.NonFiniteError, ("step 0", "objective", "before")
    ),
    "output cut off from the layer": Bad(
        fit(), E.GradientModeError, ("depend", "Choose a layer", "detach"), "detached"
    ),
    "model without tensor": Bad(fit(), E.NoTensorError, ("dict", "wanted a tensor", "Pass"), "dictionary"),
    "checkpoint of another training": Bad(
        another_training, E.InvalidArgumentError, ("another training", "beta: 10.0 there, 3.0 here", "Pass")
    ),
    "checkpoint without training": Bad(
        on_file(lambda readout, path: readout.save(path), "fit"), E.ReadoutFileError, ("no training", "load")
    ),
    "checkpoint truncated": Bad(on_file(truncated, "fit"), E.ReadoutFileError, ("truncated", "again")),
    "checkpoint of a list": Bad(on_file(header("[]"), "fit"), E.ReadoutFileError, ("damaged", "again")),
    # attribute and evaluate
    "not trained": Bad(
        lambda model, _f: make(model).attribute(images()), E.NotTrainedError, ("'conv'", "estimate", "fit", "load")
    ),
    "only estimated": Bad(
        lambda model, _f: ready(model).attribute(images()), E.NotTrainedError, ("output of layer 'conv'", "Call")
    ),
    "evaluate before fit": Bad(lambda model, _f: ready(model).evaluate([]), E.NotTrainedError, ("'conv'", "Call")),
    "trained for the output": Bad(
        explain(attribute_to_layer_input=True), E.NotTrainedError, ("input of layer 'conv'",)
    ),
    "target too large": Bad(explain(target=3), E.TargetIndexError, ("target=3", r"\[2, 3\]", "Wanted")),
    "target in list too large": Bad(explain(target=[0, 7]), E.TargetIndexError, (r"target=\[0, 7\]", "Wanted")),
    "target missing": Bad(explain(return_diagnostics=True), E.TargetError, ("target=None", r"\[2, 3\]", "Pass target")),
    "internal_batch_size 0": argument(explain, "internal_batch_size", 0, "at least 1"),
    "n_samples 0": Bad(
        explain(target=1, return_diagnostics=True, n_samples=0), E.InvalidArgumentError, ("n_samples=0", "at least 1")
    ),
    "seed of the record": Bad(
        explain(target=1, return_diagnostics=True, seed=-1), E.InvalidArgumentError, ("seed=-1", "wanted")
    ),
    "objective of the record": Bad(
        explain(target=1, objective="logits"), E.InvalidArgumentError, ("objective='logits'", "'probability'")
    ),
    "NaN in the input": Bad(explain(poisoned(NAN)), E.NonFiniteError, (r"inputs\[0\]", "NaN", "Clean")),
    "empty batch": Bad(explain(lambda: images(0)), E.InvalidArgumentError, (r"\[0, 3, 6, 6\]", "Wanted")),
    "argument too many": Bad(
        explain(additional_forward_args=(torch.ones(2), torch.ones(2))), E.InvalidTypeError, ("1 inputs and 2", "Pass")
    ),
    "argument with other rows": Bad(
        explain(target=1, additional_forward_args=torch.ones(3)),
        E.MismatchedArgumentsError,
        (r"\[3\]", "2 examples", "one row"),
    ),
    "statistics of another size": Bad(
        other_pixels, E.StatisticsError, (r"\(4, 6, 6\)", "'conv'", r"\(4, 8, 8\)", "per='channel'")
    ),
    "nothing to evaluate": Bad(evaluate(list), E.InvalidArgumentError, ("data has 0 batches", "wanted")),
    "evaluate with too large a label": Bad(evaluate(labels([0, 1, 2, 9])), E.TargetIndexError, ("to 9", "from 0 to 2")),
    "evaluate beta": argument(evaluate, "beta", -1.0, "at least 0"),
    # files
    "nothing to save": Bad(
        lambda model, folder: make(model).save(folder / "new"), E.StatisticsError, ("nothing to save", "Call estimate")
    ),
    "missing file": Bad(on_file(lambda _r, _path: None), E.MissingFileError, ("file.safetensors", "Write one")),
    "truncated file": Bad(on_file(truncated), E.ReadoutFileError, ("file.safetensors", "truncated", "again")),
    "text file": Bad(on_file(lambda _r, path: path.write_text("{}")), E.ReadoutFileError, ("safetensors", "again")),
    "file of another kind": Bad(
        on_file(lambda _r, path: save_file({"weight": torch.ones(2)}, path)),
        E.ReadoutFileError,
        ("file.safetensors", "does not hold a readout", "captum_iba.readout", "Pass"),
    ),
    "file without content": Bad(on_file(header("")), E.ReadoutFileError, ("damaged", "again")),
    "file of no JSON": Bad(on_file(header("{")), E.ReadoutFileError, ("damaged", "again")),
    "file of a list": Bad(on_file(header("[]")), E.ReadoutFileError, ("damaged", "again")),
    "file without tensors": Bad(on_file(header(None)), E.ReadoutFileError, ("damaged", "again")),
    "file without sites": Bad(on_file(header(None, sites=[])), E.ReadoutFileError, ("damaged", "again")),
    "readout of another side": Bad(of_another_side, E.ReadoutFileError, ("output of layer 'conv'", "input of 'conv'")),
    "readout of another layer": Bad(
        of_another_layer, E.ReadoutFileError, ("output of layer 'conv'", "output of 'norm'")
    ),
    "readout of another network": Bad(
        of_another_network, E.ReadoutFileError, ("another network", "'conv'", r"\[4\]", r"\[5\]", "Load it with")
    ),
    "readout of a network without the layer": Bad(
        of_a_network_without_the_layer,
        E.ReadoutFileError,
        ("another network", "'conv' \\(Conv2d\\)", "children", "'0'"),
    ),
}


class Tokens(Network):
    """The network, with tokens beside the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        self.attend(self.conv.forward(x).flatten(2).movedim(1, 2))
        return super().forward(x, scale)


class Twice(Network):
    """Runs a module again at its end."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        return self.same(super().forward(x, scale))


def network_for(wrong: str) -> Network:
    own = {"tokens": Tokens, "same twice": Twice}
    if wrong not in own:
        return network(wrong)
    torch.manual_seed(0)
    return own[wrong]().train()


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_without_a_trace(name: str, tmp_path: Path) -> None:
    """The error has its class, names what was found and the next step, and all is as it was before the call."""
    bad = TABLE[name]
    model = network_for(bad.wrong)
    before = state_of(model)
    with pytest.raises(bad.error) as caught:
        bad.call(model, tmp_path)
    assert type(caught.value) is bad.error and isinstance(caught.value, BUILTIN[bad.error])
    assert re.search(".*".join(f"(?:{word})" for word in bad.words), str(caught.value), re.DOTALL), str(caught.value)
    assert state_of(model) == before
