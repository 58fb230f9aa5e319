"""Root's binaries, brought to where the server's user can run them; the wheel's, which can be moved."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.integration.worker.embedded.conftest import query
from worker.embedded.errors import ServerError
from worker.embedded.installation import copy_installation
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.wheels import postgres_bin_dir

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends PostgreSQL another user")


def test_binaries_that_only_root_can_reach_are_copied_once(temporary: Path, tmp_path: Path) -> None:
    bin_dir = postgres_bin_dir(18)  # Debian's finds its other half by an absolute path
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    package = bin_dir.resolve().parents[1]
    source = hidden / package.name / bin_dir.parent.name
    shutil.copytree(bin_dir.resolve().parent, source, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, hidden / libraries.name)
    with EmbeddedPostgres(source / "bin") as server:
        copy = server.bin_dir
        assert copy.is_relative_to(temporary)
        assert query(server, "SELECT 1") == 1
    before = copy.stat().st_ino
    results: list[Path] = []
    both = [
        threading.Thread(target=lambda: results.append(EmbeddedPostgres(source / "bin").bin_dir))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert results == [copy, copy]
    assert copy.stat().st_ino == before


def test_two_that_copy_at_once_end_with_one_copy(temporary: Path) -> None:
    source = postgres_bin_dir(18)
    results: list[Path] = []
    both = [threading.Thread(target=lambda: results.append(copy_installation(source))) for _ in range(3)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(results) == 3
    assert [results[0].is_relative_to(only) for only in temporary.iterdir()] == [True]


def test_a_copy_that_another_user_put_there_is_not_run(temporary: Path) -> None:
    source = postgres_bin_dir(18)
    copy_installation(source)
    (copy,) = temporary.iterdir()
    os.chown(copy, 65534, 65534)
    with pytest.raises(ServerError, match="not ours"):
        copy_installation(source)
