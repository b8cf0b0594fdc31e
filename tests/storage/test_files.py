"""files.py, by itself and through the writers of pictures and inversions."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nulltext.errors import OutputError
from nulltext.image.saving import check_writable, save_image
from nulltext.storage.files import LOCK, check_target, lock_folder, replace_file, replacing_folder
from nulltext.storage.inversion_file import write_inversion
from support.pictures import noise

Writer = Callable[[Path, np.ndarray], None]


def write_bytes(path: Path, raw: np.ndarray) -> None:
    replace_file(path, raw.tobytes())


def write_picture(path: Path, raw: np.ndarray) -> None:
    save_image(Image.fromarray(raw), path)


def write_tensors(path: Path, raw: np.ndarray) -> None:
    write_inversion(path, {"raw": torch.from_numpy(raw)}, {})


WRITERS = [write_bytes, write_picture, write_tensors]


def test_check_target_gives_the_file_that_will_be_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert check_target(tmp_path / "link") == (tmp_path / "real").resolve()
    assert check_target(str(tmp_path / "plain")) == tmp_path / "plain"
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("write", WRITERS)
def test_an_output_is_an_ordinary_file(tmp_path: Path, write: Writer) -> None:
    """The mode follows the umask, and a symbolic link stays one."""
    target = tmp_path / "deep" / "real.png"
    target.parent.mkdir()
    (tmp_path / "link.png").symlink_to(target)
    (tmp_path / "plain").touch()
    write(tmp_path / "link.png", noise(8, 8, 3))
    assert (tmp_path / "link.png").is_symlink()
    write(tmp_path / "same.png", noise(8, 8, 3))
    assert target.read_bytes() == (tmp_path / "same.png").read_bytes()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_bytes_are_those_given(tmp_path: Path) -> None:
    for data in (noise(100_000).tobytes(), b"", b"new"):
        replace_file(str(tmp_path / "file"), data)
        assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize(
    "act", [check_target, check_writable, *(lambda p, w=w: w(p, noise(8, 8, 3)) for w in WRITERS)]
)
def test_impossible_outputs(tmp_path: Path, act: Callable[[Path], None]) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(tmp_path.rglob("*"))
    for name, word in {
        "folder.png": "is a folder",
        "pipe.png": "not a regular file",
        "none/a.png": "does not exist",
        "file/a.png": "cannot be written",
        "nul\0.png": "cannot be written",
        "x" * 300 + ".png": "name too long",
    }.items():
        with pytest.raises(OutputError, match=word) as caught:
            act(tmp_path / name)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("act", [check_target, check_writable])
def test_a_read_only_place_is_noticed_early(tmp_path: Path, act: Callable[[Path], None]) -> None:
    """/proc takes no new file, not even from root."""
    with pytest.raises(OutputError, match="cannot be written"):
        act(Path("/proc/nulltext.png"))
    act(tmp_path / "a.png")
    (tmp_path / "old.png").write_bytes(b"old")
    act(tmp_path / "old.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(write_picture, s) for s in ("png", "jpg", "webp")]
    + [(write_bytes, "bin"), (write_tensors, "safetensors")],
)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, write: Writer, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, noise(8, 8, 3))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the write itself fails half way
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write(path, noise(128, 128, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, write: Writer
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the new file waits beside the old one
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError, match="No space left on device"):
        write(path, noise(8, 8, 3))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_a_read_only_file_is_left_alone(tmp_path):
    target = tmp_path / "master.png"
    target.write_bytes(b"precious")
    target.chmod(0o444)
    for write in (check_target, lambda path: replace_file(path, b"new")):
        with pytest.raises(OutputError, match="read-only"):
            write(target)
    assert target.read_bytes() == b"precious"


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "shared.png"
    target.write_bytes(b"old")
    target.chmod(0o664)
    replace_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o664


HOLD = """
import sys
from nulltext.storage.files import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_locked_folder_keeps_others_out_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match="by another nulltext"), lock_folder(tmp_path):
        pass
    other.kill()
    other.communicate()
    for _ in range(2):
        with lock_folder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with pytest.raises(OutputError, match="cannot be written"), lock_folder(tmp_path / "none"):
        pass


def test_a_replaced_folder_is_whole_or_as_it_was_and_has_the_usual_permissions(tmp_path):
    folder = tmp_path / "model"
    for number in range(2):
        with replacing_folder(folder) as fresh:
            (fresh / "part").mkdir()
            (fresh / "part" / "weights").write_text(str(number))
            (fresh / "part" / "weights").chmod(0o600)
        assert (folder / "part" / "weights").read_text() == str(number)
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert (folder / "part" / "weights").stat().st_mode == usual
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    broken = replacing_folder(folder)
    (broken.__enter__() / "weights").write_text("2")
    with pytest.raises(OutputError, match="No space left"):
        broken.__exit__(OSError, full, None)
    assert {path.name for path in tmp_path.rglob("*")} == {"model", "part", "weights", "plain"}
    assert (folder / "part" / "weights").read_text() == "1"


def test_what_a_folder_held_is_not_lost_where_it_cannot_be_put_back(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    replace, calls = Path.replace, []

    def only_once(self, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", only_once)
    broken = replacing_folder(folder)
    (broken.__enter__() / "weights").write_text("new")
    with pytest.raises(OutputError, match="Input/output error"):
        broken.__exit__(None, None, None)
    assert [path.read_text() for path in tmp_path.rglob("weights")] == ["old"]
