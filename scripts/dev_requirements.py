"""Prints what a developer needs from a pyproject.toml, one requirement a line.

That is: what builds the package, what it depends on, and its group or extra called `dev`.

    python scripts/dev_requirements.py native/python/pyproject.toml
"""

import sys
import tomllib
from pathlib import Path


def requirements(path: Path) -> list[str]:
    """The requirements named in `path`, each once, in order.

    Exits with a message when there are none for development.
    """
    data = tomllib.loads(path.read_text())
    project = data.get("project", {})
    extras = project.get("optional-dependencies", {})
    groups = data.get("dependency-groups", {})
    queue = [r for r in groups.get("dev", []) if isinstance(r, str)] + list(extras.get("dev", []))
    if not queue:
        sys.exit(f"error: {path} has neither a dependency group nor an extra called `dev`")
    # An extra may name other extras of its own package: `snakepit-shm[arrow]`.
    own = f"{project.get('name', '')}["
    found = [*data.get("build-system", {}).get("requires", []), *project.get("dependencies", [])]
    while queue:
        requirement = queue.pop(0)
        if requirement.replace(" ", "").startswith(own):
            names = requirement.split("[", 1)[1].split("]", 1)[0].split(",")
            queue.extend(r for name in names for r in extras[name.strip()])
        else:
            found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]))))
