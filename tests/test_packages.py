"""What is installed is what is here."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    here = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("app", "sae_core")
        for path in (ROOT / top).rglob("__init__.py")
    }
    data = {"app.static", "app.templates", "sae_core.demo_lm.weights"}
    assert set(setuptools["packages"]) == here | data
