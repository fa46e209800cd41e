"""Bits by layer: LayerIBA at each layer, for less; and what is derived from them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_iba import LayerIBA, information_by_layer
from captum_iba.attr import LayerInformation, find_blocks
from captum_iba.bottleneck import Recording, Site
from captum_iba.errors import (
    CaptumIBAWarning,
    InvalidArgumentError,
    InvalidTypeError,
    MismatchedArgumentsError,
    StatisticsError,
)
from captum_iba.visualization import layers_to_html, plot_layers
from tests.attr.text_models import make, padded, sentences

OPTIONS = {"n_steps": 4, "n_samples": 3, "beta": 1.0, "seed": 2}
LENGTHS = [9, 3, 14, 6, 5]


def corpus() -> list[dict[str, Tensor]]:
    return [{"input_ids": part} for part in sentences([4, 8, 12] * 10, seed=1)]


class Words:
    """Names a token by its id."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"w{number}$$" for number in ids]  # no mathematics


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return make("BERT")


def batch() -> dict[str, Tensor]:
    ids, mask = padded(sentences(LENGTHS))
    return {"input_ids": ids, "attention_mask": mask}


TARGETS = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(scope="module")
def found(bert: nn.Module) -> LayerInformation:
    return information_by_layer(bert, "all", batch(), TARGETS, calibration=corpus(), tokenizer=Words(), **OPTIONS)


def test_no_more_rows_run_at_once_than_allowed(bert: nn.Module, found: LayerInformation) -> None:
    """Also where the limit is below the number of copies."""
    rows: list[int] = []
    handle = bert.classifier.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    options = OPTIONS | {"n_samples": 6}
    information_by_layer(bert, "all", batch(), 1, statistics=found.statistics, internal_batch_size=2, **options)
    handle.remove()
    assert max(rows) == 2


@pytest.mark.parametrize("rows", [3, 7, 1000])
def test_each_layer_is_what_layer_iba_says(bert: nn.Module, found: LayerInformation, rows: int) -> None:
    """Bits and probabilities are those of separate calls on the padded batch, however the sentences are cut."""
    own = information_by_layer(
        bert, "all", batch(), TARGETS, statistics=found.statistics, internal_batch_size=rows, **OPTIONS
    )
    assert own.layers == tuple(find_blocks(bert)) == tuple(f"bert.encoder.layer.{n}" for n in range(3))
    ids, mask = batch().values()
    for layer, (name, block) in enumerate(find_blocks(bert).items()):
        iba = LayerIBA(bert, block).estimate(corpus())
        torch.testing.assert_close(iba.statistics.mean, found.statistics[name].mean, rtol=0.0, atol=1e-12)
        bits, record = iba.attribute(ids, TARGETS, additional_forward_args=(mask,), return_diagnostics=True, **OPTIONS)
        torch.testing.assert_close(own.bits[layer], bits[..., 0], rtol=0.0, atol=1e-9)
        torch.testing.assert_close(own.target_probability[layer], record.target_probability, rtol=0.0, atol=1e-9)
    assert torch.equal(own.position_mask, mask > 0)


def test_arguments_come_by_name_or_in_order(bert: nn.Module, found: LayerInformation) -> None:
    """A mapping is put into the order of the signature; targets may be a list."""
    ids, mask = batch().values()
    in_order = information_by_layer(
        bert, "all", ids, TARGETS.tolist(), additional_forward_args=mask, statistics=found.statistics, **OPTIONS
    )
    assert torch.equal(in_order.bits, found.bits)
    named = {"position_ids": torch.arange(14).expand(5, -1)} | batch()
    again = information_by_layer(bert, "all", named, TARGETS, statistics=found.statistics, **OPTIONS)
    assert torch.equal(again.bits, found.bits)


def test_the_prefix_runs_once_for_all_layers(bert: nn.Module, found: LayerInformation) -> None:
    """Of equal sentences one forward pass is recorded, whatever the number of layers."""
    runs = []
    handle = bert.bert.embeddings.word_embeddings.register_forward_pre_hook(lambda *_: runs.append("looked up"))
    plain = bert.bert.embeddings.forward
    calls = []
    bert.bert.embeddings.forward = lambda *args, **kwargs: (calls.append("ran"), plain(*args, **kwargs))[1]
    try:
        ids = torch.cat(sentences([6, 6]))
        information_by_layer(bert, "all", ids, 1, statistics=found.statistics, **OPTIONS)
    finally:
        handle.remove()
        del bert.bert.embeddings.forward
    assert len(calls) == len(runs) == 1


def test_figures_derived_from_the_bits() -> None:
    """Totals, share of a token, and effective number of tokens, by hand."""
    bits = torch.tensor([[[1.0, 1.0, 2.0, 0.0], [3.0, 3.0, 0.0, 0.0]], [[8.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]) > 0
    found = LayerInformation(("a", "b"), bits, mask, torch.full((2, 2), 0.5), [["x"] * 4, ["y"] * 2])
    assert found.total_bits.tolist() == [[4.0, 6.0], [8.0, 4.0]]
    assert found.cls_share.tolist() == [[0.25, 0.5], [1.0, 1.0]]
    # shares 1/4, 1/4, 1/2: 1.5 bits of entropy
    torch.testing.assert_close(found.effective_tokens, torch.tensor([[2**1.5, 2.0], [1.0, 1.0]]))
    assert found.most_informative_layer == "b"
    last = LayerInformation(("a", "b"), bits, mask, None, [["x"] * 4, ["y"] * 2], cls_position=-1)
    assert last.cls_share.tolist() == [[0.0, 0.5], [0.0, 0.0]]
    table = found.to_dataframe()
    assert list(table.columns) == [
        "layer", "example", "total_bits", "target_probability", "cls_share", "effective_tokens"
    ]  # fmt: skip
    assert table.query("layer == 'b' and example == 1").total_bits.item() == 4.0
    assert last.to_dataframe().target_probability.isna().all()
    assert found.of_example(1).tolist() == [[3.0, 3.0], [4.0, 0.0]]


def test_plot_and_page_hold_every_token(found: LayerInformation) -> None:
    """A figure of one sentence without its padding; a page of all, with text that cannot be taken for markup."""
    figure = plot_layers(found, 1)
    axis = figure.axes[0]
    assert axis.images[0].get_array().shape == (3, 3)
    assert [label.get_text() for label in axis.get_xticklabels()] == found.tokens[1]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "1", "2"]
    figure.savefig(io.BytesIO())
    page = layers_to_html(found, "<b>")
    assert page.count("--share:") == 3 * sum(LENGTHS) and "<h1>&lt;b&gt;</h1>" in page
    assert page.count("--share:1.000") >= 3 * len(LENGTHS), "each line has its darkest token"
    assert "http" not in page


def test_one_pass_records_what_several_would() -> None:
    """Recordings of several sites from one pass replay as their own do."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    model, x = nn.Sequential(nn.Linear(3, 4), *blocks, nn.Linear(4, 2)), torch.randn(5, 3)
    sites = [Site(blocks[2][0], "late"), Site(blocks[0], "early"), Site(blocks[1][1], "in", at_input=True)]
    together = Recording.make_all(sites, lambda: model(x), [model])
    for site, recording in zip(sites, together, strict=True):
        alone = Recording.make(site, lambda: model(x), [model])
        assert torch.equal(recording.features, alone.features)
        assert recording.modules_before == alone.modules_before
        z = torch.randn_like(recording.features)
        with recording.run(lambda: model(x), z) as output, alone.run(lambda: model(x), z) as wanted:
            assert torch.equal(output, wanted)


def test_models_without_a_mask_count_every_position() -> None:
    """Images cut into patches have no padding, and their tokens no names."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3)
    ).eval()
    found = information_by_layer(
        model, [model[1].layers[1], "0"], torch.randn(4, 5, 6), 2, calibration=[torch.randn(50, 5, 6)], **OPTIONS
    )
    assert found.layers == ("1.layers.1", "0") and found.bits.shape == (2, 4, 5)
    assert found.position_mask.all() and found.tokens[0] == ["0", "1", "2", "3", "4"]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"model": lambda ids: ids}, InvalidTypeError, "wanted a torch.nn.Module"),
    ({"layers": "bert.encoder.layer.7"}, InvalidArgumentError, "not in the model; its children are bert"),
    ({"layers": ["bert.encoder.layer.1"] * 2}, InvalidArgumentError, "there twice"),
    ({"layers": []}, InvalidArgumentError, "layers is empty"),
    ({"layers": 3}, InvalidTypeError, "wanted 'all', or a list"),
    ({"layers": ["classifier"]}, InvalidArgumentError, "no meaning at layer 'classifier'"),
    ({"inputs": [1, 2]}, InvalidTypeError, "inputs is a list; wanted token ids"),
    ({"inputs": {"ids": torch.ones(1, 2)}}, InvalidArgumentError, r"inputs has \['ids'\].*input_ids"),
    ({"target": [0, 1]}, MismatchedArgumentsError, "target has 2 entries for 5 examples"),
    ({"additional_forward_args": (1,)}, InvalidArgumentError, "pass one of the two"),
    ({"steps": 3}, InvalidArgumentError, r"\['steps'\] are no arguments"),
    ({"n_steps": 0}, InvalidArgumentError, "n_steps=0"),
    ({"statistics": {}}, StatisticsError, "statistics has none of"),
    ({"statistics": {}, "calibration": []}, InvalidArgumentError, "wanted one of them"),
    ({"tokenizer": "bert"}, InvalidTypeError, "wanted one with convert_ids_to_tokens"),
    ({"seed": [0, 1]}, InvalidTypeError, "wanted one integer"),
    ({"cls_position": 3}, InvalidArgumentError, "no token of an example with 3"),
    ({"cls_position": -4}, InvalidArgumentError, "no token of an example with 3"),
    (
        {"inputs": {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)}},
        InvalidArgumentError,
        "no token of example 0 as real",
    ),
    ({"protected_positions": torch.ones(5, 14)}, InvalidTypeError, "wanted numbers of tokens"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore::captum_iba.errors.CaptumIBAWarning")
def test_mistakes_are_named(bert: nn.Module, change: dict[str, Any], error: type[Exception], message: str) -> None:
    """What was found and what was wanted."""
    arguments = {"model": bert, "layers": "all", "inputs": batch(), "target": 1} | OPTIONS | change
    with pytest.raises(error, match=message):
        information_by_layer(**arguments)


def test_without_statistics_a_warning_says_what_the_bits_are(bert: nn.Module) -> None:
    """As for LayerIBA."""
    with pytest.warns(CaptumIBAWarning, match="no upper bound"):
        information_by_layer(bert, ["bert.encoder.layer.1"], batch(), 1, **OPTIONS)


def test_blocks_are_the_longest_row_of_equal_modules() -> None:
    """Found in models of every kind; where there is none, the error says so."""
    assert list(find_blocks(make("DeBERTa-v2"))) == [f"deberta.encoder.layer.{n}" for n in range(3)]
    assert list(find_blocks(make("T5 encoder"))) == [f"transformer.encoder.block.{n}" for n in range(3)]
    with pytest.raises(InvalidArgumentError, match="no row of equal blocks"):
        find_blocks(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
