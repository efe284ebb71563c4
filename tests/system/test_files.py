"""After a crash a file is the old one or the new one, never a part and never missing."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.conftest import FileSizeLimit
from utils.system.errors import InputError, WriteError
from utils.system.files import (
    atomic_write,
    content_hash,
    file_state,
    lock,
    open_regular,
    read_json,
    text_hash,
    walk_files,
    writable_folder,
    write_json,
    write_json_together,
    write_text,
)


def test_a_file_is_flushed_to_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    happened = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        happened.append(f"flush {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def seen_replace(source: Path, target: Path) -> None:
        happened.append(f"rename {source.name} to {target.name}, which has {target.read_text()!r}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_text(path, "new")
    assert happened == ["flush a.txt.part", "rename a.txt.part to a.txt, which has 'old'", f"flush {tmp_path.name}"]
    assert path.read_text() == "new"


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="our own fault"), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half of")
        raise RuntimeError("our own fault")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path, file_size_limit: FileSizeLimit) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with file_size_limit(2000), pytest.raises(WriteError, match=r"a\.json: can't be written \(File too large\)"):
        write_json(path, list(range(5000)))
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("hard_links", [True, False])
def test_the_previous_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("this file system has no hard links")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "latest", tmp_path / "previous"
    for text in ("one", "two", "three"):
        with atomic_write(path, previous) as temporary:
            temporary.write_text(text)
    assert (path.read_text(), previous.read_text()) == ("three", "two")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latest", "previous"]


def test_the_latest_file_exists_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, previous = tmp_path / "latest", tmp_path / "previous"
    path.write_text("one")
    replace = os.replace

    def checked(source: Path, target: Path) -> None:
        assert path.exists()
        replace(source, target)
        assert path.exists()

    monkeypatch.setattr(os, "replace", checked)
    for text in ("two", "three"):
        with atomic_write(path, previous) as temporary:
            temporary.write_text(text)
    assert (path.read_text(), previous.read_text()) == ("three", "two")


def test_a_folder_that_can_not_be_written_to_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"`output_dir`: can't write to .*/file/below \(Not a directory\)"):
        writable_folder(tmp_path / "file" / "below", "`output_dir`")


def test_content_and_text_hash_of_the_standard_s_example(tmp_path: Path) -> None:
    """FIPS 180-2 gives the SHA-256 of "abc", which begins with ba7816bf 8f01cfea."""
    (tmp_path / "file").write_text("abc")
    assert content_hash(tmp_path / "file") == text_hash("abc") == "ba7816bf8f01"
    assert content_hash(tmp_path / "missing") is None


def test_the_state_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_state(path) == [str(path)]
    path.write_text("abc")
    os.utime(path, ns=(1, 2_000_000_003))
    assert file_state(path) == [str(path), 2_000_000_003, 3]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.txt.part").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


def test_a_name_may_have_all_255_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("m" * 255)
    write_text(path, "long")
    assert [file.name for file in tmp_path.iterdir()] == ["m" * 255]
    assert path.read_text() == "long"


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\.lock: can't be opened"):
        lock(tmp_path, "taken")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_no_program(tmp_path: Path) -> None:
    os.close(lock(tmp_path, "taken"))
    assert not (tmp_path / ".lock").stat().st_mode & 0o111


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"{path}: is a pipe, a socket or a device"):
            open_regular(path)


def test_no_file_takes_the_place_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "null"
    monkeypatch.setattr(Path, "is_char_device", lambda self: self == path)
    with pytest.raises(WriteError, match="null: is a device, and would be replaced by a file"), atomic_write(path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "expected"), [(b'\xef\xbb\xbf{"a": 1}', {"a": 1}), ('["é"]'.encode(), ["é"])])
def test_json_with_and_without_a_byte_order_mark(tmp_path: Path, content: bytes, expected: object) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == expected


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff\xfe", b"", b'{"a": {"b": 1, "b": 1}}'])
def test_what_is_no_json_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "a.json")


def contents(folder: Path) -> dict[str, str]:
    """All that is in a folder, by name."""
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("before", [{}, {"a.json": "1", "b.json": "2", "c.json": "3"}, {"b.json": "2"}])
@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_files_that_belong_together_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], failing: int, call: str
) -> None:
    """Whichever of them the disk refuses, and when: in the middle of a file, as it is flushed, or as it is renamed."""
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    real, seen = getattr(os, call), []

    def refuses(*arguments: object, **more: object) -> object:
        about = str(arguments[0]) if call != "fsync" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if about.endswith(".json.part"):
            seen.append(about)
            if len(seen) == failing + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **more)

    new = {tmp_path / name: {"new": name} for name in ("a.json", "b.json", "c.json")}
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuses)
        with pytest.raises(WriteError, match=r"^\S+/[abc]\.json: can't be written \(No space left on device\)$"):
            write_json_together(new)
    assert contents(tmp_path) == before
    write_json_together(new)
    assert {name: json.loads(text) for name, text in contents(tmp_path).items()} == {
        path.name: content for path, content in new.items()
    }


def test_a_folder_where_the_temporary_file_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.part").mkdir()
    with pytest.raises(WriteError, match=r"a\.txt: can't be written \(.*a\.txt\.part: Is a directory\)"):
        write_text(tmp_path / "a.txt", "new")


def test_two_programs_that_write_a_shared_file_at_once_both_succeed(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file", shared=True) as ours:
        ours.write_text("ours")
        with atomic_write(tmp_path / "file", shared=True) as theirs:
            theirs.write_text("theirs")
        assert (tmp_path / "file").read_text() == "theirs"
    assert (tmp_path / "file").read_text() == "ours"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "archive/patient").mkdir(parents=True)
    (tmp_path / "archive/patient/slice").touch()
    (tmp_path / "archive/patient/.hidden").touch()
    (tmp_path / "archive/patient/up").symlink_to(tmp_path / "archive")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/P1").symlink_to(tmp_path / "archive/patient")
    assert [path.relative_to(tmp_path) for path in walk_files(tmp_path / "data")] == [Path("data/P1/slice")]
