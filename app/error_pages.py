"""The one place where errors become HTTP: a page for people, JSON for `/api`, one clear sentence in both."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from app.rendering import RETRY_AFTER, is_data, page, path_of
from sae_core.errors import SaescopeError

log = logging.getLogger(__name__)

TITLES = {
    401: "A token is needed",
    403: "Not allowed here",
    404: "Not here",
    405: "Not done this way",
    409: "Changed meanwhile",
    413: "Too long",
    422: "That cannot be read",
    429: "Too many requests",
    500: "Something broke",
    503: "Not now",
    507: "The disk is full",
}
SENTENCES = {
    404: "There is no page at this address.",
    405: "This address does not take that kind of request.",
    413: "The request is larger than this server reads.",
}
UNEXPECTED = "An unexpected error happened; the server's log has the details."


def add_error_pages(app: FastAPI) -> None:
    app.add_exception_handler(SaescopeError, _domain_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def error_response(request: Request, *, status: int, message: str) -> Response:
    """JSON where programs read, a page elsewhere."""
    if is_data(path_of(request)):
        return JSONResponse({"error": message, "status": status}, status_code=status, headers=_headers(status))
    title = TITLES.get(status) or HTTPStatus(status).phrase
    response = page(
        request, "error.html", status_code=status, title=title, message=message, status=status, json_url=None,
        request_id=getattr(request.state, "request_id", ""),
    )  # fmt: skip
    response.headers.update(_headers(status) or {})
    return response


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SaescopeError)
    if error.http_status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    return error_response(request, status=error.http_status, message=str(error))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    plain = error.detail == HTTPStatus(error.status_code).phrase
    message = SENTENCES.get(error.status_code, error.detail) if plain else error.detail
    response = error_response(request, status=error.status_code, message=message)
    response.headers.update(error.headers or {})
    return response


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request, status=422, message=_sentence(error.errors()))


def unexpected(request: Request, error: Exception) -> Response:
    """What no handler knows: the details go into the log alone."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(request, status=500, message=UNEXPECTED)


def _sentence(errors: Sequence[Any]) -> str:
    """The first problem in words; where it lies, and what is wrong with it."""
    first = errors[0]
    place, *names = first["loc"]
    name = ".".join(str(part) for part in names if part != place) or "the request"
    where = {"query": "in the address", "path": "in the address", "body": "in the request"}.get(str(place), "")
    problem = str(first["msg"]).removeprefix("Value error, ")
    problem = problem.replace("Input should be", "it should be").replace("String should", "it should")
    return f"{name} {where} cannot be used: {problem[0].lower()}{problem[1:]}.".replace("  ", " ")


def _headers(status: int) -> dict[str, str] | None:
    return {"Retry-After": RETRY_AFTER} if status in (429, 503) else None
