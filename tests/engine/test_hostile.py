"""Files made to harm: nothing in them runs, fills the memory or leads elsewhere.

Checkpoints have a file of their own, test_checkpoint.py, and so have feature pickles,
myautoencoder/test_feature_files.py.
"""

import ast
import io
import os
import shutil
import signal
import struct
import tracemalloc
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import rasterio
from PIL import Image

import hamming.files
from datasets import store as image_store
from datasets.eurosat import decode_swir
from helpers import ROOT, call
from hostile_helpers import Trap, one_sentence, pictures, read_all, small_mat, small_png
from myautoencoder.feature_files import read_features

# ------------------------------------------------------------ nothing runs

ROOMS = ["", "benchmarks", "datasets", "engine", "hamming", "myautoencoder", "scripts"]
DANGEROUS = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.load",
             "marshal.loads", "torch.jit.load", "torch.hub.load", "yaml.load", "shelve.open",
             "joblib.load", "unpack_archive", "shutil.unpack_archive"}


def test_no_code_of_ours_opens_a_file_in_a_way_that_could_run_it():
    """Calls that could run what a file or a user says, in every script and module."""
    seen = 0
    for path in (path for room in ROOMS for path in (ROOT / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, place = ast.unparse(node.func), (path.name, node.lineno)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in DANGEROUS and not name.endswith(".extractall"), place
            assert options.get("shell", "False") == "False", place
            assert options.get("allow_pickle", "False") == "False", place
            if name == "torch.load":
                assert options["weights_only"] == "True", place
                seen += 1
    assert seen == 1  # one place reads checkpoints and weights


def test_objects_in_a_file_of_codes_are_not_unpickled(trained, tmp_path, capsys):
    content = dict(np.load(trained[0] / "codes.npz"))
    content["query_labels"] = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "codes.npz", **content)
    (tmp_path / "folder").mkdir()
    for name, array in content.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for path in (tmp_path / "codes.npz", tmp_path / "folder"):
        (tmp_path / "sprung").unlink(missing_ok=True)  # by np.savez' own checks, if at all
        code, _, error = call(capsys, "test.py", "--codes", path, "--output_dir", tmp_path / "out")
        assert code == 2 and len(error.splitlines()) == 1 and "is not a whole .np" in error
        assert not (tmp_path / "sprung").exists()


def test_a_postscript_file_that_is_called_an_image_is_given_to_no_interpreter(tmp_path,
                                                                              monkeypatch):
    pictures(tmp_path / "one")
    (tmp_path / "one" / "sea" / "03.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with one_sentence("1 of 24 images", "03.png", "no image of a known kind"):
        read_all(source1=tmp_path / "one")


# ------------------------------------------------------------ nothing leads elsewhere


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_tif_that_points_to_other_files_is_not_followed(tmp_path):
    pictures(tmp_path / "EuroSAT", classes=("Forest", "River"), kind="jpg")
    secret = tmp_path / "secret.tif"
    with rasterio.open(secret, "w", driver="GTiff", width=16, height=16, count=13,
                       dtype="uint16") as file:
        file.write(np.full((13, 16, 16), 9, np.uint16))
    source = f"<SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand>"
    band = ('<VRTRasterBand dataType="UInt16" band="{}"><SimpleSource>' + source
            + "</SimpleSource></VRTRasterBand>")
    bands = "".join(band.format(number) for number in range(1, 14))
    pointer = f'<VRTDataset rasterXSize="16" rasterYSize="16">{bands}</VRTDataset>'
    for path in (tmp_path / "EuroSAT").rglob("*.jpg"):
        name = path.relative_to(tmp_path / "EuroSAT").with_suffix(".tif")
        place = tmp_path / "EuroSAT_MS" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(secret, place)
    place.write_text(pointer)
    with rasterio.open(place) as file:  # without care it is followed
        assert file.read(1).max() == 9
    with one_sentence("1 of 24 images", place.name):
        read_all("EuroSAT", data_dir=tmp_path, source2="swir")


@pytest.mark.parametrize("how", ["external link", "soft link", "external bytes", "virtual"])
@pytest.mark.parametrize("key", ["MUL_IMAGES", "LAND_COVER_TYPES"])
def test_an_hdf5_array_that_lies_in_another_file_is_not_followed(tmp_path, how, key):
    mat = small_mat(tmp_path / "DSRSID.mat")
    secret = tmp_path / "secret.mat"
    shutil.copy(mat, secret)
    with h5py.File(mat, "a") as file:
        data = file[key][()]
        del file[key]
        if how == "external link":
            file[key] = h5py.ExternalLink(str(secret), key)
        elif how == "soft link":
            file["elsewhere"] = h5py.ExternalLink(str(secret), key)
            file[key] = h5py.SoftLink("/elsewhere")
        elif how == "external bytes":
            (tmp_path / "secret.bin").write_bytes(data.tobytes())
            place = [(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(key, data.shape, data.dtype, external=place)
        else:
            layout = h5py.VirtualLayout(data.shape, data.dtype)
            layout[...] = h5py.VirtualSource(str(secret), key, data.shape)
            file.create_virtual_dataset(key, layout)
    with h5py.File(mat) as file:
        assert np.array_equal(file[key][()], data)
    with one_sentence(str(mat), key, "another file"):
        read_all("DSRSID", data_dir=tmp_path)


def test_links_of_a_mat_are_not_followed_to_see_where_they_lead(tmp_path):
    """A pipe at the other end: who opens it waits for ever."""
    mat = small_mat(tmp_path / "DSRSID.mat")
    os.mkfifo(tmp_path / "pipe")

    def late(*_):
        raise TimeoutError("the link was followed")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        for key in ("MUL_IMAGES", "LAND_COVER_TYPES"):
            shutil.copy(mat, tmp_path / "whole.mat")
            with h5py.File(mat, "a") as file:
                del file[key]
                file[key] = h5py.ExternalLink(str(tmp_path / "pipe"), key)
            with one_sentence(key, "another file"):
                read_all("DSRSID", data_dir=tmp_path)
            shutil.move(tmp_path / "whole.mat", mat)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_members_of_a_zip_cannot_leave_it(tmp_path):
    pictures(tmp_path / "scenes")
    names = ["../../outside/a.png", "/absolute/b.png", "sea/../../../c.png", "C:\\windows\\d.png",
             "sea/e.png"]
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "one.zip", "w") as archive:
        for path in (tmp_path / "scenes").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "scenes"))
        for name in names:
            archive.writestr(name, small_png())
    shutil.rmtree(tmp_path / "scenes")
    before = sorted(tmp_path.rglob("*"))
    with one_sentence():
        read_all(source1=tmp_path / "in" / "one.zip")
    assert sorted(tmp_path.rglob("*")) == before


def test_pipes_among_the_files_of_codes_are_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "database_codes.npy")
    code, _, error = call(capsys, "test.py", "--codes", tmp_path)
    assert code == 2 and "has no database_codes" in error


# ------------------------------------------------------------ nothing bursts


def bomb(claimed, packed):
    """A zip in which one of 24 images claims `claimed` bytes, unpacks from `packed`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(23):
            archive.writestr(f"{'field' if number % 2 else 'sea'}/{number}.png", small_png())
        archive.writestr("sea/bomb.png", packed)
    raw = buffer.getvalue()
    # The size stands in the directory and before the member.
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = raw.rindex(mark) + offset
        raw = raw[:place] + claimed.to_bytes(4, "little") + raw[place + 4:]
    return raw


def test_zip_bombs_are_refused(tmp_path):
    zeros = b"\0" * (1 << 26)
    for claimed, part in (((1 << 32) - 2, "more than any image needs"),
                          (len(small_png()), "bomb.png")):
        (tmp_path / "one.zip").write_bytes(bomb(claimed, zeros))
        tracemalloc.start()
        with one_sentence("1 of 24 images", "bomb.png", part):
            read_all(source1=tmp_path / "one.zip")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24, "it was unpacked"
        tracemalloc.stop()


def png_of(width, height):
    """A PNG that claims a size, and holds four pixels."""
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 14)) + chunk(b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height", "part"), [
    (65_000, 65_000, "4225000000"), (10_000, 10_000, "more than 64,000,000"),
    (10_000, 100, "too elongated"), (1, 60_000, "too elongated"), (2**31 - 1, 2**31 - 1, "")])
def test_images_that_claim_too_much_are_named_before_memory_is_taken(tmp_path, width, height, part):
    pictures(tmp_path / "one")
    (tmp_path / "one" / "sea" / "03.png").write_bytes(png_of(width, height))
    with one_sentence("1 of 24 images", "03.png", part):
        read_all(source1=tmp_path / "one")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_geotiff_and_an_hdf5_that_claim_too_much_are_named(tmp_path):
    huge = tmp_path / "huge.tif"
    with rasterio.open(huge, "w", driver="GTiff", width=60_000, height=60_000, count=13,
                       dtype="uint16", sparse_ok=True, tiled=True, BIGTIFF="YES"):
        pass
    with pytest.raises(ValueError, match="60,000 x 60,000 pixels, more than"):
        decode_swir(huge.read_bytes())
    mat = small_mat(tmp_path / "DSRSID.mat")
    with h5py.File(mat, "a") as file:
        del file["PAN_IMAGES"]
        file.create_dataset("PAN_IMAGES", (24, 1, 90_000, 90_000), np.uint8, chunks=(1, 1, 64, 64))
    with one_sentence("PAN_IMAGES", "90,000 x 90,000"):
        read_all("DSRSID", data_dir=tmp_path)
    with h5py.File(mat, "a") as file:
        del file["PAN_IMAGES"], file["LAND_COVER_TYPES"]
        file.create_dataset("LAND_COVER_TYPES", (1, 1 << 40), np.uint8, chunks=(1, 1 << 20))
    with one_sentence("LAND_COVER_TYPES", "1,099,511,627,776"):
        read_all("DSRSID", data_dir=tmp_path, source2="none")


def test_chunks_that_unpack_to_gigabytes_are_refused(tmp_path):
    mat = small_mat(tmp_path / "DSRSID.mat")
    with h5py.File(mat, "a") as file:
        del file["MUL_IMAGES"]
        file.create_dataset("MUL_IMAGES", (24, 4, 8, 8), np.uint8, chunks=(900_000, 4, 32, 32),
                            maxshape=(None,) * 4, compression="gzip")
    with one_sentence("MUL_IMAGES", "3,686,400,000 bytes"):
        read_all("DSRSID", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["codes", "features"])
def test_arrays_that_unpack_a_thousandfold_are_refused(tmp_path, trained, capsys, name,
                                                       monkeypatch):
    path = tmp_path / f"{name}.npz"
    if name == "codes":
        content, victim = dict(np.load(trained[0] / "codes.npz")), "database_labels"
    else:
        content, victim = {"data": np.ones((9, 2)), "labels": 0}, "data"
    content[victim] = np.zeros(3 << 20, np.uint8)
    np.savez_compressed(path, **content)
    monkeypatch.setattr(hamming.files, "LARGE", 1 << 20)  # a small machine
    if name == "codes":
        code, _, error = call(capsys, "test.py", "--codes", path)
        assert code == 2 and len(error.splitlines()) == 1
        assert "database_labels.npy unpacks from" in error
    else:
        with one_sentence("features.npz", "data.npy unpacks from"):
            read_features(path)


@pytest.mark.parametrize(("shapes", "fits"), [
    ([(16, 512), (512, 16)], False), ([(16, 512)] * 24, True), ([(16, 48), (48, 16)], True)])
def test_images_of_very_different_shapes_do_not_blow_up_the_store(tmp_path, monkeypatch, shapes,
                                                                  fits):
    monkeypatch.setattr(image_store, "ROOM", 1 << 20)  # a small machine
    pictures(tmp_path / "one")
    for number, (height, width) in enumerate(shapes):
        path = tmp_path / "one" / ("sea", "field")[number % 2] / f"{number // 2:02d}.png"
        Image.new("RGB", (width, height)).save(path)
    said = () if fits else ("differ so much in shape", "cut such images into scenes")
    with one_sentence(*said):
        read_all(source1=tmp_path / "one")
