"""The lock file: every package used by the project and its tests, in the installed version.

``python tests/package/locking.py > requirements.lock`` updates it.
"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = "emdiffuse"
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def asked(extras: frozenset[str]) -> list[Requirement]:
    """Return the project's requirements with these extras; an installed copy may be outdated."""
    optional = [text for extra in sorted(extras) for text in PROJECT["optional-dependencies"][extra]]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *optional]]


def required(package: str, extras: frozenset[str]) -> list[Requirement]:
    """Return a package's requirements with these extras on this machine."""
    if package == OWN:
        return asked(extras)
    every = [Requirement(text) for text in metadata.requires(package) or []]
    return [
        requirement
        for requirement in every
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def closure(extras: frozenset[str] = frozenset({"test"})) -> dict[str, str]:
    """Return name and version of all requirements of the project with these extras on this machine."""
    waiting, seen = [(OWN, extras)], set()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) not in seen:
            seen.add((package, wanted))
            needed = required(package, wanted)
            waiting += [(canonicalize_name(each.name), frozenset(each.extras)) for each in needed]
    return {package: metadata.version(package) for package, _ in seen if package != OWN}


def locked(text: str) -> dict[str, str]:
    """Return name and version of the entries of a lock file."""
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in entries}


def main() -> None:
    print("# All packages of emdiffuse[test] as the tests ran with them: Python 3.11, Linux, x86-64.")
    print("# Written by `make lock`; install with `pip install --constraint requirements.lock emdiffuse`.")
    for name, version in sorted(closure().items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
