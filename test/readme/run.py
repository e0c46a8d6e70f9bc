"""Runs what the README says: each code block as it stands, each in a process of its own.

    python test/readme/run.py README.md

A block must succeed and leave nothing in /dev/shm. Links to files of the project must lead
somewhere, and `make` targets that are named must exist. Blocks in `text` and `console` are not run.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHM = Path("/dev/shm")
# What the default namespace's files are called.
PREFIXES = ("snakepit_", "snakepit.")
NOT_RUN = {"text", "console", "toml", "sh"}

sys.path.insert(0, str(ROOT / "test"))
from checks import Checks, output  # noqa: E402


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the file it begins on."""

    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.language} block at line {self.line}"


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    found = []
    for match in re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", markdown, re.M | re.S):
        line = markdown.count("\n", 0, match.start()) + 1
        found.append(Block(match[1].split(",")[0], match[2], line))
    return found


def run_elixir(block: Block, folder: Path) -> None:
    script = folder / "block.exs"
    script.write_text(block.text)
    output(["mix", "run", str(script)], ROOT)


def run_python(block: Block, folder: Path) -> None:
    script = folder / "block.py"
    script.write_text(block.text)
    output([sys.executable, "-W", "error", str(script)], folder)


def run_rust(block: Block, folder: Path) -> None:
    """Builds the block as a program of its own, as a user of the crate would."""
    manifest = (
        '[package]\nname = "readme-block"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n\n'
        f'[dependencies]\nsnakepit-shm = {{ path = "{ROOT / "native/core"}" }}\n'
    )
    (folder / "Cargo.toml").write_text(manifest)
    # The versions that the workspace is built with, so that nothing is resolved anew.
    shutil.copy(ROOT / "Cargo.lock", folder)
    (folder / "src").mkdir()
    text = block.text
    if "fn main" not in text:
        text = f"fn main() -> Result<(), Box<dyn std::error::Error>> {{\n{text}\nOk(())\n}}\n"
    (folder / "src" / "main.rs").write_text(text)
    output(["cargo", "run", "--quiet"], folder, {"CARGO_TARGET_DIR": str(ROOT / "target")})


RUNNERS: dict[str, Callable[[Block, Path], None]] = {
    "elixir": run_elixir,
    "python": run_python,
    "rust": run_rust,
}


def check_block(block: Block) -> None:
    before = set(SHM.iterdir())
    with tempfile.TemporaryDirectory() as folder:
        RUNNERS[block.language](block, Path(folder))
    left = {path.name for path in set(SHM.iterdir()) - before if path.name.startswith(PREFIXES)}
    if left:
        raise AssertionError(f"left in {SHM}: {sorted(left)}")


def check_links(markdown: str, folder: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", markdown)
    local = [link for link in links if "://" not in link]
    if not local:
        raise AssertionError("no link to a file of the project: is the pattern right?")
    missing = [link for link in local if not (folder / link).exists()]
    if missing:
        raise AssertionError(f"these links lead nowhere: {missing}")


def check_targets(markdown: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    there = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`make [^`]*`", markdown))))
    for block in blocks(markdown):
        if block.language == "console":
            named |= set(re.findall(r"^make ([a-z-]+)", block.text, re.M))
    if not {"demo", "test"} <= named:
        raise AssertionError("the README does not name `make demo` and `make test`")
    if named - there:
        raise AssertionError(f"the Makefile has no target {sorted(named - there)}")


def main(path: Path) -> int:
    markdown = path.read_text()
    found = blocks(markdown)
    unknown = {block.language for block in found} - set(RUNNERS) - NOT_RUN
    absent = set(RUNNERS) - {block.language for block in found}
    if unknown or absent:
        print(
            f"{path}: languages nobody runs: {sorted(unknown)}; without a block: {sorted(absent)}"
        )
        return 1

    checks = Checks()
    checks.check(f"{path.name}: links", lambda: check_links(markdown, path.resolve().parent))
    checks.check(f"{path.name}: make targets", lambda: check_targets(markdown))
    for block in found:
        if block.language in RUNNERS:
            checks.check(f"{path.name}: {block}", lambda block=block: check_block(block))
    return checks.end()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
