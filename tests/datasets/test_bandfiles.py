"""Scenes of which each band is a file."""

import numpy as np
import pytest

from datasets import folders
from datasets.bandfiles import band_files
from datasets.containers import open_container
from datasets.sources import ImageFiles
from image_helpers import complaint, encoded, hollow, lists, load, noise, pairs, tree
from raster_helpers import ramp, raster

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


def container(root, names, data=b"x", **chosen):
    return open_container(tree(root, dict.fromkeys(names, data)), **chosen)


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
    ["a_B01.tif", "b_B02.tif"], ["aB01.tif", "aB02.tif"], ["a_B123.tif", "a_B124.tif"],
    ["a_1.tif", "a_2.tif"], ["a.tif"], ["roof_red.png", "roof_blue.png", "tree.png"],
    ["red/1.png", "blue/2.png"], ["B1/1.png", "C1/2.png"], ["B1/1.png", "B2/2.png", "C/3.png"],
    ["house_red/1.png", "house_pan/2.png"]])
def test_what_only_looks_like_bands_is_none(tmp_path, files):
    assert band_files(container(tmp_path, files)) == {}


@pytest.mark.parametrize("last", ["jp2", "tif"])
def test_a_band_twice_is_an_error(tmp_path, last):
    twice = f"a_B01_20m.{last}"
    complaint(lambda: band_files(container(tmp_path, ["a_B01_10m.tif", twice, "a_B02.tif"])),
              "a_B01_10m.tif and " + twice, "--exclude")


@pytest.mark.parametrize("form", [
    "{}_B02_10m.tif {}_B03_20m.tif", "{}_B02.png {}_B03.png", "{}/{}.B02.JPG {}/{}.B03.jpeg",
    "{}_red.png {}_nir.png", "{}/red.tif {}/green.tif", "{}-SWIR1.tif {}-B04.tif",
    "x/{}_pan.tif x/{}_Blue.tif"])
@pytest.mark.parametrize("grey", [
    b"x", encoded(noise("a", 4, 6)), raster(ramp("uint16", 1)),
    encoded(np.repeat(noise("a", 4, 6, 1), 3, axis=2)), encoded(noise("a", 4, 6, 2))],
    ids=["damaged", "grey", "16 bits", "grey as RGB", "grey and alpha"])
def test_bands_are_told_with_resolutions_words_and_any_ending(tmp_path, form, grey):
    names = [name.replace("{}", scene) for scene in ("p1", "p2") for name in form.split()]
    found = band_files(container(tmp_path, names, grey))
    assert sorted(scene[-2:] for scene in found) == ["p1", "p2"]
    assert [sorted(bands.values()) for bands in found.values()] == [sorted(names[:2]),
                                                                    sorted(names[2:])]


@pytest.mark.parametrize("colours", [
    encoded(noise("a", 4, 6, 3)), encoded(noise("a", 4, 6, 3), "JPEG"), raster(ramp("uint8")),
    raster(ramp("uint16", 4))], ids=["PNG", "JPEG", "TIFF", "four"])
def test_tiles_of_several_bands_are_no_bands_whatever_they_are_called(tmp_path, colours):
    for files in (["area1_B1.tif", "area1_B2.tif", "area2_B1.tif", "c.tif"],
                  ["roof_red.png", "roof_blue.png"], ["B1/1.png", "B2/1.png"],
                  ["red/1.png", "blue/1.png"]):
        assert band_files(container(tmp_path / files[0], files, colours)) == {}
    # The first one may well be blank.
    blank = tree(tmp_path / "blank", {"a_B1.tif": encoded(np.zeros((4, 6, 3), np.uint8)),
                                      "a_B2.tif": colours})
    assert band_files(open_container(blank)) == {}


@pytest.mark.parametrize("files", [
    ["B02/p1.tif", "B03/p1.tif"], ["B02/p1_B02.tif", "B03/p1_B03.tif"], ["VV/1.tif", "VH/2.tif"],
    ["x/red/1.png", "x/nir/1.png"], ["B02/1.png", "B03/1.png", "rgb/1.png"],
    ["train_red/red_patch_1.TIF", "train_nir/nir_patch_1.TIF"], ["B02/farm/1.tif", "B03/sea/1.tif"],
    ["B02_10m/p1.tif", "B03_10m/p1.tif"]])
def test_folders_that_are_called_after_bands_are_no_classes(tmp_path, files):
    folder = min(part for file in files for part in file.split("/")
                 if part not in ("x", "rgb", "farm", "sea") and "." not in part)
    complaint(lambda: band_files(container(tmp_path, files)), "called after bands", folder,
              f"--include '*{folder}/*'")
    packed = tree(tmp_path / "x.zip", {file.replace("/", "\\"): b"x" for file in files})
    complaint(lambda: band_files(open_container(packed)), "called after bands", folder)
    one = container(tmp_path, [], include=[f"*{folder}/*"])
    assert len(one.files) == 1 and band_files(one) == {}


def test_one_image_in_colour_tells_that_folders_and_tiles_are_no_bands(tmp_path):
    grey, colour = encoded(noise("a", 4, 6)), encoded(noise("a", 4, 6, 3))
    folders = {f"{name}/{n}.png": colour if n else grey for name in ("red", "green")
               for n in range(4)}
    tiles = {f"a/area{n}_B{tile}.png": colour if n > 1 else b"damaged" if n else grey
             for n in range(4) for tile in (1, 2)}
    for number, files in enumerate((folders, tiles)):
        assert band_files(open_container(tree(tmp_path / str(number), files))) == {}


def test_a_number_stands_for_its_band(tmp_path, asked):
    bigearthnet(tmp_path / "one")
    pairs(tmp_path, bands1="4,3,B02")
    assert [name[-7:-4] for name in asked[0][0][0]] == ["B04", "B03", "B02"]
    bigearthnet(tmp_path / "two", bands=("B2", "B4"))
    load(tmp_path, data_name="folder", source1=str(tmp_path / "two"), bands1="4,4,2")
    assert [name[-6:-4] for name in asked[1][0][0]] == ["B4", "B4", "B2"]
    complaint(lambda: pairs(tmp_path, bands1="1,2,3"), "no files of 1, but of B02")
