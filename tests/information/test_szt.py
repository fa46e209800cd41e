import math

import numpy as np
import pytest
import torch
from torch import nn

from captum_iba.errors import InvalidArgumentError, MismatchedArgumentsError, MissingFileError
from captum_iba.information.szt import (
    HIDDEN,
    icosahedron,
    orthonormal_penalty,
    read_szt,
    szt_dataset,
    szt_score,
    tishby_network,
    train_epochs,
)


def legendre(cosines):
    """The first four Legendre polynomials."""
    return [torch.ones_like(cosines), cosines, (3 * cosines**2 - 1) / 2, (5 * cosines**3 - 3 * cosines) / 2]


def test_the_patterns():
    """4096 distinct rows of 12 bits; mean label 0.51709, H(Y) 0.99916 bit."""
    x, y = szt_dataset()
    assert len(torch.unique(x, dim=0)) == len(x) == 4096
    assert set(x.unique().tolist()) == {0, 1}
    share = float(y.double().mean())
    assert share == pytest.approx(0.51709, abs=5e-6)
    assert -sum(p * math.log2(p) for p in (share, 1 - share)) == pytest.approx(0.99916, abs=5e-6)


def test_the_labels_by_number_of_ones():
    """Known counts of ones: none to 4; 60 of 792, 532 of 924, 732 of 792 at 5, 6, 7; all from 8. A threshold: .875."""
    x, y = szt_dataset()
    ones = x.sum(1).long()
    counts = {n: (int(y[ones == n].sum()), int((ones == n).sum())) for n in range(13)}
    assert all(counts[n][0] == 0 for n in range(5))
    assert [counts[n] for n in (5, 6, 7)] == [(60, 792), (532, 924), (732, 792)]
    assert all(counts[n][0] == counts[n][1] for n in range(8, 13))
    assert float(((ones >= 6).long() == y).double().mean()) == 0.875


def test_a_linear_classifier_gets_the_threshold_on_ones():
    """Least squares on the inputs weighs them all alike, by symmetry, and so finds no more than their number."""
    x, y = szt_dataset()
    design = torch.cat([x.double(), torch.ones(4096, 1)], dim=1)
    solution = torch.linalg.lstsq(design, y.double()[:, None] - 0.5).solution
    assert torch.allclose(solution[:12], solution[0].expand(12, 1), atol=1e-10)
    assert float((((design @ solution)[:, 0] > 0).long() == y).double().mean()) == 0.875


def test_the_score_is_a_power_spectrum():
    """Pairs counted by angle are sum_l w_l sum_ij x_i x_j P_l(cos), invariant under rotations."""
    x, _ = szt_dataset()
    vertices = icosahedron()
    weights = (0.75, 6.75 - 0.75 * 5**0.5, 8.75, 6.75 + 0.75 * 5**0.5)
    matrix = sum(w * p for w, p in zip(weights, legendre(vertices @ vertices.T), strict=True))
    spectrum = torch.einsum("ni,ij,nj->n", x.double(), matrix, x.double())
    assert torch.allclose(spectrum, szt_score(x).double(), atol=1e-9)
    assert weights == pytest.approx((0.75, 5.073, 8.75, 8.427), abs=5e-4)


def test_the_score_leaves_a_gap():
    """Integers, at least 99 for label 1 and at most 98 for label 0; each vertex has 5 neighbours and an opposite."""
    x, y = szt_dataset()
    score = szt_score(x)
    assert int(score[y == 1].min()) == 99 and int(score[y == 0].max()) == 98
    cosines = icosahedron() @ icosahedron().T
    for cosine, n in ((1.0, 1), (5**-0.5, 5), (-(5**-0.5), 5), (-1.0, 1)):
        assert ((cosines - cosine).abs() < 1e-9).sum(1).tolist() == [n] * 12


def test_rotations_keep_labels():
    """A cyclic permutation of coordinates maps vertices to vertices, and keeps all labels."""
    vertices = icosahedron()
    moved = (vertices.roll(1, 1)[:, None] - vertices).square().sum(-1).argmin(1)
    assert sorted(moved.tolist()) == list(range(12))
    x, _ = szt_dataset()
    assert torch.equal(szt_score(x), szt_score(x[:, moved]))


@pytest.mark.parametrize("heading", [True, False])
def test_a_file_of_ones_own(tmp_path, heading):
    """CSV and archive give back what was written."""
    x, y = szt_dataset()
    rows = torch.cat([x, y[:, None]], dim=1).int().tolist()
    names = ",".join([f"x{i}" for i in range(12)] + ["y"])
    (tmp_path / "a.csv").write_text("\n".join(([names] if heading else []) + [",".join(map(str, row)) for row in rows]))
    np.savez(tmp_path / "a.npz", x=x.numpy().astype(np.uint8), y=y.numpy()[:, None])
    for file in ("a.csv", "a.npz"):
        read = read_szt(tmp_path / file)
        assert torch.equal(read[0], x) and torch.equal(read[1], y)
        assert read[0].dtype == torch.float32 and read[1].dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "1,0,1\n", "row 1 of the data is '1,0,1'"),
        ("a.csv", "", "x of shape"),
        ("a.csv", ",".join(["0"] * 11 + ["2", "1"]), "columns of x hold 2.0"),
        ("a.csv", ",".join(["0"] * 12 + ["7"]), "labels hold 7.0"),
        ("a.csv", ",".join(["0"] * 13) + "\n" + ",".join(["no"] * 13), "row 2"),
        ("a.npz", "no archive", "cannot be read as an archive"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    """What is wrong is named, with the file."""
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidArgumentError, match=message):
        read_szt(tmp_path / name)
    with pytest.raises(MissingFileError):
        read_szt(tmp_path / "none.csv")


def test_the_network():
    """Sizes, weights cut at two deviations of 1/sqrt(fan-in), no biases; the seed decides, the global state stays."""
    before = torch.random.get_rng_state()
    network = tishby_network("relu", seed=3)
    linears = [module for module in network if isinstance(module, nn.Linear)]
    assert [module.in_features for module in linears] == [12, *HIDDEN]
    assert linears[-1].out_features == 2
    for module in linears:
        assert 0 < float(module.weight.detach().abs().max()) <= 2 * module.in_features**-0.5
        assert not module.bias.any()
    wide = tishby_network(hidden=(2000,), seed=0).linear1.weight.detach()
    # a normal distribution cut at two deviations has 0.8796 of its deviation
    assert float(wide.std()) == pytest.approx(0.8796 * 12**-0.5, rel=0.02)
    assert torch.equal(network.linear1.weight, tishby_network("tanh", seed=3).linear1.weight)
    assert not torch.equal(network.linear1.weight, tishby_network(seed=4).linear1.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training():
    """It learns, equally for equal seeds, without the global random state; a full batch is one step an epoch."""
    x, y = szt_dataset()
    before = torch.random.get_rng_state()

    def trained(**options):
        network = tishby_network()
        losses = [nn.functional.cross_entropy(network(x), y).item() for _ in train_epochs(network, x, y, **options)]
        return losses, network.linear1.weight.detach()

    first, second = (trained(n_epochs=4, learning_rate=1e-2) for _ in range(2))
    assert torch.equal(first[1], second[1])
    assert first[0][-1] < 0.5 < first[0][0]
    assert torch.equal(before, torch.random.get_rng_state())
    # a full batch: one step of Adam, whose first step has the length of the learning rate in each weight
    moved = (trained(n_epochs=1, batch_size=None)[1] - tishby_network().linear1.weight).abs()
    assert torch.allclose(moved, torch.full_like(moved, 4e-4), rtol=1e-2)
    assert trained(n_epochs=0)[0] == [first[0][0]]


def test_orthonormal_penalty():
    """Zero for orthonormal rows or columns, the squared excess of squared singular values else; training lowers it."""
    wide, tall = nn.Linear(5, 3), nn.Linear(3, 5)
    for module in (wide, tall):
        nn.init.orthogonal_(module.weight, generator=torch.Generator().manual_seed(0))
    assert float(orthonormal_penalty(nn.Sequential(wide, nn.Tanh(), tall))) == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        tall.weight *= 2
    assert float(orthonormal_penalty(tall)) == pytest.approx(3 * (4 - 1) ** 2, rel=1e-5)
    x, y = szt_dataset()
    penalties = []
    for weight in (0.0, 1.0):
        network = tishby_network()
        for _ in train_epochs(network, x, y, 3, learning_rate=1e-2, orthonormal=weight):
            pass
        penalties.append(float(orthonormal_penalty(network)))
    assert penalties[1] < 0.3 * penalties[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tishby_network("gelu"), "activation='gelu'"),
        (lambda: tishby_network(hidden=(0,)), "hidden=0"),
        (lambda: next(train_epochs(tishby_network(), *szt_dataset(), batch_size=0)), "batch_size=0"),
        (lambda: next(train_epochs(tishby_network(), *szt_dataset(), orthonormal=-1)), "orthonormal=-1"),
        (lambda: next(train_epochs(tishby_network(), torch.ones(3, 12), torch.ones(2))), "x has 3 rows and y has 2"),
    ],
)
def test_mistakes(make, message):
    """What cannot be used is named."""
    with pytest.raises((InvalidArgumentError, MismatchedArgumentsError), match=message):
        make()
