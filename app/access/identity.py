"""Who asks: found by the gate from a session's cookie or a bearer token, and kept with the request."""

from dataclasses import dataclass

from fastapi import Request

from sae_core.access_records import ROLES, Role, Token, Viewer

SESSION_COOKIE = "saescope-session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whoever sent a request. A role of None may not even read."""

    name: str
    role: Role | None
    has_session: bool = False
    has_token: bool = False

    def may(self, role: Role) -> bool:
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(role)

    @property
    def is_logged_in(self) -> bool:
        return self.has_session or self.has_token


LOCAL = Identity(name="local", role="admin")  # where no login is asked for
NOBODY = Identity(name="nobody", role=None)
VISITOR = Identity(name="visitor", role="reader")  # without a token, where the server lets such people read


def of_token(token: Token, *, has_session: bool) -> Identity:
    return Identity(name=token.name, role=token.role, has_session=has_session, has_token=not has_session)


def identity_of(request: Request) -> Identity:
    """Whom the gate has let in; nobody where it was not asked, so that a route beside the gate shows nothing."""
    identity: Identity = getattr(request.state, "identity", NOBODY)
    return identity


def viewer_of(request: Request) -> Viewer:
    """The same for the store: what it shows, and under which name it notes a write."""
    identity = identity_of(request)
    return Viewer(
        name=identity.name,
        sees_everything=identity.may("editor"),
        action=f"{request.method} {request.url.path}",
        request_id=getattr(request.state, "request_id", ""),
    )
