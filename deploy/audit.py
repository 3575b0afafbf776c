"""Packages of lock files that PyPA's advisory database knows a weakness of, without a network: `make audit`.

pip-audit asks the network for each package; this reads the same advisories (OSV, vulns/*/*.yaml) from a checkout. What
was published later it cannot know, so it says how old the newest advisory is. Exit code 1: there are some.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def locked(files: list[Path]) -> dict[str, Version]:
    """Name and version of every line `name==version`."""
    lines = [line.split("#")[0].strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(one.name): Version(next(iter(one.specifier)).version) for one in wanted}


def advisories(folder: Path) -> Iterator[dict[str, Any]]:
    """All that were not withdrawn."""
    files = sorted(folder.glob("vulns/*/*.yaml"))
    if not files:
        sys.exit(f"{folder}: no vulns/*/*.yaml; expected a checkout of PyPA's advisory database")
    for file in files:
        one = yaml.safe_load(file.read_text(encoding="utf-8"))
        if "withdrawn" not in one:
            yield one


def affects(affected: dict[str, Any], version: Version) -> bool:
    """Whether one entry of `affected` lists the version, or has it in a range of versions."""
    ranges = [one["events"] for one in affected.get("ranges", []) if one["type"] == "ECOSYSTEM"]
    return any(_same(listed, version) for listed in affected.get("versions", [])) or any(
        _within(events, version) for events in ranges
    )


def _same(listed: str, version: Version) -> bool:
    try:
        return Version(listed) == version
    except InvalidVersion:  # of long ago: nothing that is locked
        return False


def _within(events: list[dict[str, str]], version: Version) -> bool:
    try:
        changes = sorted((Version(at), kind) for event in events for kind, at in event.items() if kind != "limit")
    except InvalidVersion:  # of long ago: nothing that is locked
        return False
    inside = False
    for at, kind in changes:
        if kind == "last_affected":
            inside = inside and version <= at
        elif version >= at:
            inside = kind == "introduced"
    return inside


def main(arguments: list[str]) -> int:
    """Print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path, help="the checkout: the folder that holds vulns/")
    parser.add_argument("locks", type=Path, nargs="+", help="requirements.lock")
    given = parser.parse_args(arguments)
    packages, known, newest, found, named = locked(given.locks), 0, "", set(), set()
    for one in advisories(given.database):
        known += 1
        newest = max(newest, str(one.get("published", ""))[:10])
        for affected in one.get("affected", []):
            name = canonicalize_name(affected["package"]["name"])
            if name in packages:
                named.add(name)
                if affects(affected, packages[name]):
                    found.add(f"{name} {packages[name]}: {one['id']} {' '.join(one.get('aliases', []))}".rstrip())
    print("".join(f"{line}\n" for line in sorted(found)), end="")
    print(f"{known} advisories, the newest of {newest}; they name {len(named)} of {len(packages)} packages")
    print(f"{len(found)} apply to the versions that are locked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
