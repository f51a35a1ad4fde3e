"""Settings: from the environment, from the command, and refused in a sentence."""

import dataclasses
import resource
from pathlib import Path

import pytest

from app.server import files_problem
from app.settings import Settings
from sae_core.errors import ConfigError


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.from_env({"XDG_DATA_HOME": str(tmp_path)})
    assert settings.home == tmp_path / "saescope"
    assert settings.database_url == f"sqlite:///{tmp_path}/saescope/saescope.db"
    assert (settings.host, settings.port, settings.max_prompt_tokens) == ("127.0.0.1", 8000, 1024)


def test_every_field_is_read_from_the_environment() -> None:
    values = {
        "home": "/data", "database_url": "postgresql://x/y", "host": "0.0.0.0", "port": "9", "max_prompt_tokens": "7",
        "probe_queue": "3", "probe_timeout": "1.5", "device": "cpu", "max_body_bytes": "100",
        "steer_tokens": "8", "steer_seconds": "2.5",
        "read_only": "True", "model_memory": "8000000000", "login": "True", "insecure": "False", "visitors": "True",
        "visibility": "unlisted", "session_days": "2.5", "root_path": "/scope", "trusted_proxies": "10.0.0.1",
        "rate_limit": "0", "body_timeout": "5.0", "max_connections": "50", "workers": "2", "log": "json",
        "llm_base_url": "http://localhost:11434/v1", "llm_model": "m", "llm_key": "sk-1",
        "llm_timeout": "2.5", "llm_concurrency": "2",
    }  # fmt: skip
    assert set(values) == {field.name for field in dataclasses.fields(Settings)}
    settings = Settings.from_env({f"SAESCOPE_{name.upper()}": value for name, value in values.items()})
    assert {name: str(getattr(settings, name)) for name in values} == values


def test_the_key_is_not_printed() -> None:
    assert "sk-1" not in repr(Settings(llm_key="sk-1"))


def test_override_wins_and_none_is_not_given() -> None:
    settings = Settings.from_env({"SAESCOPE_PORT": "9", "SAESCOPE_HOST": "h"}, port=10, host=None)
    assert (settings.port, settings.host) == (10, "h")


@pytest.mark.parametrize("environ", [{"SAESCOPE_PORT": "x"}, {"SAESCOPE_PORT": "70000"}, {"SAESCOPE_PROBE_QUEUE": "0"}])
def test_impossible_value_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="give a number"):
        Settings.from_env(environ)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("0", False), ("Off", False)])
def test_a_switch_is_on_or_off(text: str, value: bool) -> None:
    assert Settings.from_env({"SAESCOPE_READ_ONLY": text}).read_only is value
    with pytest.raises(ConfigError, match="give 1 or 0"):
        Settings.from_env({"SAESCOPE_READ_ONLY": "perhaps"})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SAESCOPE_VISIBILITY": "secret"}, "public, unlisted, private"),
        ({"SAESCOPE_LOG": "all"}, "warnings, requests, json"),
        ({"SAESCOPE_ROOT_PATH": "scope"}, "such as /saescope"),
        ({"SAESCOPE_ROOT_PATH": '/a"b'}, "such as /saescope"),
        ({"SAESCOPE_RATE_LIMIT": "-1"}, "or 0"),
    ],
)
def test_a_word_that_is_none_of_those_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings.from_env(environ)


def test_every_field_is_documented() -> None:
    source = (Path(__file__).parents[2] / "app" / "settings.py").read_text()
    for field in dataclasses.fields(Settings):
        line = next(at for at, text in enumerate(source.splitlines()) if text.startswith(f"    {field.name}:"))
        assert source.splitlines()[line + 1].startswith('    """'), field.name


def test_a_server_takes_the_open_files_that_it_needs_and_says_where_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = [256, 1000]  # soft, hard

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        limit[0] = wanted[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert files_problem(Settings(max_connections=500)) is None and limit == [700, 1000]
    problem = files_problem(Settings(max_connections=2000))
    assert limit == [1000, 1000] and problem is not None
    assert "ulimit -n 2200" in problem and "SAESCOPE_MAX_CONNECTIONS to 800" in problem
    assert files_problem(Settings(max_connections=800)) is None
