"""KeyFile: the file of the key, when it changes and when for a moment it holds none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from promptq.worker.providers.api_key import LOOK_EVERY, KeyFile
from promptq.worker.settings import Settings

OLD = "xai-Old8tR2mWv5Lk0Ns7Yb3HcJd6"
NEW = "xai-NewQ1xCz9Fp4Gh6Ty2Ue8Wv0a"


class Watched:
    """A key's file, `path` as XAI_API_KEY_FILE has it, and a KeyFile on a clock of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "key"
        self.now = 0.0
        self.path.write_text(f"{OLD}\n")

    def follow(self) -> KeyFile:
        """A KeyFile that has read the file once."""
        settings = Settings.model_validate({"xai_api_key_file": self.path})
        key_file = KeyFile(self.path, settings, clock=lambda: self.now)
        assert key_file.changed() == OLD
        return key_file

    def later(self, key_file: KeyFile) -> str | None:
        """What the next look finds."""
        self.now += LOOK_EVERY
        return key_file.changed()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """A file with the old key."""
    return Watched(tmp_path)


def by_rewrite(path: Path) -> None:
    """Write into the file itself."""
    path.write_text(NEW)


def by_rename(path: Path) -> None:
    """Put another file in its place."""
    (path.parent / "next").write_text(NEW)
    (path.parent / "next").rename(path)


def by_an_old_file(path: Path) -> None:
    """The same size and the same time of change, as a restored backup has them."""
    times = path.stat()
    path.write_text(f"{NEW}\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [by_rewrite, by_rename, by_an_old_file])
def test_a_changed_file_is_read_once(watched: Watched, change: Callable[[Path], None]) -> None:
    """However it changes, the next look brings the new key, and those after it nothing."""
    key_file = watched.follow()
    assert watched.later(key_file) is None
    change(watched.path)
    assert watched.later(key_file) == NEW
    assert watched.later(key_file) is None


def test_a_swapped_symlink_is_followed(watched: Watched) -> None:
    """As Kubernetes changes a mounted secret: key -> ..data/key, and ..data is put onto another folder."""
    data = watched.folder / "..data"
    for name, key in (("1", OLD), ("2", NEW)):
        (watched.folder / name).mkdir()
        (watched.folder / name / "key").write_text(f"{key}\n")
    data.symlink_to("1")
    watched.path.unlink()
    watched.path.symlink_to("..data/key")
    key_file = watched.follow()
    (watched.folder / "tmp").symlink_to("2")
    (watched.folder / "tmp").rename(data)
    assert watched.later(key_file) == NEW


def test_it_is_looked_at_once_a_second_at_most(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks the file system is left alone; `now` does not wait."""
    key_file = watched.follow()
    by_rewrite(watched.path)
    looks, stat = [], Path.stat

    def noted(path: Path, **options: Any) -> os.stat_result:
        looks.append(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", noted)
    watched.now += LOOK_EVERY * 0.9
    assert [key_file.changed() for _ in range(100)] == [None] * 100
    assert looks == []
    assert key_file.now() == NEW
    assert watched.later(key_file) is None


def become_a_folder(path: Path) -> None:
    """Nothing can be read there."""
    path.unlink()
    path.mkdir()


BAD: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "two lines": lambda path: path.write_text(f"{NEW}\n{OLD}\n"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe"),
    "folder": become_a_folder,
}


@pytest.mark.parametrize("state", BAD)
def test_a_file_without_a_key_is_told_once_and_looked_at_again(watched: Watched, state: str) -> None:
    """No key, one warning without a word of what the file holds; once it holds one, that is the key."""
    key_file = watched.follow()
    with capture_logs() as logged:
        BAD[state](watched.path)
        assert [watched.later(key_file) for _ in range(3)] == [None] * 3
        assert key_file.now() is None
        assert [(entry["event"], entry["log_level"]) for entry in logged] == [("key.unreadable", "warning")]
        assert OLD not in str(logged)
        assert NEW not in str(logged)
        if watched.path.is_dir():
            watched.path.rmdir()
        by_rename(watched.path)
        assert watched.later(key_file) == NEW
        assert len(logged) == 1
        BAD[state](watched.path)
        assert watched.later(key_file) is None
        assert len(logged) == 2


def test_what_is_written_in_two_parts_is_read_whole_in_the_end(watched: Watched) -> None:
    """A half that looks like a key may be taken for it, until the next look."""
    key_file = watched.follow()
    with watched.path.open("w") as file:
        file.write(NEW[:15])
        file.flush()
        assert watched.later(key_file) == NEW[:15]
        file.write(NEW[15:])
    assert watched.later(key_file) == NEW


def test_only_a_file_is_followed(watched: Watched) -> None:
    """A pipe says its key once, and to read it again could take for ever; a variable does not change."""
    os.mkfifo(watched.folder / "pipe")
    of_pipe = Settings.model_validate({"xai_api_key_file": watched.folder / "pipe"})
    assert KeyFile.named_by(of_pipe) is None
    assert KeyFile.named_by(Settings.model_validate({"xai_api_key": OLD})) is None
    assert KeyFile.named_by(Settings.model_validate({"xai_api_key_file": watched.path})) is not None
