"""Baselines held to what is known of them."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from benchmarks import baselines
from utils import InputError


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    return values * torch.linspace(5, 0.5, 20) + 3


def test_pcah_projects_on_scipys_principal_directions(features):
    centred = (features - features.mean(dim=0)).numpy()
    directions = scipy.linalg.svd(centred, full_matrices=False)[2][:7].T
    expected = np.abs(centred @ directions)
    found = np.abs(baselines.pcah(features, 7, 0)(features).numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_the_rotation_of_itq_is_orthogonal_and_its_error_never_rises(features):
    projected = baselines.pcah(features, 12, 0)(features)
    rotation, errors = baselines.itq_rotation(projected, seed=3)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(12, dtype=torch.float64))
    assert len(errors) == 50 and errors[-1] < errors[0]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    # The codes that itq gives are those of this rotation.
    torch.testing.assert_close(baselines.itq(features, 12, 3)(features), projected @ rotation)


def test_itq_finds_the_rotation_of_a_hidden_cube():
    generator = np.random.default_rng(0)
    cube = generator.choice([-1.0, 1.0], size=(500, 6))
    turned, _ = np.linalg.qr(generator.standard_normal((6, 6)))
    points = cube @ turned
    errors = [baselines.itq_rotation(torch.from_numpy(points), seed)[1][-1] for seed in range(10)]
    assert min(errors) < 1e-9  # from some of the starts: it is a local search
    assert errors[0] < np.square(np.sign(points) - points).sum()


def test_lsh_bits_differ_as_often_as_the_angle_says():
    """Charikar: the probability is angle / pi."""
    unit = torch.eye(3, dtype=torch.float64)
    train = torch.cat([unit, -unit])  # mean 0
    points = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [-1, 0, 0]], dtype=torch.float64)
    bits = baselines.lsh(train, 4000, 5)(points) >= 0
    shares = [(bits[0] != bits[other]).double().mean().item() for other in (1, 2, 3)]
    assert shares == pytest.approx([0.25, 0.5, 1], abs=0.03)
    assert not torch.equal(baselines.lsh(train, 8, 5)(points), baselines.lsh(train, 8, 6)(points))


def test_spectral_hashing_takes_the_slowest_waves_of_the_box():
    """Sides 4 and 1.9: waves of frequency 1/4, 2/4 along the first, then 1/1.9 on the second."""
    grid = torch.cartesian_prod(torch.linspace(0, 4, 41, dtype=torch.float64),
                                torch.linspace(0, 1.9, 20, dtype=torch.float64))
    values = baselines.spectral(grid, 2, 0)(grid)
    x = grid[:, 0] / 4
    for column, wave in ((0, 1), (1, 2)):
        expected = torch.cos(torch.pi * wave * x)
        # A component's sign is free.
        sign = 1 if torch.allclose(values[:, column], expected) else (-1) ** wave
        torch.testing.assert_close(values[:, column], sign * expected, atol=1e-9, rtol=0)
    # Sides 4 and 3.9: now the second side comes second.
    shorter = grid * torch.tensor([1.0, 3.9 / 1.9])
    values = baselines.spectral(shorter, 2, 0)(shorter)
    expected = torch.cos(torch.pi * grid[:, 1] / 1.9)
    torch.testing.assert_close(values[:, 1].abs(), expected.abs(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["pcah", "sh", "itq"])
def test_more_bits_than_directions_are_refused(features, name):
    with pytest.raises(InputError, match="at most 20 bits"):
        baselines.BASELINES[name](features, 21, 0)
    with pytest.raises(InputError, match="at most 9 bits"):
        baselines.BASELINES[name](features[:10], 10, 0)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_the_mean_of_the_training_features_does_not_matter(features, name):
    encode, moved = (baselines.BASELINES[name](x[:200], 10, 1)
                     for x in (features, features + 1000))
    torch.testing.assert_close(moved(features + 1000), encode(features), rtol=1e-5, atol=1e-6)


def test_a_feature_that_does_not_vary_makes_no_bit_of_spectral_hashing():
    x = torch.zeros(50, 3, dtype=torch.float64)
    x[:, 1] = torch.linspace(-1, 1, 50)
    values = baselines.spectral(x, 3, 0)(x)
    assert torch.isfinite(values).all() and (values.std(dim=0) > 0.3).all()


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_codes_of_new_images_do_not_depend_on_which_others_come_with_them(features, name):
    encode = baselines.BASELINES[name](features[:200], 10, 1)
    torch.testing.assert_close(encode(features)[200:203], encode(features[200:203]))
    values = encode(features[200:])
    assert values.shape == (100, 10) and 0.2 < (values >= 0).double().mean() < 0.8
