"""Writes requirements.lock and docs/licences.md from what is installed in this environment: `make lock`.

The lock has the exact version of every package that saescope and its tests pull in. PyTorch is left out: which build of
it is right depends on the machine, and .ci/setup chooses.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LEFT_TO_THE_MACHINE = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
LOCK_HEAD = "# Written by `make lock`, used by .ci/setup: what the tests ran with. PyTorch is chosen by .ci/setup.\n"
LICENCES_HEAD = """\
# Licences of the packages that saescope installs

saescope itself is under the Apache License 2.0. These are the packages that `pip install saescope` brings, and under
which licences their authors publish them, as their metadata say. Written by `make lock`.

| package | version | licence |
|---|---|---|
"""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = closure(project["dependencies"])
    everything = closure([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    pins = [f"{name}=={version(name)}" for name in sorted(everything) if not LEFT_TO_THE_MACHINE.fullmatch(name)]
    (ROOT / "requirements.lock").write_text(LOCK_HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    rows = [f"| {name} | {version(name)} | {licence(name)} |" for name in sorted(needed)]
    (ROOT / "docs" / "licences.md").write_text(LICENCES_HEAD + "\n".join(rows) + "\n", encoding="utf-8")
    sys.stdout.write(f"saescope: {len(pins)} packages are pinned, {len(rows)} licences listed\n")


def closure(asked: list[str]) -> set[str]:
    """Every installed package that these need, and they themselves, in the spelling of PyPI."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(asked)
    while waiting:
        requirement = Requirement(waiting.pop())
        if str(requirement) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(str(requirement))
        try:
            metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or another Python
        found.add(canonicalize_name(requirement.name))
        waiting += further(requirement)
    return found


def further(requirement: Requirement) -> list[str]:
    """What the package needs, with the extras that are asked for, without the conditions that are met."""
    needed = []
    for text in metadata.requires(requirement.name) or []:
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            one.marker = None
            needed.append(str(one))
    return needed


def version(name: str) -> str:
    return metadata.version(name).split("+")[0]


def licence(name: str) -> str:
    """The SPDX expression, else the classifiers, else the first line of what the author wrote."""
    about = metadata.metadata(name)
    classifiers = [c.rsplit(" :: ", 1)[1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    said = about.get("License-Expression") or ", ".join(c for c in classifiers if c != "OSI Approved")
    return (said or (about.get("License") or "not said").strip().splitlines()[0])[:80]


if __name__ == "__main__":
    main()
