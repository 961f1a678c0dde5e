"""The rendezvous folder and its locks: private, independent of the process's surroundings."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import mpproducer
from mpproducer.shm import rendezvous
from mpproducer.shm.rendezvous import Rendezvous, lock, unlock

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def soon(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def test_the_place_depends_on_uid_and_configuration_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(rendezvous.RUNTIME_DIR_VARIABLE)
    found = set()
    for number in range(3):
        monkeypatch.chdir(tmp_path)
        for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "USER"):
            monkeypatch.setenv(name, str(tmp_path / str(number)))
        found.add(Rendezvous.of("key", None).folder)
    assert found == {f"/tmp/mpproducer-{os.getuid()}/{os.path.basename(next(iter(found)))}"}
    assert Rendezvous.of("other key", None).folder not in found
    assert os.path.dirname(Rendezvous.of("key", str(tmp_path)).folder) == str(tmp_path)


def test_a_path_too_long_for_a_socket_is_an_error_with_the_way_out() -> None:
    with pytest.raises(mpproducer.SenderStartFailed, match="shorter runtime_dir"):
        Rendezvous.of("key", "/tmp/" + "x" * 100)


def test_a_runtime_dir_whose_parent_is_missing_is_an_error_that_names_it(
    runtime_dir: Path,
) -> None:
    with pytest.raises(mpproducer.SenderStartFailed, match="there is no folder") as found:
        Rendezvous.of("key", str(runtime_dir / "missing" / "here")).create()
    assert str(found.value).endswith(str(runtime_dir / "missing"))


def test_M12_M7_the_folder_is_private_and_nothing_strange_is_used(runtime_dir: Path) -> None:
    before = os.umask(0)
    try:
        place = Rendezvous.of("key", str(runtime_dir / "base"))
        place.create()
        place.create()
        folder = Path(place.folder)
        for path in (folder, folder.parent):
            assert path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    folder.chmod(0o750)
    with pytest.raises(mpproducer.SenderStartFailed, match=r"open to other users \(mode 750\)"):
        place.create()
    folder.chmod(0o700)
    place.remove()
    elsewhere = runtime_dir / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(mpproducer.SenderStartFailed, match="not a directory of this user"):
        place.create()
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(mpproducer.SenderStartFailed, match="not a directory"):
        place.create()
    folder.unlink()
    (runtime_dir / "base").rmdir()
    elsewhere.rmdir()


def test_M7_a_lock_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "lock").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        lock(tmp_path / "lock", None)
    assert not target.exists()


def test_a_lock_has_one_holder_and_waits_in_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock(path, None)
    assert held is not None
    assert not os.get_inheritable(held)
    assert lock(path, None) is None
    start = time.monotonic()
    assert lock(path, soon(0.1)) is None
    assert 0.09 < time.monotonic() - start < 3
    threading.Timer(0.1, unlock, [held]).start()
    again = lock(path, soon(10))
    assert again is not None
    unlock(again)


def test_who_waited_for_a_lock_whose_file_was_removed_takes_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock(path, None)
    assert held is not None

    def replace() -> None:
        path.unlink()
        unlock(held)

    threading.Timer(0.1, replace).start()
    got = lock(path, soon(10))
    assert got is not None
    assert os.path.samestat(os.fstat(got), os.stat(path))
    assert lock(path, None) is None
    unlock(got)


@pytest.mark.parametrize("how", ["unlocked", "killed"])
def test_a_fork_of_the_holder_does_not_keep_the_lock(tmp_path: Path, how: str) -> None:
    path = tmp_path / "lock"
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        held = lock(path, None)
        assert held is not None
        forked = os.fork()
        if forked == 0:
            time.sleep(20)
            os._exit(0)
        os.write(writer, b"%d" % forked)
        if how == "unlocked":
            unlock(held)
        time.sleep(20)
        os._exit(0)
    forked = int(os.read(reader, 20))
    try:
        if how == "killed":
            os.kill(holder, signal.SIGKILL)
        got = lock(path, soon(5))
        assert got is not None
        unlock(got)
        os.kill(forked, 0)  # still there
    finally:
        os.kill(forked, signal.SIGKILL)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(reader)
        os.close(writer)
