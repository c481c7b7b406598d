import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("arq", "grpc", "xai_sdk", "openai", "fastapi", "fakeredis")
VENDORS = ("xai_sdk", "grpc", "openai", "google")
A_KEY = re.compile(r"\b(arq|promptq):\w")

LOADED = """
import sys
before = set(sys.modules)
import {module}
print("\\n".join(sorted({{name.split(".")[0] for name in set(sys.modules) - before}})))
print("\\n".join(sorted(name for name in sys.modules if name.startswith("promptq."))))
"""


def sources(folder: str) -> list[Path]:
    """Every Python file in it."""
    found = sorted((ROOT / folder).rglob("*.py"))
    assert len(found) > 5, f"{folder} is not where it was"
    return found


def name_of(path: Path) -> str:
    """As seen from the checkout."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def comes_from(imported: str, *packages: str) -> bool:
    """Whether a dotted name is one of these packages or inside one."""
    return any(imported == package or imported.startswith(f"{package}.") for package in packages)


def loaded_by(module: str) -> set[str]:
    """What a fresh interpreter has loaded after this import."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["promptq.producer", "promptq.producer.queue", "promptq.producer.codec"])
def test_the_producer_loads_nothing_heavy(module: str) -> None:
    """A backend that imports promptq.producer pays for no worker, no vendor and no tool of tests."""
    loaded = loaded_by(module)
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)
    assert not [name for name in loaded if comes_from(name, "promptq.worker")]


def test_a_backend_does_not_pay_for_the_command_line() -> None:
    """The terminal's libraries are loaded by the command alone."""
    assert loaded_by("promptq.producer").isdisjoint({"typer", "rich", "click"})


def test_the_echo_worker_loads_no_vendor() -> None:
    """A worker loads the library of the provider that it was told to use, and no other."""
    assert loaded_by("promptq.worker.process, promptq.worker.providers.echo").isdisjoint(VENDORS)


def test_a_worker_over_rest_loads_no_grpc() -> None:
    """Nor does one over gRPC load the other client."""
    by_rest = loaded_by("promptq.worker.process, promptq.worker.providers.openai")
    assert by_rest & set(VENDORS) == {"openai"}
    assert "openai" not in loaded_by("promptq.worker.process, promptq.worker.providers.xai")


def test_arrows_run_from_worker_to_producer() -> None:
    """No module of the producer imports the worker, in whatever corner."""
    backwards = {
        name_of(path): imported
        for path in sources("producer")
        for imported in imports(path)
        if comes_from(imported, "promptq.worker")
    }
    # The one command `promptq` is put together in the worker, which mounts the producer's commands.
    assert backwards == {}


def test_nothing_imports_the_folders_by_their_bare_names() -> None:
    """`import worker` would be another application's module on a user's machine."""
    bare = {
        name_of(path): imported
        for folder in ("producer", "worker")
        for path in sources(folder)
        for imported in imports(path)
        if comes_from(imported, "worker", "producer")
    }
    assert bare == {}


def may_import_vendors(path: Path) -> bool:
    """The border."""
    name = name_of(path)
    return name.startswith(("worker/providers/xai", "worker/providers/openai", "worker/simulator/"))


def test_vendors_are_imported_at_the_border_alone() -> None:
    """Only the provider of a vendor, and the simulator of one, know its library."""
    strays = {
        name_of(path): imported
        for folder in ("producer", "worker")
        for path in sources(folder)
        if not may_import_vendors(path)
        for imported in imports(path)
        if comes_from(imported, *VENDORS)
    }
    assert strays == {}
    assert [path for path in sources("worker") if may_import_vendors(path)]


def test_arq_is_imported_by_the_engine_alone() -> None:
    """Arq is pinned and its private names are overridden: one module knows it."""
    users = {name_of(path) for path in sources("worker") if any(comes_from(each, "arq") for each in imports(path))}
    assert users == {"worker/engine.py"}
    assert not any(comes_from(each, "arq") for path in sources("producer") for each in imports(path))


def test_fakeredis_is_imported_by_one_module() -> None:
    """It is an extra: whoever needs it is told so there."""
    users = {
        name_of(path)
        for folder in ("producer", "worker")
        for path in sources(folder)
        if any(comes_from(each, "fakeredis", "lupa") for each in imports(path))
    }
    assert users == {"producer/testing/server.py"}


def texts(path: Path) -> Iterator[str]:
    """Every text in a file's code: no docstrings, no comments; the fixed parts of f-strings too."""
    tree = ast.parse(path.read_text())
    prose = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in prose:
            if isinstance(node.value, str):
                yield node.value
            elif isinstance(node.value, bytes):
                yield node.value.decode(errors="replace")


def test_keys_are_spelt_in_one_place() -> None:
    """A Redis key is a function in keys.py; its text stands nowhere else, in Python or in Lua."""
    spelt = {
        (name_of(path), text)
        for folder in ("producer", "worker")
        for path in sources(folder)
        if name_of(path) != "producer/keys.py"
        for text in texts(path)
        if A_KEY.search(text)
    }
    assert spelt == set()
    assert any(A_KEY.search(text) for text in texts(ROOT / "producer" / "keys.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "producer" / "lua").glob("*.lua")), ids=lambda path: path.name)
def test_lua_takes_its_keys_from_the_table(path: Path) -> None:
    """The scripts build keys from K, which keys.py fills."""
    assert not [line for line in path.read_text().splitlines() if A_KEY.search(line.split("--")[0])]


def test_the_contract_has_every_key() -> None:
    """What Lua uses of K is what keys.py offers, no more and no less."""
    from promptq.producer import keys

    used = {
        word.split("K.")[1]
        for path in (ROOT / "producer" / "lua").glob("*.lua")
        for line in path.read_text().splitlines()
        for word in _words(line.split("--")[0])
        if word.startswith("K.")
    }
    assert used == set(keys.PREFIXES)


def _words(line: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter in "._" else " " for letter in line).split()


def test_pickle_is_imported_nowhere() -> None:
    """Nothing here can unpickle: not even the module is there."""
    users = {
        name_of(path)
        for folder in ("producer", "worker")
        for path in sources(folder)
        if any(comes_from(each, "pickle", "marshal", "shelve", "dill", "cloudpickle") for each in imports(path))
    }
    assert users == set()
