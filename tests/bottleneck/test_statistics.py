import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from captum_iba.bottleneck.statistics import FeatureStatistics
from captum_iba.errors import MissingFileError, StatisticsError, StatisticsFileError
from tests.literal import normal


def of(features, kind="feature", channel_dim=1):
    return FeatureStatistics.from_features(features, channel_dim, kind)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(["feature", "channel"]), st.integers(0, 99))
def test_any_split_merges_to_the_whole(sizes, kind, seed):
    """However the data are cut into batches, the merged statistics are those of the whole."""
    features = 5 + normal(sum(sizes), 3, 2, 4, seed=seed)
    merged = None
    for part in features.split(sizes):
        statistics = of(part, kind)
        merged = statistics if merged is None else merged.merge(statistics)
    whole = of(features, kind)
    assert merged.n_samples == whole.n_samples
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.m2, whole.m2, rtol=1e-11, atol=1e-11)


def test_equals_torch_std():
    """Mean and unbiased deviation are torch's, per element and pooled over examples and positions."""
    features = normal(20, 3, 4, 5)
    torch.testing.assert_close(of(features).std, features.std(dim=0))
    pooled = features.movedim(1, 0).flatten(1)
    torch.testing.assert_close(of(features, "channel").std.flatten(), pooled.std(dim=1))
    torch.testing.assert_close(of(features).pool().std, of(features, "channel").std)


def test_large_offset_keeps_its_digits():
    """A mean a million deviations away does not eat the variance, as E[x^2] - E[x]^2 would."""
    features = 1e6 + normal(400, 2, 3).float().double()
    first, second = of(features[:200]), of(features[200:])
    torch.testing.assert_close(first.merge(second).std, features.std(dim=0), rtol=1e-8, atol=0)


def test_half_precision_features_are_accumulated_wide():
    """bfloat16 features are summed in float64."""
    features = normal(300, 2, 3).bfloat16()
    torch.testing.assert_close(of(features).mean, features.double().mean(dim=0))


def test_kinds_merge_to_channel():
    """Per-feature and per-channel statistics of one layer merge to per-channel ones."""
    features = normal(10, 2, 3, 3)
    merged = of(features[:4]).merge(of(features[4:], "channel"))
    torch.testing.assert_close(merged.std, of(features, "channel").std)


def test_merge_of_other_shapes_is_refused():
    """Two layers' statistics do not merge."""
    with pytest.raises(StatisticsError, match=r"\[2, 3, 3\].*\[2, 4, 4\]"):
        of(normal(4, 2, 3, 3)).merge(of(normal(4, 2, 4, 4)))


def test_one_example_has_no_deviation():
    """n = 1 raises; it never becomes NaN."""
    with pytest.raises(StatisticsError, match="n_samples=1"):
        _ = of(normal(1, 2, 3, 3)).std


@pytest.mark.parametrize("kind", ["feature", "channel"])
def test_file_round_trip(tmp_path, kind):
    """What is read is bit for bit what was written, and merges on."""
    statistics = of(normal(7, 2, 3, 3), kind)
    path = tmp_path / "layer.safetensors"
    statistics.save(path)
    loaded = FeatureStatistics.load(path)
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.m2, statistics.m2)
    assert (loaded.count, loaded.n_samples, loaded.shape, loaded.kind, loaded.channel_dim) == (
        statistics.count,
        statistics.n_samples,
        statistics.shape,
        statistics.kind,
        statistics.channel_dim,
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["layer.safetensors"]


def test_truncated_file(tmp_path):
    """A file that was cut off is named as such, at any length."""
    path = tmp_path / "layer.safetensors"
    of(normal(7, 2, 3, 3)).save(path)
    content = path.read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(StatisticsFileError, match=r"truncated|damaged"):
            FeatureStatistics.load(path)


def test_foreign_file(tmp_path):
    """Another program's safetensors are not taken for statistics."""
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(StatisticsFileError, match="does not hold feature statistics"):
        FeatureStatistics.load(path)


def test_missing_file(tmp_path):
    """A path that leads nowhere is a FileNotFoundError that says how to make the file."""
    with pytest.raises(MissingFileError, match="save_statistics"):
        FeatureStatistics.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "other"),
        ("shape", "[2]"),
        ("shape", "broken"),
        ("channel_dim", "9"),
        ("count", "0"),
        ("n_samples", "x"),
    ],
)
def test_damaged_metadata(tmp_path, key, value):
    """Metadata that contradict the tensors are refused."""
    path = tmp_path / "layer.safetensors"
    statistics = of(normal(7, 2, 3, 3))
    statistics.save(path)
    metadata = {
        "format": "captum_iba.statistics",
        "version": "1",
        "kind": "feature",
        "shape": json.dumps([2, 3, 3]),
        "channel_dim": "1",
        "count": "7",
        "n_samples": "7",
    }
    save_file(load_file(path), path, metadata | {key: value})
    with pytest.raises(StatisticsFileError, match="damaged"):
        FeatureStatistics.load(path)
    save_file(load_file(path), path, metadata | {"version": "99"})
    with pytest.raises(StatisticsFileError, match="version 99"):
        FeatureStatistics.load(path)


def test_features_of_another_shape():
    """Statistics of another input size name both shapes and the remedy."""
    with pytest.raises(StatisticsError, match=r"\(2, 3, 3\).*\(2, 5, 5\).*per='channel'"):
        of(normal(7, 2, 3, 3)).reference(normal(1, 2, 5, 5))
    fitting = of(normal(7, 2, 3, 3), "channel").reference(normal(1, 2, 5, 5))
    assert fitting.mean.shape == (1, 2, 1, 1)


def test_nothing_varies():
    """A layer that says the same for every input has no scale to measure bits in."""
    with pytest.raises(StatisticsError, match="No feature of the layer varies over the 7 calibration examples"):
        of(torch.ones(7, 2, 3)).reference(torch.ones(1, 2, 3))


def test_nan_is_refused():
    """NaN in the calibration data is found at once."""
    features = normal(4, 2, 3)
    features[1, 1, 1] = float("inf")
    with pytest.raises(StatisticsError, match="NaN or infinity"):
        of(features)


def test_active_mask():
    """Dead and constant features are found; the others are active."""
    features = normal(50, 3, 2)
    features[:, 0], features[:, 1] = 0.0, 3.5
    assert of(features).active.tolist() == [[False, False], [False, False], [True, True]]
