"""Extraction: the methods see the same images, and what differs is found out."""

import numpy as np
import pytest
from torch import nn

from benchmarks.speed import __main__ as speed
from benchmarks.speed import common, features, plain
from utils import InputError

SMALL = ["--device", "cpu", "--workers", 2, "--batch_size", 8, "--image_size", 32,
         "--feature_backbone", "resnet18"]


def test_features_compare_a_plain_loop_with_ours_on_a_zip(images, bench, check_medians,
                                                          monkeypatch):
    compiled = []
    # Which takes a minute.
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))
    table, content = bench("features", *images["zip"], *SMALL, "--repeat", 2, "--amp", "--compile")
    runs = content["runs"]
    assert list(runs) == [features.PLAIN, features.ALONE, features.FILES, features.DECODED,
                          "ours, bfloat16", "ours, torch.compile", "ours, bfloat16, torch.compile"]
    assert len(compiled) == 1
    check_medians(table, runs, "images/s: median (least - most)", "images_per_second")
    for name, of in runs.items():
        assert len(of) == 2
        for run in of:
            assert run["images_per_second"] == pytest.approx(24 / run["seconds"])
        assert ("cosine" in of[0]) == name.startswith("ours")
        assert ("compile_seconds" in of[0]) == ("compile" in name)
    ours = runs[features.FILES] + runs[features.DECODED]
    assert min(run["cosine"] for run in ours) > 0.97
    assert runs["ours, bfloat16"][0]["cosine"] != runs[features.DECODED][0]["cosine"]
    for line in table:
        for heading, base in (("divided by the plain loop", features.PLAIN),
                              ("divided by its network alone", features.ALONE)):
            rate, of_base = (common.median(runs[name], "images_per_second")
                             for name in (line["method"], base))
            assert line[heading] == f"{rate / of_base:.2f}"


def test_features_of_other_images_or_other_views_are_found_out(images, call_main, tmp_path,
                                                               monkeypatch):
    whole = plain.plain_outputs

    def backwards(network, source, rows, reading):
        return whole(network, source, rows[::-1], reading)

    def backwards_later(network, source, rows, reading):
        """Of the views all is well, but not of the features."""
        if len(rows) == 24 and not isinstance(network, nn.Sequential):
            rows = rows[::-1]
        return whole(network, source, rows, reading)

    for wrong, message in ((backwards, "grey values"),
                           (backwards_later, f"'{features.FILES}' found features whose mean cos")):
        monkeypatch.setattr(features, "plain_outputs", wrong)
        code, _, error = call_main(speed.main, "features", *images["pairs"], *SMALL, "--repeat", 1,
                                   "--output", tmp_path / "features.json")
        assert code == 2 and message in error
        assert error.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "features.json").exists()


def test_views_may_differ_by_a_grey_value():
    blocks = np.full((3, 12), 0.5, np.float32)
    features.check_views(blocks, blocks + features.GREY * 0.9)
    with pytest.raises(InputError, match=r"differ by 2\.00 grey values"):
        features.check_views(blocks, blocks + features.GREY * 2)
