"""Laws of failure: the right class, a message with what was found and what to do, and no trace left behind."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_iba import FeatureStatistics, LayerIBA, errors

pytestmark = pytest.mark.filterwarnings("ignore")
NAN, INF = float("nan"), float("inf")


class Network(nn.Module):
    """A classifier with a part for every way to go wrong; ``wrong`` chooses one."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.dropout, self.classify = nn.Dropout(), nn.Linear(4, 3)
        self.unused, self.same = nn.Linear(2, 2), nn.Identity()
        self.words, self.codes, self.log = Words(), Codes(), Log()
        self.lstm = nn.LSTM(4, 4)
        self.wrong = wrong

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        x = self.dropout(self.relu(self.norm(self.conv(x))))
        self.words(x), self.codes(x)
        if self.wrong == "nan":
            x = self.log(x - 1e3)
        if self.wrong == "raises" and scale is not None:
            raise scale
        if self.wrong == "time first":
            x = self.lstm(x.flatten(2).permute(2, 0, 1))[0].permute(1, 2, 0).unsqueeze(3)
        x = self.same(x.detach() if self.wrong == "detached" else x)
        output = self.classify(x.amax(dim=(2, 3)))
        output = output if scale is None else output * scale[:, None]
        return {"scores": output} if self.wrong == "dictionary" else output


class Words(nn.Module):
    """Returns no tensor."""

    def forward(self, _x: Tensor) -> str:
        return "words"


class Codes(nn.Module):
    """Returns integers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(dim=1)


class Log(nn.Module):
    """Returns NaN for negative numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Own(RuntimeError):
    """An exception of the user's model."""


def network(wrong: str = "") -> Network:
    """A network in a mixed state, so that every change shows: modes, gradients, frozen weights, buffers."""
    torch.manual_seed(0)
    model = Network(wrong).train()
    model.relu.eval()
    model.norm.running_mean.normal_()
    model.classify.weight.requires_grad_(False)
    model.conv.weight.grad = torch.randn_like(model.conv.weight)
    return model


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))


Call = Callable[[Network, Path], object]


@dataclass(frozen=True)
class Bad:
    """A call that must fail; ``words`` are parts of the message, in order."""

    call: Call
    error: type[Exception]
    words: tuple[str, ...]
    wrong: str = ""


def explain(layer: str = "conv", inputs: Callable[[], Any] = images, **kwargs: Any) -> Call:
    def call(model: Network, _folder: Path) -> object:
        return LayerIBA(model, model.get_submodule(layer)).attribute(inputs(), **{"target": 1, "n_steps": 2} | kwargs)

    return call


def at(make_layer: Callable[[Network], Any], device_ids: list[int] | None = None, **kwargs: Any) -> Call:
    return lambda model, _folder: LayerIBA(model, make_layer(model), device_ids).attribute(images(), 1, **kwargs)


def estimated_for_more_pixels(model: Network, _folder: Path) -> object:
    iba = LayerIBA(model, model.conv).estimate(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return iba.attribute(images(), 1)


def statistics_of_one(model: Network, _folder: Path) -> object:
    statistics = FeatureStatistics.from_features(torch.zeros(1, 4, 6, 6), channel_dim=1)
    return LayerIBA(model, model.conv, statistics=statistics).attribute(images(), 1)


def nan_after_estimate(model: Network, _folder: Path) -> object:
    statistics = FeatureStatistics.from_features(images(5)[:, [0, 1, 2, 0]], channel_dim=1)
    return LayerIBA(model, model.log, statistics=statistics).attribute(images(), 1)


def under_inference_mode(model: Network, folder: Path) -> object:
    with torch.inference_mode():
        return explain()(model, folder)


def load(write: Callable[[Path], object]) -> Call:
    def call(model: Network, folder: Path) -> object:
        write(folder / "file.safetensors")
        return LayerIBA(model, model.conv).load_statistics(folder / "file.safetensors")

    return call


def truncated(path: Path) -> None:
    FeatureStatistics.from_features(images(4), channel_dim=1).save(path)
    path.write_bytes(path.read_bytes()[:-7])


def estimate(*args: Any, **kwargs: Any) -> Call:
    return lambda model, _folder: LayerIBA(model, model.conv).estimate(*args, **kwargs)


def poisoned(value: float) -> Callable[[], Tensor]:
    return lambda: images().index_fill(3, torch.tensor([1]), value)


def argument(name: str, value: Any, *words: str) -> Bad:
    found = (re.escape(f"{name}={value!r}"), *(words or ("wanted",)))
    return Bad(explain(**{name: value}), errors.InvalidArgumentError, found)


def pair(*rows: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (images(rows[0]), torch.ones(rows[1]))


E = errors
BUILTIN = {
    E.LayerNotExecutedError: AssertionError,
    E.LayerReusedError: RuntimeError,
    E.NoTensorError: AssertionError,
    E.IntegerFeaturesError: RuntimeError,
    E.InvalidArgumentError: ValueError,
    E.InvalidTypeError: TypeError,
    E.MismatchedArgumentsError: RuntimeError,
    E.NonFiniteError: ValueError,
    E.TargetError: AssertionError,
    E.TargetIndexError: IndexError,
    E.StatisticsError: ValueError,
    E.StatisticsFileError: ValueError,
    E.NotTrainedError: RuntimeError,
    E.ReadoutFileError: ValueError,
    E.StoreError: OSError,
    E.GradientModeError: RuntimeError,
    E.DeviceError: RuntimeError,
    E.UnsupportedModelError: RuntimeError,
    E.MissingDependencyError: ImportError,
    E.MissingFileError: FileNotFoundError,
    E.UnreadableExampleError: ValueError,
}
TABLE = {
    "layer of another model": Bad(
        at(lambda _model: nn.ReLU()), E.LayerNotExecutedError, ("ReLU", "Network", "Pass", "conv")
    ),
    "layer never executed": Bad(explain("unused"), E.LayerNotExecutedError, ("'unused'", "Pass a layer")),
    "layer executed twice": Bad(
        lambda model, _f: LayerIBA(lambda x: model(model.same(x)), model.same).attribute(images(), 1),
        E.LayerReusedError,
        ("'same'", "more than once", "choose a layer"),
    ),
    "list of layers": Bad(at(lambda m: [m.conv, m.norm]), E.InvalidTypeError, ("layer", "list", "Create one")),
    "name of a layer": Bad(at(lambda _m: "conv"), E.InvalidTypeError, ("layer", "str", "named_modules")),
    "no tensor": Bad(explain("words"), E.NoTensorError, ("'words'", "str", "Choose a layer")),
    "integer features": Bad(explain("codes"), E.IntegerFeaturesError, ("'codes'", "int64", "Choose")),
    "statistics of another size": Bad(
        estimated_for_more_pixels, E.StatisticsError, (r"\(4, 8, 8\)", "'conv'", r"\(4, 6, 6\)", "per='channel'")
    ),
    "statistics of one example": Bad(statistics_of_one, E.StatisticsError, ("n_samples=1", "Call estimate")),
    "beta below 0": argument("beta", -1.0, "at least 0"),
    "beta NaN": argument("beta", NAN, "finite"),
    "beta text": argument("beta", "10", "number"),
    "beta infinite": argument("beta", INF, "finite"),
    "n_steps 0": argument("n_steps", 0, "at least 1"),
    "n_steps float": argument("n_steps", 2.5, "integer"),
    "n_samples 0": argument("n_samples", 0, "at least 1"),
    "n_samples float": argument("n_samples", 2.0, "integer"),
    "n_samples bool": argument("n_samples", True, "integer"),
    "sigma below 0": argument("sigma", -0.5, "at least 0"),
    "sigma NaN": argument("sigma", NAN, "finite"),
    "learning_rate 0": argument("learning_rate", 0, "above 0"),
    "initial_alpha infinite": argument("initial_alpha", INF, "finite"),
    "seed float": argument("seed", 0.5, "integer"),
    "internal_batch_size 0": argument("internal_batch_size", 0, "at least 1"),
    "internal_batch_size float": argument("internal_batch_size", 4.0, "integer"),
    "channel_dim 0": argument("channel_dim", 0, r"'conv'.*\[2, 4, 6, 6\]", "1 to 3"),
    "channel_dim 4": argument("channel_dim", 4, r"'conv'.*\[2, 4, 6, 6\]", "1 to 3"),
    "channel_dim -4": argument("channel_dim", -4, r"'conv'.*\[2, 4, 6, 6\]", "1 to 3"),
    "unknown objective": argument("objective", "logits", "'probability'"),
    "sigma on vectors": Bad(explain("classify", sigma=1.0), E.InvalidArgumentError, ("sigma=1.0", "'classify'")),
    "ambiguous channel_dim": Bad(
        lambda model, _f: LayerIBA(nn.Sequential(model.same, nn.Flatten()), model.same).attribute(images(), 1),
        E.InvalidArgumentError,
        ("channel_dim", "'0'", r"\[2, 3, 6, 6\]", "Pass channel_dim"),
    ),
    "NaN in the input": Bad(explain(inputs=poisoned(NAN)), E.NonFiniteError, (r"inputs\[0\]", "NaN", "Clean")),
    "inf in the input": Bad(explain(inputs=poisoned(-INF)), E.NonFiniteError, (r"inputs\[0\]", "inf", "Clean")),
    "NaN in the features": Bad(explain("log"), E.NonFiniteError, ("NaN", "Look at|look at"), "nan"),
    "NaN in the features, statistics at hand": Bad(
        nan_after_estimate, E.NonFiniteError, ("NaN", "Look at|look at"), "nan"
    ),
    "NaN while estimating": Bad(
        lambda model, _f: LayerIBA(model, model.log).estimate(images(4)), E.StatisticsError, ("NaN", "Check"), "nan"
    ),
    "empty batch": Bad(explain(inputs=lambda: images(0)), E.InvalidArgumentError, (r"\[0, 3, 6, 6\]", "Wanted")),
    "no inputs": Bad(explain(inputs=tuple), E.InvalidArgumentError, ("inputs", "empty", "wanted")),
    "batches of two sizes": Bad(explain(inputs=pair(2, 3)), E.InvalidArgumentError, (r"inputs\[1\]", "3", "2")),
    "target too large": Bad(explain(target=3), E.TargetIndexError, ("target=3", r"\[2, 3\]", "Wanted")),
    "target in list too large": Bad(
        explain(target=[0, 7]), E.TargetIndexError, (r"target=\[0, 7\]", r"\[2, 3\]", "Wanted")
    ),
    "target in tensor too large": Bad(
        explain(target=torch.tensor([0, 7])), E.TargetIndexError, (r"target=tensor\(\[0, 7\]\)", "Wanted")
    ),
    "target missing": Bad(explain(target=None), E.TargetError, ("target=None", r"\[2, 3\]", "Pass target")),
    "inference mode": Bad(under_inference_mode, E.GradientModeError, ("inference_mode", "no_grad")),
    "output cut off from the layer": Bad(
        explain(), E.GradientModeError, ("depend", "Choose a layer", "detach"), "detached"
    ),
    "argument too many": Bad(
        explain(additional_forward_args=(torch.ones(2), torch.ones(2))),
        E.InvalidTypeError,
        ("additional_forward_args", "1 inputs and 2", "Pass"),
    ),
    "argument with other rows": Bad(
        explain(additional_forward_args=torch.ones(3)),
        E.MismatchedArgumentsError,
        (r"additional_forward_args\[0\]", r"\[3\]", "2 examples", "one row"),
    ),
    "two devices": Bad(at(lambda m: m.conv, [0, 1]), E.DeviceError, (r"device_ids=\[0, 1\]", "Pass")),
    "model without tensor": Bad(explain(), E.NoTensorError, ("dict", "wanted a tensor", "Pass"), "dictionary"),
    "time before batch": Bad(
        explain("lstm"), E.MismatchedArgumentsError, (r"'lstm' \(LSTM\)", r"\[36, 2, 4\]", "batch_first"), "time first"
    ),
    "time before batch, as many steps as examples": Bad(
        explain("lstm", inputs=lambda: images(4)[..., :2, :2]),
        E.MismatchedArgumentsError,
        (r"'lstm' \(LSTM\)", "batch_first"),
        "time first",
    ),
    "truncated file": Bad(load(truncated), E.StatisticsFileError, ("file.safetensors", "truncated", "Run")),
    "file of another kind": Bad(
        load(lambda path: save_file({"weight": torch.ones(2)}, path)),
        E.StatisticsFileError,
        ("file.safetensors", "'weight'", "captum_iba.statistics", "Pass"),
    ),
    "text file": Bad(load(lambda path: path.write_text("{}")), E.StatisticsFileError, ("safetensors", "Run")),
    "missing file": Bad(load(lambda path: None), E.MissingFileError, ("file.safetensors", "Write one")),
    "nothing to save": Bad(
        lambda model, folder: LayerIBA(model, model.conv).save_statistics(folder / "new"),
        E.StatisticsError,
        ("statistics", "Call estimate"),
    ),
    "statistics of another type": Bad(
        lambda model, _f: LayerIBA(model, model.conv, statistics="conv.safetensors"),
        E.InvalidTypeError,
        ("statistics", "str", "load_statistics"),
    ),
    "one example to estimate": Bad(estimate(images(1)), E.StatisticsError, ("2 examples", "found 1", "Pass")),
    "nothing to estimate": Bad(estimate([]), E.StatisticsError, ("2 examples", "found 0", "Pass")),
    "data of strings": Bad(estimate(["a", "b"]), E.InvalidTypeError, ("data", "str", "input_fn")),
    "max_examples 1": Bad(estimate(images(), max_examples=1), E.InvalidArgumentError, ("max_examples=1", "at least 2")),
    "unknown per": Bad(estimate(images(), per="pixel"), E.InvalidArgumentError, ("per='pixel'", "'channel'")),
}


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a call could change: tensors bit by bit, flags, hooks, instance attributes, random states."""
    bits = {name: tensor.clone().numpy().tobytes() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    return {
        "tensors": bits,
        "gradients": {n: None if p.grad is None else p.grad.numpy().tobytes() for n, p in parameters.items()},
        "frozen": {name: p.requires_grad for name, p in parameters.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(value) for key, value in vars(module).items() if key.endswith("_hooks")]
            for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "modes": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()),
    }


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_without_a_trace(name: str, tmp_path: Path) -> None:
    """The error has its class, names what was found and the next step, and all is as it was before the call."""
    bad = TABLE[name]
    model = network(bad.wrong)
    before = state_of(model)
    with pytest.raises(bad.error) as caught:
        bad.call(model, tmp_path)
    assert type(caught.value) is bad.error and isinstance(caught.value, BUILTIN[bad.error])
    assert re.search(".*".join(f"(?:{word})" for word in bad.words), str(caught.value), re.DOTALL), str(caught.value)
    assert state_of(model) == before


@pytest.mark.parametrize("side", ["attribute", "estimate"])
@pytest.mark.parametrize("kind", [Own, ValueError, KeyError, TypeError, KeyboardInterrupt])
def test_exceptions_of_the_model_come_through(kind: type[BaseException], side: str) -> None:
    """What the model's own forward raises reaches the caller as the very same object, and leaves no trace."""
    model, own = network("raises"), kind("own")
    before = state_of(model)
    iba = LayerIBA(lambda x: model(x, own), model.classify)  # which comes after the failure
    with pytest.raises(kind) as caught:
        _ = iba.attribute(images(), 1) if side == "attribute" else iba.estimate(images())
    assert caught.value is own
    assert state_of(model) == before


@pytest.mark.parametrize("calls_before", [1, 2, 3, 4])
def test_exceptions_at_any_step_leave_no_trace(calls_before: int) -> None:
    """A model that fails in the middle of the optimisation is put back too."""
    model, own, calls = network(), Own("later"), []
    before = state_of(model)

    def fails_later(output: Tensor, target: Any) -> Tensor:
        calls.append(1)
        if len(calls) > calls_before:
            raise own
        return -output[:, 1]

    with pytest.raises(Own) as caught:
        LayerIBA(model, model.conv).attribute(images(), 1, objective=fails_later, n_steps=9)
    assert caught.value is own and len(calls) == calls_before + 1
    assert state_of(model) == before


def test_users_own_hooks_and_forward_stay() -> None:
    """Hooks and an instance attribute forward that the user set are there afterwards, after success and failure."""
    model, seen = network(), []
    model.conv.register_forward_hook(lambda *_: seen.append(1))
    model.norm.forward = model.norm.forward
    own, before = model.norm.forward, state_of(model)
    LayerIBA(model, model.relu).attribute(images(), 1, n_steps=1)
    with pytest.raises(errors.TargetIndexError):
        LayerIBA(model, model.relu).attribute(images(), 9)
    assert seen and model.norm.forward is own
    assert state_of(model) == before


def test_every_error_has_its_builtin() -> None:
    """Each class of the family is caught by the base class and by its one built-in exception."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    family = [kind for kind in classes if kind not in (E.CaptumIBAError, E.CaptumIBAWarning)]
    assert issubclass(E.CaptumIBAWarning, UserWarning)
    assert set(family) == set(BUILTIN)
    assert all(issubclass(kind, E.CaptumIBAError) and issubclass(kind, BUILTIN[kind]) for kind in family)
