"""Files made to harm and files damaged by chance: nothing in them runs or fills the memory, and each is one sentence.

Feature pickles have a file of their own, test_feature_files.py.
"""

import ast
import copy
import io
import json
import os
import pickle
import shutil
import signal
import zipfile
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_loader import DataConfig, load_dataset
from datasets import sources as image_sources
from datasets import store as image_store
from datasets.store import ImageStore
from engine import checkpoint as checkpoints
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.files import at_end
from engine.run import Run, read_log
from hamming import CodeError
from helpers import ROOT, SMALL, call, stage2_flags
from network import MultisourceAutoencoder, rebuild_autoencoder, rebuild_hash_network
from utils import InputError

# MRHASH_FUZZ=1000 tries so many of each kind, others every time.
FUZZ = settings(max_examples=int(os.environ.get("MRHASH_FUZZ", 60)), deadline=None,
                derandomize="MRHASH_FUZZ" not in os.environ)


@contextmanager
def one_sentence(*parts):
    """The body works, or raises what utils.run makes one line of. With parts it must raise, and the line hold them."""
    try:
        yield
    except (InputError, CodeError) as error:
        assert all(part in str(error) for part in parts), error
    else:
        assert not parts, "nothing was refused"


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def pictures(folder, count=12, kind="png", classes=("field", "sea"), **options):
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.{kind}", **options)
    return folder


def read_all(data_name="pairs", **config):
    """Find a dataset and read every image of it, as the scripts do."""
    dataset = load_dataset(DataConfig(data_name, **{name: str(value) for name, value in config.items()}))
    return [ImageStore.open(source, "test", 32, None, 1) for source in dataset.sources]


def damage(data, raw, most=4):
    """Some bytes of `raw` replaced, or its end cut off, as hypothesis' `data` decides."""
    raw = bytearray(raw)
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=most)):
        raw[position] = data.draw(st.integers(0, 255))
    return bytes(raw[:data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else bytes(raw)


# ------------------------------------------------------------------------ nothing runs


def test_no_code_of_ours_opens_a_file_in_a_way_that_could_run_it():
    """Calls that could run what a file or a user says, in every script and module."""
    dangerous = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.load",
                 "marshal.loads", "torch.jit.load", "torch.hub.load", "yaml.load", "shelve.open", "joblib.load",
                 "unpack_archive", "shutil.unpack_archive"}
    seen = 0
    for path in [*ROOT.glob("*.py"), *ROOT.glob("myautoencoder/*.py"), *ROOT.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in dangerous and not name.endswith(".extractall"), (path.name, node.lineno)
            assert options.get("shell", "False") == "False", (path.name, node.lineno)
            assert options.get("allow_pickle", "False") == "False", (path.name, node.lineno)
            if name == "torch.load":
                assert options["weights_only"] == "True", (path.name, node.lineno)
                seen += 1
    assert seen == 1  # one place reads checkpoints and weights


@pytest.mark.parametrize("flag", ["--pretrained_dp_path", "--weights", "--resume", "--pretrain_path"])
@pytest.mark.parametrize("kind", ["torch", "pickle", "torch, old"])
def test_a_malicious_checkpoint_runs_nothing(trained, tmp_path, capsys, flag, kind):
    ours = trained[0]
    content = {"format": "mrhash-autoencoder-1", "model": Trap(tmp_path / "sprung")}
    trap = tmp_path / "run" / "last.pth"
    trap.parent.mkdir()
    if kind == "pickle":
        trap.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, trap, _use_new_zipfile_serialization=kind == "torch")
    command = {"--pretrained_dp_path": ["train.py", *stage2_flags(trap)],
               "--weights": ["train.py", *stage2_flags(ours / "ae" / "autoencoder.pth"), "--weights", trap],
               "--resume": ["train.py", *stage2_flags(ours / "ae" / "autoencoder.pth"), "--resume"],
               "--pretrain_path": ["test.py", "--pretrain_path", trap, *SMALL]}[flag]
    code, _, error = call(capsys, *command, "--output_dir", tmp_path / ("run" if flag == "--resume" else "other"))
    assert code == 2 and str(trap) in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "sprung").exists()
    # The trap works where it is opened without care.
    pickle.loads(trap.read_bytes()) if kind == "pickle" else torch.load(trap, weights_only=False)
    assert (tmp_path / "sprung").exists()


def test_objects_in_a_file_of_codes_are_not_unpickled(trained, tmp_path, capsys):
    content = dict(np.load(trained[0] / "codes.npz"))
    content["query_labels"] = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "codes.npz", **content)
    (tmp_path / "folder").mkdir()
    for name, array in content.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for path in (tmp_path / "codes.npz", tmp_path / "folder"):
        (tmp_path / "sprung").unlink(missing_ok=True)  # written by np.savez' own checks, if at all
        code, _, error = call(capsys, "test.py", "--codes", path, "--output_dir", tmp_path / "out")
        assert code == 2 and len(error.splitlines()) == 1 and "is not a whole .np" in error
        assert not (tmp_path / "sprung").exists()


def test_a_postscript_file_that_is_called_an_image_is_given_to_no_interpreter(tmp_path, monkeypatch):
    pictures(tmp_path / "one")
    (tmp_path / "one" / "sea" / "03.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with one_sentence("1 of 24 images", "03.png", "no image of a known kind"):
        read_all(source1=tmp_path / "one")


def test_a_tif_that_points_to_other_files_is_not_followed(tmp_path):
    pictures(tmp_path / "EuroSAT", classes=("Forest", "River"), kind="jpg")
    secret = tmp_path / "secret.tif"
    with rasterio.open(secret, "w", driver="GTiff", width=16, height=16, count=13, dtype="uint16") as file:
        file.write(np.full((13, 16, 16), 9, np.uint16))
    band = f"<SimpleSource><SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
    pointer = ('<VRTDataset rasterXSize="16" rasterYSize="16">' + "".join(
        f'<VRTRasterBand dataType="UInt16" band="{number}">{band}</VRTRasterBand>' for number in range(1, 14))
        + "</VRTDataset>").encode()
    for path in (tmp_path / "EuroSAT").rglob("*.jpg"):
        place = tmp_path / "EuroSAT_MS" / path.relative_to(tmp_path / "EuroSAT").with_suffix(".tif")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(secret, place)
    place.write_bytes(pointer)
    with rasterio.open(place) as file:  # without care it is followed
        assert file.read(1).max() == 9
    with one_sentence("1 of 24 images", place.name):
        read_all("EuroSAT", data_dir=tmp_path, source2="swir")


@pytest.mark.parametrize("how", ["external link", "soft link", "external bytes", "virtual"])
@pytest.mark.parametrize("key", ["MUL_IMAGES", "LAND_COVER_TYPES"])
def test_an_hdf5_array_that_lies_in_another_file_is_not_followed(tmp_path, how, key):
    mat = dsrsid(tmp_path / "DSRSID.mat")
    shutil.copy(mat, tmp_path / "secret.mat")
    with h5py.File(mat, "a") as file:
        data = file[key][()]
        del file[key]
        if how == "external link":
            file[key] = h5py.ExternalLink(str(tmp_path / "secret.mat"), key)
        elif how == "soft link":
            file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "secret.mat"), key)
            file[key] = h5py.SoftLink("/elsewhere")
        elif how == "external bytes":
            (tmp_path / "secret.bin").write_bytes(data.tobytes())
            file.create_dataset(key, data.shape, data.dtype,
                                external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(data.shape, data.dtype)
            layout[...] = h5py.VirtualSource(str(tmp_path / "secret.mat"), key, data.shape)
            file.create_virtual_dataset(key, layout)
    with h5py.File(mat) as file:
        assert np.array_equal(file[key][()], data)
    with one_sentence(str(mat), key, "another file"):
        read_all("DSRSID", data_dir=tmp_path)


def dsrsid(path, count=24, side=8):
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["MUL_IMAGES"] = generator.integers(0, 256, (count, 4, side, side), dtype=np.uint8)
        file["PAN_IMAGES"] = generator.integers(0, 256, (count, 1, 4 * side, 4 * side), dtype=np.uint8)
        file["LAND_COVER_TYPES"] = np.arange(count, dtype=np.float64)[None] % 2 + 1
    return path


def test_links_of_a_mat_are_not_followed_to_see_where_they_lead(tmp_path):
    """A pipe at the other end: who opens it waits for ever."""
    mat = dsrsid(tmp_path / "DSRSID.mat")
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


def test_a_checkpoint_does_not_say_where_something_is_written(trained, tmp_path, capsys):
    content = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    content["data"] |= {"data_name": "demo", "data_dir": str(tmp_path / "chosen"), "source1": None, "source2": "fine"}
    save_checkpoint(tmp_path / "evil.pth", content)
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "evil.pth"), "--output_dir", tmp_path / "out")
    assert code == 2 and "say with --data_dir where they are" in error
    assert not (tmp_path / "chosen").exists()


# ------------------------------------------------------------------------ nothing escapes, nothing bursts


def test_members_of_a_zip_cannot_leave_it(tmp_path):
    pictures(tmp_path / "scenes")
    bait = (tmp_path / "scenes" / "sea" / "00.png").read_bytes()
    names = ["../../outside/a.png", "/absolute/b.png", "sea/../../../c.png", "C:\\windows\\d.png", "sea/e.png"]
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "one.zip", "w") as archive:
        for path in (tmp_path / "scenes").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path / "scenes"))
        for name in names:
            archive.writestr(name, bait)
    shutil.rmtree(tmp_path / "scenes")
    before = sorted(tmp_path.rglob("*"))
    with one_sentence():
        read_all(source1=tmp_path / "in" / "one.zip")
    assert sorted(tmp_path.rglob("*")) == before


def bomb(claimed, packed):
    """A zip in which one of 24 images claims `claimed` bytes, unpacks from `packed`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(23):
            archive.writestr(f"{'field' if number % 2 else 'sea'}/{number}.png", PNG)
        archive.writestr("sea/bomb.png", packed)
    raw = buffer.getvalue()
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the size, in the directory and before the member
        place = raw.rindex(mark)
        raw = raw[:place + offset] + claimed.to_bytes(4, "little") + raw[place + offset + 4:]
    return raw


def png(width, height):
    """A PNG that claims a size, and holds four pixels."""
    import struct
    import zlib
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"\0" * 14)) + chunk(b"IEND", b""))


PNG = (lambda buffer: (Image.new("RGB", (16, 16)).save(buffer, "PNG"), buffer.getvalue())[1])(io.BytesIO())


def test_zip_bombs_are_refused(tmp_path):
    import tracemalloc
    zeros = b"\0" * (1 << 26)
    for claimed, part in (((1 << 32) - 2, "more than any image needs"), (len(PNG), "bomb.png")):
        (tmp_path / "one.zip").write_bytes(bomb(claimed, zeros))
        tracemalloc.start()
        with one_sentence("1 of 24 images", "bomb.png", part):
            read_all(source1=tmp_path / "one.zip")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24, "it was unpacked"
        tracemalloc.stop()


@pytest.mark.parametrize(("width", "height", "part"), [
    (65_000, 65_000, "4225000000"), (10_000, 10_000, "more than 64,000,000"), (10_000, 100, "too elongated"),
    (1, 60_000, "too elongated"), (2**31 - 1, 2**31 - 1, "")])
def test_images_that_claim_too_much_are_named_before_memory_is_taken(tmp_path, width, height, part):
    pictures(tmp_path / "one")
    (tmp_path / "one" / "sea" / "03.png").write_bytes(png(width, height))
    with one_sentence("1 of 24 images", "03.png", part):
        read_all(source1=tmp_path / "one")


def test_a_geotiff_and_an_hdf5_that_claim_too_much_are_named(tmp_path):
    huge = tmp_path / "huge.tif"
    with rasterio.open(huge, "w", driver="GTiff", width=60_000, height=60_000, count=13, dtype="uint16",
                       sparse_ok=True, tiled=True, BIGTIFF="YES") as file:
        del file
    with pytest.raises(ValueError, match="60,000 x 60,000 pixels, more than"):
        image_sources.decode_swir(huge.read_bytes())
    mat = dsrsid(tmp_path / "DSRSID.mat")
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


@pytest.mark.parametrize("types", [
    np.array([["x"] * 24], dtype="S1"), np.array([["x"] * 24], dtype=object), np.full((1, 24), np.nan),
    np.full((1, 24), 1.5), np.full((1, 24), 1 + 1j), h5py.Empty("f8"), np.zeros((1, 24), [("a", "i4")]),
    np.zeros((1, 24)), np.full((1, 24), 9)], ids=lambda types: str(types.dtype))
def test_land_covers_that_are_no_numbers_from_1_to_8_are_one_sentence(tmp_path, types):
    mat = dsrsid(tmp_path / "DSRSID.mat")
    with h5py.File(mat, "a") as file:
        del file["LAND_COVER_TYPES"]
        if types.dtype.kind == "O":
            file.create_dataset("LAND_COVER_TYPES", data=types, dtype=h5py.string_dtype())
        else:
            file["LAND_COVER_TYPES"] = types
    with one_sentence("DSRSID.mat", "LAND_COVER_TYPES"):
        read_all("DSRSID", data_dir=tmp_path)


def test_chunks_that_unpack_to_gigabytes_are_refused(tmp_path):
    mat = dsrsid(tmp_path / "DSRSID.mat")
    with h5py.File(mat, "a") as file:
        del file["MUL_IMAGES"]
        file.create_dataset("MUL_IMAGES", (24, 4, 8, 8), np.uint8, chunks=(900_000, 4, 32, 32), maxshape=(None,) * 4,
                            compression="gzip")
    with one_sentence("MUL_IMAGES", "3,686,400,000 bytes"):
        read_all("DSRSID", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["codes", "features"])
def test_arrays_that_unpack_a_thousandfold_are_refused(tmp_path, trained, capsys, name, monkeypatch):
    from myautoencoder.feature_files import read_features
    path = tmp_path / f"{name}.npz"
    content = dict(np.load(trained[0] / "codes.npz")) if name == "codes" else {"data": np.ones((9, 2)), "labels": 0}
    victim = "database_labels" if name == "codes" else "data"
    content[victim] = np.zeros(3 << 20, np.uint8)
    np.savez_compressed(path, **content)
    monkeypatch.setattr(checkpoints, "LARGE", 1 << 20)  # a small machine
    if name == "codes":
        code, _, error = call(capsys, "test.py", "--codes", path)
        assert code == 2 and "database_labels.npy unpacks from" in error and len(error.splitlines()) == 1
    else:
        with one_sentence("features.npz", "data.npy unpacks from"):
            read_features(path)


def test_pipes_among_the_files_of_codes_are_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "database_codes.npy")
    code, _, error = call(capsys, "test.py", "--codes", tmp_path)
    assert code == 2 and "has no database_codes" in error


@pytest.mark.parametrize(("shapes", "fits"), [([(16, 512), (512, 16)], False), ([(16, 512)] * 24, True),
                                              ([(16, 48), (48, 16)], True)])
def test_images_of_very_different_shapes_do_not_blow_up_the_store(tmp_path, monkeypatch, shapes, fits):
    monkeypatch.setattr(image_store, "ROOM", 1 << 20)  # a small machine
    pictures(tmp_path / "one")
    for number, (height, width) in enumerate(shapes):
        path = tmp_path / "one" / ("sea", "field")[number % 2] / f"{number // 2:02d}.png"
        Image.new("RGB", (width, height)).save(path)
    with one_sentence(*(() if fits else ("differ so much in shape", "cut such images into scenes"))):
        read_all(source1=tmp_path / "one")


@pytest.mark.parametrize(("part", "name", "value"), [
    ("network", "feature_dims", [10**6, 10**6]), ("network", "latent_dim", 10**7), ("features", "image_size", 30_000),
    ("features", "amp", 1), ("features", "neighbours", -3), ("features", "neighbours", 1.5),
    ("features", "feature_norm", "x"), ("features", "feature_weights", None), ("data", "skip", 5),
    ("data", "split_seed", -1), ("data", "data_name", "nothing")])
def test_a_checkpoint_that_asks_for_what_cannot_be_is_one_sentence(trained, tmp_path, capsys, part, name, value):
    content = torch.load(trained[0] / "ae" / "autoencoder.pth", weights_only=True)
    content[part][name] = value
    save_checkpoint(tmp_path / "odd.pth", content)
    code, _, error = call(capsys, "train.py", *stage2_flags(tmp_path / "odd.pth"), "--output_dir", tmp_path / "out")
    assert code == 2 and len(error.splitlines()) == 1, error


@pytest.mark.parametrize(("name", "value"), [("image_size", 30_000), ("hash_bit", 10**6), ("threshold", float("nan")),
                                             ("threshold", 10**400), ("head_width", -1), ("model_type", "x")])
def test_a_trained_model_that_asks_for_what_cannot_be_is_one_sentence(trained, tmp_path, capsys, name, value):
    content = torch.load(trained[0] / "mr" / "mrhash.pth", weights_only=True)
    content["network"][name] = value
    save_checkpoint(tmp_path / "odd.pth", content)
    code, _, error = call(capsys, "test.py", "--pretrain_path", tmp_path / "odd.pth", *SMALL)
    assert code == 2 and len(error.splitlines()) == 1, error


def test_a_checkpoint_that_is_a_bomb_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"format": "mrhash-1", "model": {"w": torch.zeros(1 << 24)}})
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(
            tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 17
    with one_sentence("bomb.pth", "compressed"):
        load_checkpoint(tmp_path / "bomb.pth", "mrhash-1")


# ------------------------------------------------------------------------ damaged by chance


SMALL_MODEL = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


def small_checkpoints():
    """A small file of each kind, by its `format`."""
    autoencoder = MultisourceAutoencoder([4, 3], 2)
    data = DataConfig("pairs", source1="one", source2="two").as_dict()
    yield "mrhash-autoencoder-1", {
        "format": "mrhash-autoencoder-1", "network": autoencoder.settings(), "data": data, "fingerprint": "f",
        "model": autoencoder.state_dict(), "features": {
            "feature_backbone": "resnet18", "feature_weights": "none", "image_size": 32, "content": "c",
            "files": [None, None]}}
    yield "mrhash-1", {
        "format": "mrhash-1", "network": {"model_type": "squeezenet1_1", "hash_bit": 8, "image_size": 32,
                                          "threshold": 0.0, "head_width": 0},
        "data": data, "fingerprint": "f", "model": SMALL_MODEL.state_dict()}
    yield "mrhash-training-1", {
        "format": "mrhash-training-1", "epoch": 3, "within": None, "settings": {"lr": 0.1}, "result": "r.pth",
        "model": SMALL_MODEL.state_dict(), "optimizer": torch.optim.Adam([torch.zeros(2)]).state_dict(),
        "best": {"score": 0.5, "epoch": 2, "model": SMALL_MODEL.state_dict()}}


CHECKPOINTS = copy.deepcopy(dict(small_checkpoints()))
ODD = [None, True, -1, 0, 2**70, float("nan"), "", "x\ny", "../x", [], [None], {}, {"a": 1}, (), torch.zeros(0),
       torch.full((2,), torch.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(3, dtype=torch.bool),
       torch.zeros(2, 2).to_sparse(), torch.zeros((), device="meta")]


def use(path, kind, folder):
    """What the scripts do with a checkpoint before they compute."""
    if kind == "mrhash-training-1":
        (folder / "run").mkdir(exist_ok=True)
        shutil.copy(path, folder / "run" / "last.pth")
        try:
            run = Run(folder / "run", "r.pth", {"lr": 0.1}, True, False, set())
            if run.state is not None:
                run.restore(SMALL_MODEL, torch.optim.Adam([torch.zeros(2)]))
        finally:
            at_end.close()
        return
    content = load_checkpoint(path, kind)
    if kind == "mrhash-autoencoder-1":
        from argparse import Namespace

        from data_loader import inherit_dataset
        from myautoencoder.features import feature_files_of
        rebuild_autoencoder(content, path)
        feature_files_of(content, path, [None, None])
        inherit_dataset(Namespace(data_name=None, data_dir=None, source1=None, source2=None, split_dir=None,
                                  max_per_class=None), content)
    elif kind == "mrhash-1":
        rebuild_hash_network(content, path)


@pytest.mark.filterwarnings("ignore")  # torch and Pillow warn of what they find odd
@pytest.mark.parametrize("kind", CHECKPOINTS)
@FUZZ
@given(data=st.data())
def test_checkpoints_with_odd_entries_are_one_sentence(tmp_path_factory, kind, data):
    content = copy.deepcopy(CHECKPOINTS[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        place = content
        while True:
            key = data.draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        if data.draw(st.booleans()):
            place[key] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
        else:
            del place[key]
    folder = tmp_path_factory.getbasetemp()
    save_checkpoint(folder / "odd.pth", content)
    with one_sentence():
        use(folder / "odd.pth", kind, folder)


@pytest.mark.filterwarnings("ignore")  # torch and Pillow warn of what they find odd
@pytest.mark.parametrize("kind", CHECKPOINTS)
@FUZZ
@given(data=st.data())
def test_checkpoints_with_damaged_bytes_are_one_sentence(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp()
    save_checkpoint(folder / "whole.pth", CHECKPOINTS[kind])
    with zipfile.ZipFile(folder / "whole.pth") as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    if data.draw(st.booleans()):  # with checksums that fit: what comes is for torch to refuse
        members[pickled] = damage(data, members[pickled])
        with zipfile.ZipFile(folder / "damaged.pth", "w") as file:
            for name, raw in members.items():
                file.writestr(name, raw)
    else:
        (folder / "damaged.pth").write_bytes(damage(data, (folder / "whole.pth").read_bytes()))
    with one_sentence():
        use(folder / "damaged.pth", kind, folder)


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif", "webp"])
@FUZZ
@given(data=st.data())
def test_damaged_images_are_read_or_named(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp() / f"damaged-{kind}"
    if not folder.exists():
        pictures(folder, kind=kind, **({"compression": "tiff_lzw"} if kind == "tif" else {}))
    victim, whole = folder / "sea" / f"03.{kind}", (folder / "sea" / f"04.{kind}").read_bytes()
    victim.write_bytes(damage(data, whole))
    with one_sentence():
        read_all(source1=folder)


@FUZZ
@given(data=st.data())
def test_damaged_geotiffs_are_read_or_refused(data):
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=8, height=8, count=13, dtype="uint16", compress="deflate") as file:
            file.write(np.arange(13 * 64, dtype=np.uint16).reshape(13, 8, 8))
        whole = memory.read()
    try:
        pixels = image_sources.decode_swir(damage(data, whole))
    except Exception as error:  # the store turns any exception of a decoder into a line
        assert not isinstance(error, MemoryError)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


@FUZZ
@given(data=st.data())
def test_damaged_zips_are_read_or_named(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for label in ("field", "sea"):
            for number in range(3):
                archive.writestr(f"{label}/{number}.png", PNG)
    (folder / "damaged.zip").write_bytes(damage(data, buffer.getvalue(), most=6))
    with one_sentence():
        read_all(source1=folder / "damaged.zip")


@FUZZ
@given(data=st.data())
def test_a_damaged_mat_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged-mat"
    folder.mkdir(exist_ok=True)
    whole = dsrsid(folder / "whole.mat").read_bytes()
    head = 6144  # where the structure is; pixels come after it
    (folder / "DSRSID.mat").write_bytes(damage(data, whole[:head]) + whole[head:])
    with one_sentence():
        read_all("DSRSID", data_dir=folder)


LIST_WORDS = st.sampled_from(["sea/00.png", "sea/01.png", "field/00.png", "x/sea/02.png", "sea\\03.png", "1", "0", "01",
                              "-1", "nan", "1e999", "\0", "\ufeff", "é.png", ".png", "/", "..", "sea/00", "\u2028"])


@FUZZ
@given(lists=st.dictionaries(st.sampled_from(["train", "database", "test"]), st.one_of(
    st.binary(max_size=60), st.lists(st.lists(LIST_WORDS, max_size=5), max_size=6).map(
        lambda lines: "\n".join(" ".join(words) for words in lines).encode()))))
def test_odd_lists_are_read_or_one_sentence(tmp_path_factory, lists):
    folder = tmp_path_factory.getbasetemp() / "lists"
    if not folder.exists():
        pictures(folder / "one")
        (folder / "split").mkdir()
    for path in (folder / "split").iterdir():
        path.unlink()
    for name, raw in lists.items():
        (folder / "split" / f"{name}.txt").write_bytes(raw)
    with one_sentence():
        load_dataset(DataConfig("pairs", source1=str(folder / "one"), split_dir=str(folder / "split")))


@FUZZ
@given(data=st.data())
def test_a_damaged_log_and_config_do_not_keep_a_run_from_going_on(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    whole = b'{"epoch": 0, "loss": 1.0, "seconds": 2}\n{"epoch": 1, "loss": 0.5, "seconds": 4}\n'
    (folder / "log.jsonl").write_bytes(damage(data, whole))
    assert all(type(record["epoch"]) is int for record in read_log(folder / "log.jsonl"))


def test_lines_of_a_log_that_are_no_records_are_left_out(tmp_path):
    good = {"epoch": 3, "seconds": 1.5}
    lines = ["[" * 200_000, '{"epoch": 1, "seconds": "abc"}', '{"epoch": 1, "seconds": null}', '{"epoch": 1}', "[]",
             '{"epoch": true, "seconds": 1}', json.dumps(good), '{"epoch": 4, "sec']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read_log(tmp_path / "log.jsonl") == [good]
