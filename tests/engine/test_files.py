"""Files are whole or not there, locks are held by one, and places are tried before the work."""

import errno
import os

import pytest

from engine.files import atomic_file, check_writable, lock, sentence_of, write_json
from helpers import call, stage1_flags, stage2_flags
from utils import InputError


def test_a_file_appears_whole_and_with_the_mode_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "new" / "file") as file:
            file.write(b"1234")
            assert not (tmp_path / "new" / "file").exists()
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file").read_bytes() == b"1234"
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_link_stays_a_link_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("old")
    for name, target in (("link", "disk/file"), ("dangling", "disk/new")):
        (tmp_path / name).symlink_to(target)
        with atomic_file(tmp_path / name) as file:
            file.write(b"new")
        assert os.readlink(tmp_path / name) == target
        assert (tmp_path / target).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "disk")) == ["file", "new"]


@pytest.mark.parametrize("when", ["body", "fsync", "replace"])
def test_what_goes_wrong_while_a_file_is_written_leaves_the_old_one(tmp_path, monkeypatch, when):
    (tmp_path / "file").write_text("old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    if when != "body":
        monkeypatch.setattr(os, when, fail)
    with pytest.raises(InputError) as caught, atomic_file(tmp_path / "file") as file:
        file.write(b"new")
        if when == "body":
            fail()
    assert str(caught.value) == (
        f"{tmp_path / 'file'} could not be written: no space left on device (free some space); "
        "what was saved before is whole")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_an_error_that_is_not_the_systems_leaves_the_old_file_too(tmp_path):
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["file"]


def test_what_the_system_says_becomes_a_sentence_with_advice():
    full = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    assert sentence_of(full) == "/a/b: no space left on device (free some space)"
    assert sentence_of(OSError("odd\nthing")) == "odd thing"


def test_a_lock_is_held_by_one_and_names_its_process(tmp_path):
    path = tmp_path / ".lock"
    named = rf"taken \(process {os.getpid()} on "
    with lock(path, "taken"), pytest.raises(InputError, match=named), lock(path, "taken"):
        pass
    with lock(path, "taken"):  # let go of
        pass


@pytest.mark.parametrize(("code", "raises"), [(errno.ENOLCK, False), (errno.EACCES, True)])
def test_file_systems_without_locks_are_warned_of(tmp_path, monkeypatch, capsys, code, raises):
    def refuse(self, **_):
        raise OSError(code, "no")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    if raises:
        with pytest.raises(OSError, match="no"), lock(tmp_path / ".lock", "taken"):
            pass
    else:
        with lock(tmp_path / ".lock", "taken"):
            pass
        assert f"{tmp_path} lies on a file system without locks" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_with_its_flag(tmp_path):
    check_writable(tmp_path / "a" / "b", "--flag")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--flag .*file is a file, expected a folder"):
        check_writable(tmp_path / "file", "--flag")
    with pytest.raises(InputError, match="--flag /proc/none cannot be written"):
        check_writable(tmp_path.joinpath("/proc/none"), "--flag")


@pytest.mark.parametrize(("name", "flag"), [
    ("myautoencoder/autoencoder.py", "--output_dir"), ("train.py", "--output_dir"),
    ("test.py", "--output_dir"), ("test.py", "--save_codes"), ("test.py", "--figures"),
    ("test.py", "--picture")])
def test_a_place_that_cannot_be_written_is_said_before_the_work(trained, tmp_path, capsys,
                                                                monkeypatch, name, flag):
    ours = trained[0]
    flags = {"myautoencoder/autoencoder.py": stage1_flags(ours),
             "train.py": stage2_flags(ours / "ae" / "autoencoder.pth"),
             "test.py": ["--pretrain_path", ours / "mr" / "mrhash.pth", "--cache_dir", "none"]}
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("datasets.store.ImageStore.open",
                        lambda *_, **__: pytest.fail("images were read first"))
    for place, reason in ((tmp_path / "file" / "below", str(tmp_path / "file")),
                          ("/proc/none/below", "/proc/none")):
        code, _, error = call(capsys, name, *flags[name], flag, place)
        assert code == 2 and flag in error and reason in error, error
        assert len(error.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "in the way"
