"""The demo model's training text: what every Python installation carries, cleaned and split by file.

1. Walk the standard library and the installed packages, in the order of a hash of the path.
2. Leave out files that are generated, mostly numbers, or long-lined data (`python_docs.is_worth_reading`).
3. Leave out near-duplicates: files most of whose long lines an earlier file already had.
4. Keep sources as code documents, at most so many bytes a package.
5. Give all docstrings, READMEs and `pydoc` topics as prose documents; training reads prose twice (`train`), so that
   prose and code balance.
6. Hold out one file in fifty, chosen by a hash of its path, with both of its documents.
"""

import importlib.metadata
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_core.python_docs import (
    MIN_CHARACTERS,
    TEST_FOLDERS,
    docstrings,
    is_worth_reading,
    path_hash,
    pydoc_topics,
    read_source,
    source_files,
)

HELD_OUT_ONE_IN = 50
MAX_PACKAGE_CODE_BYTES = 6_000_000  # one very large package must not outweigh the rest
DUPLICATE_SHARE = 0.5  # of a file's long lines already seen


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
    for name, text in pydoc_topics():
        yield SourceText(name, text, is_prose=True, is_held_out=is_held_out(name), is_stdlib=True)
    for scheme_name, label in (("stdlib", "stdlib"), ("purelib", "packages")):
        root = Path(sysconfig.get_path(scheme_name))
        is_stdlib = label == "stdlib"
        code_bytes: dict[str, int] = {}
        for relative in source_files(root, skipped=frozenset() if is_stdlib else TEST_FOLDERS):
            text = read_source(root / relative) or ""
            if not text or not is_worth_reading(text) or _is_near_duplicate(text, seen_lines):
                continue
            name = f"{label}/{relative.as_posix()}"
            held_out = is_held_out(name)
            is_code = relative.suffix == ".py"
            prose = docstrings(text) if is_code else text
            if len(prose) > MIN_CHARACTERS:
                yield SourceText(name, prose, is_prose=True, is_held_out=held_out, is_stdlib=is_stdlib)
            package = relative.parts[0]
            if is_code and (is_stdlib or code_bytes.get(package, 0) < MAX_PACKAGE_CODE_BYTES):
                code_bytes[package] = code_bytes.get(package, 0) + len(text)
                yield SourceText(name, text, is_prose=False, is_held_out=held_out, is_stdlib=is_stdlib)


def is_held_out(name: str) -> bool:
    """Whether the file of this name is kept for evaluation; depends on the name alone."""
    return int(path_hash(name)[:8], 16) % HELD_OUT_ONE_IN == 0


def installed_versions() -> dict[str, str]:
    """Name and version of Python and of every installed distribution, for the model card."""
    versions = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {"python": sys.version.split()[0], **dict(sorted(versions.items(), key=lambda item: item[0].lower()))}


def _is_near_duplicate(text: str, seen_lines: set[int]) -> bool:
    """Whether most long lines were seen in kept files; remembers this file's lines if not."""
    hashes = {hash(line.strip()) for line in text.splitlines() if len(line.strip()) >= 25}
    if hashes and len(hashes & seen_lines) > DUPLICATE_SHARE * len(hashes):
        return True
    seen_lines |= hashes
    return False
