"""The equations, against values worked out in plain float64 loops or with a pencil."""

import math

import numpy as np
import pytest
import torch

from loss import (
    cluster_centres,
    label_spread,
    latent_scale,
    multi_semantic_loss,
    reconstruction_loss,
    single_labels,
    soft_assignment,
    target_distribution,
)
from utils import InputError, step_decay


def plain_soft_assignment(latent, centres, alpha):
    q = np.empty((len(latent), len(centres)))
    for i, z in enumerate(latent):
        distances = [sum((a - b) ** 2 for a, b in zip(z, c, strict=True)) for c in centres]
        kernel = [(1 + distance / alpha) ** (-(alpha + 1) / 2) for distance in distances]
        q[i] = [value / sum(kernel) for value in kernel]
    return q


def plain_target(q):
    mass = [sum(q[i][j] for i in range(len(q))) for j in range(len(q[0]))]
    p = np.empty_like(q)
    for i in range(len(q)):
        weight = [q[i][j] ** 2 / mass[j] for j in range(len(mass))]
        p[i] = [value / sum(weight) for value in weight]
    return p


@pytest.fixture
def points():
    generator = np.random.default_rng(0)
    return generator.normal(size=(9, 4)), generator.normal(size=(5, 4))


def test_soft_assignment_with_a_pencil():
    # One latent at 0, centres at 0 and at distance 1: kernels 1 and 1/2, so 2/3 and 1/3.
    q = soft_assignment(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    torch.testing.assert_close(q, torch.tensor([[2 / 3, 1 / 3]]))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_soft_assignment_is_the_student_t_kernel(points, alpha):
    latent, centres = points
    q = soft_assignment(torch.from_numpy(latent), torch.from_numpy(centres), alpha)
    np.testing.assert_allclose(q.numpy(), plain_soft_assignment(latent, centres, alpha), rtol=1e-12)


def test_soft_assignment_far_from_every_centre_stays_a_distribution():
    q = soft_assignment(torch.full((1, 3), 1e6), torch.eye(3))
    assert torch.isfinite(q.log()).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(1))


def test_target_distribution_with_a_pencil():
    # Column masses 1 and 1: p = q^2 normalised: 0.64/0.68 and 0.04/0.68.
    p = target_distribution(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    torch.testing.assert_close(p[0], torch.tensor([0.64 / 0.68, 0.04 / 0.68]))


def test_target_distribution_divides_by_the_mass_of_the_whole_set(points):
    q = plain_soft_assignment(*points, 1.0)
    p = target_distribution(torch.from_numpy(q))
    np.testing.assert_allclose(p.numpy(), plain_target(q), rtol=1e-12)
    half = target_distribution(torch.from_numpy(q[:4]))
    assert not np.allclose(half.numpy(), plain_target(q)[:4])  # so it must not be done per batch


def test_loss_averages_the_divergence_over_batch_and_clusters(points):
    generator = np.random.default_rng(1)
    target, q_image, q_feature = generator.dirichlet(np.ones(5), size=(3, 6))
    features = [generator.normal(size=(6, 7)), generator.normal(size=(6, 3))]
    made = [generator.normal(size=x.shape) for x in features]
    divergence = sum(target[i, j] * (math.log(target[i, j]) - math.log(q[i, j]))
                     for q in (q_image, q_feature) for i in range(6) for j in range(5)) / (6 * 5)
    error = sum(np.mean((a - b) ** 2) for a, b in zip(made, features, strict=True))
    tensors = [torch.from_numpy(x) for x in (target, q_image, q_feature)]
    made, features = ([torch.from_numpy(x) for x in values] for values in (made, features))
    loss, found_divergence, found_error = multi_semantic_loss(*tensors, made, features, lambda0=5.0)
    assert found_divergence.item() == pytest.approx(divergence, rel=1e-12)
    assert found_error.item() == pytest.approx(error, rel=1e-12)
    assert loss.item() == pytest.approx(divergence + 5 * error, rel=1e-12)
    proper = multi_semantic_loss(*tensors, made, features, lambda0=0.0, kl="batchmean")[0]
    assert proper.item() == pytest.approx(5 * divergence, rel=1e-12)  # five clusters


def test_loss_is_zero_when_everything_agrees_and_its_gradient_points_to_the_target():
    target = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    x = torch.ones(1, 4, dtype=torch.float64)
    loss, _, _ = multi_semantic_loss(target, target, target, [x], [x])
    assert loss.item() == pytest.approx(0, abs=1e-15)
    # d/dq of mean(p (log p - log q)) is -p / q / (B C), for each of the two terms.
    q_image = torch.tensor([[0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    q_feature = torch.tensor([[0.2, 0.8]], dtype=torch.float64, requires_grad=True)
    multi_semantic_loss(target, q_image, q_feature, [x], [x])[0].backward()
    np.testing.assert_allclose(q_image.grad.numpy(), [[-0.7 / 0.5 / 2, -0.3 / 0.5 / 2]])
    np.testing.assert_allclose(q_feature.grad.numpy(), [[-0.7 / 0.2 / 2, -0.3 / 0.8 / 2]])


def test_a_missing_reconstruction_is_an_error():
    q, x = torch.full((1, 2), 0.5), torch.ones(1, 4)
    with pytest.raises(ValueError):
        multi_semantic_loss(q, q, q, [x], [x, x])


def test_autoencoder_loss_weighs_the_first_source_by_lambda1():
    made = [torch.full((2, 3), 2.0), torch.full((2, 5), 1.0)]
    given = [torch.zeros(2, 3), torch.full((2, 5), 4.0)]
    assert reconstruction_loss(made, given, 0.1).item() == pytest.approx(9 + 0.1 * 4)
    assert reconstruction_loss(made[:1], given[:1], 0.1).item() == pytest.approx(4)


@pytest.mark.parametrize(("epoch", "factor"), [
    (0, 1), (39, 1), (40, 0.5), (79, 0.5), (80, 0.25), (199, 0.0625)])
def test_autoencoder_rate_halves_every_40_epochs(epoch, factor):
    assert step_decay(0.001, epoch, 0.5, 40) == pytest.approx(0.001 * factor)


@pytest.mark.parametrize(("epoch", "factor"), [
    (0, 1), (9, 1), (10, 0.7), (20, 0.49), (49, 0.2401), (50, 0.16807)])
def test_hash_rate_falls_to_seven_tenths_every_10_epochs(epoch, factor):
    assert step_decay(0.001, epoch, 0.7, 10) == pytest.approx(0.001 * factor)


def test_k_means_finds_separated_clusters_and_repeats_itself():
    generator = np.random.default_rng(2)
    means = 20 * np.eye(5, 8)
    latent = (means[:, None] + generator.normal(size=(5, 40, 8))).reshape(-1, 8).astype(np.float32)
    centres = cluster_centres(latent, 5, starts=5, seed=3)
    assert centres.dtype == np.float32
    order = centres[:, :5].argmax(axis=1)
    assert sorted(order) == [0, 1, 2, 3, 4]
    expected = latent.reshape(5, 40, 8).mean(axis=1)[order]
    np.testing.assert_allclose(centres, expected, atol=1e-4)
    np.testing.assert_array_equal(centres, cluster_centres(latent, 5, starts=5, seed=3))


def test_k_means_keeps_the_best_of_its_starts():
    latent = np.random.default_rng(4).normal(size=(300, 6))

    def error(centres):
        return np.square(latent[:, None] - centres[None]).sum(axis=2).min(axis=1).sum()

    errors = [error(cluster_centres(latent, 12, starts=count, seed=5)) for count in (1, 5, 20)]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[0] > errors[2]


def test_k_means_begins_with_the_best_of_several_candidates():
    """Thirty clusters of ten: starts of plain k-means++ end at 1,176 to 1,416 here."""
    draw = np.random.default_rng(5)
    latent = (6 * draw.normal(size=(30, 1, 4)) + draw.normal(size=(30, 10, 4))).reshape(-1, 4)
    for seed in range(3):
        centres = cluster_centres(latent, 30, starts=1, seed=seed)
        error = np.square(latent[:, None] - centres[None]).sum(axis=2).min(axis=1).sum()
        assert error < 1050
        small = cluster_centres(latent * 1e-7, 30, starts=1, seed=seed)  # ends as late
        np.testing.assert_allclose(small * 1e7, centres, rtol=1e-5, atol=1e-6)


def test_k_means_with_too_few_points_says_so():
    with pytest.raises(InputError, match="lower --n_clusters"):
        cluster_centres(np.zeros((50, 3)), 2)


def test_label_spread_with_a_pencil():
    two_each = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]])
    assert label_spread(two_each) == pytest.approx(2)
    assert label_spread(torch.full((3, 4), 0.25)) == pytest.approx(4)
    assert label_spread(torch.eye(3)) == pytest.approx(1)


@pytest.mark.parametrize(("alpha", "share"), [(63.0, 0.2), (63.0, 0.7), (5.0, 0.5), (1.0, 0.8)])
def test_latents_are_scaled_until_labels_are_spread_as_asked(alpha, share):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 8, generator=generator)
    latent = centres.repeat(6, 1) + 0.3 * torch.randn(60, 8, generator=generator)
    for size in (0.01, 1, 100):  # whatever the latents' own size is
        factor = latent_scale(latent * size, centres * size, alpha, share)
        q = soft_assignment(latent * size * factor, centres * size * factor, alpha)
        assert label_spread(q) == pytest.approx(10 * share, abs=0.05)


def test_a_spread_that_the_kernel_cannot_have_is_refused():
    latent = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    centres = torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    expected = r"cannot be spread over 0\.2 of 10 clusters with alpha 1, the nearest is"
    with pytest.raises(InputError, match=expected):
        latent_scale(latent, centres, 1.0, 0.2)
    least = label_spread(soft_assignment(latent * 1e4, centres * 1e4, 1.0)) / 10
    latent_scale(latent, centres, 1.0, least + 0.02)
    with pytest.raises(InputError, match="the nearest is"):
        latent_scale(latent, centres, 1.0, least - 0.02)
    for share in (0.1, 0.099):  # a single label, and less than that
        with pytest.raises(InputError, match="one or less"):
            latent_scale(latent, centres, 63.0, share)


def test_a_sharp_kernel_far_from_every_centre_gives_finite_losses_and_gradients():
    code = torch.full((2, 3), 300.0, requires_grad=True)
    q = soft_assignment(code, torch.eye(3) * 100, 63.0)
    target = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    loss = multi_semantic_loss(target, q, None, [], [], kl="batchmean")[0]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(code.grad).all()
    wrong = soft_assignment(torch.zeros(1, 3), torch.tensor([[0.0] * 3, [1e6] * 3]), 63.0)
    assert wrong[0, 1] == 0
    assert torch.isfinite(multi_semantic_loss(torch.tensor([[0.0, 1.0]]), wrong, None, [], [])[0])


def test_single_labels_are_the_largest_entries():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    assert single_labels(p).tolist() == [[0, 1, 0], [1, 0, 0]]
    # Their divergence is the cross entropy.
    q = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    loss, divergence, error = multi_semantic_loss(single_labels(p), q, None, [], [], kl="batchmean")
    assert loss == divergence == pytest.approx(-(math.log(0.7) + math.log(0.6)) / 2)
    assert error == 0


def test_without_features_the_loss_is_that_of_the_images_alone():
    torch.manual_seed(0)
    p, q, other = (torch.softmax(torch.randn(4, 5), dim=1) for _ in range(3))
    alone = multi_semantic_loss(p, q, None, [], [])[1]
    assert multi_semantic_loss(p, q, other, [], [])[1] == pytest.approx(
        float(alone + multi_semantic_loss(p, other, None, [], [])[1]))
