"""Where the segments of a run lie: a small tmpfs of its own, where the system allows one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NOTE = b"not a segment; somebody else's\n"


class Arena:
    """A directory on a memory file system, that can be filled when it is a mount of its own."""

    def __init__(self, mount_allowed: bool, megabytes: int = 96) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="snakepit-chaos-", dir="/dev/shm"))
        # `scripts/chaos.sh` gives us a mount namespace of our own, so nobody else sees the mount.
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(self.root)]
        self.mounted = (
            mount_allowed
            and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
        self.dir = self.root / "main"
        self.storm_dir = self.root / "storm"
        self.dir.mkdir()
        self.storm_dir.mkdir()
        self.filler = self.root / "filler"
        self.foreign = {"chaos_notes.txt", "chaos_other_s-0_1", "notes"}
        for name in self.foreign:
            (self.dir / name).write_bytes(NOTE)

    def fill(self) -> bool:
        """Takes all the space that is left; returns whether it could."""
        if not self.mounted:
            return False
        with self.filler.open("wb") as file:
            size, step = 0, 1 << 20
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2
        return True

    def free(self) -> None:
        """Gives the space back."""
        self.filler.unlink(missing_ok=True)

    def foreign_intact(self) -> bool:
        """Whether the files of others are as they were."""
        with contextlib.suppress(OSError):
            return all((self.dir / name).read_bytes() == NOTE for name in self.foreign)
        return False

    def leftovers(self, folder: Path) -> list[str]:
        """Files that are not somebody else's."""
        return sorted(set(os.listdir(folder)) - self.foreign)

    def close(self) -> None:
        """Removes everything."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.root)], capture_output=True, check=False)
        shutil.rmtree(self.root, ignore_errors=True)
