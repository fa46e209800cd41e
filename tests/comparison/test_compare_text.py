"""Laws of a comparison on texts: direct calls sentence by sentence, which goes on, names and keeps as on images."""

import itertools
import re

import numpy as np
import pytest
import torch

from captum_iba import LayerIBA
from captum_iba.attr import TOKEN_RANKING
from captum_iba.comparison import TextFile
from captum_iba.comparison.methods import PAPER, TEXT, Method
from captum_iba.demo import load_canvases, load_model
from captum_iba.errors import CaptumIBAError, CaptumIBAWarning
from captum_iba.metrics import degradation
from tests.attr.test_bad_input import state_of
from tests.comparison.comparison_cases import assert_same_results
from tests.comparison.comparison_cases import quick as quick_on_images
from tests.comparison.text_cases import (
    CLS,
    LABELS,
    LAYER,
    SEP,
    TEXTS,
    batch,
    bert,
    calibration,
    examples,
    quick,
    tokenizer,
)

METRICS = ("degradation mask", "degradation delete", "accuracy mask", "accuracy delete")


def by_length(example, target=None):
    """A map of one's own: longer words count more, the later the more."""
    return (example * 7 % 11 + torch.arange(example.shape[1]) / 100).float()


def test_scores_are_those_of_direct_calls():
    """Degradation of each text alone, by mask and by deletion, scaled over all; accuracy from the same curves."""
    model, data = bert(), examples()
    report = quick(data, {"own": by_length}, METRICS, model=model)
    for removal, kind in (("mask", "replace"), ("delete", "delete")):
        found = []
        for i in range(len(data.keys)):
            example = data.load(i)
            ids, additional = batch(example)
            found.append(
                degradation(
                    model, ids, by_length(ids), example.baselines[None], example.feature_mask[None], additional,
                    example.target, normalizer="none", removal=kind,
                )
            )  # fmt: skip
        t1, b = (torch.cat([getattr(f, name) for f in found]).mean() for name in ("top1", "fully_degraded"))
        scaled = torch.cat([f.area for f in found]) / (t1 - b)
        np.testing.assert_allclose(report.results.scores["own"][f"degradation {removal}"], scaled, rtol=1e-9)
        accuracy = [torch.trapezoid(f.lerf_top1 - f.morf_top1, f.fractions, dim=1) for f in found]
        np.testing.assert_allclose(report.results.scores["own"][f"accuracy {removal}"], torch.cat(accuracy), atol=1e-9)
        curve = report.results.curves["own"][f"degradation {removal}"].lines
        for line, values in (("most relevant first", "morf"), ("least relevant first", "lerf")):
            ends = torch.stack([(getattr(f, values)[0, [0, -1]] - b) / (t1 - b) for f in found]).mean(dim=0)
            np.testing.assert_allclose(curve[line][0][[0, -1]], ends, rtol=1e-9, atol=1e-12)


def test_layer_iba_is_a_direct_call():
    """LayerIBA's map, kept for the page, is that of the object called on the text, but for its 65536 levels."""
    model, data = bert(), examples()
    report = quick(data, ["LayerIBA"], model=model)
    texts = [tokenizer()(text, return_tensors="pt") for text in calibration()]
    iba = LayerIBA(model, model.get_submodule(LAYER)).estimate([dict(text) for text in texts])
    for i, key in enumerate(data.keys):
        ids, additional = batch(data.load(i))
        bits = iba.attribute(ids, target=LABELS[i], additional_forward_args=additional, **TOKEN_RANKING)[0, :, 0]
        kept = report.results.maps["LayerIBA"][key]
        values = kept.low + kept.levels[0] / 65535 * (kept.high - kept.low)
        np.testing.assert_allclose(values, bits, atol=2e-4 * kept.high)
    assert report.results.methods[0].unit == "bits per token"


def test_special_tokens_stay_and_arguments_fit():
    """In every pass of every metric a text starts and ends as the tokenizer made it, and the attention mask and token
    types have an entry for each of its tokens."""
    model, seen = bert(), []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    quick(methods={"own": by_length}, metrics=METRICS, model=model)
    lengths = {ids.shape[1] for ids, *_ in seen}
    assert len(seen) > 30 and min(lengths) == 2
    for ids, mask, types in seen:
        assert (ids[:, 0] == CLS).all() and (ids[:, -1] == SEP).all()
        assert mask.shape == types.shape == ids.shape and mask.all() and not types.any()


def test_what_a_special_token_gets_does_not_matter():
    """Scores are the same whatever a map says of it."""
    maps = {"own": by_length, "loud": lambda x, y: by_length(x) + 100 * ((x == CLS) | (x == SEP))}
    scores = quick(methods=maps, metrics=METRICS).results.scores
    assert all(np.array_equal(scores["own"][metric], scores["loud"][metric]) for metric in METRICS)


def test_a_constant_map_scores_nothing():
    """Exactly zero, as both orders are one; it is noted that it ranks nothing, whatever the special tokens get."""
    report = quick(methods={"flat": lambda x, y: torch.where(x == CLS, 5.0, 1.0)}, metrics=METRICS)
    assert all((report.results.scores["flat"][metric] == 0).all() for metric in METRICS)
    assert report.results.methods[0].n_constant == len(TEXTS)


def test_opposite_maps_have_opposite_scores():
    """Where no two tokens are equal."""
    maps = {"own": by_length, "opposite": lambda x, y: -by_length(x)}
    scores = quick(methods=maps, metrics=METRICS[:2]).results.scores
    for metric in METRICS[:2]:
        np.testing.assert_allclose(scores["own"][metric], -scores["opposite"][metric], rtol=1e-6)


@pytest.mark.parametrize("form", ["(1, T)", "(1, T, 1)", "(1, T, D)"])
def test_maps_of_any_form_are_one(form):
    """Values of hidden units are summed."""
    forms = {
        "(1, T)": lambda m: m,
        "(1, T, 1)": lambda m: m[..., None],
        "(1, T, D)": lambda m: m[..., None] / 4 * torch.ones(4),
    }
    found = quick(methods={"own": lambda x, y: forms[form](by_length(x))}).results.scores["own"]
    np.testing.assert_allclose(
        found["degradation mask"], quick(methods={"own": by_length}).results.scores["own"]["degradation mask"]
    )


def test_functions_get_what_they_name():
    """Arguments of Captum's names, one row each; those that a function does not name stay away."""
    seen = []

    def explain(inputs, target, additional_forward_args, baselines, feature_mask):
        seen.append((inputs, target, additional_forward_args, baselines, feature_mask))
        return inputs.float()

    data = examples()
    quick(data, {"own": explain, "any": lambda inputs, target, **more: inputs * len(more)})
    example = data.load(0)
    inputs, target, additional, baselines, units = seen[0]
    assert torch.equal(inputs[0], example.inputs) and target.tolist() == [1]
    assert torch.equal(baselines[0], example.baselines) and torch.equal(units[0], example.feature_mask)
    assert [part.shape for part in additional] == [inputs.shape] * 2


FAILURES = {
    "shape": (lambda x, y: x[:, 1:].float(), r"returned \[1, 7\] for 8 tokens; wanted maps \(1, 8\)"),
    "nan": (lambda x, y: x * float("nan"), "has NaN or infinity"),
    "raises": (lambda x, y: x.nothing, "AttributeError"),
    "wants": (lambda x, y, more: x, "TypeError: .*more"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_method_that_fails_is_a_row_with_its_reason(case):
    """The others are what they are without it."""
    function, said = FAILURES[case]
    report = quick(data=examples(TEXTS[:1], LABELS[:1]), methods={"own": by_length, "bad": function})
    assert re.search(said, report.results.methods[1].reason) and report.results.methods[0].reason == ""


def test_methods_and_metrics_for_images_say_so():
    """Each is a row, or a column, with its reason; those for text run beside them."""
    metrics = ["degradation mask", "degradation 8x8", "bounding box", "sensitivity-n"]
    report = quick(methods=[*PAPER, "LayerReadoutIBA"], metrics=metrics)
    reasons = {info.name: info.reason for info in report.results.methods}
    assert {name for name, reason in reasons.items() if not reason} == {"LayerIBA", "Random"}
    assert reasons["GuidedBackprop"] == "GuidedBackprop is for images, not for text."
    described = {info.name: info.description for info in report.results.metrics}
    assert "It could not be computed: degradation 8x8 is for images, not for text." in described["degradation 8x8"]
    assert np.isfinite(report.results.scores["Random"]["degradation mask"]).all()


def test_methods_and_metrics_for_text_say_so_on_images():
    """The same the other way round."""
    report = quick_on_images(load_canvases("test", 1), [*TEXT], ["degradation 14x14", "degradation mask"])
    reasons = {info.name: info.reason for info in report.results.methods}
    assert reasons["GradientNorm"] == "GradientNorm is for text, not for images." and not reasons["LayerIBA"]
    assert "degradation mask is for text, not for images." in str(report)


def test_all_is_what_the_data_can_have():
    """Nothing of it says that it is for other data; without names it is the set for text."""
    report = quick(methods="all", metrics="all", data=examples(TEXTS[:2], LABELS[:2]))
    assert {info.name for info in report.results.methods} == set(TEXT)
    assert {info.name for info in report.results.metrics} == {*METRICS, "sufficiency"}
    assert all(info.reason == "" for info in report.results.methods)
    assert np.isfinite(report.results.scores["LayerIBA"]["sufficiency"]).all()
    plain = quick(methods=None, metrics=None, data=examples(TEXTS[:1], LABELS[:1]))
    assert [info.name for info in plain.results.methods] == list(TEXT)
    assert [info.name for info in plain.results.metrics] == list(METRICS)


def test_calibration_in_any_form_is_the_same(tmp_path):
    """Texts, lists of them, padded batches of the tokenizer with labels, a file, a set: the same statistics."""
    texts = calibration()
    (tmp_path / "a.tsv").write_text("".join(f"{text}\t0\n" for text in texts))
    padded = [tokenizer()(texts[i : i + 8], padding=True, return_tensors="pt") for i in range(0, 24, 8)]
    forms = [
        texts, iter(texts), [texts[:10], texts[10:]], padded, [(one, torch.zeros(8)) for one in padded],
        [dict(one) | {"labels": torch.zeros(8)} for one in padded], TextFile(tmp_path / "a.tsv", tokenizer()),
        examples(texts, [0] * 24),
    ]  # fmt: skip
    runs = [quick(examples(TEXTS[:1], LABELS[:1]), ["LayerIBA"], calibration=form).results for form in forms]
    assert re.match("24 texts, ", runs[0].configuration["calibration"])
    for run in runs[1:]:
        assert run.configuration == runs[0].configuration
        np.testing.assert_allclose(
            run.scores["LayerIBA"]["degradation mask"], runs[0].scores["LayerIBA"]["degradation mask"], rtol=1e-4
        )


def test_calibration_of_another_kind_is_a_reason():
    """Of the methods that need it; without any, the compared texts serve, and it is said."""
    report = quick(methods=["LayerIBA", "Random"], calibration=[torch.zeros(2, 3)])
    assert "calibration yields a Tensor" in report.results.methods[0].reason and not report.results.methods[1].reason
    with pytest.warns(CaptumIBAWarning, match="come from the compared texts themselves"):
        assert quick(methods=["LayerIBA"], calibration=None).results.methods[0].reason == ""


class Bare:
    """Examples whose tokenizer nobody knows."""

    def __init__(self):
        self.data = examples()
        self.keys, self.fingerprint = self.data.keys, self.data.fingerprint

    def load(self, index):
        return self.data.load(index)


def test_texts_to_calibrate_on_need_a_tokenizer():
    """Examples of one's own have none; mappings do without."""
    report = quick(Bare(), ["LayerIBA"])
    assert "Bare has no tokenizer for them; pass mappings" in report.results.methods[0].reason
    padded = tokenizer()(calibration(), padding=True, return_tensors="pt")
    report = quick(Bare(), ["LayerIBA"], calibration=padded)
    assert report.results.methods[0].reason == "" and report.results.configuration["baseline_token"] is None


def test_little_memory_changes_nothing_but_the_time():
    """Where only a few rows fit, statistics, maps and curves are those of all rows at once."""

    def refuse(_module, inputs):
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError(f"no room for {len(inputs[0])} rows")

    scarce = bert().double()
    scarce.classifier.register_forward_pre_hook(refuse)
    scarce.bert.embeddings.word_embeddings.register_forward_pre_hook(refuse)
    methods = ["LayerIBA", "LayerIntegratedGradients", "GradientNorm", "AttentionRollout"]
    with pytest.warns(CaptumIBAWarning, match="Memory ran out; going on with 2 rows"):
        found = quick(methods=methods, metrics=METRICS, model=scarce, max_examples_per_batch=16)
    wanted = quick(methods=methods, metrics=METRICS, model=bert().double(), max_examples_per_batch=16)
    assert [info.reason for info in found.results.methods] == [""] * 4
    for method, metric in itertools.product(methods, METRICS):
        one, other = (report.results.scores[method][metric] for report in (found, wanted))
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_texts_that_cannot_be_read_are_named(tmp_path):
    """Among the compared ones with their reason in the report, among those of the calibration in a warning."""
    (tmp_path / "a.tsv").write_text("a good film\t1\nno tab\na bad plot\t0\n")
    data = TextFile(tmp_path / "a.tsv", tokenizer())
    with pytest.warns(CaptumIBAWarning, match=r"Left out of the calibration: a.tsv:2: 'no tab' has no tab"):
        report = quick(data, calibration=TextFile(tmp_path / "a.tsv", tokenizer()))
    assert report.results.skipped.keys() == {"a.tsv:2"} and "has no tab" in str(report)
    assert [e.key for e in report.results.examples] == ["a.tsv:1", "a.tsv:3"]
    assert [e.tokens[1:-1] for e in report.results.examples] == [("a", "good", "film"), ("a", "bad", "plot")]


def test_a_text_of_one_word_has_no_score_and_is_noted():
    """There is no order of one token; it counts neither as nought nor as failure."""
    report = quick(examples([*TEXTS, "film"], [*LABELS, 0]), {"own": by_length})
    assert np.isnan(report.results.scores["own"]["degradation mask"]).tolist() == [False] * 4 + [True]
    assert "degradation mask is undefined on 1 example" in str(report)


def test_interrupted_it_goes_on(tmp_path):
    """Ctrl-C in the second text: the next run computes the rest, and ends as one that was never interrupted."""
    calls = []

    def patient(x, y):
        calls.append(x)
        return by_length(x)

    def impatient(x, y):
        if len(calls) == 1:
            raise KeyboardInterrupt
        return patient(x, y)

    model, path = bert(), tmp_path / "results.sqlite"
    with pytest.raises(KeyboardInterrupt):
        quick(methods=[_method(impatient), "LayerIBA"], metrics=METRICS, model=model, store=path)
    found = quick(methods=[_method(patient), "LayerIBA"], metrics=METRICS, model=model, store=path)
    assert len(calls) == len(TEXTS)  # one before, the others after
    assert_same_results(found.results, quick(methods=[_method(patient), "LayerIBA"], metrics=METRICS).results)
    assert [(e.tokens, e.special) for e in found.results.examples] == [
        (examples().load(i).tokens, tuple(examples().load(i).special.tolist())) for i in range(4)
    ]
    assert len(calls) == 2 * len(TEXTS)
    with pytest.raises(CaptumIBAError, match="holds results of another configuration: .*texts|.*digest"):
        quick(examples(TEXTS, [0, 0, 0, 0]), [_method(patient), "LayerIBA"], METRICS, store=path)


def _method(explain):
    return Method("own", lambda context: explain)


def test_the_model_is_left_as_it_was():
    """Modes, hooks, weights, gradients, and the configuration that the rollout changes."""
    model = bert()
    before, implementation = state_of(model), model.config._attn_implementation
    report = quick(methods="text", metrics=METRICS, model=model)
    assert state_of(model) == before and model.config._attn_implementation == implementation
    assert [info.reason for info in report.results.methods] == [""] * len(TEXT)


def test_pictures_are_kept_of_as_many_as_asked_for():
    """Tokens and maps of the first ones; all have scores."""
    report = quick(n_pictures=1)
    assert [bool(e.tokens) for e in report.results.examples] == [True, False, False, False]
    assert all(maps.keys() == {"0"} for maps in report.results.maps.values())
    assert np.isfinite(report.results.scores["Random"]["degradation mask"]).all()


def test_a_random_map_has_each_value_once():
    """Of floating numbers, though ids are integers."""
    kept = quick(methods=["Random"]).results.maps["Random"]["0"]
    assert kept.levels.shape == (1, 8) and len(np.unique(kept.levels)) == 8 and (kept.low, kept.high) == (-1.0, 1.0)


def test_models_that_return_objects_work_on_images_too():
    """An object with logits is taken as its logits."""

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = load_model()

        def forward(self, x):
            return type("Output", (), {"logits": self.inner(x)})()

    data = load_canvases("test", 1)
    found = quick_on_images(data, ["Random"], ["degradation 14x14"], Wrapped().eval(), layer="inner.stage1")
    wanted = quick_on_images(data, ["Random"], ["degradation 14x14"])
    assert np.array_equal(*(r.results.scores["Random"]["degradation 14x14"] for r in (found, wanted)))
