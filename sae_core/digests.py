"""SHA-256 of files and of numbered pieces: whether something is still what it was. Standard library only."""

import hashlib
from pathlib import Path


class Digest:
    """SHA-256 over numbered pieces of bytes."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, number: int, content: bytes) -> None:
        self._sum.update(b"%d:%d:" % (number, len(content)) + content)

    @property
    def hex(self) -> str:
        return self._sum.hexdigest()


def file_sha256(path: Path) -> str:
    """Of a file's content. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
