"""Backbones, the two encoders, the hash network, parameter groups, batch normalisation."""

import pytest
import torch
import torchvision
from torch import nn

from loss import multi_semantic_loss
from network import (
    HashNetwork,
    MrHash,
    MultisourceAutoencoder,
    load_backbone,
    rebuild_autoencoder,
    rebuild_hash_network,
)
from utils import InputError, sha256_of


def tiny(encoder="dual", dims=(6, 5)):
    torch.manual_seed(0)
    return MultisourceAutoencoder(dims, 8, encoder)


@pytest.mark.parametrize(("name", "size", "dim"), [
    ("resnet18", 64, 512), ("mobilenet_v2", 32, 1280), ("squeezenet1_1", 64, 512),
    ("densenet121", 32, 1024), ("convnext_tiny", 32, 768), ("googlenet", 64, 1024),
    ("efficientnet_b0", 32, 1280), ("vit_b_16", 224, 768)])
def test_any_torchvision_model_gives_its_penultimate_features(name, size, dim):
    backbone = load_backbone(name, "none", size)
    assert (backbone.name, backbone.preprocessing.image_size, backbone.dim) == (name, size, dim)
    backbone.train()
    assert backbone(torch.zeros(2, 3, size, size)).shape == (2, dim)


def test_the_content_of_a_backbone_is_that_of_its_weights():
    """The key of cached features: 16 digits over names and tensors, without the classifier."""
    torch.manual_seed(0)
    model = torchvision.models.get_model("shufflenet_v2_x0_5")
    model.fc = nn.Identity()
    parts = [part for key, value in model.state_dict().items() for part in (key, value.numpy())]
    torch.manual_seed(0)
    backbone = load_backbone("shufflenet_v2_x0_5", "none", 32)
    assert backbone.digest == sha256_of(*parts)[:16]
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    assert backbone.digest == sha256_of(*parts)[:16] != backbone.weights_digest()


def test_alexnet_gives_the_layer_before_the_classes():
    torch.manual_seed(0)
    model = torchvision.models.alexnet().eval()
    torch.manual_seed(0)
    backbone = load_backbone("alexnet", "none", 64).eval()
    assert backbone.dim == 4096
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.classifier[:6](torch.flatten(model.avgpool(model.features(images)), 1))
        torch.testing.assert_close(backbone(images), expected)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match=r"does not hold weights of mobilenet_v2.*first"):
        load_backbone("mobilenet_v2", str(tmp_path / "resnet18.pth"), 32)


def test_a_file_that_would_run_code_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weights": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match="opened safely"):
        load_backbone("mobilenet_v2", str(tmp_path / "trap.pth"), 32)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("name", "weights", "size", "message"), [
    ("resnet5", "none", 32, "no torchvision classification model"),
    ("resnet18", "nowhere.pth", 32, "no weights at"),
    ("vit_b_16", "none", 96, "cannot take images of 96 pixels"),
    ("alexnet", "none", 32, "cannot take images of 32 pixels")])
def test_bad_backbones_are_one_sentence(name, weights, size, message):
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(name, weights, size)
    assert "\n" not in str(caught.value)


def test_batch_norm_statistics_stay_with_pretrained_weights_and_move_without(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    pretrained = load_backbone("resnet18", str(tmp_path / "weights.pth"), 32)
    scratch = load_backbone("resnet18", "none", 32)
    forced = load_backbone("resnet18", str(tmp_path / "weights.pth"), 32, batch_norm="adapt")
    images = torch.randn(4, 3, 32, 32)
    for backbone, moves in ((pretrained, False), (scratch, True), (forced, True)):
        before = backbone.model.bn1.running_mean.clone()
        backbone.train()
        output = backbone(images)
        assert (not torch.equal(before, backbone.model.bn1.running_mean)) == moves
        if not moves:  # then a code depends on its image alone, also in training
            torch.testing.assert_close(output[:1], backbone(images[:1]), rtol=1e-4, atol=1e-5)
        assert backbone.model.bn1.weight.requires_grad


def test_mobilenets_dropout_is_torchs_own():
    """A seed gives what torchvision's model gives: nothing of ours stands between."""
    torch.manual_seed(0)
    model = torchvision.models.get_model("mobilenet_v2")
    torch.manual_seed(0)
    backbone = load_backbone("mobilenet_v2", "none", 32)
    model.classifier[1] = nn.Identity()
    images = torch.randn(4, 3, 32, 32)
    outputs = []
    for network in (model.train(), backbone.train()):
        torch.manual_seed(1)
        outputs.append(network(images))
    assert torch.equal(*outputs) and (outputs[0] == 0).float().mean() > 0.1


def test_dual_encoder_sees_both_sources_and_unisource_the_first_only():
    x1, x2, other = torch.randn(3, 6), torch.randn(3, 5), torch.randn(3, 5)
    for encoder, sees in (("dual", True), ("unisource", False)):
        model = tiny(encoder)
        assert (not torch.equal(model.encode([x1, x2]), model.encode([x1, other]))) == sees
        latent, made = model([x1, x2])
        assert latent.shape == (3, 8)
        assert [x.shape for x in made] == [(3, 6), (3, 5)]


def test_autoencoder_has_the_published_widths():
    model = MultisourceAutoencoder((2048, 2048), 64, "unisource")
    encoder = [layer.out_features for layer in model.branches[0] if isinstance(layer, nn.Linear)]
    assert [*encoder, model.fuse.out_features] == [512, 512, 256, 256, 64]
    for decoder in model.decoders:
        assert [layer.out_features for layer in decoder if isinstance(layer, nn.Linear)] == [
            256, 256, 512, 512, 2048]
        assert not isinstance(decoder[-1], nn.ReLU)


def test_he_initialisation_keeps_the_signal_that_torch_loses():
    torch.manual_seed(0)
    x = [torch.randn(256, 512), torch.randn(256, 512)]
    spread = {}
    for init in ("he", "torch"):
        _, made = MultisourceAutoencoder((512, 512), 64, "dual", init)(x)
        spread[init] = made[0].std(dim=0).mean().item()
    assert spread["he"] > 0.1
    assert spread["torch"] < spread["he"] / 50


def test_dual_without_a_second_source_is_refused():
    with pytest.raises(InputError, match="second source"):
        MultisourceAutoencoder((6,), 8, "dual")


def test_encode_all_equals_one_pass_and_keeps_the_mode():
    model = tiny().train()
    x = [torch.randn(10, 6), torch.randn(10, 5)]
    torch.testing.assert_close(model.encode_all(x, chunk=3), model.encode(x).detach())
    assert model.training


def test_every_parameter_is_in_exactly_one_group_at_its_rate():
    network = HashNetwork(load_backbone("squeezenet1_1", "none", 64), 12, head_width=16)
    model = MrHash(network, tiny(), torch.randn(4, 8))
    slow, fast = model.parameter_groups(lr=0.001, multi_lr=0.01)
    assert (slow["lr"], fast["lr"]) == (pytest.approx(1e-5), pytest.approx(1e-3))
    members = [id(parameter) for group in (slow, fast) for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    backbone = model.hash_network.backbone
    assert {id(p) for p in slow["params"]} == {id(p) for p in backbone.parameters()}
    assert any(parameter is model.centres for parameter in fast["params"])
    assert model.to_latent.bias is None


def test_gradients_reach_backbone_hash_layer_projection_centres_and_autoencoder():
    torch.manual_seed(0)
    network = HashNetwork(load_backbone("squeezenet1_1", "none", 64), 12)
    model = MrHash(network, tiny(), torch.randn(4, 8))
    features = [torch.randn(3, 6), torch.randn(3, 5)]
    _, q_image, q_feature, made = model(torch.randn(3, 3, 64, 64), features)
    target = torch.softmax(torch.randn(3, 4), dim=1)
    multi_semantic_loss(target, q_image, q_feature, made, features)[0].backward()
    for part in (model.hash_network.backbone, model.hash_network.hash_layer, model.to_latent,
                 model.autoencoder.branches[1], model.autoencoder.decoders[0]):
        assert any(parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert model.centres.grad.abs().sum() > 0


@pytest.mark.parametrize("head_width", [0, 16])
def test_frozen_features_hash_to_what_their_images_do(head_width):
    network = HashNetwork(load_backbone("squeezenet1_1", "none", 64), 12, head_width).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = network.backbone(images)
        assert torch.equal(network(features), network(images))
        network.backbone.forward = None  # which is not asked then
        assert network(features).shape == (2, 12)
    if head_width:
        assert [layer.p for layer in network.head if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
        assert network.head[1].out_features == network.hash_layer.in_features == 16


@pytest.mark.parametrize("encoder", ["unisource", "dual"])
def test_a_rescaled_autoencoder_has_other_latents_and_the_same_reconstructions(encoder):
    torch.manual_seed(0)
    model = MultisourceAutoencoder((6, 5), 8, encoder)
    x = [torch.randn(20, 6), torch.randn(20, 5)]
    latent, made = model(x)
    mean = latent.mean(dim=0).detach()
    model.rescale(mean, 3.5)
    after, again = model(x)
    torch.testing.assert_close(after, (latent - mean) * 3.5, rtol=1e-4, atol=1e-5)
    for before, now in zip(made, again, strict=True):
        torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)


def test_without_features_the_autoencoder_is_not_asked():
    network = HashNetwork(load_backbone("squeezenet1_1", "none", 64), 12)
    model = MrHash(network, tiny(), torch.randn(4, 8)).eval()
    features = torch.randn(3, 512)
    code, q_image, q_feature, made = model(features, [])
    assert code.shape == (3, 12) and q_feature is None and made == []
    x = [torch.randn(3, 6), torch.randn(3, 5)]
    assert torch.equal(q_image, model(features, x)[1])


def test_assign_all_is_the_soft_assignment_of_all_rows_in_eval_mode():
    network = HashNetwork(load_backbone("squeezenet1_1", "none", 64), 12)
    model = MrHash(network, tiny(), torch.randn(4, 8), alpha=3.0).eval()
    x = [torch.randn(7, 6), torch.randn(7, 5)]
    with torch.no_grad():
        q_feature = model(torch.randn(7, 512), x)[2]
    torch.testing.assert_close(model.assign_all(x, chunk=3), q_feature)


def test_a_rebuilt_autoencoder_is_the_same_and_foreign_settings_are_one_sentence(tmp_path):
    model = tiny()
    checkpoint = {"network": model.settings(), "model": model.state_dict()}
    x = [torch.randn(3, 6), torch.randn(3, 5)]
    assert torch.equal(rebuild_autoencoder(checkpoint, tmp_path).encode(x), model.encode(x))
    for changes, message in (({"feature_dims": [6, 0]}, "feature_dims"), ({"depth": 3}, "be built"),
                             ({"latent_dim": 9}, "does not fit its own settings")):
        changed = checkpoint | {"network": model.settings() | changes}
        with pytest.raises(InputError, match=message):
            rebuild_autoencoder(changed, tmp_path)
    with torch.no_grad():
        model.fuse.bias[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        rebuild_autoencoder(checkpoint, tmp_path)


# MNASNet asks for the versions of its layers.
@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5"])
def test_a_rebuilt_hash_network_gives_the_same_codes(tmp_path, name):
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(name).state_dict(), tmp_path / "weights.pth")
    network = HashNetwork(load_backbone(name, str(tmp_path / "weights.pth"), 64), 12).eval()
    checkpoint = {"network": {"model_type": name, "hash_bit": 12, "image_size": 64},
                  "model": {f"hash_network.{key}": value
                            for key, value in network.state_dict().items()}}
    images = torch.randn(2, 3, 64, 64)
    rebuilt = rebuild_hash_network(checkpoint, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), network(images))
    assert rebuilt.backbone.digest == network.backbone.digest  # so that its features are found
    checkpoint["network"]["hash_bit"] = 13
    with pytest.raises(InputError, match="does not fit its own settings"):
        rebuild_hash_network(checkpoint, tmp_path)


def test_a_random_backbone_is_calibrated_so_that_its_signal_survives():
    torch.manual_seed(0)
    backbone = load_backbone("mobilenet_v2", "none", 32).eval()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        assert backbone(images).std() < 1e-3  # what would be cached as features otherwise
        backbone.calibrate(images.split(8))
        assert backbone(images).std() > 0.1
        torch.testing.assert_close(backbone(images)[:1], backbone(images[:1]), rtol=1e-3, atol=1e-4)
    assert backbone.model.features[0][1].momentum == 0.1
