"""From a template's name and its values to a response: the Jinja environment, addresses and static files.

Pages call `page()`; templates find `url`, `static_url`, the number formats and the glossary's terms as globals.
"""

import hashlib
import re
import threading
from collections.abc import MutableMapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app import charts, numbers
from app.access.identity import identity_of
from app.examples import SIGNS, with_signs
from app.glossary import TERMS
from app.marks import bar, example_item, example_line, example_text, spark, term_printer, token_spans
from app.urls import url

HERE = Path(__file__).resolve().parent
# Beside this package in a checkout, inside it where saescope was installed from a wheel.
ROOT = HERE if (HERE / "templates").is_dir() else HERE.parent
TEMPLATES, STATIC = ROOT / "templates", ROOT / "static"
PLOTLY = "plotly.min.js"  # served beside our own files, from the installed wheel
RETRY_AFTER = "5"  # seconds, with every 503
ONE_YEAR = 365 * 24 * 3600


def static_url(name: str) -> str:
    """The address of a static file with its content's hash, so that browsers may keep it for good."""
    path = static_path(name)
    return f"/static/{name}?v={_content_hash(path, path.stat().st_mtime_ns)}"


def static_path(name: str) -> Path:
    return charts.plotly_script() if name == PLOTLY else STATIC / name


def page(request: Request, template: str, *, status_code: int = 200, **values: object) -> HTMLResponse:
    """One page of HTML. `json_url` defaults to the address of the page's JSON twin. Who may not change anything gets
    the page as a read-only server has it. A template named `…_embed.html` may stand in frames of other sites."""
    query = f"?{request.url.query}" if request.url.query else ""
    values.setdefault("json_url", f"/api{quote(path_of(request))}{query}")
    request.state.is_framed = template.endswith("_embed.html")
    request.state.has_webgl = values.pop("has_webgl", template == "map.html")
    headers = {"Retry-After": RETRY_AFTER} if status_code == 503 else None
    return HTMLResponse(rendered(request, template, **values), status_code=status_code, headers=headers)


def rendered(request: Request, template: str, **values: object) -> str:
    """The text of a page, or of a part of one."""
    identity = identity_of(request)
    if not identity.may("editor"):
        values.setdefault("read_only", True)
    environment: Environment = request.app.state.templates
    text = environment.get_template(template).render(request=request, identity=identity, **values)
    return under(request.scope.get("root_path", ""), text)


def path_of(request: Request) -> str:
    """The path within the dashboard, wherever a proxy has put that: the one by which routes are chosen, whatever the
    request's Host would make of it."""
    path, root = str(request.scope["path"]), str(request.scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and path.startswith(root + "/") else path


def is_data(path: str) -> bool:
    """Whether programs read what is there, and not people: they are told of errors in JSON."""
    return path.startswith(("/api/", "/healthz", "/readyz", "/metrics", "/openapi.json")) or path == "/api"


def under(root: str, html: str) -> str:
    """A page whose own addresses begin with `root`. Templates write them from the dashboard's root; what is text in a
    page is escaped, so an attribute's beginning is always a template's."""
    return _OWN_ADDRESS.sub(rf"\g<0>{root}", html) if root else html


# `data-t` is a token's text; of the other data a script may read, what begins like an address is one.
_OWN_ADDRESS = re.compile(
    r' (?:(?:href|src|action|formaction)="(?=/(?!/))'
    r'|data-(?!t=)[\w-]+="(?=/(?:api|static|saes|lists|runs|learn|compare|probe|p)[/?"]))'
)


class _Templates(Environment):
    """Jinja's environment; of several requests that need a new template at once, one compiles it."""

    _compiling = threading.RLock()

    def _load_template(self, name: str, globals: MutableMapping[str, Any] | None) -> Template:
        with self._compiling:
            return super()._load_template(name, globals)

    def compile_all(self) -> None:
        """Compiles every template, so that no reader waits for it."""
        for name in self.list_templates():
            self.get_template(name)


def make_environment(*, version: str, read_only: bool = True, glossary: str = "/glossary") -> _Templates:
    """The Jinja environment: everything is escaped, an unknown name is an error. `glossary`: what words link to."""
    environment = _Templates(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals.update(url=url, static_url=static_url, terms=TERMS, version=version, plotly_name=PLOTLY)
    environment.globals.update(read_only=read_only, glossary=glossary)
    environment.globals.update(
        density_share=charts.density_share, sparkline=charts.sparkline, token_sparkline=charts.token_sparkline
    )
    for name in (
        "number",
        "signed",
        "fixed",
        "count",
        "approximate",
        "percent",
        "percent_signed",
        "one_in",
        "duration",
        "date",
    ):
        environment.filters[name] = getattr(numbers, name)
    environment.filters.update(visible=visible_token, line_parts=line_parts, json_data=json_data, decimals=decimals)
    environment.globals.update(
        token_spans=token_spans,
        example_line=example_line,
        example_text=example_text,
        example_item=example_item,
        bar_of=bar,
        spark_of=spark,
        term_of=term_printer(TERMS, glossary),
    )
    return environment


def saescope_version() -> str:
    try:
        return metadata.version("saescope")
    except metadata.PackageNotFoundError:
        return "development"


def visible_token(token: str) -> str:
    """A token standing alone, with its whitespace as signs: it would be seen as nothing otherwise."""
    return with_signs(token).replace("\n", "") if set(token) & set(SIGNS) else token


def line_parts(token: str) -> list[str]:
    """A token in a running text of buttons, line by line: a button cannot go over a line's end, so it holds the first
    part, with a sign for the break, and what follows the break stands beside it."""
    *ended, rest = token.replace("\r", "").split("\n")
    return [*(part + "↵" for part in ended), rest] if ended else [rest]


def decimals(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", numbers.MINUS)


def json_data(record: object) -> Markup:
    """A record as JSON for a data block inside HTML, where nothing may look like a tag."""
    text = TypeAdapter(type(record)).dump_json(record).decode()
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


class HashedStaticFiles(StaticFiles):
    """Our static files and Plotly's script; one asked for with its content's hash may be kept for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        asked = dict(part.split("=", 1) for part in scope["query_string"].decode("latin-1").split("&") if "=" in part)
        is_current = response.status_code in (200, 304) and static_url(path).endswith(f"?v={asked.get('v')}")
        response.headers["Cache-Control"] = f"public, max-age={ONE_YEAR}, immutable" if is_current else "no-cache"
        return response

    def lookup_path(self, path: str) -> Any:
        if path == PLOTLY:
            found = charts.plotly_script()
            if not found.is_file():
                raise HTTPException(404)
            return str(found), found.stat()
        return super().lookup_path(path)


@lru_cache(maxsize=64)
def _content_hash(path: Path, modified: int) -> str:
    """Of the file as it was at `modified`, so that an edited file gets a new address without a restart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def absolute(request: Request, path: str) -> str:
    """`path` within the dashboard as a full address, for what is pasted elsewhere."""
    return str(request.base_url).rstrip("/") + path


def query_without(request: Request, *names: str) -> dict[str, str]:
    """The request's parameters but for some, to link to the same view with one thing changed."""
    return {name: value for name, value in request.query_params.items() if name not in names}
