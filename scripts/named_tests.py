"""Checks that every test that a document names is there, and every criterion in its document.

A name in backticks counts when it looks like one: `words_with_underscores` (a Rust or Python
test), `"R3.3 count at zero …"` in quotation marks (an ExUnit test), or a test file. Prints what
is missing.

docs/requirements.md has one row for each criterion, in order, and each row a test, a bench or the
reason why it is not done. The criteria of REGIONS_IN_ELIXIR have an ExUnit test whose name begins
with their id, unless the row says that they are not done.

    python scripts/named_tests.py docs/faults.md docs/requirements.md
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (".rs", ".py", ".exs", ".ex")
REQUIREMENTS = "docs/requirements.md"

# How many criteria each requirement has.
COUNTS = {
    **{f"R{requirement}": 5 for requirement in range(1, 15)},
    "FR": 10,
    "SC": 7,
}
REGIONS_IN_ELIXIR = ("R1", "R2", "R3", "R5", "R7", "R8", "R9", "R10", "R11", "R12", "R14")


def criteria() -> list[str]:
    """Every id, in the order in which the document has them."""
    segments = [f"{kind}-{n:03}" for kind in ("FR", "SC") for n in range(1, COUNTS[kind] + 1)]
    regions = [kind for kind in COUNTS if kind.startswith("R")]
    return segments + [f"{kind}.{n}" for kind in regions for n in range(1, COUNTS[kind] + 1)]


def wrong_rows(text: str, exunit: list[str]) -> list[str]:
    """What the table of criteria lacks, or has and should not; `exunit` are names of tests."""
    rows = dict(re.findall(r"^\| ((?:R|FR-|SC-)[0-9][^|]*?) \| [^|]+ \| (.*) \|$", text, re.M))
    listed = re.findall(r"^\| ((?:R|FR-|SC-)[0-9][^|]*?) \|", text, re.M)
    wanted = criteria()
    wrong = [f"{REQUIREMENTS}: {one} has no row" for one in wanted if one not in listed]
    wrong += [f"{REQUIREMENTS}: {one} is no criterion" for one in listed if one not in wanted]
    twice = {one for one in listed if listed.count(one) > 1}
    wrong += [f"{REQUIREMENTS}: {one} has several rows" for one in sorted(twice)]
    if not wrong and listed != wanted:
        wrong.append(f"{REQUIREMENTS}: the rows are not in order")

    begin = [re.match(r"(?:R[0-9]+\.[0-9]+ )+", name) for name in exunit]
    shown = {one for ids in begin if ids for one in ids.group().split()}
    wrong += [f"a test begins with {one}, which is no criterion" for one in shown - set(wanted)]
    for one, shown_by in rows.items():
        if not re.search(r"`|not done|\.rs|\.exs|\.py", shown_by):
            wrong.append(f"{REQUIREMENTS}: {one} names no test, no bench and no reason")
        in_elixir = one.split(".")[0] in REGIONS_IN_ELIXIR
        if in_elixir and one not in shown and "not done" not in shown_by:
            wrong.append(f"no ExUnit test begins with {one}")
    return wrong


def tracked() -> list[Path]:
    """Sources of this repository that git knows, or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / line for line in listed.splitlines() if line.endswith(SOURCES)]


def main(documents: list[str]) -> int:
    """Checks the documents; 1 when something is missing or wrong, or nothing was named."""
    files = [path for path in tracked() if path.exists()]
    texts = "\n".join(path.read_text() for path in files)
    functions = set(re.findall(r"\b(?:fn|def) (\w+)", texts))
    names = {path.name for path in files}
    modules = {path.stem for path in files}
    checked, missing, wrong = 0, [], []
    for document in documents:
        text = (ROOT / document).read_text()
        quoted = re.findall(r'`"([^`]+)"`', text)
        words = re.findall(r"`(?:\w+::)*([a-z0-9]+(?:_[a-z0-9]+){3,})`", text)
        sources = re.findall(r"`?([a-z0-9_]+\.(?:rs|exs|py))\b", text)
        checked += len(quoted) + len(words) + len(sources)
        missing += [f'{document}: "{q}"' for q in quoted if f'"{q}"' not in texts]
        missing += [f"{document}: {w}" for w in words if w not in functions | modules]
        missing += [f"{document}: {s}" for s in sources if s not in names]
        if document == REQUIREMENTS:
            wrong += wrong_rows(text, re.findall(r'\b(?:test|describe) "([^"]+)"', texts))
    for line in sorted(set(missing)):
        print(f"not there: {line}")
    for line in wrong:
        print(line)
    print(f"{checked} tests and files named, {len(set(missing))} not there")
    return 1 if missing or wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
