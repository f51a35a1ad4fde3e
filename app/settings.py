"""What can be set about the running dashboard: one frozen record, read from the environment or given by the command.

Every field `name` is read from the variable `SAESCOPE_NAME`; a value given to `from_env` wins over the environment.
"""

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sae_core.access_records import VISIBILITIES, Visibility
from sae_core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the dashboard runs. `home` and `database_url` are filled in when left empty."""

    home: Path = Path()
    """Folder of runs and of the database; default `$XDG_DATA_HOME/saescope` or `~/.local/share/saescope`."""

    database_url: str = ""
    """SQLAlchemy address of the database; default SQLite at `saescope.db` in `home`."""

    host: str = "127.0.0.1"
    """Network address to listen on. The default is reached from this machine only."""

    port: int = 8000
    """TCP port to listen on."""

    max_prompt_tokens: int = 1024
    """Longest text that a probe takes, in tokens of the model."""

    probe_queue: int = 64
    """Probes that may wait or run at the same time; one more is answered with 503."""

    probe_timeout: float = 120.0
    """Seconds until a probe is given up, loading the model included."""

    steer_tokens: int = 256
    """Tokens that steering may write at a time."""

    steer_seconds: float = 60.0
    """Seconds after which steering stops with what it has written, loading the model not included."""

    device: str | None = None
    """Where the model runs (`cpu`, `cuda`, `mps`); default the best that is there."""

    model_memory: int | None = None
    """Bytes that loaded models and SAEs may use together; default half of what is free on the device."""

    max_body_bytes: int = 2 * 1024 * 1024
    """Largest request body that is read, in bytes."""

    read_only: bool = False
    """Whether lists, people's labels and visibility are only shown, and cannot be changed (`1` or `0`)."""

    login: bool = False
    """Whether a token is needed on 127.0.0.1 too, as behind a reverse proxy on this machine; elsewhere it always is."""

    insecure: bool = False
    """Whether everybody who reaches the server may do everything, without a token, at whatever address it listens."""

    visitors: bool = False
    """Whether people without a token may read what is public, where a token is needed for the rest."""

    visibility: Visibility = "public"
    """Who finds an SAE that is new: `public`, `unlisted` (by its address), or `private` (editors and admins)."""

    session_days: float = 30.0
    """Days until a browser has to log in again."""

    root_path: str = ""
    """Path under which a reverse proxy serves the dashboard, such as `/saescope`; default the root of its host."""

    trusted_proxies: str = "127.0.0.1"
    """Addresses of reverse proxies, with commas between, that are believed about the client and TLS; `*` for all."""

    rate_limit: int = 3000
    """Requests a minute that one client may make where a token is needed: one token, else one address; 0: no limit."""

    body_timeout: float = 30.0
    """Seconds that a client may take to send a request's head, and its body."""

    max_connections: int = 2000
    """Open connections of one server process, streams of events included; one more is answered with 503."""

    workers: int = 1
    """Server processes on one port; each has a model worker of its own, started by its first probe."""

    log: str = "warnings"
    """What is logged, to stderr: `warnings`, `requests` (a line each), or `json` (the same, an object a line)."""

    llm_base_url: str = ""
    """Root of the API of a language model that labels features, as in `http://localhost:11434/v1`; default none."""

    llm_model: str = ""
    """Name of that model, as its endpoint knows it."""

    llm_key: str = dataclasses.field(default="", repr=False)
    """Key of that endpoint, if it needs one. It is sent there and nowhere else."""

    llm_timeout: float = 120.0
    """Seconds that an answer of that model may take."""

    llm_concurrency: int = 4
    """Questions to that model at the same time."""

    def __post_init__(self) -> None:
        home = self.home if self.home != Path() else default_home(os.environ)
        object.__setattr__(self, "home", home.expanduser())
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.home / 'saescope.db'}")
        for name in _ABOVE_0:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0.")
        if self.model_memory is not None and self.model_memory <= 0:
            raise ConfigError(f"model_memory is {self.model_memory}: give a number of bytes above 0.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}: give a number from 0 to 65535.")
        if self.rate_limit < 0:
            raise ConfigError(f"rate_limit is {self.rate_limit}: give a number of requests a minute, or 0.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(choices)}.")
        object.__setattr__(self, "root_path", _root_path(self.root_path))

    @property
    def needs_login(self) -> bool:
        """Whether nobody gets in without a token: everywhere but on this machine alone."""
        return not self.insecure and (self.login or not is_loopback(self.host))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, /, **overrides: object) -> Self:
        """Settings from `environ` (the process's own by default); an override of None counts as not given."""
        environ = os.environ if environ is None else environ
        values: dict[str, object] = {"home": default_home(environ)}
        for field in dataclasses.fields(cls):
            text = environ.get(f"SAESCOPE_{field.name.upper()}")
            if text:
                values[field.name] = _parsed(field.name, text)
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**values)  # type: ignore[arg-type]


def default_home(environ: Mapping[str, str]) -> Path:
    """Where runs and the database live when nobody says otherwise."""
    data_home = environ.get("XDG_DATA_HOME")
    return (Path(data_home) if data_home else Path.home() / ".local" / "share") / "saescope"


def is_loopback(host: str) -> bool:
    """Whether what listens on this address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _root_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ConfigError(f"root_path is {path!r}: give a path of letters and digits, such as /saescope.")
    return path


_ABOVE_0 = (
    "max_prompt_tokens", "probe_queue", "probe_timeout", "steer_tokens", "steer_seconds", "max_body_bytes",
    "session_days", "body_timeout", "max_connections", "workers", "llm_timeout", "llm_concurrency",
)  # fmt: skip
_CHOICES = {"visibility": VISIBILITIES, "log": ("warnings", "requests", "json")}
_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _parsed(name: str, text: str) -> object:
    kinds: dict[str, type[int] | type[float] | type[Path]] = {
        "home": Path,
        "port": int,
        "max_prompt_tokens": int,
        "probe_queue": int,
        "probe_timeout": float,
        "steer_tokens": int,
        "steer_seconds": float,
        "model_memory": int,
        "max_body_bytes": int,
        "llm_timeout": float,
        "llm_concurrency": int,
        "session_days": float,
        "rate_limit": int,
        "body_timeout": float,
        "max_connections": int,
        "workers": int,
    }
    if name in ("read_only", "login", "insecure", "visitors"):
        if text.lower() not in _SWITCHES:
            raise ConfigError(f"SAESCOPE_{name.upper()} is {text!r}: give 1 or 0.")
        return _SWITCHES[text.lower()]
    try:
        return kinds.get(name, str)(text)
    except ValueError:
        raise ConfigError(f"SAESCOPE_{name.upper()} is {text!r}: give a number.") from None
