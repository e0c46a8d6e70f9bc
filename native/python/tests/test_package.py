"""The package itself: what it exports, its README, its types."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

import pytest

import readme_examples
import snakepit_shm as shm
from conftest import Place

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = readme_examples.groups(README)


def test_there_are_examples_and_two_are_of_two_processes() -> None:
    assert len(EXAMPLES) >= 10
    assert sum(len(group) == 2 for group in EXAMPLES) == 2
    # None escapes the pattern.
    assert sum(len(group) for group in EXAMPLES) == README.count("```python")


@pytest.mark.parametrize("example", EXAMPLES, ids=readme_examples.title)
def test_the_readme_runs(place: Place, tmp_path: Path, example: readme_examples.Group) -> None:
    readme_examples.run(example, tmp_path, sys.executable, place.env())
    assert place.files() == []


def test_the_links_of_the_readme_lead_to_its_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^##+ (.*)$", README, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert len(links) >= 10
    assert set(links) <= headings


def test_every_public_name_is_there_and_documented() -> None:
    assert sorted(shm.__all__) == sorted(set(shm.__all__))
    for name in shm.__all__:
        thing = getattr(shm, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def test_the_names_of_the_design_are_there() -> None:
    for name in ("create", "attach", "attach_writer", "share", "resolve", "Writer", "Reader"):
        assert name in shm.__all__
    for name in ("read", "read_into", "numpy", "memoryview", "__dlpack__", "arrow", "wait"):
        assert callable(getattr(shm.Reader, name))
    for name in ("write", "write_at", "loan", "flush", "seal", "close"):
        assert callable(getattr(shm.Writer, name))


def test_native_classes_cannot_be_made_or_changed_by_hand(place: Place) -> None:
    for cls in (shm.Reader, shm.Writer, shm.Loan):
        with pytest.raises(TypeError):
            cls()
    with place.create() as writer:
        with pytest.raises(AttributeError):
            writer.name = "other"  # type: ignore[misc]
        with pytest.raises(TypeError):
            type("Sub", (shm.Writer,), {})


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("snakepit-shm") == shm.__version__


def test_types_are_shipped() -> None:
    package = Path(shm.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_native.pyi").exists()


def test_multiprocessing_shared_memory_is_never_used(place: Place) -> None:
    """Its tracker unlinks segments of others."""
    out = place.run(
        """
        import sys, numpy, snakepit_shm as shm
        with shm.create("it", 4096) as w, shm.attach("it") as r:
            w.write(numpy.arange(3)); r.numpy()
        shm.release(shm.share(b"x"))
        print([m for m in sys.modules if "shared_memory" in m or "resource_tracker" in m])
        """
    )
    assert out == "[]\n"


def test_importing_costs_no_more_than_numpy(place: Place) -> None:
    out = place.run(
        """
        import sys, numpy
        before = set(sys.modules)
        import snakepit_shm
        new = {m.partition(".")[0] for m in set(sys.modules) - before}
        print(sorted(new - set(sys.stdlib_module_names)))
        """
    )
    assert out == "['snakepit_shm']\n"
    assert sys.version_info >= (3, 11)
