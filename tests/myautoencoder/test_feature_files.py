"""Feature files of others: pickles of every NumPy, and that nothing in them is ever run."""

import base64
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myautoencoder import feature_files
from myautoencoder.feature_files import features_of_lists, read_features
from utils import InputError

DATA = np.arange(12, dtype=np.float64).reshape(4, 3) / 8
LABELS = np.array([2, 0, 1, 1])
GOOD = pickle.dumps({"data": DATA, "labels": LABELS}, protocol=2)

# pickle.dumps({"data": DATA, "labels": LABELS}) under NumPy 1.26.4, base 85: protocol -> bytes.
NUMPY_1 = {
    2: "fC7DS04P`l0001FVRT_}0b_1;ZE$%mV{dY0E^T#ebZKF7a$$K2Uvgz*Z*FsRa&=>L3ULBsZgp*Nc?xc1VRCX|c?x"
       "j@O8|v&1Y=)gZ)9a-a|&f{V{c?-3ULKk0RR91VsQpo1^@s6Y+-b1ZZUBOhH(f|aS4ZU3Q}<kC`$oL1WN;kaSUT_b"
       "!~8Y3S@M7aAgW{4OjvI003q<aSn-yhj9;5aS$j=16Tn7002C35l&7{O8@`=|4RS=|Nlz>ba4`5iD(5_YXATM0000"
       "00000000000006^)KL7v#0002PkUszb00000!<at+000000K=d^00000006_JKL7v#0002Ps6PMz00000!>m6500"
       "0000K>3900000006_XKL7v#0002Pv_Aj<00000!?r(h6KDs9aTHQ<6?AbHVps+M003-ZVr6V|aTjO;Xah?Cg>e{Y"
       "35RhRQgIq6O94v+g>f5b4OjvI003z?aU6+=hjATJaULj3185OWPEJby|Ns9=|NsC0O8|6nA7Y7U1y~>e00062000"
       "000000000000000310000000031000000040yXa|OIAyRQ7ba5kMbuI",
    4: "fCQCZ0RR910001elqie@WMOn+l#CT_b!~8YE@N+UWiD-XY;<X1a&lpLl#C2ta%E$0ZgX^Ubz^jtla!1FZgp*Nd6b"
       "L?Ze(F{a$$LtlaxyUg_J`9Vw8uJQj{o50ZRl+1BR4n1&jq`ba`-Pl#`T<0%kariHL`kQj{o51B?MYluk}gO8@`=|"
       "4RS=|Nlz>bd+L=Ltp>^000000000000000z&`*000000&_4hG00000*gpUO00000;6DHW00000<Uara00000=sy4"
       "e00000>^}ei00000@IL?m00000@;?9o00000^gjRq00000_CJ(#lwynqY++($Y;%-o1ZW3K0ELuj35S$YlqgF9O9"
       "X|KXby}5X*iULh=-I?lqgFBXcA6NPD=m(|Nlz=|Ns9>0CbdMi9;X)00000000000000000001000000000100000"
       "0001#bd+LsE&",
    5: "fCZIA0RR910001elqie@WMOn+l#CK?b!~8YE@N+UWiD=YZDn$4W0Z^wUuJS|ZDMt1W@U1elawfyU;qFB00000000"
       "000000000000006*000000007WG00000007uO00000007`W000000087a00000008Je00000008Vi00000008hm0"
       "0000008no00000008tq00000008zsl#B&#b!~8Yl#B&rba`-Pl#`T<0%kariHL`kQj{o51B?MYluk}gO8@`=|4RS"
       "=|Nlz>bd+LC1WN;kl#BsGlysC*l#B*!VPa)$bChTVD3%}q000000006200000000000000000031000000003100"
       "000005L|2#f-0IFyNqhm=y3C`$uq3{Fl?O8@`=|4RS=|Nlz>bd+LC1cj7n4|J4Llyxo",
}


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", NUMPY_1)
def test_pickles_of_numpy_1_are_read(tmp_path, protocol):
    raw = base64.b85decode(NUMPY_1[protocol])
    assert b"numpy.core" in raw
    data, labels = read_features(write(tmp_path / "old.pkl", raw))
    np.testing.assert_array_equal(data, DATA)
    np.testing.assert_array_equal(labels, LABELS)
    assert (data.dtype, labels.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f8", "<f4", "<f2", ">f8", ">f4", "column after column", "rows"])
def test_pickles_of_this_numpy_are_read_in_every_form(tmp_path, protocol, kind):
    data = {"column after column": np.asfortranarray(DATA), "rows": list(DATA)}.get(kind)
    data = DATA.astype(kind) if data is None else data
    for labels in (LABELS, LABELS.astype(np.uint8), LABELS[:, None], LABELS.tolist(), list(LABELS),
                   tuple(LABELS)):
        content = OrderedDict(labels=labels, data=data, names=["a", "b"])
        for container in (content, dict(content)):
            raw = pickle.dumps(container, protocol=protocol)
            found = read_features(write(tmp_path / "features.pkl", raw))
            np.testing.assert_array_equal(found[0], DATA)
            np.testing.assert_array_equal(found[1], LABELS)


def test_pickles_of_python_2_are_read(tmp_path):
    """As Python 2's cPickle writes protocol 2: texts and raw bytes are both `str`, U or T."""
    def text(value):
        return b"U" + bytes([len(value)]) + value

    def array(kind, shape, raw):
        sizes = b"".join(b"K" + bytes([size]) for size in shape)
        return (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
                + text(b"b") + b"\x87R(K\x01(" + sizes + b"tcnumpy\ndtype\n"
                + text(kind) + b"K\x00K\x01\x87R(K\x03" + text(b"<")
                + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
                + len(raw).to_bytes(4, "little") + raw + b"tb")

    raw = (b"\x80\x02}(" + text(b"data") + array(b"f8", (4, 3), DATA.tobytes())
           + text(b"labels") + array(b"i8", (4,), LABELS.astype("<i8").tobytes()) + b"u.")
    assert list(pickletools.genops(raw))[-1][0].name == "STOP"  # a well-formed pickle
    data, labels = read_features(write(tmp_path / "features.pkl", raw))
    np.testing.assert_array_equal(data, DATA)
    np.testing.assert_array_equal(labels, LABELS)


def test_an_npz_needs_no_pickle(tmp_path):
    np.savez(tmp_path / "features.npz", data=DATA, labels=LABELS)
    data, labels = read_features(tmp_path / "features.npz")
    np.testing.assert_array_equal(data, DATA)
    np.testing.assert_array_equal(labels, LABELS)


class Call:
    """Pickles as a call of `function`: opening the file would run it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def by_name(module, name, argument):
    """A hand-made pickle that calls module.name(argument), for what cannot be imported here."""
    text = b"X" + len(argument).to_bytes(4, "little") + argument
    return b"c" + f"{module}\n{name}\n".encode() + text + b"\x85R."


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", ["alone", "data", "labels", "in a list", "beside"])
def test_a_malicious_pickle_is_refused_by_name_and_runs_nothing(tmp_path, protocol, place):
    trap = Call(open, str(tmp_path / "sprung"), "w")
    content = {"alone": trap, "data": {"data": trap, "labels": LABELS},
               "labels": {"data": DATA, "labels": trap},
               "in a list": {"data": [trap], "labels": [1]},
               "beside": {"data": DATA, "labels": LABELS, "note": trap}}[place]
    raw = pickle.dumps(content, protocol=protocol)
    expected = r"asks for _?io\.open, and only arrays of numbers"
    with pytest.raises(InputError, match=expected) as caught:
        read_features(write(tmp_path / "trap.pkl", raw))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(raw)  # the trap works where it is opened the usual way
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("module", "name"), [
    ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("functools", "partial"),
    ("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "eval"), ("builtins", "getattr"),
    ("numpy", "load"), ("numpy", "fromfile"), ("numpy", "memmap"), ("numpy", "matrix"),
    ("numpy.core.multiarray", "fromfile"), ("numpy.core.multiarray", "memmap"),
    ("numpy.lib.npyio", "load"), ("numpy.testing._private.utils", "runstring"),
    ("numpy.ctypeslib", "load_library"), ("numpy.f2py", "compile"), ("torch", "load"),
    ("feature_files", "read_features")])
def test_every_other_name_is_refused(tmp_path, module, name):
    with pytest.raises(InputError, match=f"asks for {module}.{name}, and only"):
        read_features(write(tmp_path / "trap.pkl", by_name(module, name, b"echo sprung")))


def test_the_admitted_names_are_these():
    both = {f"{core}.{name}" for core in ("numpy.core", "numpy._core")
            for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")}
    both |= {f"{module}.{name}" for module in ("builtins", "__builtin__")
             for name in ("bytes", "set", "frozenset")}
    assert set(feature_files.ADMITTED) == both | {
        "numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"}


@pytest.mark.parametrize(("raw", "message"), [
    # numpy.ndarray called directly could be given a buffer of pointers
    (by_name("numpy", "ndarray", b"x"), "not callable"),
    # a codec could unpack a bomb
    (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "other than latin1"),
    # a dotted name would walk through attributes
    (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", r"numpy.ndarray.__init__, and only"),
    (b"\x80\x04NN\x93.", "not a whole pickle"),
    (b"c" + b"x" * 5000 + b"\ny\n.", r"x{100}\.\.\., and only"),
    # no control sequence reaches the terminal
    (b"c\x1b[2J\nsystem\n.", r"\\x1b\[2J.system'?, and only"),
    # BUILD would set attributes of a list
    (b"](N}X\x01\x00\x00\x00aNstb.", "no attribute"),
    # a text in place of a function, and instructions that make objects of classes
    (b"X\x02\x00\x00\x00os)R.", "not callable"),
    (b"\x80\x02cnumpy\ndtype\n)\x81.", "not a whole pickle"),
    (b"(ios\nsystem\n.", "asks for os.system, and only"),
    (b"\x80\x02\x82\x01.", "not a whole pickle"),
    (b"Pname\n.", "persistent"),
    (b"\x80\x05\x97.", "not a whole pickle")])
def test_what_could_run_or_change_something_is_refused(tmp_path, raw, message):
    with pytest.raises(InputError, match=message) as caught:
        read_features(write(tmp_path / "trap.pkl", raw))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", sorted(feature_files.ADMITTED))
def test_a_pickle_cannot_change_what_it_may_call(tmp_path, name):
    module, _, function = name.rpartition(".")
    state = b"(N}X\x0c\x00\x00\x00__defaults__(I1\ntst"  # (None, {"__defaults__": (1,)})
    raw = b"c" + f"{module}\n{function}\n".encode() + state + b"b."
    with pytest.raises(InputError):
        read_features(write(tmp_path / "trap.pkl", raw))
    assert getattr(feature_files.ADMITTED[name], "__defaults__", None) in (None, ())
    test_pickles_of_numpy_1_are_read(tmp_path, 2)


def test_a_dtype_that_would_turn_bytes_into_pointers_is_refused(tmp_path):
    """NumPy's own dtype believes the flags of a pickle: 0 says that an object is plain bytes."""
    raw = pickle.dumps({"data": np.zeros((1, 1)), "labels": [1]}, protocol=2)
    assert raw.count(b"X\x02\x00\x00\x00f8") == 1
    with pytest.raises(InputError, match="an array of dtype <O8"):
        read_features(write(tmp_path / "f.pkl", raw.replace(b"\x00f8", b"\x00O8")))


@pytest.mark.parametrize("raw", [
    b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.",  # 2^63 bytes are to come
    b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    b"I" + b"9" * 10**6 + b"\n.",
    b"]" * 10**6 + b".",
    b"(d(lp0\nS'x'\np1\n" + b"g1\na" * 10**4 + b"."],
    ids=["bytearray", "frame", "digits", "lists", "refs"])
def test_bombs_end_in_one_sentence_where_python_lets_us(tmp_path, raw):
    with pytest.raises(InputError) as caught:
        read_features(write(tmp_path / "bomb.pkl", raw))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), OverflowError("2^80")])
def test_a_file_that_exhausts_memory_or_recursion_is_one_sentence(tmp_path, monkeypatch, error):
    def exhausted(_):
        raise error

    monkeypatch.setattr(feature_files._Unpickler, "load", exhausted)
    with pytest.raises(InputError, match=r"f\.pkl is not a whole pickle of arrays \("):
        read_features(write(tmp_path / "f.pkl", GOOD))


def test_entries_that_are_not_needed_may_be_of_any_kind(tmp_path):
    extra = {"names": np.array(["a", "b"]), "objects": np.array([None, "a"], dtype=object),
             "set": {"a", "b"}, "frozen": frozenset("a"), "bytes": b"", "more": b"ab", "none": None,
             3: {"x": (1.5,)},
             "dates": np.array(["2022-12-20"], "M8[D]"), "record": np.zeros(2, [("x", "f4")]),
             "image": np.zeros((2, 3, 4, 5)).transpose(0, 3, 1, 2), "empty": np.zeros((0, 3)),
             "longdouble": np.zeros(2, np.longdouble), "complex": np.zeros(1, complex)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, value in extra.items():
            raw = pickle.dumps({name: value, "data": DATA, "labels": LABELS}, protocol=protocol)
            np.testing.assert_array_equal(read_features(write(tmp_path / "f.pkl", raw))[0], DATA)


def test_a_pickle_cut_short_anywhere_is_one_sentence(tmp_path):
    for length in range(len(GOOD)):
        with pytest.raises(InputError) as caught:
            read_features(write(tmp_path / "cut.pkl", GOOD[:length]))
        assert "\n" not in str(caught.value) and "cut.pkl" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_pickles_are_one_sentence_or_numbers(tmp_path_factory, data):
    protocol = data.draw(st.sampled_from([0, 2, 5]))
    raw = bytearray(pickle.dumps({"data": DATA, "labels": LABELS}, protocol=protocol))
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        # Not r, LONG_BINPUT: Python makes room for as many entries as it says, up to 32 GiB.
        raw[position] = data.draw(st.integers(0, 255).filter(lambda value: value != ord("r")))
    path = write(tmp_path_factory.getbasetemp() / "damaged.pkl", bytes(raw))
    try:
        values, labels = read_features(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(values).all() and len(values) == len(labels)


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "holds list, expected a dictionary of data and labels"),
    ({"data": DATA}, "a dictionary of 'data', expected a dictionary of data and labels"),
    ({}, "a dictionary of nothing"),
    ({"data": DATA[0], "labels": LABELS}, r"shape \(3,\), expected numbers \(N, d\)"),
    ({"data": DATA[:0], "labels": LABELS[:0]}, r"shape \(0, 3\)"),
    ({"data": DATA > 0, "labels": LABELS}, "data is bool"),
    ({"data": DATA, "labels": LABELS[:3]}, "expected one integer for each of the 4 rows"),
    ({"data": DATA, "labels": LABELS / 1}, "labels are float64"),
    ({"data": DATA, "labels": "2011"}, "labels is no array of numbers"),
    ({"data": [DATA[0], DATA[0, :2]], "labels": [1, 1]}, "but a list of rows of different"),
    ({"data": [[1, 2], [1]], "labels": [1, 1]}, "no array of numbers but a list of rows of"),
    ({"data": [[1, "a"]], "labels": [1]}, "data is no array of numbers but a list of other things"),
    ({"data": np.array([[None]]), "labels": [1]}, "an array of dtype .O8"),
    ({"data": np.array([["a"]]), "labels": [1]}, "an array of dtype <U1"),
    ({"data": np.zeros((1, 1), np.longdouble), "labels": [1]}, "an array of dtype <f16"),
    ({"data": [], "labels": []}, r"shape \(0,\)"),
    ({"data": DATA, "labels": np.full(4, 2**63, np.uint64)}, "a label is 9223372036854775808"),
    ({"data": DATA, "labels": np.zeros((4, 0), int)}, r"labels are int64 of shape \(4, 0\)"),
    ({10**5000: 1}, "a dictionary of nothing"),
    ({"k" * 10**6: 1}, "a dictionary of 'k{20}'"),
    ({"data": DATA, "labels": [2, 0, 1, 2**80]}, "labels is no array of numbers"),
    ({"data": np.where(DATA == 0.5, np.nan, DATA), "labels": LABELS},
     "1 rows of data are not finite.* first row 1"),
    ({"data": np.where(DATA == 1, 1e300, DATA), "labels": LABELS},
     "1 rows of data are not finite.* first row 2")])
def test_other_contents_are_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_features(write(tmp_path / "features.pkl", pickle.dumps(content)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("start", "message"), [
    (b"PK\x03\x04", "is a zip"), (b"\x93NUMPY", "is an .npy"), (b"\x1f\x8b\x08", "is compressed"),
    (b"", "not a whole pickle")])
def test_files_of_another_kind_are_named(tmp_path, start, message):
    with pytest.raises(InputError, match=message):
        read_features(write(tmp_path / "features.pkl", start))


def test_lists_of_lists_of_numbers_are_read(tmp_path):
    raw = pickle.dumps({"data": DATA.tolist(), "labels": LABELS.tolist()})
    path = write(tmp_path / "f.pkl", raw)
    np.testing.assert_array_equal(read_features(path)[0], DATA)


def test_a_list_that_holds_itself_is_one_sentence(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(InputError, match="no array of numbers"):
        read_features(write(tmp_path / "f.pkl", pickle.dumps({"data": endless, "labels": LABELS})))


def test_missing_and_foreign_files_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no features at"):
        read_features(tmp_path / "nowhere.pkl")
    np.savez(tmp_path / "other.npz", values=DATA)
    with pytest.raises(InputError, match=r"not a whole \.npz with data and labels"):
        read_features(tmp_path / "other.npz")
    trap = np.array([Call(open, str(tmp_path / "sprung"), "w")])
    np.savez(tmp_path / "trap.npz", data=trap, labels=LABELS)
    with pytest.raises(InputError, match=r"not a whole \.npz"):
        read_features(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


class Lists:
    """What features_of_lists needs of a dataset: four images, not in the order of the lists."""

    def __init__(self, **changes):
        self.names = [f"kind/{number}" for number in range(4)]
        self.train, self.query = np.array([3, 0, 2]), np.array([1])
        self.database = np.array([0, 2, 3])
        self.labels, self.listed = np.array([0, 1, 1, 2]), True
        self.__dict__.update(changes)


def test_rows_go_from_the_order_of_the_lists_to_their_images(tmp_path):
    np.savez(tmp_path / "f.npz", data=DATA, labels=LABELS)  # rows of images 3, 0, 2 and the query 1
    found = features_of_lists(tmp_path / "f.npz", Lists())
    np.testing.assert_array_equal(found, DATA[[1, 3, 2, 0]])


def test_rows_of_several_labels_are_compared_too(tmp_path):
    matrix = np.eye(3, dtype=np.uint8)[[0, 1, 1, 2]]
    matrix[2, 0] = 1
    np.savez(tmp_path / "f.npz", data=DATA, labels=matrix[[3, 0, 2, 1]])
    found = features_of_lists(tmp_path / "f.npz", Lists(labels=matrix))
    np.testing.assert_array_equal(found, DATA[[1, 3, 2, 0]])
    expected = r"1 rows have another label.*first row 3 \(kind/1\) with \[0 1 0\]"
    with pytest.raises(InputError, match=expected):
        features_of_lists(tmp_path / "f.npz", Lists(labels=matrix * [[1], [0], [1], [1]]))


@pytest.mark.parametrize("theirs", [[1, 0, 2], [1, 2, 3], [7, -1, 0]])
def test_another_numbering_of_the_classes_is_said_and_accepted(tmp_path, capsys, theirs):
    np.savez(tmp_path / "f.npz", data=DATA, labels=np.array(theirs)[LABELS])
    np.testing.assert_array_equal(features_of_lists(tmp_path / "f.npz", Lists()),
                                  DATA[[1, 3, 2, 0]])
    said = capsys.readouterr().out
    assert "f.npz numbers the classes otherwise, one to one" in said
    assert f"{theirs[0]} for 0" in said and said.count("\n") == 1
    np.savez(tmp_path / "f.npz", data=DATA, labels=LABELS)
    features_of_lists(tmp_path / "f.npz", Lists())
    assert not capsys.readouterr().out


@pytest.mark.parametrize("theirs", [[0, 0, 1, 1], [2, 0, 1, 3]])
def test_a_numbering_that_joins_or_splits_classes_is_refused(tmp_path, theirs):
    np.savez(tmp_path / "f.npz", data=DATA, labels=theirs)  # ours: 2 0 1 1
    with pytest.raises(InputError, match="rows have another label than their images"):
        features_of_lists(tmp_path / "f.npz", Lists())


@pytest.mark.parametrize(("changes", "message"), [
    ({"listed": False}, "name their folder with --split_dir"),
    ({"train": np.array([3, 0])}, "has 4 rows, expected 2 of train.txt and then 1 of test.txt"),
    ({"database": np.array([0, 2, 3, 4]), "names": list("abcde")},
     "1 images of database.txt are in neither, first e"),
    ({"labels": np.array([0, 1, 2, 1])},
     r"2 rows have another label than .* first row 0 \(kind/3\) with 2 for 1"),
    ({"labels": np.eye(3)[[0, 1, 1, 2]]},
     r"labels have shape \(4,\), those of the lists \(4, 3\)")])
def test_features_that_do_not_fit_the_lists_are_one_sentence(tmp_path, changes, message):
    np.savez(tmp_path / "f.npz", data=DATA, labels=LABELS)
    with pytest.raises(InputError, match=message):
        features_of_lists(tmp_path / "f.npz", Lists(**changes))


def test_arrays_of_more_dimensions_keep_their_axes(tmp_path):
    # NumPy 2.4 pickles the order of the axes.
    image = np.arange(120.0).reshape(2, 3, 4, 5).transpose(0, 3, 1, 2)
    path = write(tmp_path / "f.pkl", pickle.dumps({"data": image, "labels": LABELS}, protocol=5))
    np.testing.assert_array_equal(feature_files.read_pickle(path)["data"], image)


def test_a_dtype_of_an_unknown_byte_order_is_refused(tmp_path):
    raw = pickle.dumps({"data": DATA, "labels": LABELS}, protocol=2)
    assert raw.count(b"X\x01\x00\x00\x00<") == 1  # the second array refers to that of the first
    with pytest.raises(InputError, match="an array of dtype Sf8"):
        read_features(write(tmp_path / "f.pkl", raw.replace(b"\x00<", b"\x00S")))
