"""Scenes of which each band is a file."""

import numpy as np
import pytest

from datasets import folders
from datasets.bandfiles import band_files
from datasets.sources import ImageFiles
from image_helpers import complaint, hollow, lists, load, pairs, tree

PATCHES = [f"S2A_MSIL2A_2017_{number}_{number + 40}" for number in range(24)]
BANDS = ("B02", "B03", "B04", "B8A")


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """What open_view is asked for: the files of each scene, bands, range and number."""
    calls = []

    def open_view(container, files, bands=None, value_range=None, number=1):
        calls.append((files, bands, value_range, number))
        source = ImageFiles(container, [file if isinstance(file, str) else file[0]
                                        for file in files])
        source.value_range = value_range
        return source

    monkeypatch.setattr(folders, "open_view", open_view)
    return calls


def bigearthnet(root, patches=PATCHES, bands=BANDS, form="{patch}/{patch}_{band}"):
    return tree(root, hollow((form.format(patch=patch, band=band) for patch in patches
                              for band in bands), ".tif"))


def test_patches_of_one_file_a_band_are_scenes_and_no_classes(tmp_path, asked):
    bigearthnet(tmp_path / "one")
    dataset = pairs(tmp_path, bands1="B04,b03,B02")
    assert dataset.names == sorted(PATCHES) and dataset.labels is None
    assert "no class" in dataset.remarks[0] and "--class_depth" in dataset.remarks[0]
    ((files, bands, value_range, number),) = asked
    assert (bands, value_range, number) == ("B04,b03,B02", None, 1)
    assert files[0] == tuple(f"{dataset.names[0]}/{dataset.names[0]}_{band}.tif"
                             for band in ("B04", "B03", "B02"))


def test_without_bands_the_bands_are_listed_with_an_advice(tmp_path):
    bigearthnet(tmp_path / "one.zip", form="BigEarthNet/{patch}/{patch}_{band}")
    complaint(lambda: load(tmp_path, data_name="folder", source1=str(tmp_path / "one.zip")),
              "24 scenes of B02, B03, B04, B8A", "--bands1 B04,B03,B02")
    bigearthnet(tmp_path / "two", bands=("VH", "vv"))
    tree(tmp_path / "one", hollow(PATCHES))
    complaint(lambda: pairs(tmp_path, source2=str(tmp_path / "two")), "24 scenes of VH, VV",
              "--bands2 VH,VV,VH")


@pytest.mark.parametrize("form", ["{patch}_{band}", "all/{patch}_{band}", "{patch}/{band}",
                                  "{patch}/{patch}.{band}", "top/tile/{patch}/{patch}_{band}"])
def test_bands_are_told_wherever_they_lie(tmp_path, form, asked):
    bigearthnet(tmp_path / "one", form=form)
    dataset = pairs(tmp_path, bands1="B04,B03,B02")
    assert dataset.names == sorted(PATCHES) and dataset.labels is None
    assert asked[0][0][3][2].endswith("B02.tif") and dataset.names[3] in asked[0][0][3][2]


def test_class_folders_of_patches_count_where_they_are_asked_for(tmp_path):
    for kind, patches in (("farm", PATCHES[:12]), ("sea", PATCHES[12:])):
        bigearthnet(tmp_path / "one" / kind, patches)
    assert pairs(tmp_path, bands1="B04,B03,B02").labels is None
    dataset = pairs(tmp_path, bands1="B04,B03,B02", class_depth=1)
    assert dataset.class_names == ["farm", "sea"]
    assert np.bincount(dataset.labels).tolist() == [12, 12]
    # Many scenes in a folder: it may well be a class.
    for kind, patches in (("farm", PATCHES[:12]), ("sea", PATCHES[12:])):
        bigearthnet(tmp_path / "flat" / kind, patches, form="{patch}_{band}")
    dataset = load(tmp_path, data_name="folder", source1=str(tmp_path / "flat"),
                   bands1="B8A,B03,B02")
    assert dataset.class_names == ["farm", "sea"] and dataset.names[0] == f"farm/{PATCHES[0]}"


def test_lists_give_patches_their_labels(tmp_path):
    bigearthnet(tmp_path / "one")
    split = lists(tmp_path / "split", train=[f"{name} 1 0 1" for name in PATCHES[4:]],
                  test=[f"{name},0,0,1" for name in PATCHES[:4]])
    dataset = pairs(tmp_path, bands1="B04,B03,B02", split_dir=split)
    assert dataset.labels.shape == (24, 3) and dataset.labels.sum() == 44


def test_radar_and_optical_patches_are_paired_by_rule(tmp_path, asked):
    bigearthnet(tmp_path / "one", [f"S2A_{n}_{n + 40}" for n in range(20)])
    bigearthnet(tmp_path / "two", [f"S1B_{19 - n}x_{n}_{n + 40}" for n in range(20)],
                bands=("VV", "VH"))
    dataset = pairs(tmp_path, source2=str(tmp_path / "two"), bands1="B04,B03,B02",
                    bands2="VV,VH,VV", range1="0,3000", pair_by=r"(\d+_\d+)$")
    (first, *_), (second, bands, _, number) = asked
    assert bands == "VV,VH,VV" and number == 2 and len(second[0]) == 3
    for one, other in zip(first, second, strict=True):
        assert one[0].split("_")[-3:-1] == other[0].split("_")[-3:-1]
    assert dataset.resolved == {"range1": "0,3000"}


def test_a_missing_band_is_named(tmp_path):
    bigearthnet(tmp_path / "one")
    (tmp_path / "one" / PATCHES[5] / f"{PATCHES[5]}_B03.tif").unlink()
    complaint(lambda: pairs(tmp_path, bands1="B04,B03,B02"), "1 files", f"{PATCHES[5]} (B03)")
    complaint(lambda: pairs(tmp_path, bands1="B04,B05,red"), "no files of B05, RED",
              "B02, B03, B04, B8A")
    assert len(pairs(tmp_path, bands1="B04,B8A,B02").names) == 24


def test_other_images_beside_them_are_an_error_until_they_are_left_out(tmp_path):
    bigearthnet(tmp_path / "one")
    tree(tmp_path / "one", hollow([f"{PATCHES[0]}/preview"]))
    complaint(lambda: pairs(tmp_path, bands1="B04,B03,B02"), "1 other images", "preview.jpg",
              "--exclude")
    assert len(pairs(tmp_path, bands1="B04,B03,B02", exclude=("*preview*",)).names) == 24


@pytest.mark.parametrize("files", [
    ["a_B01.tif", "b_B02.tif"], ["a_B01.jpg", "a_B02.jpg"], ["aB01.tif", "aB02.tif"],
    ["a_B123.tif", "a_B124.tif"], ["a_1.tif", "a_2.tif"], ["a.tif"]])
def test_what_only_looks_like_bands_is_none(tmp_path, files):
    assert band_files(tmp_path, files) == {}


def test_a_band_twice_is_an_error(tmp_path):
    complaint(lambda: band_files(tmp_path, ["a_B01.tif", "a_B01.jp2", "a_B02.tif"]),
              "a_B01.tif and a_B01.jp2")
