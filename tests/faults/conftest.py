"""A small disk that fills up quickly."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB, and a function that leaves a given free space on it."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can be mounted by root alone")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)

    def leave(room):
        ballast = disk / "ballast"
        ballast.unlink(missing_ok=True)
        if room is not None:
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(disk).free - room))

    yield disk, leave
    subprocess.run(["umount", "--lazy", disk], check=True)
