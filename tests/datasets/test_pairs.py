"""Folders of one's own, paired by name."""

import numpy as np
import pytest

from image_helpers import (
    CLASSES,
    SCENES,
    complaint,
    hollow,
    lists,
    load,
    noise,
    pairs,
    scenes,
    tree,
)


def test_pairs_match_by_name_whatever_the_extension(tmp_path):
    tree(tmp_path / "one", scenes(".png", kind="PNG"))
    tree(tmp_path / "two.zip", scenes(".bmp", kind="BMP", size=12))  # a zip is as good as a folder
    dataset = pairs(tmp_path, source2=str(tmp_path / "two.zip"))
    assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)
    assert dataset.source_names == ("one", "two.zip")
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source1.read(row), noise(name + ".png", 8, 8, 3))
        assert np.array_equal(dataset.source2.read(row), noise(name + ".bmp", 12, 12, 3))
    assert pairs(tmp_path).source2 is None and pairs(tmp_path, source2="none").source2 is None


def test_runs_are_called_after_the_folders_and_cached_files_are_not(tmp_path):
    tree(tmp_path / "Sentinel 2", scenes(".png", kind="PNG"))
    tree(tmp_path / "VHR.v1.zip", scenes(".png", kind="PNG"))
    long = tmp_path / ("ü" * 100)
    long.symlink_to(tmp_path / "Sentinel 2")
    one, two = str(tmp_path / "Sentinel 2") + "/", str(tmp_path / "VHR.v1.zip")

    def named(source1, source2):
        return load(tmp_path, data_name="pairs", source1=source1, source2=source2)

    both, alone = named(one, two), named(one, "none")
    assert both.run_name == "sentinel 2_vhr.v1" and alone.run_name == "sentinel 2"
    assert named(two, one).run_name == "vhr.v1_sentinel 2"
    assert both.file_label(0) == alone.file_label(0) == "pairs-Sentinel-2"
    assert both.fingerprint == alone.fingerprint
    assert len(f"mrhash_{named(str(long), str(long)).run_name}_1024bit".encode()) <= 255
    assert named(f"{one}{CLASSES[0]}/..", two).run_name == "sentinel 2_vhr.v1"


def test_flat_pairs_have_no_labels_and_still_a_split(tmp_path):
    tree(tmp_path / "one", hollow(f"scene {number}.v2" for number in range(50)))
    dataset = pairs(tmp_path)
    assert dataset.labels is None and dataset.class_names == []
    assert "no labels" in dataset.describe()
    assert dataset.names[0] == "scene 0.v2"
    assert len(dataset.query) == 5 and len(dataset.database) == 45
    assert len(pairs(tmp_path, max_per_class=30).names) == 30


def test_pairs_without_folders_or_images_say_so(tmp_path):
    complaint(lambda: load(tmp_path, data_name="pairs"), "--source1")
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "does not exist")
    tree(tmp_path / "one", {"notes.txt": b"x"})
    complaint(lambda: pairs(tmp_path), str(tmp_path / "one"), "no image")


@pytest.mark.parametrize("lacking", ["one", "two"])
def test_images_without_partner_are_counted_and_named_with_their_folder(tmp_path, lacking):
    for folder in ("one", "two"):
        tree(tmp_path / folder, hollow(SCENES[5:] if folder == lacking else SCENES))
    having = "two" if lacking == "one" else "one"
    complaint(lambda: pairs(tmp_path, source2=str(tmp_path / "two")),
              f"5 images of {tmp_path / having}",
              "Forest/Forest_1, Forest/Forest_2, Forest/Forest_3 and 2 more",
              f"in {tmp_path / lacking}", "--pair_by or --pairs")


def test_two_files_of_one_name_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "a/y"]) | hollow(["a/x"], ".png"))
    complaint(lambda: pairs(tmp_path), "a/x.jpg", "a/x.png")
    tree(tmp_path / "EuroSAT.zip", hollow(["2750/a/x", "copy/a/x"]))
    complaint(lambda: load(tmp_path), "2750/a/x.jpg", "copy/a/x.jpg")


def test_some_images_outside_class_folders_are_an_error(tmp_path):
    tree(tmp_path / "one", hollow(["a/x", "b/y", "stray"]))
    complaint(lambda: pairs(tmp_path), "1 do not: stray")


# ------------------------------------------------------------ folders that hold everything


def test_a_zip_with_a_folder_of_its_own_pairs_with_a_folder(tmp_path):
    tree(tmp_path / "one.zip", scenes(prefix="S2/images/"))
    tree(tmp_path / "two", scenes(".png", kind="PNG"))
    dataset = load(tmp_path, data_name="pairs", source1=str(tmp_path / "one.zip"),
                   source2=str(tmp_path / "two"))
    assert dataset.names == sorted(SCENES) and dataset.class_names == list(CLASSES)
    for row, name in enumerate(dataset.names):
        assert np.array_equal(dataset.source2.read(row), noise(name + ".png", 8, 8, 3))


def test_names_are_compared_in_nfc_and_files_opened_by_their_own(tmp_path):
    tree(tmp_path / "one", scenes(names=["W\u00e4lder/\u00fc", "sea/b", "sea/c"]))
    tree(tmp_path / "two", scenes(names=["Wa\u0308lder/u\u0308", "sea/b", "sea/c"]))
    dataset = pairs(tmp_path, source2=str(tmp_path / "two"), class_depth=1, split_dir=lists(
        tmp_path / "split", train=["W\u00e4lder/\u00fc", "sea/b"], test=["sea/c"]))
    assert dataset.names == ["W\u00e4lder/\u00fc", "sea/b", "sea/c"]
    assert dataset.class_names == ["W\u00e4lder", "sea"]
    assert dataset.source1.read(0).shape == dataset.source2.read(0).shape
    tree(tmp_path / "one", scenes(names=["Wa\u0308lder/u\u0308"]))
    complaint(lambda: pairs(tmp_path), "two images named W\u00e4lder/\u00fc")


# ------------------------------------------------------------ pairs by rule


def ruled(root, rule, **settings):
    return pairs(root, source2=str(root / "two"), pair_by=rule, **settings)


def shown(dataset, source):
    """The files of a source, which tell which image is whose partner."""
    return dataset.sources[source].files


@pytest.fixture
def sensors(tmp_path):
    """S2_<n> in class folders, S1_<n> in one folder, sorted otherwise."""
    tree(tmp_path / "one", hollow(f"{'ab'[n % 2]}/S2_2020{n:02d}_{n}" for n in range(12)))
    tree(tmp_path / "two", hollow((f"radar/S1_2019{31 - n}_{n}" for n in range(12)), ".tif"))
    return tmp_path


@pytest.mark.parametrize("rule", [r"S[12]_\d+_(.*)", r"_(\d+)$", r"(?:S1|S2)_(20)\d+_(\d+)"])
def test_what_the_rule_finds_pairs_images_and_source_1_gives_names_and_labels(sensors, rule):
    dataset = ruled(sensors, rule)
    assert dataset.class_names == ["a", "b"] and dataset.names[0] == "a/S2_202000_0"
    numbers = [[file.rpartition("_")[2].partition(".")[0] for file in shown(dataset, source)]
               for source in (0, 1)]
    assert numbers[0] == numbers[1] and len(set(numbers[0])) == 12


@pytest.mark.parametrize(("rule", "parts"), [
    ("S[12]", ["has no group"]), ("(", ["no regular expression"]),
    ("S2_(.*)", ["finds nothing in 12 names", "two", "S1_"]),
    (r"(S[12])", ["gives two images", "one", "a/S2_202000_0 and a/S2_202002_2"]),
    (r"(\d+_\d+)$", ["12 images", "no partner", "202000_0"])])
def test_a_rule_that_does_not_fit_is_one_sentence(sensors, rule, parts):
    complaint(lambda: ruled(sensors, rule), *parts)


def test_an_image_without_partner_by_the_rule_is_an_error(sensors):
    tree(sensors / "two", hollow(["radar/S1_201999_99"]))
    complaint(lambda: ruled(sensors, r"_(\d+)$"), "1 images", "two", "no partner", "99")


# ------------------------------------------------------------ pairs by table


def tabled(root, text, **settings):
    (root / "pairs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return pairs(root, source2=str(root / "two"), pairs=str(root / "pairs.csv"), **settings)


ROWS = [("a/S2_202002_2.jpg", "radar/S1_201925_6.tif"), ("b/S2_202003_3.jpg", "S1_201930_1"),
        ("a/S2_202000_0", "radar/S1_201931_0.tif"), ("b/S2_202001_1.jpg", "radar/S1_201922_9.tif")]


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
@pytest.mark.parametrize("header", ["", "optical{}radar\n", "\n"])
def test_a_table_pairs_what_it_lists_and_the_rest_is_counted(sensors, separator, header):
    text = header.format(separator) + "\r\n".join(separator.join(row) for row in ROWS)
    dataset = tabled(sensors, "\ufeff" + text)
    assert shown(dataset, 0) == ["a/S2_202000_0.jpg", "a/S2_202002_2.jpg", "b/S2_202001_1.jpg",
                                 "b/S2_202003_3.jpg"]
    assert shown(dataset, 1) == ["radar/S1_201931_0.tif", "radar/S1_201925_6.tif",
                                 "radar/S1_201922_9.tif", "radar/S1_201930_1.tif"]
    assert dataset.class_names == ["a", "b"] and dataset.labels.tolist() == [0, 0, 1, 1]
    assert [remark.split(" are not")[0] for remark in dataset.remarks] == [
        f"8 of 12 images of {sensors / folder}" for folder in ("one", "two")]


def test_a_table_may_have_whole_paths(sensors):
    text = "".join(f"{sensors}/one/{ours}.jpg,{sensors}/two/{theirs}.tif\n" for ours, theirs in (
        ("a/S2_202000_0", "radar/S1_201931_0"), ("a/S2_202002_2", "radar/S1_201922_9"),
        ("b/S2_202001_1", "radar/S1_201926_5"), ("b/S2_202003_3", "radar/S1_201925_6")))
    assert shown(tabled(sensors, text), 1) == [
        f"radar/S1_2019{name}.tif" for name in ("31_0", "22_9", "26_5", "25_6")]


def test_an_image_and_its_quicklook_are_told_apart_by_a_table(tmp_path):
    for place in ("one", "two"):
        tree(tmp_path / place, hollow([f"{name}{more}" for name in "abc" for more in ("", ".tif")]))
    dataset = tabled(tmp_path, "a.tif,b.tif\nb.tif.jpg,c.jpg\nc.jpg,a.tif.jpg\n")
    assert shown(dataset, 0) == ["a.jpg", "b.tif.jpg", "c.jpg"]
    assert shown(dataset, 1) == ["b.jpg", "c.jpg", "a.tif.jpg"]


def test_groups_of_a_rule_are_compared_one_by_one(tmp_path):
    tree(tmp_path / "one", hollow(["a_b+c", "d+e"]))
    tree(tmp_path / "two", hollow(["a+b_c", "d+e"]))
    complaint(lambda: ruled(tmp_path, r"(.*)\+(.*)"), "1 images", "no partner")


def test_quoted_paths_may_hold_the_separator(tmp_path):
    tree(tmp_path / "one", hollow(["a, b", "c", "d"]))
    tree(tmp_path / "two", hollow(["e", "f; g", "h"]))
    dataset = tabled(tmp_path, '"a, b.jpg",e.jpg\nc.jpg,f; g.jpg\nd.jpg,h.jpg\n')
    assert shown(dataset, 1) == ["e.jpg", "f; g.jpg", "h.jpg"]


@pytest.mark.parametrize(("text", "parts"), [
    ("a/S2_202002_2.jpg,radar/S1_201925_6.tif\na/S2_9.jpg,radar/S1_201930_1.tif",
     ["pairs.csv, line 2", "'a/S2_9.jpg'", "one"]),
    ("a/S2_202002_2.jpg,radar/S1_9.tif", ["pairs.csv, line 1", "'radar/S1_9.tif'", "two"]),
    ("a/S2_202002_2.jpg\n", ["line 1", "two paths"]), ("x,y\na/S2_202002_2.jpg,", ["line 2"]),
    ("a/S2_202002_2.jpg,radar/S1_201925_6.tif\na/S2_202000_0.jpg,radar/S1_201925_6.tif",
     ["line 2", "also in line 1"]),
    ("", ["empty"]), ("a,b\n", ["pairs.csv, line 1"]), (b"\xe4,b\n", ["no UTF-8"]),
    ("a/S2_202002_2.jpg,radar/S1_201925_6.tif,1", ["line 1", "two paths"])])
def test_a_table_that_does_not_fit_names_its_line(sensors, text, parts):
    complaint(lambda: tabled(sensors, text), *parts)


def test_a_rule_and_a_table_or_no_table_at_all_is_an_error(sensors):
    complaint(lambda: tabled(sensors, "a,b", pair_by="(.)"), "--pair_by and --pairs")
    complaint(lambda: pairs(sensors, source2=str(sensors / "two"), pairs="nowhere.csv"),
              "nowhere.csv is not there")
