"""Input that cannot be used is one sentence that names file and place, or is left out where that was asked for.

What a reader of one format refuses is in its own test file: test_data.py, test_feature_files.py, test_hamming.py;
flags and checkpoints that contradict each other are in test_scripts.py.
"""

import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader import DataConfig, load_dataset
from datasets.store import ImageStore
from engine.checkpoint import save_checkpoint
from engine.cli import run
from engine.files import lock
from helpers import SMALL, call, make_pairs, stage1_flags, stage2_flags
from utils import InputError


def refused(capsys, *command):
    """The one line that a script ends with, exit code 2; warnings may come before it."""
    code, _, error = call(capsys, *command)
    lines = [line for line in error.strip().splitlines() if not line.startswith("warning:")]
    assert code == 2 and len(lines) == 1, error
    return lines[0]


def load(folder, **config):
    return load_dataset(DataConfig("pairs", source1=str(folder / "coarse"), source2=str(folder / "fine"), **config))


def test_whatever_an_error_says_is_one_line_and_code_2(capsys):
    def main():
        raise InputError("two\nlines\tand  spaces")

    assert run(main) == 2
    assert capsys.readouterr().err == "error: two lines and spaces\n"


@pytest.mark.parametrize(("error", "text"), [
    (PermissionError(13, "Permission denied", "/a/b"),
     "error: /a/b: permission denied (ask for the right to, or name another place)"),
    (OSError(28, "No space left on device"), "error: no space left on device (free some space)"),
    (MemoryError(), "error: the memory of this machine is not enough: lower --batch_size"),
    (torch.OutOfMemoryError("CUDA out of memory"), "error: the device is out of memory: lower --batch_size"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
     "error: the memory of this machine is not enough: lower --batch_size")])
def test_what_the_system_refuses_is_one_line_with_advice(capsys, error, text):
    def main():
        raise error

    assert run(main) == 2
    said = capsys.readouterr().err
    assert said.startswith(text) and len(said.splitlines()) == 1


# ------------------------------------------------------------------------ images that cannot be read


@pytest.fixture
def some_bad(tmp_path):
    """Pairs of which three images, of three scenes and both views, cannot be read; and what they are called."""
    make_pairs(tmp_path)
    (tmp_path / "coarse" / "sea" / "03.bmp").write_bytes((tmp_path / "coarse" / "sea" / "03.bmp").read_bytes()[:200])
    (tmp_path / "fine" / "field" / "07.png").write_bytes(b"<html>not found</html>")
    (tmp_path / "fine" / "town" / "11.png").write_bytes(b"")
    return tmp_path, ("coarse: sea/03.bmp", "fine: field/07.png", "fine: town/11.png")


def test_unreadable_images_are_listed_at_once_with_the_way_to_go_on(some_bad, tmp_path, capsys):
    folder, names = some_bad
    line = refused(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), "--output_dir", tmp_path / "ae")
    assert "3 of 84 images cannot be read" in line and all(name in line for name in names) and "--skip_bad" in line


def test_a_long_list_of_unreadable_images_names_twenty(tmp_path):
    make_pairs(tmp_path)
    for path in (tmp_path / "coarse").rglob("*.bmp"):
        path.write_bytes(b"no image")
    dataset = load(tmp_path)
    with pytest.raises(InputError) as caught:
        ImageStore.open(dataset.source1, "test", 32, None, 2)
    assert str(caught.value).count(".bmp") == 20 and "42 of 42 images" in str(caught.value)
    assert "and 22 more" in str(caught.value)


def test_skip_bad_goes_on_without_those_scenes_in_all_three_scripts(some_bad, tmp_path, capsys):
    folder, names = some_bad
    code, out, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), "--skip_bad", "--output_dir",
                            tmp_path / "ae")
    assert code == 0, error
    warning, = error.strip().splitlines()
    assert warning.startswith("warning: 3 of 42 scenes are left out") and all(name in warning for name in names)
    code, out, error = call(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), "--max_epoch", 0,
                            "--output_dir", tmp_path / "mr")
    assert code == 0 and "37 training, 37 database, 2 query images" in out, out + error
    code, out, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", "--save_codes",
                            tmp_path / "codes.npz", *SMALL)
    assert code == 0, error
    with np.load(tmp_path / "codes.npz") as content:
        found = [*content["database_paths"], *content["query_paths"]]
    assert len(found) == len(set(found)) == 39
    assert not {"sea/03", "field/07", "town/11"} & set(found)
    # The same as if those scenes had never been there but for the split, which is drawn before.
    whole = load(folder)
    for part in ("train", "database", "query"):
        skipped = load(folder, skip=("sea/03", "field/07", "town/11"))
        kept = [whole.names[row] for row in getattr(whole, part)]
        assert [skipped.names[row] for row in getattr(skipped, part)] == [
            name for name in kept if name not in ("sea/03", "field/07", "town/11")]
    # A resumed run must know of them, too.
    line = refused(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), "--resume", "--output_dir",
                   tmp_path / "ae")
    assert "skip_bad was True, now False" in line
    code, out, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(folder), "--skip_bad", "--resume",
                            "--epoch", 7, "--output_dir", tmp_path / "ae")
    assert code == 0 and "resuming" in out, error


def test_skip_bad_changes_nothing_where_nothing_is_bad(trained, tmp_path, capsys):
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(trained[0]), "--skip_bad",
                          "--output_dir", tmp_path / "ae")
    assert code == 0 and error == ""
    assert (tmp_path / "ae" / "autoencoder.pth").read_bytes() == (trained[0] / "ae" / "autoencoder.pth").read_bytes()


def test_skip_bad_that_leaves_nothing_of_a_part_is_one_sentence(tmp_path, capsys):
    make_pairs(tmp_path)
    for name in (load(tmp_path).names[row] for row in load(tmp_path).query):
        (tmp_path / "coarse" / f"{name}.bmp").write_bytes(b"")
    line = refused(capsys, "myautoencoder/autoencoder.py", *stage1_flags(tmp_path), "--skip_bad", "--output_dir",
                   tmp_path / "ae")
    assert "without the 3 images that cannot be read pairs has none left for: query" in line


def test_images_of_a_sensor_that_are_nearly_black_in_8_bits_are_warned_of(tmp_path, capsys):
    make_pairs(tmp_path)
    for path in (tmp_path / "coarse").rglob("*.bmp"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 10  # digital numbers up to 2,550
        path.unlink()
        Image.fromarray(values).save(path.with_suffix(".png"))
    dataset = load(tmp_path)
    ImageStore.open(dataset.source1, "coarse", 32, None, 2)
    warning, = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith("warning: no pixel of coarse is brighter than 8 of 255") and "stretch" in warning
    ImageStore.open(dataset.source2, "fine", 32, None, 2)
    assert capsys.readouterr().err == ""


def test_a_table_goes_on_without_bad_scenes_too(some_bad, tmp_path, capsys):
    folder, _ = some_bad
    flags = ["--data_name", "pairs", "--source1", folder / "coarse", "--source2", folder / "fine", "--backbone",
             "resnet18", "--weights", "none", "--methods", "float", "lsh", "--hash_bit", 8, "--seeds", 1, "--cache_dir",
             folder / "cache", "--output_dir", folder / "table"]
    assert "images cannot be read" in refused(capsys, "compare.py", *flags)
    code, _, error = call(capsys, "compare.py", *flags, "--skip_bad")
    assert code == 0 and "3 of 42 scenes are left out" in error, error
    table = json.loads((folder / "table" / "pairs" / "compare.json").read_text())
    assert {cell["method"] for cell in table["cells"]} == {"float", "lsh"}


def test_two_tables_are_not_made_in_one_folder(trained, tmp_path, capsys):
    flags = ["--data_name", "pairs", "--source1", trained[0] / "coarse", "--methods", "float", "--seeds", 1,
             "--weights", "none", "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "table"]
    (tmp_path / "table" / "pairs").mkdir(parents=True)
    with lock(tmp_path / "table" / "pairs" / ".lock", "taken"):
        assert "another table is made in" in refused(capsys, "compare.py", *flags)


def test_names_that_are_no_text_are_used_as_they_are(tmp_path, capsys):
    make_pairs(tmp_path)
    for view, end in (("coarse", b".bmp"), ("fine", b".png")):
        folder = os.fsencode(tmp_path / view / "sea")
        os.rename(folder + b"/03" + end, folder + b"/\xe9" + end)
    code, _, error = call(capsys, "myautoencoder/autoencoder.py", *stage1_flags(tmp_path), "--output_dir",
                          tmp_path / "ae")
    assert code == 0, error
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "ae" / "autoencoder.pth"), "--max_epoch", 0,
                          "--output_dir", tmp_path / "mr")
    assert code == 0, error
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "mr" / "mrhash.pth", "--save_codes",
                          tmp_path / "codes.npz", *SMALL)
    assert code == 0, error


def test_a_demo_that_cannot_be_drawn_says_where(tmp_path, monkeypatch):
    from datasets import demo as demo_data
    monkeypatch.setattr(demo_data.Image.Image, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match=r"demo-v2-seed13 could not be written: no space left \(free some space\)"):
        demo_data.make_demo(tmp_path, 13)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ names, classes, labels


def test_empty_class_folders_are_named(tmp_path):
    make_pairs(tmp_path)
    for view in ("coarse", "fine"):
        for name in ("swamp", "desert", ".git", "_notes"):
            (tmp_path / view / name).mkdir()
    with pytest.raises(InputError, match=r"2 class folders of .*coarse hold no image: desert, swamp; add"):
        load(tmp_path)


def test_empty_class_folders_in_a_zip_are_named(tmp_path):
    make_pairs(tmp_path)
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for path in sorted((tmp_path / "coarse").rglob("*")):
            archive.write(path, f"images/{path.relative_to(tmp_path / 'coarse')}")
        archive.writestr("images/swamp/", b"")
    with pytest.raises(InputError, match=r"1 class folders of .*one.zip hold no image: images/swamp"):
        load_dataset(DataConfig("pairs", source1=str(tmp_path / "one.zip")))


def test_folders_that_hold_folders_or_nothing_beside_flat_images_are_no_classes(tmp_path):
    make_pairs(tmp_path)
    for view in ("coarse", "fine"):
        (tmp_path / view / "2750").mkdir()
        for kind in ("field", "sea", "town"):
            (tmp_path / view / kind).rename(tmp_path / view / "2750" / kind)
        (tmp_path / view / "empty").mkdir()
    assert len(load(tmp_path).names) == 42


def test_classes_that_disagree_between_the_sources_are_named(tmp_path):
    make_pairs(tmp_path)
    for number, (before, after) in {"03": ("sea", "town"), "05": ("field", "sea")}.items():
        (tmp_path / "fine" / before / f"{number}.png").rename(tmp_path / "fine" / after / f"{number}-x.png")
        (tmp_path / "coarse" / before / f"{number}.bmp").rename(tmp_path / "coarse" / before / f"{number}-x.bmp")
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert "2 images lie in one class folder" in text and "and in another" in text
    assert "field/05-x and sea/05-x" in text and "sea/03-x and town/03-x" in text


def test_a_zip_with_two_members_of_one_name_is_named(tmp_path):
    make_pairs(tmp_path)
    data = (tmp_path / "coarse" / "sea" / "00.bmp").read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for name in ("sea/0.bmp", "sea/1.bmp", "sea/0.bmp"):
            archive.writestr(name, data)
    with pytest.raises(InputError, match=r"one.zip has two members named sea/0.bmp"):
        load_dataset(DataConfig("pairs", source1=str(tmp_path / "one.zip")))


def test_queries_without_anything_to_find_are_warned_of(tmp_path, capsys):
    make_pairs(tmp_path)
    (tmp_path / "split").mkdir()
    for part, kinds, numbers in (("train", ("field", "sea"), range(10)), ("test", ("field", "town"), range(10, 13))):
        (tmp_path / "split" / f"{part}.txt").write_text("".join(
            f"{kind}/{number:02d}.png {' '.join(str(int(kind == name)) for name in ('field', 'sea', 'town'))}\n"
            for kind in kinds for number in numbers))
    load(tmp_path, split_dir=str(tmp_path / "split"))
    assert capsys.readouterr().err == ("warning: 3 of 6 queries share no label with any image of the database: their "
                                       "average precision counts as 0\n")


# ------------------------------------------------------------------------ checkpoints and caches


@pytest.fixture(scope="module")
def checkpoints(trained, tmp_path_factory):
    """A copy of the files of a run, to spoil."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(trained[0] / "ae", folder / "ae")
    shutil.copytree(trained[0] / "mr", folder / "mr")
    return folder


def uses(folder):
    """Every command that reads a checkpoint, by the file that it reads."""
    ours = folder / "ae" / "autoencoder.pth"
    return {folder / "ae" / "autoencoder.pth": ["train.py", *stage2_flags(ours), "--output_dir", folder / "new"],
            folder / "mr" / "mrhash.pth": ["test.py", "--pretrain_path", folder / "mr" / "mrhash.pth", *SMALL],
            folder / "mr" / "last.pth": ["train.py", *stage2_flags(ours), "--output_dir", folder / "mr", "--resume"]}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_checkpoint_cut_short_anywhere_is_one_sentence(checkpoints, capsys, which):
    path, command = list(uses(checkpoints).items())[which]
    whole = path.read_bytes()
    try:
        for length in (0, 1, 1000, len(whole) // 2, len(whole) - 300, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert f"{path} is not a whole checkpoint" in refused(capsys, *command)
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1  # one bit of a weight: nothing but the checksum tells
        path.write_bytes(damaged)
        assert f"{path} is not a whole checkpoint" in refused(capsys, *command)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_weights_that_are_not_finite_are_not_used(checkpoints, capsys, which):
    path, command = list(uses(checkpoints).items())[which]
    whole = path.read_bytes()
    content = torch.load(path, weights_only=True)
    name = "branches.0.0.weight" if which == 0 else "hash_network.hash_layer.weight"
    content["model"][name].view(-1)[3] = float("nan")
    save_checkpoint(path, content)
    try:
        if which == 2:  # a run does not save such weights; the first loss would tell
            assert "the loss is not finite in epoch 3, batch 1 of 3" in refused(capsys, *command, "--max_epoch", 3)
        else:
            assert f"{path} holds weights that are not finite" in refused(capsys, *command)
    finally:
        path.write_bytes(whole)


def test_cached_files_that_are_damaged_are_named(trained, tmp_path, capsys):
    flags = [*stage1_flags(trained[0]), "--cache_dir", tmp_path / "cache"]
    assert call(capsys, "myautoencoder/autoencoder.py", *flags, "--output_dir", tmp_path / "ae")[0] == 0
    for kind in ("features", "images"):
        for path in sorted((tmp_path / "cache" / kind).glob("*.npy")):
            whole = path.read_bytes()
            if kind == "images":  # needed again where the features are not there
                for other in (tmp_path / "cache" / "features").glob("*.npy"):
                    other.unlink()
            fewer = io.BytesIO()
            np.save(fewer, np.load(io.BytesIO(whole))[:-1])
            for raw in (whole[:-1], b"", whole[:20], fewer.getvalue()):
                path.write_bytes(raw)
                line = refused(capsys, "myautoencoder/autoencoder.py", *flags, "--overwrite", "--output_dir",
                               tmp_path / "ae")
                assert f"{path} is damaged" in line and "remove it" in line
            path.write_bytes(whole)
    assert call(capsys, "myautoencoder/autoencoder.py", *flags, "--overwrite", "--output_dir", tmp_path / "ae")[0] == 0


def test_a_damaged_config_of_a_table_is_one_sentence(tmp_path):
    from benchmarks import cells
    for raw in (b"", b"[]", b"\xff\xfe", b'{"a": 1', json.dumps(["x"]).encode()):
        (tmp_path / "config.json").write_bytes(raw)
        with pytest.raises(InputError, match=r"config.json is damaged \(.*\): remove its folder"):
            cells.check_settings(tmp_path, {"seed": 1})
