"""Who reads and writes, as records: tokens without their secrets, the viewer behind a request, the audit trail.

Standard library only, as in `records`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

Role = Literal["reader", "editor", "admin"]
Visibility = Literal["public", "unlisted", "private"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """On whose behalf a store is asked. Who does not see everything finds no private SAE, and unlisted ones by name.

    What is written is noted in the audit trail under `name`, with what was asked for and the request that asked for it.
    """

    name: str
    sees_everything: bool
    action: str
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as it is listed. Of the secret only its hash is stored."""

    token_id: int
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A write: who, what, when, and in which request."""

    audit_id: int
    at: datetime
    name: str
    action: str
    request_id: str
