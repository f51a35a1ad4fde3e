"""The lock file pins what pyproject.toml asks for, at versions that it allows; what users get has a licence."""

import importlib.util
import json
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
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


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(*given: tuple[int, str, str]) -> object:
    left = iter(given)
    return lambda arguments: subprocess.CompletedProcess(arguments, *next(left))


WELL = {"name": "h11", "version": "0.2"}
WEAK = {"name": "h11", "version": "0.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2"]}]}
THERE, OFFLINE = (0, "2.7", ""), (1, "", "WARNING: Retrying\nERROR: No matching distribution found for pip-audit.\n")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ([THERE, (0, json.dumps({"dependencies": [WELL]}), "")], 0, "0 weaknesses are known of 1"),
        ([THERE, (1, json.dumps({"dependencies": [WEAK]}), "Found 1")], 1, "h11 0.1: PYSEC-1, fixed in 0.2\n"),
        ([THERE, (1, "", "Traceback\nConnectionError: it\n")], 2, "no answer (ConnectionError: it); run `make audit`"),
        ([OFFLINE, OFFLINE], 2, "cannot be installed (ERROR: No matching distribution found for pip-audit); run"),
    ],
)  # fmt: skip
def test_an_audit_says_what_it_found_or_why_it_found_nothing(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    given: list[tuple[int, str, str]], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(audit, "_ran", answers(*given))
    monkeypatch.setattr(audit.venv, "create", lambda *_, **__: None)
    assert audit.main() == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err and "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == (1 if code == 2 else 0)
