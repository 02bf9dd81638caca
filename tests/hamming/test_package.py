"""The folder alone: it can be copied into another project."""

import ast
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hamming

FOLDER = Path(hamming.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))


def test_the_example_of_the_manual_runs_with_a_copy_of_the_folder_alone(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "hamming", ignore=shutil.ignore_patterns("__pycache__"))
    manual = hamming.__doc__.split("    codes, labels  ")[0]  # the list of the files
    code = [line for line in manual.splitlines() if line.startswith("    ")]
    shown = [line[6:].split(":")[0] for line in code if line.startswith("    # ")]
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{textwrap.dedent(chr(10).join(code))}
assert hamming.__file__.startswith({str(tmp_path)!r})
assert indices.shape == distances.shape == (50, 5)
assert not {{"PIL", "matplotlib"}} & set(sys.modules)
"""
    # -I: neither the current folder nor PYTHONPATH.
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == shown and len(shown) == 2


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_no_file_imports_anything_of_ours(path):
    allowed = {*sys.stdlib_module_names, "numpy", "torch"}
    allowed |= {"figures.py": {"matplotlib"}, "fonts.py": {"matplotlib"},
                "pictures.py": {"PIL"}}.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            # One dot is the folder itself.
            assert node.level == 1 or (not node.level and node.module.split(".")[0] in allowed)


def test_all_names_that_are_promised_are_there():
    assert all(hasattr(hamming, name) for name in hamming.__all__)
