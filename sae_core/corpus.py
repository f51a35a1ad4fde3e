"""Sources to documents: text files, folders, globs, JSONL, Parquet, hub data sets, and the built-in `python-docs`.

The first step of the flow. Documents stream; nothing is held but the one being read.
"""

import glob
import gzip
import json
import platform
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from sae_core import python_docs
from sae_core.errors import CorpusError
from sae_core.records import Document

HUB_PREFIX = "hub:"
_RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
# What is read from a folder. A file that is named outright is read whatever its suffix.
_PROSE = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".log")
_CODE = (".py", ".pyi", ".js", ".ts", ".c", ".h", ".cpp", ".hpp", ".java", ".go", ".rs", ".rb", ".sql", ".sh")
_FOLDER_SUFFIXES = frozenset(_PROSE + _CODE)


def iter_documents(sources: Iterable[str], *, text_field: str = "text") -> Iterator[Document]:
    """Documents of all sources in order.

    A source is a file, a folder (read recursively), a glob, `hub:NAME[:CONFIG]`, or `python-docs`. A text file is one
    document; a JSONL or Parquet file is one document per row, taken from `text_field`: a text, or a conversation as a
    list of messages with `role` and `content`. Raises CorpusError for a source
    that does not exist or cannot be read as text.
    """
    for source in sources:
        if source == python_docs.NAME:
            yield from python_docs.python_docs()
        elif source.startswith(HUB_PREFIX):
            yield from _hub_documents(source.removeprefix(HUB_PREFIX), text_field)
        else:
            try:
                paths = list(_paths(source))
            except OSError as error:
                raise CorpusError(f"{source[:200]} cannot be read: {error.strerror or error}.") from error
            for path, was_named in paths:
                yield from _file_documents(path, text_field, was_named=was_named)


def corpus_name(sources: Iterable[str]) -> str:
    """What a corpus is called when nobody gave it a name: its sources' base names."""
    names = [Path(source.removeprefix(HUB_PREFIX).split(":")[0]).name or source for source in sources]
    return "+".join(names[:3]) + (f"+{len(names) - 3} more" if len(names) > 3 else "")


def corpus_state(sources: Iterable[str]) -> list[str]:
    """What tells one state of a corpus from another without reading it: names, sizes and times of its files."""
    lines = []
    for source in sources:
        if source == python_docs.NAME:
            lines.append(f"{source} {platform.python_version()}")
        elif source.startswith(HUB_PREFIX):
            lines.append(source)
        else:
            for path, _ in _paths(source):
                status = path.stat()
                lines.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}")
    return lines


def _paths(source: str) -> Iterator[tuple[Path, bool]]:
    path = Path(source).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_read_from_folder(file, path)]
        if not found:
            raise CorpusError(
                f"The folder {source} holds no text files; name the files or use a glob such as '{source}/*'."
            )
        yield from ((file, False) for file in found)
    elif path.is_file():
        yield path, True
    elif glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]
        if not matches:
            raise CorpusError(f"Nothing matches {source}; check the pattern and the folder it starts from.")
        yield from ((match, True) for match in matches)
    else:
        raise CorpusError(f"There is no file or folder {source}; check the path (hub data sets start with 'hub:').")


def _is_read_from_folder(path: Path, folder: Path) -> bool:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not is_hidden and (suffix.lower() in _FOLDER_SUFFIXES or suffix.lower() in _RECORD_SUFFIXES)


def _file_documents(path: Path, text_field: str, *, was_named: bool) -> Iterator[Document]:
    suffix = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_documents(path, text_field)
        elif suffix in _RECORD_SUFFIXES:
            yield from _jsonl_documents(path, text_field)
        else:
            with _open(path) as file:
                data = file.read()
            text = _decoded(data)
            if text is not None:
                yield Document(text=text, source=str(path))
            elif was_named:
                raise CorpusError(f"{path} is not UTF-8 text; convert it, or leave it out.")
    except (EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is cut short or damaged; compress it again, or leave it out.") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {str(error.strerror or error).rstrip('.')}.") from error


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _decoded(data: bytes) -> str | None:
    """The text of `data`, or None if it is binary. Text never holds a NUL."""
    if b"\x00" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _jsonl_documents(path: Path, text_field: str) -> Iterator[Document]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path} line {number} is not JSON; every line must be one JSON object.") from error
            source = f"{path}:{number}"
            document = _document(row.get(text_field), source) if isinstance(row, dict) else None
            if document is None:
                known = ", ".join(row) if isinstance(row, dict) else "none"
                raise CorpusError(
                    f"{path} line {number} has no text field {text_field!r} (fields: {known}); "
                    "name it with --text-field."
                )
            yield document


def _document(value: object, source: str) -> Document | None:
    """The text, or the conversation, that a row holds; None if it holds neither."""
    if isinstance(value, str):
        return Document(text=_whole(value), source=source)
    if not isinstance(value, list) or not value:
        return None
    messages = []
    for message in value:
        said = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(said[0], str) or not isinstance(said[1], str):
            return None
        messages.append((_whole(said[0]), _whole(said[1])))
    return Document(text="", source=source, messages=tuple(messages))


def _whole(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parquet_documents(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise CorpusError(f"{path} is not a Parquet file; check that it was written completely.") from error
    if text_field not in table.schema_arrow.names:
        known = ", ".join(table.schema_arrow.names)
        raise CorpusError(f"{path} has no column {text_field!r} (columns: {known}); name it with --text-field.")
    kind = table.schema_arrow.field(text_field).type
    if not _holds_text(kind):
        raise CorpusError(
            f"The column {text_field!r} of {path} holds {kind}, not text; name another with --text-field."
        )
    number = 0
    try:
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                number += 1
                document = _document(value, f"{path}:{number}")
                if document is not None:
                    yield document
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is damaged after row {number}; write it again, or leave it out.") from error


def _holds_text(kind: Any) -> bool:
    """Whether values of this Arrow type come out as `str`, also where they are stored as indices of a dictionary, or as
    messages with role and content."""
    from pyarrow import types

    values = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_list(values) and types.is_struct(values.value_type):  # a conversation
        return {"role", "content"} <= {field.name for field in values.value_type}
    return bool(types.is_string(values) or types.is_large_string(values) or types.is_string_view(values))


def _hub_documents(name: str, text_field: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise CorpusError("Hub data sets need the 'hub' extra: pip install 'saescope[hub]'.") from error
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
        for number, row in enumerate(rows):
            document = _document(row.get(text_field), f"{HUB_PREFIX}{path}:{number}")
            if document is None:
                raise CorpusError(
                    f"The data set {path} has no text column {text_field!r} (columns: {', '.join(row)}); "
                    "name it with --text-field."
                )
            yield document
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"The data set {path} cannot be loaded ({type(error).__name__}); check its name, its configuration "
            f"(hub:{path}:CONFIG) and the network."
        ) from error
