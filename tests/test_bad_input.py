"""Input that cannot be used is one sentence that names file and place, or is left out on demand.

What a reader of one format refuses is tested beside it: tests/datasets/, tests/hamming/,
tests/myautoencoder/; flags are in the tests of their scripts.
"""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_loader import DataConfig, load_dataset
from datasets import demo_scenes
from datasets.store import ImageStore
from engine.checkpoint import save_checkpoint
from engine.cli import run
from engine.files import lock
from helpers import QUICK, SMALL, make_pairs, script_module, stage1_flags, stage2_flags
from image_helpers import expects
from script_helpers import AUTOENCODER, done, load, quick_flags, refused
from utils import InputError


def open_pairs(folder, **config):
    return load_dataset(DataConfig("pairs", source1=str(folder / "coarse"),
                                   source2=str(folder / "fine"), **config))


def first_stage(folder):
    """A quick autoencoder.py on the pairs in `folder`."""
    return [*stage1_flags(folder), "--feature_backbone", QUICK[1], "--epoch", 2]


# ---------------------------------------------------------------- images that cannot be read

COMPARE = "benchmarks/compare.py"
BAD_SCENES = ("sea/03", "field/07", "town/11")


@pytest.fixture
def some_bad(tmp_path):
    """Pairs of which three images, of three scenes and both views, cannot be read; their names."""
    make_pairs(tmp_path)
    coarse, fine = tmp_path / "coarse", tmp_path / "fine"
    (coarse / "sea" / "03.bmp").write_bytes((coarse / "sea" / "03.bmp").read_bytes()[:200])
    (fine / "field" / "07.png").write_bytes(b"<html>not found</html>")
    (fine / "town" / "11.png").write_bytes(b"")
    return tmp_path, ("coarse: sea/03.bmp", "fine: field/07.png", "fine: town/11.png")


def test_unreadable_images_are_listed_at_once_with_the_way_to_go_on(some_bad, tmp_path, capsys):
    folder, names = some_bad
    line = refused(capsys, AUTOENCODER, *first_stage(folder), "--output_dir", tmp_path / "ae")
    assert "3 of 84 images cannot be read" in line and "--skip_bad" in line
    assert all(name in line for name in names)


def test_a_long_list_of_unreadable_images_names_twenty(tmp_path):
    make_pairs(tmp_path)
    for path in (tmp_path / "coarse").rglob("*.bmp"):
        path.write_bytes(b"no image")
    dataset = open_pairs(tmp_path)
    with pytest.raises(InputError) as caught:
        ImageStore.open(dataset.source1, "test", expects(32), None, 2)
    text = str(caught.value)
    assert text.count(".bmp") == 20 and "42 of 42 images" in text and "and 22 more" in text


def test_scenes_that_are_left_out_are_left_out_in_all_three_scripts(some_bad, tmp_path, capsys):
    folder, names = some_bad
    lacking = folder / "fine" / "town" / "05.png"
    lacking.rename(folder / "05.png")
    stage1 = [*first_stage(folder), "--output_dir", tmp_path / "ae", "--skip_unpaired"]
    out, error = done(capsys, AUTOENCODER, *stage1, "--skip_bad")
    assert out.startswith(f"1 of 42 scenes of {folder / 'coarse'} have no partner")
    warning, = error.strip().splitlines()
    assert warning.startswith("warning: 3 of 41 scenes are left out")
    assert all(name in warning for name in names)
    out, _ = done(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), *QUICK,
                  "--max_epoch", 0, "--output_dir", tmp_path / "mr")
    assert "36 training, 36 database, 2 query images" in out
    (folder / "fine").rename(folder / "gone")  # which test.py does not need
    done(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", "--save_codes",
         tmp_path / "codes.npz", *SMALL)
    with np.load(tmp_path / "codes.npz") as content:
        found = [*content["database_paths"], *content["query_paths"]]
    assert len(found) == len(set(found)) == 38 and not {*BAD_SCENES, "town/05"} & set(found)
    # A resumed run must know of them, too.
    (folder / "gone").rename(folder / "fine")
    stage1 += ["--resume", "--epoch", 3]
    assert "skip_bad was True, now False" in refused(capsys, AUTOENCODER, *stage1)
    assert "resuming" in done(capsys, AUTOENCODER, *stage1, "--skip_bad")[0]
    (folder / "05.png").rename(lacking)
    assert "the images, their labels or their split are others" in refused(
        capsys, AUTOENCODER, *stage1, "--skip_bad")


def test_the_split_without_bad_scenes_is_that_of_all_without_them(tmp_path):
    make_pairs(tmp_path)
    whole, skipped = open_pairs(tmp_path), open_pairs(tmp_path, skip=BAD_SCENES)
    for part in ("train", "database", "query"):
        kept = [whole.names[row] for row in getattr(whole, part)]
        assert [skipped.names[row] for row in getattr(skipped, part)] == [
            name for name in kept if name not in BAD_SCENES]


def test_a_table_goes_on_without_bad_scenes_too(some_bad, tmp_path, capsys):
    folder, _ = some_bad
    (folder / "fine" / "town" / "05.png").unlink()
    flags = ["--data_name", "pairs", "--source1", folder / "coarse", "--source2", folder / "fine",
             "--backbone", "resnet18", "--weights", "none", "--methods", "float", "lsh",
             "mrhash-none", "--hash_bit", 8, "--seeds", 1, "--cache_dir", folder / "cache",
             "--output_dir", folder / "table", "--skip_unpaired"]
    assert "images cannot be read" in refused(capsys, COMPARE, *flags)
    out, error = done(capsys, COMPARE, *flags, "--skip_bad")
    assert "3 of 41 scenes are left out" in error and "1 of 42 scenes" in out
    assert "left out, without the second source they would see other scenes: mrhash-none" in out
    table = json.loads((folder / "table" / "coarse_fine" / "compare.json").read_text())
    assert {cell["method"] for cell in table["cells"]} == {"float", "lsh"}


def test_two_tables_are_not_made_in_one_folder(trained, tmp_path, capsys):
    flags = ["--data_name", "pairs", "--source1", trained[0] / "coarse", "--methods", "float",
             "--seeds", 1, "--weights", "none", "--output_dir", tmp_path / "table"]
    (tmp_path / "table" / "coarse").mkdir(parents=True)
    with lock(tmp_path / "table" / "coarse" / ".lock", "taken"):
        assert "another table is made in" in refused(capsys, COMPARE, *flags)


def test_skip_bad_changes_nothing_where_nothing_is_bad(trained, tmp_path, capsys):
    _, error = done(capsys, AUTOENCODER, *stage1_flags(trained[0]), "--skip_bad", "--output_dir",
                    tmp_path)
    expected = trained[0] / "ae" / "autoencoder.pth"
    assert error == "" and (tmp_path / "autoencoder.pth").read_bytes() == expected.read_bytes()


def test_skip_bad_that_leaves_nothing_of_a_part_is_one_sentence(tmp_path, capsys):
    make_pairs(tmp_path)
    dataset = open_pairs(tmp_path)
    for row in dataset.query:
        (tmp_path / "coarse" / f"{dataset.names[row]}.bmp").write_bytes(b"")
    line = refused(capsys, AUTOENCODER, *first_stage(tmp_path), "--skip_bad", "--output_dir",
                   tmp_path / "ae")
    assert ("without the 3 scenes of which an image is lacking or cannot be read pairs has none "
            "left for: query; add their images, or take another split (--seed") in line


def test_images_of_a_sensor_that_are_nearly_black_in_8_bits_are_warned_of(tmp_path, capsys):
    make_pairs(tmp_path)
    for path in (tmp_path / "coarse").rglob("*.bmp"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 10  # up to 2,550
        path.unlink()
        Image.fromarray(values).save(path.with_suffix(".png"))
    dataset = open_pairs(tmp_path)
    ImageStore.open(dataset.source1, "coarse", expects(32), None, 2)
    warning, = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith("warning: of 42 images of coarse that were looked at, at least half "
                              "have almost no pixel (1 %) brighter than 6 of 255")
    assert "stretch" in warning and "--range1 2%,98%" in warning
    ImageStore.open(dataset.source2, "fine", expects(32), None, 2)
    assert capsys.readouterr().err == ""


def test_names_that_are_no_text_are_used_as_they_are(tmp_path, capsys):
    make_pairs(tmp_path)
    for view, end in (("coarse", b".bmp"), ("fine", b".png")):
        folder = os.fsencode(tmp_path / view / "sea")
        os.rename(folder + b"/03" + end, folder + b"/\xe9" + end)
    done(capsys, AUTOENCODER, *first_stage(tmp_path), "--output_dir", tmp_path / "ae")
    done(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), *QUICK,
         "--max_epoch", 0, "--output_dir", tmp_path / "mr")
    done(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", "--save_codes",
         tmp_path / "codes.npz", *SMALL)
    with np.load(tmp_path / "codes.npz") as codes:
        assert "sea/\udce9" in {*codes["database_paths"], *codes["query_paths"]}


def test_a_demo_that_cannot_be_drawn_says_where(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left")

    monkeypatch.setattr(demo_scenes.Image.Image, "save", full)
    with pytest.raises(InputError, match=r"demo-v2-seed13 could not be written: no space left "
                                         r"\(free some space\)"):
        demo_scenes.make_demo(tmp_path, 13)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- names, classes, labels


def test_empty_class_folders_are_named(tmp_path):
    make_pairs(tmp_path, per_class=2)
    for view in ("coarse", "fine"):
        for name in ("swamp", "desert", ".git", "_notes"):
            (tmp_path / view / name).mkdir()
    with pytest.raises(InputError, match=r"2 class folders of .*coarse hold no image: desert, "
                                         r"swamp; add"):
        open_pairs(tmp_path)


def test_empty_class_folders_in_a_zip_are_named(tmp_path):
    make_pairs(tmp_path, per_class=2)
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for path in sorted((tmp_path / "coarse").rglob("*")):
            archive.write(path, f"images/{path.relative_to(tmp_path / 'coarse')}")
        archive.writestr("images/swamp/", b"")
    with pytest.raises(InputError, match=r"1 class folders of .*one.zip hold no image: "
                                         r"images/swamp"):
        load_dataset(DataConfig("pairs", source1=str(tmp_path / "one.zip")))


def test_folders_that_hold_folders_or_nothing_beside_flat_images_are_no_classes(tmp_path):
    make_pairs(tmp_path)
    for view in ("coarse", "fine"):
        (tmp_path / view / "2750").mkdir()
        for kind in ("field", "sea", "town"):
            (tmp_path / view / kind).rename(tmp_path / view / "2750" / kind)
        (tmp_path / view / "empty").mkdir()
    assert len(open_pairs(tmp_path).names) == 42


def test_classes_that_disagree_between_the_sources_are_named(tmp_path):
    make_pairs(tmp_path)
    for number, before, after in (("03", "sea", "town"), ("05", "field", "sea")):
        fine, coarse = tmp_path / "fine", tmp_path / "coarse" / before
        (fine / before / f"{number}.png").rename(fine / after / f"{number}-x.png")
        (coarse / f"{number}.bmp").rename(coarse / f"{number}-x.bmp")
    with pytest.raises(InputError) as caught:
        open_pairs(tmp_path)
    text = str(caught.value)
    assert "2 images lie in one class folder" in text and "and in another" in text
    assert "field/05-x and sea/05-x" in text and "sea/03-x and town/03-x" in text


def test_a_zip_with_two_members_of_one_name_is_named(tmp_path):
    make_pairs(tmp_path, per_class=2)
    data = (tmp_path / "coarse" / "sea" / "00.bmp").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("sea/0.bmp", data)
        archive.writestr("sea/1.bmp", data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("sea/0.bmp", data)
    with pytest.raises(InputError, match=r"one.zip has two members named sea/0.bmp"):
        load_dataset(DataConfig("pairs", source1=str(tmp_path / "one.zip")))


def test_queries_without_anything_to_find_are_warned_of(tmp_path, capsys):
    make_pairs(tmp_path)
    (tmp_path / "split").mkdir()
    kinds = ("field", "sea", "town")
    for part, chosen, numbers in (("train", kinds[:2], range(10)),
                                  ("test", ("field", "town"), range(10, 13))):
        with open(tmp_path / "split" / f"{part}.txt", "w") as file:
            for kind in chosen:
                one_hot = " ".join(str(int(kind == name)) for name in kinds)
                file.writelines(f"{kind}/{number:02d}.png {one_hot}\n" for number in numbers)
    open_pairs(tmp_path, split_dir=str(tmp_path / "split"))
    assert capsys.readouterr().err == (
        "warning: 3 of 6 queries share no label with any image of the database: their average "
        "precision counts as 0\n")


# ---------------------------------------------------------------- checkpoints and caches


@pytest.fixture(scope="module")
def commands(trained, tmp_path_factory):
    """Every command that reads a checkpoint, with the file that it reads, which tests spoil."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(trained[0] / "ae", folder / "ae")
    train = ["train.py", *quick_flags(trained), "--pretrained_dp_path",
             folder / "ae" / "autoencoder.pth"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(word) for word in (*train, "--output_dir", folder / "mr")])
        assert run(script_module("train.py").main) == 0
    model = folder / "mr" / "mrhash.pth"
    return [(folder / "ae" / "autoencoder.pth", [*train, "--output_dir", folder / "new"]),
            (model, ["test.py", "--pretrain_path", model, *SMALL]),
            (folder / "mr" / "last.pth", [*train, "--output_dir", folder / "mr", "--resume"])]


@pytest.fixture(params=["autoencoder.pth", "mrhash.pth", "last.pth"])
def command(request, commands):
    """One of them; its file is as it was for the next test."""
    path, words = next(found for found in commands if found[0].name == request.param)
    whole = path.read_bytes()
    yield path, words
    path.write_bytes(whole)


def test_a_checkpoint_cut_short_anywhere_is_one_sentence(command, capsys):
    path, words = command
    whole = path.read_bytes()
    damaged = bytearray(whole)
    weight = next(value for value in load(path)["model"].values() if value.ndim == 2)
    weight = weight.numpy().tobytes()
    damaged[whole.index(weight) + 5] ^= 1  # one bit of it: nothing but the checksum tells
    parts = [whole[:length] for length in (0, 1, 1000, len(whole) // 2, -300, -1)]
    for raw in (*parts, damaged):
        path.write_bytes(raw)
        assert f"{path} is not a whole checkpoint" in refused(capsys, *words)


def test_weights_that_are_not_finite_are_not_used(command, capsys):
    path, words = command
    content = load(path)
    stage1 = path.name == "autoencoder.pth"
    name = "branches.0.0.weight" if stage1 else "hash_network.hash_layer.weight"
    content["model"][name].view(-1)[3] = float("nan")
    save_checkpoint(path, content)
    if path.name == "last.pth":  # a run does not save such weights; the first loss would tell
        line = refused(capsys, *words, "--max_epoch", 3)
        assert "the loss is not finite in epoch 3, batch 1 of 3" in line
    else:
        assert f"{path} holds weights that are not finite" in refused(capsys, *words)


def test_cached_files_that_are_damaged_are_named(trained, tmp_path, capsys):
    flags = [*first_stage(trained[0]), "--epoch", 1, "--cache_dir", tmp_path / "cache",
             "--overwrite", "--output_dir", tmp_path / "ae"]
    done(capsys, AUTOENCODER, *flags)
    for kind in ("features", "images", "brightness"):
        if kind == "images":  # needed again where the features are not there
            shutil.rmtree(tmp_path / "cache" / "features")
        paths = sorted((tmp_path / "cache" / kind).glob("*.npy"))
        # Of images also their sizes.
        assert len(paths) == {"features": 2, "images": 4, "brightness": 2}[kind]
        for path in paths:
            whole = path.read_bytes()
            fewer = io.BytesIO()
            np.save(fewer, np.load(io.BytesIO(whole))[:-1])
            for raw in (whole[:-1], b"", whole[:20], fewer.getvalue()):
                path.write_bytes(raw)
                line = refused(capsys, AUTOENCODER, *flags)
                assert f"{path} is damaged" in line and "remove it" in line
                if kind == "images":  # of the other source they may be there now
                    shutil.rmtree(tmp_path / "cache" / "features", ignore_errors=True)
            path.write_bytes(whole)
    done(capsys, AUTOENCODER, *flags)
