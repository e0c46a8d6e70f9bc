"""Builds the Python wheel, installs it with pip in a clean virtual environment, and uses it there.

    python test/wheel/run.py

What is checked: the wheel is one for all versions of CPython (stable ABI), carries its types and
its README, and asks for numpy alone; the environment holds nothing else afterwards; and in it the
README's examples run, a type checker finds the types, and what needs an extra says which.
"""

from __future__ import annotations

import email.message
import email.parser
import os
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "native/python"
SHM = Path("/dev/shm")

sys.path[:0] = [str(ROOT / "test"), str(PACKAGE / "tests")]
import readme_examples  # noqa: E402
from checks import Checks, output  # noqa: E402

WITHOUT_EXTRAS = """
import numpy, snakepit_shm
with snakepit_shm.create("it", 4096) as writer, snakepit_shm.attach("it") as reader:
    writer.write(numpy.arange(3))
    assert reader.numpy().tolist() == [0, 1, 2]
    try:
        reader.arrow()
    except snakepit_shm.UnsupportedError as error:
        assert "snakepit-shm[arrow]" in error.remedy, error.remedy
    else:
        raise AssertionError("pyarrow is here")
"""


@dataclass(frozen=True)
class Wheel:
    """A built wheel: where it is, what it is called, what is in it."""

    path: Path
    files: list[str]
    metadata: email.message.Message

    @classmethod
    def build(cls, folder: Path) -> Wheel:
        """Build it, with what `target/` has of it already."""
        manifest = str(PACKAGE / "Cargo.toml")
        build = [
            "build",
            "--release",
            "--locked",
            "--manifest-path",
            manifest,
            "--out",
            str(folder),
        ]
        output([sys.executable, "-m", "maturin", *build], ROOT)
        (path,) = folder.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            files = archive.namelist()
            (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
            text = archive.read(metadata).decode()
        return cls(path, files, email.parser.Parser().parsestr(text))


def check_name(wheel: Wheel) -> None:
    name, version_, python, abi, platform = wheel.path.stem.split("-")
    assert (name, python, abi) == ("snakepit_shm", "cp311", "abi3"), wheel.path.name
    assert version_ == wheel.metadata["Version"]
    assert "linux" in platform


def check_files(wheel: Wheel) -> None:
    ours = {name for name in wheel.files if ".dist-info/" not in name}
    sources = PACKAGE / "python/snakepit_shm"
    expected = {f"snakepit_shm/{path.name}" for path in sources.glob("*.py*") if path.is_file()}
    expected |= {"snakepit_shm/py.typed", "snakepit_shm/_native.abi3.so"}
    assert ours == expected, ours ^ expected


def check_requirements(wheel: Wheel) -> None:
    requirements = wheel.metadata.get_all("Requires-Dist", [])
    hard = [requirement for requirement in requirements if "extra ==" not in requirement]
    assert [requirement.partition(">")[0].strip() for requirement in hard] == ["numpy"], hard
    extras = set(wheel.metadata.get_all("Provides-Extra", []))
    assert extras == {"arrow", "dev", "pandas", "polars", "test", "torch"}, extras


def check_description(wheel: Wheel) -> None:
    assert wheel.metadata["Description-Content-Type"].startswith("text/markdown")
    described = wheel.metadata["Description"] or wheel.metadata.get_payload()
    assert str(described).strip() == (PACKAGE / "README.md").read_text().strip()
    assert wheel.metadata["Requires-Python"] == ">=3.11"


@dataclass(frozen=True)
class Clean:
    """A virtual environment with the wheel in it, and a folder and a namespace of its own."""

    python: str
    folder: Path
    shm: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return {**kept, "SNAKEPIT_SHM_DIR": str(self.shm), "SNAKEPIT_SHM_NAMESPACE": "wheel"}

    @classmethod
    def make(cls, wheel: Wheel, folder: Path, shm: Path) -> Clean:
        """Make it, with the version of numpy that is tested elsewhere too."""
        output([sys.executable, "-m", "venv", str(folder / "venv")], ROOT)
        python = str(folder / "venv/bin/python")
        constraints = folder / "constraints.txt"
        constraints.write_text(f"numpy=={version('numpy')}\n")
        pip = ["install", "--quiet", "--only-binary", ":all:", "--constraint", str(constraints)]
        output([python, "-m", "pip", *pip, str(wheel.path)], ROOT)
        work = folder / "work"
        work.mkdir()
        return cls(python, work, shm)

    def run(self, script: str) -> str:
        """Run a script here, isolated from the sources; warnings are errors."""
        return output([self.python, "-I", "-W", "error", "-c", script], self.folder, self.env)


def check_environment(clean: Clean) -> None:
    listed = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    installed = set(clean.run(listed).split()) - {"pip", "setuptools"}
    assert installed == {"numpy", "snakepit-shm"}, installed
    where = clean.run("import snakepit_shm; print(snakepit_shm.__file__)").strip()
    assert where.startswith(str(clean.folder.parent / "venv")), where


def check_types(clean: Clean) -> None:
    """A type checker that looks at the installed package finds its types."""
    user = clean.folder / "user.py"
    user.write_text(
        "import snakepit_shm\n"
        'reader = snakepit_shm.attach("it")\n'
        "reveal_type(reader.wait())\n"
        "reveal_type(reader.read())\n"
    )
    flags = ["--python-executable", clean.python, "--config-file", os.devnull, "--no-incremental"]
    said = output([sys.executable, "-m", "mypy", *flags, str(user)], clean.folder)
    assert '"int"' in said, said
    assert '"bytes"' in said, said


def check_example(clean: Clean, group: readme_examples.Group) -> None:
    readme_examples.run(group, clean.folder, clean.python, clean.env)


def check_nothing_left(clean: Clean) -> None:
    left = sorted(path.name for path in clean.shm.iterdir())
    assert not left, left


def main() -> int:
    checks = Checks()
    check = checks.check
    with (
        tempfile.TemporaryDirectory(prefix="snakepit-wheel-") as temporary,
        tempfile.TemporaryDirectory(prefix="snakepit-wheel-", dir=SHM) as shm,
    ):
        folder = Path(temporary)
        wheel = Wheel.build(folder)
        check("its name", lambda: check_name(wheel))
        check("its files", lambda: check_files(wheel))
        check("what it requires", lambda: check_requirements(wheel))
        check("its description", lambda: check_description(wheel))
        clean = Clean.make(wheel, folder, Path(shm))
        check("a clean environment", lambda: check_environment(clean))
        check("without extras", lambda: clean.run(WITHOUT_EXTRAS))
        check("types", lambda: check_types(clean))
        for group in readme_examples.groups((PACKAGE / "README.md").read_text()):
            if not readme_examples.needs(group, "pyarrow"):  # pytest runs these
                name = f"example {readme_examples.title(group)}"
                check(name, lambda group=group: check_example(clean, group))
        check("nothing left", lambda: check_nothing_left(clean))
    return checks.end()


if __name__ == "__main__":
    sys.exit(main())
