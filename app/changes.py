"""What changes of lists and labels go through: where it comes from, whether this server takes it, and who made it.

So that no other site can do it through a reader's browser, a change must come from the server's own pages, as browsers
say in Sec-Fetch-Site or Origin, or from a program, which says neither and sends no cookie either. The gate asks that of
every request. The author's name is what a person typed last, kept in a cookie; who it really was stands in the audit
trail.
"""

from collections.abc import Mapping
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ValidationError

from app.deps import SettingsDep
from sae_core.errors import ForbiddenError, InputError

AUTHOR_COOKIE = "saescope-author"
AUTHOR_SECONDS = 365 * 24 * 3600
FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 50
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

Asked = TypeVar("Asked", bound=BaseModel)


def from_this_site(request: Request, *, by_cookie: bool) -> None:
    """Refuses what a page of another site has a browser send. `by_cookie`: a browser's cookie says who asks, so the
    request must say where it comes from."""
    if request.method in SAFE_METHODS or _is_own(request.headers, unless_said=not by_cookie):
        return
    raise ForbiddenError(
        "This request comes from a page of another site, so nothing was done; use saescope's own page."
    )


async def writable(settings: SettingsDep) -> None:
    """Refuses changes where the server takes none."""
    if settings.read_only:
        raise ForbiddenError("This server is read-only: lists and labels are changed where saescope runs without that.")


Writable = Depends(writable)


async def form_fields(request: Request) -> dict[str, str]:
    """What a browser's form sends; of fields of one name the last."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != FORM:
        raise InputError(f"This address takes a form as browsers send it ({FORM}); programs use the one under /api.")
    try:
        text = (await request.body()).decode()
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:
        raise InputError("The form cannot be read: it is not UTF-8, or has too many fields; send it again.") from None


Fields = Annotated[dict[str, str], Depends(form_fields)]


def parsed(kind: type[Asked], fields: Mapping[str, str]) -> Asked:
    """A form as what the same request is under /api; a bad field is refused in the same words."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


def author_of(request: Request) -> str:
    """The name typed last in this browser, or nothing."""
    return unquote(request.cookies.get(AUTHOR_COOKIE, ""))


def seen_at(address: str, *, author: str | None = None) -> RedirectResponse:
    """After a change: on to the page that shows it. `author` is remembered."""
    response = RedirectResponse(address, status_code=303)
    if author is not None and author.strip():
        name = quote(author.strip().encode("utf-8", "replace"))
        response.set_cookie(AUTHOR_COOKIE, name, max_age=AUTHOR_SECONDS, samesite="lax", httponly=True)
    elif author is not None:
        response.delete_cookie(AUTHOR_COOKIE, samesite="lax", httponly=True)
    return response


def _is_own(headers: Mapping[str, str], *, unless_said: bool) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")  # what browsers send instead to a server without TLS
    if origin is None:
        return unless_said
    # A proxy may put the name that the browser asked for in the second; another site's page cannot set either.
    own = (headers.get("host", ""), headers.get("x-forwarded-host", "").split(",")[0].strip())
    return urlsplit(origin).netloc.lower() in {name.lower() for name in own if name}
