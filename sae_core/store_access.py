"""Tokens, sessions and the audit trail: their rows. Secrets are stored as SHA-256 only; being 256 random bits, they
cannot be found from it by trying.
"""

import hashlib
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from sae_core.access_records import ROLES, AuditEntry, Role, Token
from sae_core.errors import ConfigError, ConflictError, NotFoundError
from sae_core.schema import audit, sessions, tokens
from sae_core.store_engine import Database
from sae_core.store_lists import clean_author

CLOCK_SLACK = timedelta(hours=1)  # by which the clocks of several servers may differ
PREFIX = "saescope_"  # so that a token that was published by mistake can be found
_LIVE = sa.select(tokens).where(tokens.c.revoked_at.is_(None))
_BY_SECRET = _LIVE.where(tokens.c.sha256 == sa.bindparam("sha256"))
_BY_SESSION = _LIVE.join(sessions).where(
    sessions.c.sha256 == sa.bindparam("sha256"),
    sessions.c.expires_at > sa.bindparam("now"),
    sessions.c.expires_at <= sa.bindparam("latest"),
)


class Accounts:
    """Who may come in. Every method is one transaction, as in `Store`, which has it as `accounts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_token(self, name: str, role: Role) -> str:
        """A new token; its secret is returned here and never again."""
        if role not in ROLES:
            raise ConfigError(f"The role {role!r} is unknown; give one of {', '.join(ROLES)}.")
        if not name.strip():
            raise ConfigError("A token needs a name: that of the person or program that will use it.")
        name, secret = clean_author(name), PREFIX + secrets.token_urlsafe(32)
        with self._database.writing() as connection:
            if connection.execute(_LIVE.where(tokens.c.name == name)).first() is not None:
                raise ConflictError(f'There is a token "{name}" already; revoke it first, or choose another name.')
            row = {"name": name, "role": role, "sha256": _digest(secret), "created_at": datetime.now(UTC)}
            connection.execute(sa.insert(tokens).values(row))
        return secret

    def tokens(self) -> list[Token]:
        """All of them, those that were revoked too, the oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(tokens).order_by(tokens.c.token_id)).mappings()
            return [_token(row) for row in rows]

    def revoke_token(self, name: str) -> None:
        """From now on neither it nor a session begun with it opens anything."""
        now = datetime.now(UTC)
        with self._database.writing() as connection:
            row = connection.execute(_LIVE.where(tokens.c.name == name)).mappings().first()
            if row is None:
                raise NotFoundError(f'There is no token "{name}" in use; see `saescope token list`.')
            its = tokens.c.token_id == row["token_id"]
            connection.execute(sa.update(tokens).where(its).values(revoked_at=now))
            connection.execute(sa.delete(sessions).where(sessions.c.token_id == row["token_id"]))

    def by_token(self, secret: str) -> Token | None:
        """Whose secret this is; None if nobody's, or if it was revoked."""
        with self._database.reading() as connection:
            row = connection.execute(_BY_SECRET, {"sha256": _digest(secret)}).mappings().first()
            return None if row is None else _token(row)

    def by_session(self, secret: str, *, days: float) -> Token | None:
        """Whose session this is; None if nobody's, or if it is over. `days`: for which a session lasts now: one that
        would last longer was begun while the clock was ahead, or with another setting, and is over too."""
        now = datetime.now(UTC)
        with self._database.reading() as connection:
            asked = {"sha256": _digest(secret), "now": now, "latest": now + timedelta(days=days) + CLOCK_SLACK}
            row = connection.execute(_BY_SESSION, asked).mappings().first()
            return None if row is None else _token(row)

    def begin_session(self, secret: str, *, days: float) -> str | None:
        """A session for whoever has this token: what its cookie holds; None if the token opens nothing."""
        token = self.by_token(secret)
        if token is None:
            return None
        session, now = secrets.token_urlsafe(32), datetime.now(UTC)
        row = {"sha256": _digest(session), "token_id": token.token_id, "expires_at": now + timedelta(days=days)}
        viewer = self._database.viewer
        known = self._database if viewer is None else self._database.on_behalf_of(replace(viewer, name=token.name))
        with known.writing() as connection:
            # Not those that have just ended: a clock that was ahead for a while is put right, and they go on.
            connection.execute(sa.delete(sessions).where(sessions.c.expires_at < now - timedelta(days=days)))
            connection.execute(sa.insert(sessions).values(row))
        return session

    def end_session(self, session: str) -> None:
        with self._database.writing() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.sha256 == _digest(session)))

    def audit_trail(self, *, before: int | None = None, limit: int = 100) -> list[AuditEntry]:
        """What was written, the newest first; `before`: the id of the last entry that was seen."""
        query = sa.select(audit).order_by(audit.c.audit_id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.audit_id < before)
        with self._database.reading() as connection:
            return [AuditEntry(**row) for row in connection.execute(query).mappings()]


def _token(row: sa.RowMapping) -> Token:
    return Token(**{name: row[name] for name in ("token_id", "name", "role", "created_at", "revoked_at")})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
