"""The built-in corpus: the documentation and sources that every Python installation carries.

Used as `--corpus python-docs`, and with the installed packages as the demo model's training text
(`sae_core.demo_lm.text`). Files that are generated, mostly numbers or long-lined data are left out.
"""

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sae_core.records import Document

NAME = "python-docs"
SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "node_modules", "lib2to3", "turtledemo", "pydoc_data", "sae_core", "app"}
)
TEST_FOLDERS = frozenset({"test", "tests", "testing", "idle_test"})
PROSE_SUFFIXES = frozenset({".md", ".rst"})
MIN_CHARACTERS = 400
MAX_FILE_BYTES = 400_000
_GENERATED = re.compile(r"auto-?generated|do not edit|@generated|generated (?:by|from|automatically)", re.IGNORECASE)


def python_docs() -> Iterator[Document]:
    """Help topics and sources of the standard library (without its tests), mixed in a fixed order."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path | str]] = list(pydoc_topics())
    found += [(f"stdlib/{path.as_posix()}", stdlib / path) for path in source_files(stdlib, skipped=TEST_FOLDERS)]
    for name, origin in sorted(found, key=lambda entry: path_hash(entry[0])):
        text = origin if isinstance(origin, str) else read_source(origin)
        if text is None or not is_worth_reading(text):
            continue
        yield Document(text=text, source=name)


def pydoc_topics() -> Iterator[tuple[str, str]]:
    """Name and text of the help topics behind Python's own `help()`."""
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        if len(text) > MIN_CHARACTERS:
            yield f"stdlib/pydoc_data/topics/{name}", text


def source_files(root: Path, *, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Relative paths of sources and prose files below `root`, ordered by hash: a cut-off takes a fair sample."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = set(inner) - SKIPPED_FOLDERS - skipped  # not entered: site-packages alone would take seconds
        for path in (Path(folder, name) for name in names):
            is_text = path.suffix == ".py" or path.suffix in PROSE_SUFFIXES or path.name == "METADATA"
            if is_text and path.is_file():
                found.append(path.relative_to(root))
    return sorted(found, key=lambda relative: path_hash(relative.as_posix()))


def path_hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def read_source(path: Path) -> str | None:
    """The file's text, or None if it is too short, too long or not UTF-8."""
    try:
        if not MIN_CHARACTERS < path.stat().st_size < MAX_FILE_BYTES:
            return None
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def is_worth_reading(text: str) -> bool:
    """Whether a text is written by people: not generated, not data, not mostly numbers or signs."""
    lines = text.splitlines()
    solid = re.sub(r"\s", "", text)
    if not solid:
        return False
    letters = sum(map(str.isalpha, solid))
    digits = sum(map(str.isdigit, solid))
    is_data = max(map(len, lines)) > 1000 or len(text) / len(lines) > 120
    return not (is_data or digits > 0.12 * len(solid) or letters < 0.5 * len(solid) or _GENERATED.search(text[:2000]))


def docstrings(source: str) -> str:
    """All docstrings of a Python source, dedented, in order, separated by blank lines; "" if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 60:
                found.append((getattr(node, "lineno", 0), docstring))
    return "\n\n".join(text for _, text in sorted(found))
