"""Keys follow content: checksums of whole files, what is remembered of them, and what is not."""

import json
import os
import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from datasets import checksums
from datasets.checksums import NO_CHECKSUM
from datasets.containers import Folder, Zip
from datasets.sources import ImageFiles
from hostile_helpers import small_mat
from image_helpers import SCENES, load, noise, scenes, tree

NAMES = [f"{name}.png" for name in SCENES]


@pytest.fixture(autouse=True)
def reads(monkeypatch):
    """Files count as settled at once; the names of those that are read."""
    monkeypatch.setattr(checksums, "SETTLED", -1e6)
    names, checksum = [], checksums._checksum

    def counting(path, bar):
        names.append(path.name)
        return checksum(path, bar)

    monkeypatch.setattr(checksums, "_checksum", counting)
    return names


@pytest.fixture
def one(tmp_path):
    return tree(tmp_path / "one", scenes(".png", kind="PNG"))


def summed(folder, cache_dir, names=NAMES):
    return Folder(folder).checksums(names, cache_dir).tolist()


def replaced(path, data):
    """Other content of the same size under the same name and date."""
    status = path.stat()
    assert len(data) == status.st_size and data != path.read_bytes()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def turned(data):
    return data[:-1] + bytes([data[-1] ^ 1])


# ------------------------------------------------------------ what they are


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_checksums_are_those_of_the_whole_content(one, monkeypatch, chunk):
    monkeypatch.setattr(checksums, "CHUNK", chunk)
    monkeypatch.setattr(checksums, "TOGETHER", 5)
    expected = [zlib.crc32((one / name).read_bytes()) for name in NAMES]
    assert summed(one, None) == expected
    assert summed(one, None, NAMES[::-1]) == expected[::-1]


def test_a_folder_and_a_zip_of_it_have_the_same_stamp(tmp_path, one):
    tree(tmp_path / "one.zip", scenes(".png", "deep/", kind="PNG"))
    folder = ImageFiles(Folder(one), NAMES)
    packed = ImageFiles(Zip(tmp_path / "one.zip"), [f"deep/{name}" for name in NAMES])
    assert np.array_equal(folder.checksums(None), packed.checksums(None))
    assert folder.stamp(tmp_path / "cache") == packed.stamp(None)
    other = ImageFiles(Folder(one), NAMES[::-1])
    assert other.stamp(None) != folder.stamp(None)


def test_a_file_that_cannot_be_read_has_none_and_that_is_not_remembered(tmp_path, one, reads):
    folder = Folder(one)
    (one / NAMES[3]).unlink()
    found = folder.checksums(NAMES, tmp_path / "cache").tolist()
    assert [row for row, value in enumerate(found) if value == NO_CHECKSUM] == [3]
    tree(one, {NAMES[3]: b"back"})
    assert summed(one, tmp_path / "cache")[3] == zlib.crc32(b"back")


# ------------------------------------------------------------ what is remembered


def test_files_that_stay_the_same_are_read_once(tmp_path, one, reads):
    first = summed(one, tmp_path / "cache")
    assert len(reads) == len(NAMES)
    assert summed(one, tmp_path / "cache") == first and len(reads) == len(NAMES)
    shutil.copy(one / NAMES[0], one / "new.png")
    assert summed(one, tmp_path / "cache", [*NAMES, "new.png"]) == [*first, first[0]]
    assert reads[len(NAMES):] == ["new.png"]
    assert summed(one, None) == first and len(reads) == 2 * len(NAMES) + 1


def test_a_part_of_a_folder_adds_to_what_is_remembered(tmp_path, one, reads):
    cache = tmp_path / "cache"
    parts = summed(one, cache, NAMES[:3]) + summed(one, cache, NAMES[3:])
    count = len(reads)
    assert summed(one, cache) == parts and len(reads) == count


def test_a_folder_is_known_by_its_place_whatever_it_is_called(tmp_path, one, reads):
    (tmp_path / "link").symlink_to(one)
    first = summed(one, tmp_path / "cache")
    count = len(reads)
    assert summed(tmp_path / "link", tmp_path / "cache") == first and len(reads) == count


@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_other_content_of_the_same_size_and_date_is_noticed(tmp_path, one, how):
    before = summed(one, tmp_path / "cache")
    path = one / NAMES[4]
    target = path if how == "in place" else one / "aside"
    if how == "renamed":
        shutil.copy2(path, target)
    replaced(target, turned(path.read_bytes()))
    target.rename(path)
    after = summed(one, tmp_path / "cache")
    assert [row for row in range(len(NAMES)) if before[row] != after[row]] == [4]
    assert after[4] == zlib.crc32(path.read_bytes())


@pytest.mark.parametrize("field", range(4))
def test_size_times_and_inode_each_tell_a_file_from_another(tmp_path, one, reads, field):
    status = checksums.status_of((one / NAMES[0]).stat())
    assert len(set(status)) >= 3  # size, times and inode are there
    for found in (status, status, tuple(value + (place == field)
                                        for place, value in enumerate(status))):
        checksums.file_checksums(one, {NAMES[0]: found}, tmp_path / "cache")
    assert len(reads) == 2


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, one, reads, monkeypatch):
    """It may change again within one tick of the clock of its file system."""
    monkeypatch.setattr(checksums, "SETTLED", 60.0)
    first = summed(one, tmp_path / "cache")
    assert summed(one, tmp_path / "cache") == first and len(reads) == 2 * len(NAMES)


def test_names_that_are_no_text_are_remembered(tmp_path, one, reads):
    name = os.fsdecode(b"\xe9.png")
    shutil.copy(one / NAMES[0], one / name)
    for _ in range(2):
        assert summed(one, tmp_path / "cache", [name]) == summed(one, None, NAMES[:1])
    assert reads.count(name) == 1


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"{}", b'{"files": []}', b"\xff", b"[" * 100_000,
    *(json.dumps({"files": dict.fromkeys(NAMES, entry)}).encode()
      for entry in (None, 5, [], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], "abcde"))])
def test_a_broken_memory_is_made_again(tmp_path, one, reads, content):
    first = summed(one, tmp_path / "cache")
    memory, = (tmp_path / "cache" / "checksums").glob("*.json")
    memory.write_bytes(content)
    assert summed(one, tmp_path / "cache") == first and len(reads) == 2 * len(NAMES)
    assert summed(one, tmp_path / "cache") == first and len(reads) == 2 * len(NAMES)


def test_a_memory_with_impossible_checksums_is_not_believed(tmp_path, one):
    first = summed(one, tmp_path / "cache")
    memory, = (tmp_path / "cache" / "checksums").glob("*.json")
    for odd in (-1, 1 << 32, 0.5, None, True, "1"):
        content = json.loads(memory.read_text())
        for entry in content["files"].values():
            entry[4] = odd
        memory.write_text(json.dumps(content))
        assert summed(one, tmp_path / "cache") == first


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, one, capsys):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "checksums").write_text("a file where a folder belongs")
    assert summed(one, tmp_path / "cache") == summed(one, None)
    error = capsys.readouterr().err
    assert "are read again by the next run" in error and "--cache_dir" in error
    assert len(error.splitlines()) == 1


# ------------------------------------------------------------ the issue's own cases


def tiffs(folder, value):
    """Uncompressed TIFFs of equal size, as unpacked from a tar whose times are 0."""
    for label in "ab":
        for number in range(3):
            path = folder / label / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(f"{value}{label}{number}", 8, 8, 3)).save(path)
            os.utime(path, (0, 0))
    return folder


def test_two_folders_of_one_name_with_files_of_equal_size_and_time_have_other_stamps(tmp_path):
    stamps = []
    for place in ("x1", "x2"):
        tiffs(tmp_path / place / "scenes", place)
        dataset = load(tmp_path, data_name="folder", source1=str(tmp_path / place / "scenes"))
        stamps.append(dataset.source1.stamp(tmp_path / "cache"))
    sizes = {path.stat().st_size for path in tmp_path.rglob("*.tif")}
    assert len(sizes) == 1 and stamps[0] != stamps[1]
    both = load(tmp_path, data_name="pairs", source1=str(tmp_path / "x1" / "scenes"),
                source2=str(tmp_path / "x2" / "scenes"))
    assert [source.stamp(tmp_path / "cache") for source in both.sources] == stamps
    assert both.file_label(0) == "pairs-scenes" and both.file_label(1) == "pairs-scenes-2"


def test_a_mat_of_equal_size_and_time_with_other_pixels_has_another_stamp(tmp_path, reads):
    mat = small_mat(tmp_path / "DSRSID.mat")

    def stamps():
        dataset = load(tmp_path, data_name="DSRSID")
        return [source.stamp(tmp_path / "cache") for source in dataset.sources]

    before, status = stamps(), mat.stat()
    assert stamps() == before and reads == ["DSRSID.mat"]
    with h5py.File(mat, "a") as file:
        file["PAN_IMAGES"][5, 0, 0, 0] ^= 1
    os.utime(mat, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Path(mat).stat().st_size == status.st_size
    after = stamps()
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert len({*before, *after}) == 4
