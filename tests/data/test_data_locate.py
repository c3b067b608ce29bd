"""Where data are looked for, in which order, and what is said when they are nowhere; downloads whole or not at all."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moyai.data import download, idx, locate
from moyai.data.config import FolderConfig, IdxConfig
from moyai.errors import DataError, SaveError


def test_the_root_goes_before_the_shared_folder_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, cache, given = (tmp_path / name for name in ("shared", "cache", "given"))
    monkeypatch.setenv("MOYAI_DATA", str(shared))
    named = FolderConfig(name="pets")
    with pytest.raises(DataError) as caught:
        locate.find_root(named, needs="pictures", cache=cache)
    assert str(caught.value) == f"no data found: put pictures in {shared / 'pets'} or {cache / 'pets'}"
    (cache / "pets").mkdir(parents=True)
    assert locate.find_root(named, needs="pictures", cache=cache) == cache / "pets"
    shared.mkdir()
    (shared / "pets.zip").write_bytes(b"")
    assert locate.find_root(named, needs="pictures", cache=cache) == shared / "pets.zip"
    (shared / "pets").mkdir()
    assert locate.find_root(named, needs="pictures", cache=cache) == shared / "pets"
    with pytest.raises(DataError, match="given"):  # a root that is given is the only place
        locate.find_root(FolderConfig(name="pets", root=given), needs="pictures", cache=cache)


def test_what_cannot_name_a_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.root"):
        locate.places(FolderConfig(), tmp_path)
    for name in ("../secret", "/etc"):
        with pytest.raises(DataError, match=r"data\.name is the name of a folder"):
            locate.places(FolderConfig(name=name), tmp_path)


def test_the_cache_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOYAI_CACHE", str(tmp_path))
    assert locate.cache_folder() == tmp_path
    monkeypatch.delenv("MOYAI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert locate.cache_folder() == tmp_path / "me" / ".cache" / "moyai"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DataError, match="set MOYAI_CACHE"):
        locate.cache_folder()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with locate.written_beside(target, 3) as temporary:
        temporary.write_text("one")

    def failing() -> None:
        with locate.written_beside(target, 3) as temporary:
            temporary.write_text("two")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    with pytest.raises(SaveError, match="file"), locate.written_beside(target / "below", 3):
        raise AssertionError("there is no such folder")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served under."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_published_set_is_fetched_and_read(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4), np.uint8)
    (folder / "train-images-idx3-ubyte").write_bytes(
        b"\0\0\x08\x03" + np.array([9, 4, 4], ">u4").tobytes() + pixels.tobytes()
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([9], ">u4").tobytes() + bytes(range(9)))
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setitem(download.KNOWN, "tiny", download.Published(address, sums))
    monkeypatch.delenv("MOYAI_DATA", raising=False)
    seen: list[tuple[str, int, int]] = []
    images = idx.read(IdxConfig(name="tiny"), tmp_path / "cache", lambda *said: seen.append(said))
    np.testing.assert_array_equal(np.asarray(images.pixels)[:, 0], pixels)
    assert sorted(seen) == [
        ("downloading train-images-idx3-ubyte", 160, 160),
        ("downloading train-labels-idx1-ubyte", 17, 17),
    ]
    (folder / "train-images-idx3-ubyte").unlink()
    assert idx.read(IdxConfig(name="tiny"), tmp_path / "cache").fingerprint == images.fingerprint  # not fetched again
    with pytest.raises(DataError, match="no data found"):
        idx.read(IdxConfig(name="tiny", download=False), tmp_path / "other")


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    (folder / "file").write_bytes(b"not what was published")
    with pytest.raises(DataError, match="published is 0123") as caught:
        download.fetch_set(download.Published(address, {"file": "0123"}), tmp_path / "got")
    assert f"put file into {tmp_path / 'got'} by hand" in str(caught.value)
    assert list((tmp_path / "got").iterdir()) == []
    with pytest.raises(DataError, match="File not found"):
        download.fetch_set(download.Published(address, {"missing": "0123"}), tmp_path / "got")


def test_offline_is_one_line_naming_files_and_folder(tmp_path: Path, served: tuple[Path, str]) -> None:
    nowhere = download.Published("http://127.0.0.1:9/", dict.fromkeys(download.MNIST.md5, "00"))
    with pytest.raises(DataError) as caught:
        download.fetch_set(nowhere, tmp_path / "mnist")
    said = str(caught.value)
    assert "\n" not in said
    for part in (*nowhere.md5, str(tmp_path / "mnist"), "could not download"):
        assert part in said
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_published_checksums_are_those_of_the_real_files(real_data: Path, name: str) -> None:
    for file, md5 in download.KNOWN[name].md5.items():
        assert hashlib.md5((real_data / name / file).read_bytes()).hexdigest() == md5
