"""The rules of the house that a machine can check: who imports whom, and how long things are."""

import ast
from functools import cache
from itertools import pairwise

import pytest

from helpers import ROOT

# Each floor may import the floors before it.
FLOORS = (("utils", "hamming"), ("loss", "engine"), ("network", "datasets"), ("imagery",),
          ("collect", "data_loader"), ("myautoencoder",), ("train", "test"), ("archive",),
          ("search",), ("benchmarks",))
ROOMS = [room for floor in FLOORS for room in floor]
FILES = sorted(path.relative_to(ROOT) for room in ROOMS
               for path in (*ROOT.glob(f"{room}.py"), *(ROOT / room).rglob("*.py")))
NAMES = [str(path) for path in FILES]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(name):
    return ast.parse((ROOT / name).read_text())


def functions(name):
    return [node for node in ast.walk(tree(name)) if isinstance(node, FUNCTIONS)]


def room_of(name):
    return name.removesuffix(".py").replace("/", ".").split(".")[0]


def imports(name):
    """The modules that a file imports by their full names."""
    found = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module)
    return found


def floor_of(room):
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def test_the_files_are_those_of_the_repository():
    assert {room_of(name) for name in NAMES} == set(ROOMS) and len(NAMES) > 50
    others = {path.name for path in ROOT.glob("*.py")} - set(NAMES)
    assert not others, "a new file needs its floor here"


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_down(name):
    own = room_of(name)
    for module in imports(name):
        room = room_of(module)
        if room != own and room in ROOMS:
            assert floor_of(room) < floor_of(own), f"{name} imports {module}"


def test_hamming_imports_nothing_of_ours():
    for name in NAMES:
        if room_of(name) == "hamming":
            assert not {room_of(module) for module in imports(name)} & set(ROOMS), name


@pytest.mark.parametrize("room", ["network", "loss", "datasets"])
def test_what_learns_and_what_reads_know_nothing_of_ranks_and_runs(room):
    for name in NAMES:
        if room_of(name) == room:
            known = {module for module in imports(name) if room_of(module) == "engine"}
            assert known <= {"engine.cache", "engine.files", "engine.checkpoint",
                             "engine.weights", "engine.backbones", "engine.preprocessing"}, name
            words = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
            assert not words & {"rank", "world_size"}, name


@pytest.mark.parametrize("name", NAMES)
def test_a_file_can_be_read_in_one_go(name):
    assert len((ROOT / name).read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_short(name):
    long = {node.name: length for node in functions(name)
            if (length := node.end_lineno - node.lineno + 1) > (60 if node.name == "main" else 50)}
    assert not long


def test_no_main_has_functions_inside():
    for name in NAMES:
        for node in functions(name):
            if node.name == "main":
                inside = [part for part in ast.walk(node) if isinstance(part, FUNCTIONS)]
                assert inside == [node], name


def test_the_floors_are_told_apart():
    """The checks above see what they are to see."""
    rooms = ("hamming", "engine", "datasets", "imagery", "data_loader", "myautoencoder", "test")
    assert [floor_of(above) - floor_of(below) for below, above in pairwise(rooms)] == [1] * 6
    assert {"data_loader", "engine.loop", "loss", "utils"} <= set(imports("train.py"))
    assert "main" in {node.name for node in functions("test.py")}
