"""The image and the compose file, where no container engine is at hand: read, held to what they promise, and their
start-up and health commands run as they stand, on a free port.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from app.server import SPARE_FILES
from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]


def command_of(instruction: str) -> list[str]:
    (found,) = re.findall(rf"{instruction} (\[.*\])", DOCKERFILE)
    return [str(word) for word in json.loads(found)]


START = command_of("\nCMD")
HEALTH = command_of("HEALTHCHECK.* CMD")


def test_nothing_runs_as_root_and_everything_is_kept_and_watched() -> None:
    lines = [line.strip() for line in DOCKERFILE.splitlines()]
    assert lines.index("USER saescope") < lines.index("VOLUME /data") < len(lines)
    assert not any(line.startswith(("RUN", "COPY")) for line in lines[lines.index("USER saescope") :])
    assert "user" not in SERVICES["app"] and SERVICES["database"]["user"] == "postgres"
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD" and service["restart"] == "unless-stopped", name
        assert service["cap_drop"] == ["ALL"] and "privileged" not in service, name
        for volume in service["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]  # a named one, which outlives the container
    assert SERVICES["app"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert SERVICES["app"]["ports"] == ["127.0.0.1:8000:8000"] and "ports" not in SERVICES["database"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [source for copied in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in copied.split()[:-1]]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists() and source in kept, source


def test_the_environment_is_that_of_the_settings() -> None:
    names = {f"SAESCOPE_{name.upper()}" for name in Settings.__dataclass_fields__}
    given = {name for name in SERVICES["app"]["environment"] if name.startswith("SAESCOPE_")}
    assert given and given <= names
    assert Settings(host=START[START.index("--host") + 1]).needs_login
    assert SERVICES["app"]["ulimits"]["nofile"] >= Settings().max_connections + SPARE_FILES
    assert SERVICES["app"]["healthcheck"]["test"][1:] == HEALTH


def test_every_setting_is_in_the_operations_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for name in Settings.__dataclass_fields__:
        assert f"`SAESCOPE_{name.upper()}`" in manual, name


@pytest.mark.slow
def test_the_image_starts_is_healthy_and_asks_for_a_token(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert START[0] == "saescope" and HEALTH[0] == "python"
    here = [sys.executable, "-m", "app.cli", *(port if word == "8000" else word for word in START[1:])]
    health = [sys.executable, *(word.replace("8000", port) for word in HEALTH[1:])]
    environment = os.environ | {"SAESCOPE_HOME": str(tmp_path), "SAESCOPE_LOG": "json"}
    server = subprocess.Popen(
        here, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(health, capture_output=True, check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.1)
        assert subprocess.run(health, check=False).returncode == 0
        page = httpx.get(f"http://127.0.0.1:{port}/")
        assert page.status_code == 303 and page.headers["location"].startswith("/login")
    finally:
        server.terminate()
        out, errors = server.communicate(timeout=30)
    assert "saescope token create" in out
    asked = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert {"/readyz", "/"} <= {line.get("path") for line in asked}
    assert subprocess.run(health, capture_output=True, check=False).returncode != 0
