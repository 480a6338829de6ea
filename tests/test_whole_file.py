"""Files and folders written whole: nothing of others is followed, replaced or removed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from stillframe.cli.demo import contact_sheet
from stillframe.errors import OutputError
from stillframe.evaluation.editing import keep_array
from stillframe.evaluation.tables import write_table, write_text
from stillframe.jobs.report import write_json
from stillframe.video import VideoWriter
from stillframe.whole_file import forget_left_behind, open_whole, whole_folder, write_whole


def _video(path: Path) -> None:
    with VideoWriter(path, 16, 16, Fraction(1, 25), 25) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8), 0)


def _sheet(path: Path) -> None:
    _video(video := path.with_name("one.mkv"))
    contact_sheet([video], path, 0)
    video.unlink()


#: All that writes a file, by the extension of the file.
WRITERS: dict[str, Callable[[Path], object]] = {
    ".bin": lambda path: write_whole(path, (b"new",)),
    ".txt": lambda path: write_text(path, "new"),
    ".csv": lambda path: write_table(path, [{"a": 1}]),
    ".npy": lambda path: keep_array(path, np.zeros((1, 2, 2, 3), np.uint8)),
    ".json": lambda path: write_json({"a": 1}, path),
    ".mp4": _video,
    ".png": _sheet,
}


@pytest.fixture(params=sorted(WRITERS))
def writer(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], object]]:
    return f"out{request.param}", WRITERS[request.param]


def _planted(name: str) -> list[str]:
    """Names that programs of this kind are known to take while they write `name`."""
    stem, suffix = os.path.splitext(name)
    number = os.getpid()
    return [
        f"{name}.part",
        f"{stem}.part{suffix}",
        f"{name}.{number}.part",
        f"{stem}{suffix}.{number}.part",
        f"{name}.tmp",
    ]


def test_nothing_planted_is_followed_or_removed(
    tmp_path: Path, writer: tuple[str, Callable[[Path], object]]
) -> None:
    name, write = writer
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_bytes(b"the user's")
    folder.mkdir()
    planted = [folder / one for one in dict.fromkeys(_planted(name))]
    for link in planted:
        link.symlink_to(victim)
    write(folder / name)
    assert victim.read_bytes() == b"the user's"
    assert all(link.readlink() == victim for link in planted)
    assert (folder / name).stat().st_size > 0
    assert not (folder / name).is_symlink()


def test_a_link_stays_and_its_target_is_replaced(
    tmp_path: Path, writer: tuple[str, Callable[[Path], object]]
) -> None:
    name, write = writer
    target, link = tmp_path / "elsewhere" / name, tmp_path / name
    target.parent.mkdir()
    target.write_bytes(b"old")
    before = target.stat().st_ino
    link.symlink_to(target)
    write(link)
    assert link.readlink() == target
    assert target.read_bytes() != b"old"
    assert target.stat().st_ino != before, "replaced, not written into"
    assert not [
        path
        for path in (*tmp_path.iterdir(), *target.parent.iterdir())
        if path.is_dir() and path != target.parent
    ]


def test_permissions_are_those_of_an_ordinary_file(
    tmp_path: Path, writer: tuple[str, Callable[[Path], object]]
) -> None:
    name, write = writer
    before = os.umask(0o027)
    try:
        write(path := tmp_path / name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604, "as the file that is replaced"
    finally:
        os.umask(before)


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def halfway() -> None:
        with open_whole(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halfway()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        write_whole(pipe, (b"x",))
    with pytest.raises(OutputError, match="not a regular file"):
        write_whole("/dev/null", (b"x",))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_only_the_own_remains_of_the_dead_are_removed(tmp_path: Path) -> None:
    """What a killed process left goes; what others have, whatever its name, stays."""
    script = (
        "import os, signal, sys\n"
        "from stillframe.whole_file import open_whole\n"
        "with open_whole(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"the user's")
    number = left.name.removeprefix(".stillframe-").partition("-")[0]
    (tmp_path / f".stillframe-{number}-planted.part").symlink_to(elsewhere)
    (tmp_path / f"rows.{number}.part").write_bytes(b"the user's")
    (tmp_path / f".stillframe-{os.getpid()}-alive.part").mkdir(mode=0o700)
    (tmp_path / f".stillframe-{number}-shared.part").mkdir(mode=0o755)
    kept = set(tmp_path.iterdir()) - {left}
    forget_left_behind(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    assert (elsewhere / "precious").read_bytes() == b"the user's"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    theirs = tmp_path / "out.part"
    theirs.mkdir()
    (theirs / "precious").write_bytes(b"the user's")
    out = tmp_path / "out"

    def halfway() -> None:
        with whole_folder(out) as folder:
            (folder / "a").write_bytes(b"half")
            raise KeyboardInterrupt

    before = os.umask(0o027)
    try:
        with pytest.raises(KeyboardInterrupt):
            halfway()
        assert os.listdir(tmp_path) == ["out.part"]
        with whole_folder(out) as folder:
            (folder / "a").write_bytes(b"whole")
            assert not out.exists()
    finally:
        os.umask(before)
    assert sorted(os.listdir(tmp_path)) == ["out", "out.part"]
    assert os.listdir(out) == ["a"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert (theirs / "precious").read_bytes() == b"the user's"
    with pytest.raises(OutputError, match="there already"), whole_folder(out):
        pass
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(OutputError, match="there already"), whole_folder(tmp_path / "nowhere"):
        pass
