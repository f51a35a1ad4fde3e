"""The lock file pins what pyproject.toml asks for, at versions that it allows; what users get has a licence."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(
    line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")
)
BY_MACHINE = {"torch", "triton"}  # which build is right, .ci/setup finds out


def wanted(*extras: str) -> list[Requirement]:
    own = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    return [found for text in own if (found := Requirement(text)).name not in BY_MACHINE]


def test_every_dependency_is_pinned_at_a_version_that_is_allowed() -> None:
    for requirement in wanted("dev"):
        assert canonicalize_name(requirement.name) in PINNED, f"{requirement.name}: run make lock"
        assert PINNED[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name
    assert not BY_MACHINE & set(PINNED)
    assert len(PINNED) > 2 * len(wanted("dev")), "what dependencies depend on is pinned too"


def test_every_package_that_users_get_has_a_licence() -> None:
    listed = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M)
    licences = {name: licence for name, _, licence in listed if name != "package"}
    for requirement in wanted():
        assert canonicalize_name(requirement.name) in licences, f"{requirement.name}: run make lock"
    assert len(licences) > 30
    assert [name for name, licence in licences.items() if "not said" in licence or re.search(r"\bA?GPL", licence)] == []


def test_the_set_up_uses_the_lock() -> None:
    assert "-c requirements.lock" in (ROOT / ".ci" / "setup").read_text()
