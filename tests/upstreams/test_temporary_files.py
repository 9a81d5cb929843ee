"""Threads that write the same file at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from upstreams.files import atomic_write, temporary_beside


def test_threads_may_write_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"

    def write(number: int) -> None:
        for _ in range(15):
            with atomic_write(path) as temporary:
                temporary.write_text(str(number) * 1000)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert path.read_text() in [str(number) * 1000 for number in range(3)]
    assert list(tmp_path.iterdir()) == [path]


def test_no_two_temporary_files_have_one_name(tmp_path: Path) -> None:
    names = {temporary_beside(tmp_path / "file.txt") for _ in range(1000)}
    assert len(names) == 1000
    assert {name.parent for name in names} == {tmp_path} and all(name.name.startswith(".file.txt.") for name in names)
