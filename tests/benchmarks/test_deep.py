"""What each deep method is known for, by pencil; and that each learns what its loss says."""

import math

import numpy as np
import pytest
import torch

import hamming
from benchmarks.deep import (
    DEEP,
    SSDH,
    BiHalf,
    CIBHash,
    GreedyHash,
    Halves,
    Sign,
    cosines,
    distinct_views,
    joined_views,
    train_head,
)
from utils import InputError

METHODS = [name for name in DEEP if "both" not in name]  # those have the loss of another


def classes(count=400, kinds=8, dim=24, views=4):
    """Views (N, V, d) of images in classes that noise blurs, and the classes (N,)."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % kinds
    middle = generator.standard_normal((kinds, dim))
    images = middle[labels] + generator.standard_normal((count, dim))
    seen = images[:, None] + 0.3 * generator.standard_normal((count, views, dim))
    return torch.from_numpy(seen.astype(np.float32)), labels


def map_of(encode, views, labels, bits):
    """mAP of the first 100 among the others, of codes of the first view."""
    codes = hamming.pack_codes(encode(views[:, 0]).numpy())
    return hamming.evaluate(codes[:100], codes[100:], labels[:100], labels[100:],
                            hash_bit=bits)["map"]


def at_angle(degrees):
    """Two features (2, 2) so far apart."""
    angle = math.radians(degrees)
    return torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])


# ---------------------------------------------------------------- views


def test_joined_views_are_centred_means_of_length_one():
    """Means (2, 0) and (0, 2) of one source, about (1, 1); (0), (4) of the other, about 2."""
    first = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])
    second = torch.tensor([[[0.0], [0.0]], [[3.0], [5.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, -half, -1.0], [-half, half, 1.0]])
    torch.testing.assert_close(joined_views([first, second]), expected)
    upright = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(joined_views([first, second], centred=False), upright)


# ---------------------------------------------------------------- GreedyHash


def test_the_gradient_of_greedyhash_passes_the_sign():
    output = torch.tensor([[0.3, -2.0, 0.0]], requires_grad=True)
    code = Sign.apply(output)
    assert code.tolist() == [[1, -1, 1]]
    (code * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert output.grad.tolist() == [[1, 2, 3]]


def test_greedyhash_by_pencil():
    """Codes (1, 1, 1, 1) and (1, 1, 1, -1): cosine 1/2; features at 60 degrees: too; at 120: -1/2.
    One of eight outputs is 2: a tenth of 1/8.
    """
    output = torch.tensor([[2.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])
    assert float(GreedyHash()(output, at_angle(60))) == pytest.approx(0.1 / 8)
    assert float(GreedyHash()(output, at_angle(120))) == pytest.approx(1 + 0.1 / 8)


# ---------------------------------------------------------------- BiHalf


@pytest.mark.parametrize("count", [2, 7, 128])
def test_codes_of_bihalf_are_balanced_to_the_item(count):
    output = torch.randn(count, 5, generator=torch.Generator().manual_seed(0)) + 3
    code = Halves.apply(output, 6.0)
    assert (code == 1).sum(dim=0).tolist() == [count // 2] * 5
    for bit in range(5):  # the larger half
        assert output[code[:, bit] == 1, bit].min() > output[code[:, bit] == -1, bit].max()


def test_the_gradient_of_bihalf_pulls_to_the_code():
    output = torch.tensor([[0.5], [-3.0]], requires_grad=True)
    Halves.apply(output, 6.0).sum().backward()
    assert output.grad.flatten().tolist() == pytest.approx([1 + 6 * -0.5 / 2, 1 + 6 * -2 / 2])


def test_bihalf_by_pencil():
    """All is positive, and yet the codes are (1, 1, -1) and (-1, -1, 1): cosine -1."""
    output = torch.tensor([[5.0, 2.0, 1.0], [4.0, 1.0, 2.0]])
    assert float(BiHalf()(output, at_angle(120))) == pytest.approx(0.25)
    assert float(BiHalf()(output, at_angle(60))) == pytest.approx(2.25)


# ---------------------------------------------------------------- SSDH


def test_ssdh_knows_the_peak_of_distances_and_the_half_gaussians_beside_it():
    """300 directions in 64 dimensions: cosine distances about 1, with a deviation of 1/8."""
    generator = torch.Generator().manual_seed(0)
    method = SSDH(near=2, far=3)
    method.prepare(torch.randn(300, 64, generator=generator))
    assert method.low == pytest.approx(1 - 2 / 8, abs=0.04)
    assert method.high == pytest.approx(1 + 3 / 8, abs=0.06)


def test_ssdh_by_pencil():
    """Of three pairs one is alike, and its codes differ in one of two bits: (0 - 1)^2; one is not,
    and its codes are the same: (1 + 1)^2; the third says nothing.
    """
    method = SSDH()
    method.low, method.high = 0.1, 1.5
    similar = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-0.8, 0.6]])
    similar[1] = torch.tensor([1.0, 0.3])  # distances 0.04, 1.8, 1.6
    big = 50.0
    output = torch.tensor([[big, big], [big, -big], [big, big]])
    assert float(method(output, similar)) == pytest.approx((1 + 4 + 1) / 3)
    method.high = 1.7
    assert float(method(output, similar)) == pytest.approx((1 + 4) / 3)


# ---------------------------------------------------------------- CIBHash


def test_cibhash_by_pencil():
    """Sure bits: views of one image equal, images opposite: cosines 1 and -1, twice."""
    output = torch.tensor([[80.0, 80.0], [-80.0, -80.0]]).repeat(2, 1)
    found = float(CIBHash(temperature=0.5, weight=0)(output, torch.zeros(2, 3)))
    assert found == pytest.approx(math.log(1 + 2 * math.exp(-4)), rel=1e-5)
    swapped = output[[0, 1, 1, 0]]  # each view is the other image's
    found = float(CIBHash(temperature=0.5, weight=0)(swapped, torch.zeros(2, 3)))
    assert found == pytest.approx(math.log(2 + math.exp(4)), rel=1e-5)


def test_codes_of_cibhash_are_signs_with_the_gradient_of_the_probability():
    output = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    method = CIBHash(temperature=0.5, weight=0)
    loss = method(output, torch.zeros(3, 2))
    # Signs, and none drawn.
    assert torch.equal(loss, method(100 * output, torch.zeros(3, 2)))
    gradient, = torch.autograd.grad(loss, output)
    code = torch.where(output > 0, 1.0, -1.0).detach().requires_grad_()
    logits = cosines(code) / 0.5 - 1e9 * torch.eye(6)
    target = torch.tensor([3, 4, 5, 0, 1, 2])
    of_code, = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), code)
    share = output.sigmoid() * (1 - output.sigmoid())
    torch.testing.assert_close(gradient, of_code * share)


def test_the_divergence_of_cibhash_by_pencil():
    """p = 1/2 and 3/4: ln 2 - ln 3 / 2 one way, 3 ln 3 / 4 - ln 2 the other, and their mean."""
    output = torch.tensor([[0.0], [0.0], [math.log(3)], [math.log(3)]], requires_grad=True)
    without = CIBHash(weight=0)(output, torch.zeros(2, 3))
    both = CIBHash(weight=1)(output, torch.zeros(2, 3))
    one = math.log(2) - math.log(3) / 2
    other = 0.75 * math.log(3) - math.log(2)
    assert float((both - without).detach()) == pytest.approx((one + other) / 2, rel=1e-4)
    # The first of each divergence learns alone: d KL(p, 3/4) / dp = ln(2/3) - ln(2) at p = 1/2,
    # times p (1 - p) = 1/4, halved for the two ways and for the two images.
    gradient, = torch.autograd.grad(both - without, output)
    assert float(gradient[0, 0]) == pytest.approx(-math.log(3) / 16, rel=1e-4)


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", METHODS)
def test_each_method_learns_classes_that_it_is_not_told(name):
    views, labels = classes()
    similar = joined_views([views], DEEP[name].centred)
    learnt, untrained = (map_of(train_head(DEEP[name](), views, similar, 16, 13, epochs), views,
                                labels, 16) for epochs in (30, 0))
    assert learnt > untrained + 0.25, (learnt, untrained)


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_the_codes(name):
    views, _ = classes(count=60)
    similar = joined_views([views])
    one, again, other = (train_head(DEEP[name](), views, similar, 16, seed, 2)(views[:, 0])
                         for seed in (13, 13, 14))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_each_view_is_learnt_from():
    views, _ = classes(count=60)
    similar = joined_views([views])
    encode = train_head(GreedyHash(), views, similar, 16, 13, 2)
    for view in range(1, views.shape[1]):
        changed = views.clone()
        changed[:, view] = 0
        other = train_head(GreedyHash(), changed, similar, 16, 13, 2)
        assert not torch.equal(other(views[:, 0]), encode(views[:, 0]))


def test_distinct_views_of_an_image_differ_and_stand_in_the_order_of_the_rows():
    """View v of image n is (n, v)."""
    views = torch.cartesian_prod(torch.arange(200), torch.arange(4)).view(200, 4, 2)
    rows = torch.arange(199, -1, -1)
    generator = torch.Generator().manual_seed(0)
    first, second = distinct_views(views, rows, 2, generator).chunk(2)
    assert torch.equal(first[:, 0], rows) and torch.equal(second[:, 0], rows)
    assert (first[:, 1] != second[:, 1]).all()
    for drawn in (first, second):
        assert all(30 < count < 70 for count in drawn[:, 1].bincount().tolist())
    alone, again = distinct_views(views[:, :1], rows, 2, generator).chunk(2)
    assert torch.equal(alone, again)


def test_one_image_makes_no_pair():
    with pytest.raises(InputError, match="there is 1: use more images"):
        train_head(GreedyHash(), torch.ones(1, 2, 3), torch.ones(1, 3), 4, 13)
