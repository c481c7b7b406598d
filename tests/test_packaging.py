import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("producer", "worker")
SUFFIXES = (".py", ".lua", ".jsonl", "py.typed", "LICENSE-gsm8k")

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
LOOK = """
import promptq.producer, promptq.worker
from importlib.util import find_spec
print(find_spec("worker"), find_spec("producer"))
"""


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a wheel built from this checkout contains."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, str(source)], cwd=source, capture_output=True, check=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_nothing_beside_promptq(wheel_names: set[str]) -> None:
    """A backend that has a worker.py of its own keeps it: only `promptq` is installed."""
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"promptq"}
    assert "promptq/__init__.py" not in wheel_names


def test_wheel_has_every_file(wheel_names: set[str]) -> None:
    """No sub-package, script or data file is forgotten in pyproject.toml."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    wanted = {f"promptq/{path.relative_to(ROOT).as_posix()}" for path in files if path.name.endswith(SUFFIXES)}
    assert wanted - wheel_names == set()


def test_checkout_is_importable_by_its_names_alone() -> None:
    """The editable install gives `promptq.worker`, and nothing called `worker` or `producer`."""
    found = subprocess.run([sys.executable, "-I", "-c", LOOK], capture_output=True, check=True, text=True)
    assert found.stdout == "None None\n"


def test_installed_version_is_the_one_in_pyproject() -> None:
    """The version stands in pyproject.toml alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("promptq") == project["version"]


def pins(name: str) -> dict[str, list[str]]:
    """Each pinned requirement of a lock file with its hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text())
    return {
        entry.split("\\")[0].strip(): re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)
        for entry in entries
        if not entry.startswith("#")
    }


def test_locks_pin_everything_by_hash_and_name_no_place() -> None:
    """Every line is an exact version with hashes; no index, address or path is in the files."""
    for name in ("requirements.lock", "requirements-worker.lock"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|^-|index-url|find-links|file:", text, re.MULTILINE), name
        for requirement, hashes in pins(name).items():
            assert "==" in requirement
            assert hashes, requirement


def test_worker_image_runs_what_was_tested() -> None:
    """What the image installs is a part of what the tests ran on."""
    assert pins("requirements-worker.lock").items() <= pins("requirements.lock").items()
