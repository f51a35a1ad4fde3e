"""The commands and options about who may do what: `saescope token`, `saescope visibility`, and those of `serve`."""

import argparse
import getpass
import os
import sys
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from app.settings import Settings
from sae_core.access_records import ROLES, VISIBILITIES, Viewer
from sae_core.errors import ConfigError

if TYPE_CHECKING:
    from sae_core.store import Store

TOKEN = """\
Let people and programs in where a token is needed: everywhere but on 127.0.0.1. Readers read; editors label features,
make lists and probe texts; admins import, delete, and say who sees which SAE. A token is shown once and stored as a
hash; a browser logs in with it at /login, a program sends it as `Authorization: Bearer …`."""

TOKEN_EXAMPLES = """\
examples:
  saescope token create ana --role editor
  saescope token list
  saescope token revoke ana"""

VISIBILITY = """\
Show or say who finds an SAE: public (everybody whom the server lets in), unlisted (whoever has its address; it stands
in no list and no search), or private (editors and admins only; to others there is no such SAE). Without SLUG all are
listed."""

_SWITCHES = ("read_only", "login", "insecure", "visitors")
_VALUES = ("root_path", "workers")


def at_command_line() -> Viewer:
    """Whoever runs a command: the operating system's name, and the command's first words."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        name = f"user {os.getuid()}"
    words = [word for word in sys.argv[1:3] if not word.startswith("-")]
    return Viewer(name=name, sees_everything=True, action=" ".join(["saescope", *words]))


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may do what")
    for name, meaning in (
        ("read-only", "nobody changes lists and labels (SAESCOPE_READ_ONLY)"),
        ("login", "a token is needed on 127.0.0.1 too, as behind a reverse proxy (SAESCOPE_LOGIN)"),
        ("visitors", "people without a token read what is public (SAESCOPE_VISITORS)"),
        ("insecure", "no token is needed at any address: whoever reaches it may do everything (SAESCOPE_INSECURE)"),
    ):
        group.add_argument(f"--{name}", action="store_true", default=None, help=meaning)
    group = parser.add_argument_group("on a server")
    group.add_argument("--root-path", metavar="PATH", help="where a reverse proxy puts it (SAESCOPE_ROOT_PATH; /)")
    group.add_argument("--workers", type=int, metavar="N", help="server processes on one port (SAESCOPE_WORKERS; 1)")


def serving_overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in (*_SWITCHES, *_VALUES)}


def who_may_come(settings: Settings, store: "Store") -> str:
    """What is said when a server starts that others can reach."""
    if settings.insecure:
        return "Insecure: whoever reaches this address may read, change and delete everything, without a token."
    if not settings.needs_login:
        return ""
    if settings.visitors:
        n = sum(summary.visibility == "public" for summary in store.saes())
        return f"People without a token read the {n} public SAEs (saescope visibility); the rest needs a token."
    if all(token.revoked_at is not None for token in store.accounts.tokens()):
        return "Nobody can log in yet: make a token with saescope token create NAME --role admin."
    return "A token is needed: saescope token create NAME --role reader, editor or admin makes one."


def add_access_commands(
    command: Callable[..., argparse.ArgumentParser], *, opens: Callable[[argparse.Namespace], "Store"]
) -> None:
    """`opens`: opens the store that the command's arguments name."""
    token = command("token", "let people in, and keep them out", TOKEN, TOKEN_EXAMPLES)
    token.add_argument("what", choices=("create", "list", "revoke"), help="what to do")
    token.add_argument("name", nargs="?", metavar="NAME", help="of the person or program")
    token.add_argument("--role", choices=ROLES, default="reader", help="what it may do (reader)")
    token.set_defaults(run=lambda arguments: run_token(arguments, opens))
    visibility = command("visibility", "say who finds an SAE", VISIBILITY)
    visibility.add_argument("slug", nargs="?", metavar="SLUG", help="the SAE")
    visibility.add_argument("visibility", nargs="?", choices=VISIBILITIES, help="who finds it from now on")
    visibility.set_defaults(run=lambda arguments: run_visibility(arguments, opens))


def run_token(arguments: argparse.Namespace, opens: Callable[[argparse.Namespace], "Store"]) -> int:
    """`saescope token`."""
    if arguments.what != "list" and not arguments.name:
        raise ConfigError(f"Whose token? Write: saescope token {arguments.what} NAME.")
    with closing(opens(arguments)) as store:
        if arguments.what == "create":
            secret = store.accounts.create_token(arguments.name, arguments.role)
            _say(secret, f"This is shown once. It lets {arguments.name} in as {arguments.role}, until it is revoked.")
        elif arguments.what == "revoke":
            store.accounts.revoke_token(arguments.name)
            _say(f"The token of {arguments.name} opens nothing any more.")
        else:
            for token in store.accounts.tokens():
                until = f"revoked {token.revoked_at:%Y-%m-%d}" if token.revoked_at else "in use"
                _say(f"{token.name:<24} {token.role:<7} made {token.created_at:%Y-%m-%d}  {until}")
    return 0


def run_visibility(arguments: argparse.Namespace, opens: Callable[[argparse.Namespace], "Store"]) -> int:
    """`saescope visibility`."""
    with closing(opens(arguments)) as store:
        if arguments.visibility is not None:
            store.set_visibility(arguments.slug, arguments.visibility)
        shown = store.saes() if arguments.slug is None else [store.sae(arguments.slug)]
        for summary in shown:
            _say(f"{summary.sae.slug:<40} {summary.visibility}")
    return 0


def _say(*texts: str) -> None:
    sys.stdout.write("".join(f"{text}\n" for text in texts))
