"""The scripts with networks of timm: one backbone through all three stages."""

import timm
import torch

from helpers import SMALL, stage1_flags
from network import rebuild_hash_network
from script_helpers import AUTOENCODER, done, load, refused

TIMM = ["--feature_backbone", "timm/test_vit"]
HEAD = ["--preset", "best", "--hash_bit", 8, "--head_epochs", 2, "--n_clusters", 8, *SMALL]


def test_a_timm_network_with_weights_of_a_file_goes_through_all_stages(trained, tmp_path, capsys):
    """Network, size and statistics of stage 1 become those of stage 2, and test.py knows them."""
    torch.manual_seed(1)
    weights = timm.create_model("test_vit").state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    first = [*stage1_flags(trained[0]), "--preset", "best", *TIMM, "--feature_weights",
             tmp_path / "vit.pth", "--normalise", "0.1,0.3", "--neighbours", 2]
    done(capsys, AUTOENCODER, *first, "--output_dir", tmp_path / "ae")
    done(capsys, "train.py", "--pretrained_dp_path", tmp_path / "ae" / "autoencoder.pth", *HEAD,
         "--output_dir", tmp_path / "mr")
    checkpoint = load(tmp_path / "mr" / "mrhash.pth")
    network = rebuild_hash_network(checkpoint, tmp_path)
    views = network.backbone.preprocessing
    assert (network.backbone.name, views.image_size) == ("timm/test_vit", 32)
    assert (views.mean, views.std) == ((0.1,) * 3, (0.3,) * 3) and views.interpolation == "bicubic"
    assert torch.equal(network.backbone.model.cls_token, weights["cls_token"])
    out, _ = done(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", *SMALL)
    assert "mAP@" in out

    # The same weights, said once more, keep their statistics; another network has its own.
    again = ["--pretrained_dp_path", tmp_path / "ae" / "autoencoder.pth", *HEAD, "--output_dir"]
    done(capsys, "train.py", *again, tmp_path / "again", "--weights", tmp_path / "vit.pth")
    same = load(tmp_path / "again" / "mrhash.pth")
    assert all(torch.equal(value, same["model"][key])
               for key, value in checkpoint["model"].items())
    done(capsys, "train.py", *again, tmp_path / "other", "--model_type", "timm/test_resnet",
         "--weights", "none")
    other = load(tmp_path / "other" / "mrhash.pth")["network"]
    assert (other["image_size"], other["normalise"]) == (160, None)
    line = refused(capsys, "train.py", *again, tmp_path / "x", "--weights", tmp_path / "no.pth")
    assert "no weights at" in line


def test_the_size_of_images_is_the_networks_own_where_no_flag_says_it(trained, tmp_path, capsys):
    flags = [word for word in stage1_flags(trained[0]) if word not in ("--image_size", 32)]
    done(capsys, AUTOENCODER, *flags, *TIMM, "--output_dir", tmp_path)
    assert load(tmp_path / "autoencoder.pth")["features"]["image_size"] == 160


def test_a_wrong_name_is_told_before_anything_is_done(trained, tmp_path, capsys):
    line = refused(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--feature_backbone",
                   "timm/test_vot", "--output_dir", tmp_path / "ae")
    assert "timm/test_vit" in line and not (tmp_path / "ae").exists()


def test_statistics_are_two_or_six_numbers(trained, capsys):
    for text in ("0.5", "0.5,0", "1,2,3", "a,b", "0.5,nan", "127,128"):
        line = refused(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--normalise", text)
        assert "--normalise" in line
