"""Encoders of transformers as they are: a padded batch is its sentences one by one, in calibration and explanation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from captum_iba import LayerIBA
from tests.attr.text_models import ENCODERS, make, padded, sentences

LENGTHS = [9, 3, 14, 6]
# T5 of transformers 4 takes its softmax in float32, whatever the model's precision
EXACT = dict.fromkeys(ENCODERS, 1e-09) | ({"T5 encoder": 1e-3} if transformers.__version__ < "5" else {})


def calibrated(name: str, dtype: torch.dtype = torch.float64) -> LayerIBA:
    model = make(name, dtype)
    iba = LayerIBA(model, model.get_submodule(ENCODERS[name][1]))
    # sentences alone, which need no mask
    return iba.estimate([{"input_ids": part} for part in sentences([4, 8, 12] * 10, seed=1)])


def options_of(name: str, **more: Any) -> dict[str, Any]:
    _, _, target, class_dim = ENCODERS[name]
    return {"target": target, "class_dim": class_dim, "beta": 1.0, "n_steps": 6, "n_samples": 3, "seed": 5} | more


def one_by_one(iba: LayerIBA, **options: Any) -> list[Tensor]:
    return [
        iba.attribute(part, additional_forward_args=(torch.ones_like(part),), **options) for part in sentences(LENGTHS)
    ]


@pytest.mark.parametrize("granularity", ["element", "token"])
@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_padded_batch_is_its_sentences(name: str, granularity: str) -> None:
    """Bits of the real tokens are those of the sentence alone; padding has none."""
    iba, options = calibrated(name), options_of(name, mask_granularity=granularity)
    ids, mask = padded(sentences(LENGTHS), longest=17)
    bits = iba.attribute(ids, additional_forward_args=(mask,), position_mask=mask, **options)
    assert bits.shape == (4, 17, 1)
    assert bits[mask == 0].eq(0.0).all()
    for row, alone in enumerate(one_by_one(iba, **options)):
        torch.testing.assert_close(bits[row : row + 1, : LENGTHS[row]], alone, rtol=0.0, atol=EXACT[name])
        assert alone.std() > 1e-3, "a map that says nothing would be equal too"


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_padded_batch_is_its_sentences_in_float32(name: str) -> None:
    """In float32 rounding differs with the length; the bits do not."""
    iba, options = calibrated(name, torch.float32), options_of(name)
    ids, mask = padded(sentences(LENGTHS))
    bits = iba.attribute(ids, additional_forward_args=(mask,), position_mask=mask, **options)
    for row, alone in enumerate(one_by_one(iba, **options)):
        torch.testing.assert_close(bits[row : row + 1, : LENGTHS[row]], alone, rtol=0.0, atol=1e-3)


def test_the_models_attention_mask_is_found() -> None:
    """An attention mask among the arguments, which the signature names, needs no position_mask; any other does."""
    iba, options = calibrated("BERT"), options_of("BERT")
    ids, mask = padded(sentences(LENGTHS))
    found = iba.attribute(ids, additional_forward_args=(mask,), **options)
    wanted = iba.attribute(ids, additional_forward_args=(mask,), position_mask=mask, **options)
    assert torch.equal(found, wanted)
    everything = iba.attribute(ids, additional_forward_args=(mask,), position_mask=torch.ones_like(mask), **options)
    assert everything[mask == 0].gt(0.0).all()


def test_padding_in_front_changes_nothing_where_positions_do_not_count() -> None:
    """A sentence's noise follows its own tokens, wherever they stand in the batch."""
    iba, options = calibrated("T5 encoder"), options_of("T5 encoder", target=(-1, 1))
    parts = sentences(LENGTHS)
    ids, mask = padded(parts, left=True)
    bits = iba.attribute(ids, additional_forward_args=(mask,), position_mask=mask, **options)
    for row, part in enumerate(parts):
        alone = iba.attribute(part, additional_forward_args=(torch.ones_like(part),), **options)
        torch.testing.assert_close(bits[row : row + 1, -LENGTHS[row] :], alone, rtol=0.0, atol=EXACT["T5 encoder"])


def test_without_statistics_padding_stays_out_of_each_sentences_own() -> None:
    """The stand-in for statistics comes from the real tokens alone."""
    model = make("BERT")
    ids, mask = padded(sentences(LENGTHS))
    options = options_of("BERT")
    with pytest.warns(UserWarning, match="no feature statistics"):
        iba = LayerIBA(model, model.get_submodule(ENCODERS["BERT"][1]))
        bits = iba.attribute(ids, additional_forward_args=(mask,), **options)
    for row, alone in enumerate(one_by_one(iba, **options)):
        torch.testing.assert_close(bits[row : row + 1, : LENGTHS[row]], alone, rtol=0.0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:There are no feature statistics")
def test_a_single_real_token_is_pooled_as_it_is_alone() -> None:
    """Its own deviation per channel is zero, in a longer batch too."""
    model = make("BERT")
    iba, options = LayerIBA(model, model.get_submodule(ENCODERS["BERT"][1])), options_of("BERT")
    one, other = sentences([1, 5])
    ids, mask = padded([one, other])
    bits = iba.attribute(ids, additional_forward_args=(mask,), **options)
    alone = iba.attribute(one, additional_forward_args=(torch.ones_like(one),), **options)
    torch.testing.assert_close(bits[:1, :1], alone, rtol=0.0, atol=1e-9)
    assert alone.max() > 1e-3


@pytest.mark.parametrize("name", list(ENCODERS))
def test_padded_batches_calibrate_as_sentences_do(name: str) -> None:
    """A mapping's attention mask leaves the padding out of mean and deviation."""
    parts = sentences([4, 8, 12] * 10, seed=1)
    wanted = calibrated(name).statistics
    iba = LayerIBA(model := make(name), model.get_submodule(ENCODERS[name][1]))
    batches = [padded(parts[start : start + 6], longest=15) for start in range(0, 30, 6)]
    found = iba.estimate([{"input_ids": ids, "attention_mask": mask} for ids, mask in batches]).statistics
    assert found.n_samples == wanted.n_samples == 30 and found.count == wanted.count == 240
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(found.std, wanted.std, rtol=0.0, atol=1e-12)


def test_tokens_of_the_users_choice_stay_out_of_the_statistics() -> None:
    """position_mask of estimate leaves out any tokens, such as the first of each sentence."""
    model = make("BERT")
    layer = model.get_submodule("bert.encoder.layer.1")
    ids = torch.cat(sentences([7] * 20, seed=2))
    features = []
    handle = layer.register_forward_hook(lambda _m, _i, out: features.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(ids)
    handle.remove()
    without_first = LayerIBA(model, layer).estimate(
        ids.split(5), position_mask=lambda batch: torch.arange(7).expand(len(batch), -1) > 0
    )
    wanted = features[0][:, 1:].flatten(0, 1)
    torch.testing.assert_close(without_first.statistics.mean.flatten(), wanted.mean(dim=0), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(without_first.statistics.std.flatten(), wanted.std(dim=0), rtol=0.0, atol=1e-12)
