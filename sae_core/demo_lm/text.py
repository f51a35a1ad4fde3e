"""The demo model's training text: what every Python installation carries, cleaned and split by file.

1. Walk the standard library and the installed dependencies in a fixed order.
2. Leave out files that are generated, mostly numbers, or long-lined data.
3. Leave out near-duplicates: files most of whose long lines an earlier file already had.
4. Keep sources as code documents, at most so many bytes a package, drawn by a hash of the path.
5. Give all docstrings, READMEs and `pydoc` topics as prose documents; training reads prose twice (`train`), so that
   prose and code balance.
6. Hold out one file in fifty, chosen by a hash of its path, with both of its documents.
"""

import ast
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "node_modules", "lib2to3", "turtledemo", "sae_core", "app", "saescope"}
)
PROSE_SUFFIXES = frozenset({".md", ".rst"})
HELD_OUT_ONE_IN = 50
MAX_FILE_BYTES = 400_000
MAX_PACKAGE_CODE_BYTES = 6_000_000  # one very large package must not outweigh the rest
DUPLICATE_SHARE = 0.5  # of a file's long lines already seen
_GENERATED = re.compile(r"auto-?generated|do not edit|@generated|generated (?:by|from|automatically)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceText:
    """One document of training text: where it came from, its text, whether it is prose, held out or from the stdlib."""

    path: str
    text: str
    is_prose: bool
    is_held_out: bool
    is_stdlib: bool


def gather_text() -> Iterator[SourceText]:
    """Every cleaned document of this Python installation, in a fixed order (stdlib first)."""
    seen_lines: set[int] = set()
    yield from _pydoc_topics()
    for scheme_name, label in (("stdlib", "stdlib"), ("purelib", "packages")):
        root = Path(sysconfig.get_path(scheme_name))
        is_stdlib = label == "stdlib"
        code_bytes: dict[str, int] = {}
        for relative in _source_files(root, skip_tests=not is_stdlib):
            text = _read(root / relative)
            if text is None or not _is_worth_reading(text) or _is_near_duplicate(text, seen_lines):
                continue
            name = f"{label}/{relative.as_posix()}"
            held_out = is_held_out(name)
            is_code = relative.suffix == ".py"
            prose = docstrings(text) if is_code else text
            if len(prose) > 400:
                yield SourceText(name, prose, is_prose=True, is_held_out=held_out, is_stdlib=is_stdlib)
            package = relative.parts[0]
            if is_code and (is_stdlib or code_bytes.get(package, 0) < MAX_PACKAGE_CODE_BYTES):
                code_bytes[package] = code_bytes.get(package, 0) + len(text)
                yield SourceText(name, text, is_prose=False, is_held_out=held_out, is_stdlib=is_stdlib)


def is_held_out(name: str) -> bool:
    """Whether the file of this name is kept for evaluation; depends on the name alone."""
    return int(_path_hash(name)[:8], 16) % HELD_OUT_ONE_IN == 0


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


def installed_versions() -> dict[str, str]:
    """Name and version of Python and of every installed distribution, for the model card."""
    versions = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {"python": sys.version.split()[0], **dict(sorted(versions.items(), key=lambda item: item[0].lower()))}


def _pydoc_topics() -> Iterator[SourceText]:
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        if len(text) > 400:
            path = f"stdlib/pydoc_data/topics/{name}"
            yield SourceText(path, text, is_prose=True, is_held_out=is_held_out(path), is_stdlib=True)


def _path_hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _source_files(root: Path, *, skip_tests: bool) -> list[Path]:
    """Paths below `root`, in the order of their hashes, so that a cut-off takes a fair sample."""
    skipped = SKIPPED_FOLDERS | ({"test", "tests", "testing"} if skip_tests else set())
    found = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        if skipped.isdisjoint(relative.parts) and "pydoc_data" not in relative.parts:
            is_text = path.suffix == ".py" or path.suffix in PROSE_SUFFIXES or path.name == "METADATA"
            if is_text and path.is_file():
                found.append(relative)
    return sorted(found, key=lambda relative: _path_hash(relative.as_posix()))


def _read(path: Path) -> str | None:
    if not 400 < path.stat().st_size < MAX_FILE_BYTES:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def _is_worth_reading(text: str) -> bool:
    lines = text.splitlines()
    solid = re.sub(r"\s", "", text)
    letters = sum(map(str.isalpha, solid))
    digits = sum(map(str.isdigit, solid))
    is_data = max(map(len, lines)) > 1000 or len(text) / len(lines) > 120
    return not (is_data or digits > 0.12 * len(solid) or letters < 0.5 * len(solid) or _GENERATED.search(text[:2000]))


def _is_near_duplicate(text: str, seen_lines: set[int]) -> bool:
    """Whether most long lines were seen in kept files; remembers this file's lines if not."""
    hashes = {hash(line.strip()) for line in text.splitlines() if len(line.strip()) >= 25}
    if hashes and len(hashes & seen_lines) > DUPLICATE_SHARE * len(hashes):
        return True
    seen_lines |= hashes
    return False
