"""Checks that every test that a document names is there.

A name in backticks counts when it looks like one: `words_with_underscores` (a Rust or Python
test), `"R3.3 count at zero …"` in quotation marks (an ExUnit test), or a test file. Prints what is
missing.

    python scripts/named_tests.py docs/faults.md docs/requirements.md
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (".rs", ".py", ".exs", ".ex")


def tracked() -> list[Path]:
    """Sources of this repository that git knows, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / line for line in listed.splitlines() if line.endswith(SOURCES)]


def main(documents: list[str]) -> int:
    """Checks the documents; 1 when something is missing, or nothing was named."""
    files = [path for path in tracked() if path.exists()]
    texts = "\n".join(path.read_text() for path in files)
    functions = set(re.findall(r"\b(?:fn|def) (\w+)", texts))
    names = {path.name for path in files}
    modules = {path.stem for path in files}
    checked, missing = 0, []
    for document in documents:
        text = (ROOT / document).read_text()
        quoted = re.findall(r'`"([^`]+)"`', text)
        words = re.findall(r"`(?:\w+::)*([a-z0-9]+(?:_[a-z0-9]+){3,})`", text)
        sources = re.findall(r"`?([a-z0-9_]+\.(?:rs|exs|py))\b", text)
        checked += len(quoted) + len(words) + len(sources)
        missing += [f'{document}: "{q}"' for q in quoted if f'"{q}"' not in texts]
        missing += [f"{document}: {w}" for w in words if w not in functions | modules]
        missing += [f"{document}: {s}" for s in sources if s not in names]
    for line in sorted(set(missing)):
        print(f"not there: {line}")
    print(f"{checked} tests and files named, {len(set(missing))} not there")
    return 1 if missing or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
