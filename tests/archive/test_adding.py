"""What becomes of images that are added: new, known, of a name that is taken, unreadable, dark."""

import io
import shutil
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

from archive import Archive, HashModel, ImagesOf, add_images
from archive.adding import Report, check_all_added
from helpers import run_script
from search_helpers import COMPUTE, CPU, add_to, names_in, picture, pictures, png, search, state_of
from utils import InputError, warn_once


@pytest.fixture
def archive(searched, tmp_path):
    """A copy of an archive of twelve images."""
    shutil.copytree(searched / "archive", tmp_path / "archive")
    return tmp_path / "archive"


def files(folder, **content):
    """Write bytes to folder/NAME.png, "__" stands for a slash."""
    for name, data in content.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


# ------------------------------------------------------------ known images


def test_the_same_images_again_change_nothing(archive, searched, hash_model):
    before = (archive / "items.sqlite").read_bytes(), (archive / "codes.npy").read_bytes()
    report = add_to(archive, hash_model, searched / "images")
    assert (report.added, report.known, report.twins, report.failed) == (0, 12, [], [])
    assert "added 0 images" in report.lines() and "there already: 12" in report.lines()
    assert ((archive / "items.sqlite").read_bytes(), (archive / "codes.npy").read_bytes()) == before


def test_the_same_pixels_under_another_name_are_noticed_and_named(archive, hash_model, tmp_path):
    again = Image.open(io.BytesIO(png(4)))  # sea/004, in another format
    again.save(tmp_path / "copy.bmp")
    report = add_to(archive, hash_model, tmp_path / "copy.bmp")
    assert (report.added, report.known, report.twins) == (0, 1, ["copy is sea/004"])
    assert "of which 1 under another name (copy is sea/004)" in report.lines()
    assert len(names_in(archive)) == 12


@pytest.mark.parametrize("between", [0, 9])  # in one batch, and in two (of 8)
def test_an_image_that_comes_twice_is_added_once(tmp_path, hash_model, between):
    images = files(tmp_path / "images", a=png(50), z=png(50),
                   **{f"m{number}": png(60 + number) for number in range(between)})
    report = add_to(tmp_path / "archive", hash_model, images)
    assert (report.added, report.known, report.twins) == (1 + between, 1, ["z is a"])


def test_the_same_pixels_elsewhere_on_earth_are_another_image(tmp_path, hash_model):
    import rasterio

    pixels = np.asarray(picture(1)).transpose(2, 0, 1)
    for name, east in (("a", 5e5), ("b", 6e5)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", count=3, height=24,
                           width=32, dtype="uint8", crs="EPSG:32632",
                           transform=rasterio.Affine(10, 0, east, 0, -10, 5e6)) as file:
            file.write(pixels)
    report = add_to(tmp_path / "archive", hash_model, tmp_path / "a.tif", tmp_path / "b.tif")
    assert (report.added, report.known) == (2, 0)


# ------------------------------------------------------------ names


def test_another_image_of_a_name_that_is_taken_is_not_added_and_named(
        archive, hash_model, tmp_path):
    before = state_of(archive)
    images = files(tmp_path / "images", sea__001=png(50), sea__new=png(51), town__x=png(52))
    report = add_to(archive, hash_model, images)
    line, = report.failed
    assert line == (f"sea/001 of {images} (the archive has another image of this name, "
                    "or this one read otherwise)")
    after = state_of(archive)
    assert {"sea/new", "town/x"} == after.keys() - before.keys()
    assert all(after[name] == before[name] for name in before)


def test_two_places_with_one_name_in_one_batch(tmp_path, hash_model):
    one, two = (files(tmp_path / name, a=png(seed)) for name, seed in (("one", 1), ("two", 2)))
    report = add_to(tmp_path / "archive", hash_model, one / "a.png", two / "a.png")
    assert report.added == 1 and len(report.failed) == 1 and str(two) in report.failed[0]


def test_an_image_whose_namesake_was_refused_may_have_another_name(archive, hash_model, tmp_path):
    """Of two equal images the first has a name that is taken: the second one is added."""
    images = files(tmp_path / "images", sea__001=png(50), town__z=png(50))
    report = add_to(archive, hash_model, images)
    assert (report.added, len(report.failed)) == (1, 1) and "town/z" in names_in(archive).values()


# ------------------------------------------------------------ images of all kinds


def test_images_of_all_sizes_and_channels_stand_in_one_batch(tmp_path, hash_model):
    images = tmp_path / "images"
    images.mkdir()
    picture(1, 64, 16).save(images / "tall.png")
    picture(2, 9, 50).save(images / "wide.png")
    picture(3, channels=1).save(images / "grey.png")
    picture(4, channels=4).save(images / "alpha.png")
    picture(5).convert("P").save(images / "palette.png")
    picture(6).save(images / "lossy.jpg")
    report = add_to(tmp_path / "all", hash_model, images)
    assert (report.added, report.failed) == (6, [])
    together = state_of(tmp_path / "all")
    for path in images.iterdir():
        folder = tmp_path / path.stem
        add_to(folder, hash_model, path)
        _, item, code, _ = state_of(folder)[path.stem]
        assert code == together[path.stem][2]
        assert (item.width, item.height) == Image.open(path).size


def test_unreadable_images_are_named_and_all_others_added(archive, capsys, tmp_path):
    images = files(tmp_path / "images", sea__20=png(20), sea__21=png(21)[:200], sea__22=b"",
                   town__23=b"<html>", town__24=png(24))
    code, out, error = search(capsys, "add", "--archive", archive, "--images", images, *CPU)
    assert code == 2 and "added 2 images" in out and "has 14" in out
    assert error.count("\n") == 1 and error.startswith("error: 3 of 5 images are not added: ")
    for name in ("sea/21.png", "sea/22.png", "town/23.png"):
        assert f"{images}: {name} (" in error
    assert "all others are in the archive" in error
    assert {"sea/20", "town/24"} < set(names_in(archive).values())


def test_of_many_images_that_are_not_added_twenty_are_named():
    report = Report(failed=[f"bad {number}" for number in range(1234)])
    with pytest.raises(InputError) as caught:
        check_all_added(report, 2000)
    assert "1,234 of 2,000 images" in str(caught.value)
    assert str(caught.value).count("bad") == 5 and "and 1,229 more" in str(caught.value)
    check_all_added(Report(added=3), 3)


def test_a_zip_whose_members_are_damaged(tmp_path, hash_model):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for number in range(3):
            file.writestr(f"sea/{number}.png", png(number))
    raw = bytearray((tmp_path / "images.zip").read_bytes())
    raw[raw.index(b"IDAT") + 40] ^= 255
    (tmp_path / "images.zip").write_bytes(raw)
    report = add_to(tmp_path / "archive", hash_model, tmp_path / "images.zip")
    assert report.added == 2 and len(report.failed) == 1 and "0.png" in report.failed[0]


@pytest.mark.parametrize(("level", "found", "advice"), [
    (3, "brighter than", "by --range 2%,98%"), (250, "darker than", "search.py remove")])
def test_a_warning_where_half_of_the_images_are_black_or_white(
        tmp_path, hash_model, capsys, level, found, advice):
    warn_once.cache_clear()
    for number in range(3):
        pixels = np.full((16, 16, 3), level, np.uint8)
        pixels[0, 0] = number
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    add_to(tmp_path / "archive", hash_model, tmp_path / "images")
    warning = capsys.readouterr().err
    assert warning.count("warning:") == 1 and found in warning and advice in warning
    assert "--range1" not in warning and "--exclude" not in warning


def test_images_that_are_neither_dark_nor_bright_bring_no_warning(tmp_path, hash_model, capsys):
    add_to(tmp_path / "archive", hash_model, pictures(tmp_path / "images", 3))
    assert capsys.readouterr().err == ""


def test_an_output_that_is_not_finite_ends_the_add(archive, hash_model, tmp_path):
    model = HashModel(hash_model, COMPUTE)
    model.network.hash_layer.bias.data[0] = np.nan
    before = state_of(archive)
    images = ImagesOf(files(tmp_path / "images", a=png(50)), model.reading)
    with (Archive(archive) as opened, opened.writing(),
          pytest.raises(InputError, match="gives outputs that are not finite")):
        add_images(opened, model, [images])
    assert state_of(archive) == before


# ------------------------------------------------------------ several ranks


def command(folder, images, model):
    return ["search.py", "add", "--archive", folder / "archive", "--images", images,
            "--pretrain_path", model, "--keep_outputs", "--batch_size", 4, *CPU]


@pytest.fixture
def odd(tmp_path):
    """22 images in batches of 4, of which some are there twice, unreadable or of one name."""
    images = pictures(tmp_path / "images", 20)
    files(images, sea__bad=b"", town__twin=png(3))
    return images


def test_two_ranks_make_the_archive_that_one_process_makes(odd, tmp_path, hash_model, zygote):
    (tmp_path / "one").mkdir()
    code, text = zygote.run(tmp_path / "out.txt", *command(tmp_path / "one", odd, hash_model))
    assert code == 2 and "added 20 images" in text and "1 of 22 images are not added" in text
    codes, outputs = zygote.run_ranks(tmp_path / "two", 2, *command(tmp_path / "two", odd,
                                                                    hash_model))
    assert codes[0] == 2 and "added 20 images" in outputs[0] and "town/twin is " in outputs[0]
    assert "1 of 22 images are not added" in outputs[0] and "Traceback" not in "".join(outputs)
    assert state_of(tmp_path / "two" / "archive") == state_of(tmp_path / "one" / "archive")
    for name in ("codes.npy", "outputs.npy", "model.pth"):
        one, two = (tmp_path / ranks / "archive" / name for ranks in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_two_ranks_of_which_the_first_is_killed_go_on(tmp_path, hash_model, zygote):
    images = pictures(tmp_path / "images", 20)
    killed = """
import itertools, os, signal
from archive.items import Items
before, calls = Items.append, itertools.count(1)
def append(self, *rest):
    if next(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    before(self, *rest)
Items.append = append
"""
    codes, outputs = zygote.run_ranks(tmp_path / "two", 2, *command(tmp_path, images, hash_model),
                                      prepare=killed)
    assert codes == [-signal.SIGKILL, 2] and "another rank ended" in outputs[1]
    assert len(names_in(tmp_path / "archive")) == 8
    codes, outputs = zygote.run_ranks(tmp_path / "two", 2, *command(tmp_path, images, hash_model))
    assert codes == [0, 0] and "added 12 images" in outputs[0] and "already: 8" in outputs[0]
    add_to(tmp_path / "whole", hash_model, images, keep_outputs=True)
    assert state_of(tmp_path / "archive") == state_of(tmp_path / "whole")


def test_only_add_shares_its_work(searched, tmp_path, zygote):
    codes, outputs = zygote.run_ranks(tmp_path, 2, "search.py", "find", "--archive",
                                      searched / "archive", "--name", "sea/001")
    assert codes == [2, 2] and "only add shares its work" in outputs[0]


@pytest.mark.slow
def test_torchrun_starts_the_ranks(tmp_path, hash_model):
    images = pictures(tmp_path / "images", 20)
    done = run_script("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
                      *command(tmp_path, images, hash_model))
    assert done.returncode == 0 and "added 20 images" in done.stdout, done.stderr
    add_to(tmp_path / "whole", hash_model, images, keep_outputs=True)
    assert state_of(tmp_path / "archive") == state_of(tmp_path / "whole")
