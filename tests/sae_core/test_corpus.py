import gzip
import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_core.corpus import corpus_name, iter_documents
from sae_core.errors import CorpusError
from sae_core.records import Document

Refuses = Callable[..., AbstractContextManager[None]]
TEXT = "Ein Bär, 中文, 🐋\nand a second line\n"
GARBAGE = bytes([0x89, *b"PNG", 0, 0xFF, 0xFE, *range(256)])


def documents(*sources: Path | str, text_field: str = "text") -> list[tuple[str, str]]:
    """Text and source of each document, sources as they were given."""
    found = iter_documents([str(source) for source in sources], text_field=text_field)
    return [(document.text, document.source) for document in found]


def write_text(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# Text files


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.gz", "no_suffix", "a.unknown", "ÄÖ 中.md"], ids=ascii)
def test_a_named_file_is_one_document_whatever_its_suffix(name: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / name)

    assert documents(path) == [(TEXT, str(path))]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "\ufeff" + TEXT)

    assert documents(path) == [(TEXT, str(path))]


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    assert documents(write_text(tmp_path / "a.txt", "a\r\nb\rc\n"))[0][0] == "a\r\nb\rc\n"


@pytest.mark.parametrize(
    "data",
    [GARBAGE, b"text with a NUL\0", "UTF-16".encode("utf-16"), "latin é".encode("latin-1")],
    ids=["binary", "nul", "utf-16", "latin-1"],
)
def test_a_named_file_that_is_not_utf8_is_refused(data: bytes, tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)

    with refuses(CorpusError, str(path), "not UTF-8 text"):
        documents(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-20], "cut short or damaged"),
        (lambda data: data[:30] + b"\xff\xff\xff\xff" + data[34:], "cut short or damaged"),
        (lambda data: data[:-8] + bytes(4) + data[-4:], "cannot be read: CRC check failed"),
        (lambda data: b"plain text", "cannot be read: Not a gzipped file"),
    ],
    ids=["cut-short", "damaged", "wrong-checksum", "no-gzip"],
)
def test_a_broken_gzip_file_is_refused(
    change: Callable[[bytes], bytes], words: str, tmp_path: Path, refuses: Refuses
) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(change(gzip.compress(random.Random(0).randbytes(300).hex().encode())))

    with refuses(CorpusError, str(path), words):
        documents(path)


@pytest.mark.parametrize("source", ["nowhere.txt", "no/where", "", "hub/name"])
def test_a_path_that_does_not_exist_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.chdir(write_text(tmp_path / "folder" / "a.txt").parent)
    if source == "":
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder" / "a.txt").rename(tmp_path / "folder" / ".hidden")

    with refuses(CorpusError):
        documents(source)


def test_a_path_that_is_too_long_to_be_one_is_refused(refuses: Refuses) -> None:
    with refuses(CorpusError, "cannot be read"):
        documents("the text itself " * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = write_text(tmp_path / "a.txt")
    path.chmod(0)

    with refuses(CorpusError, str(path), "cannot be read"):
        documents(path)


# Folders and globs


def test_a_folder_gives_the_texts_below_it_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.md", "a/deep/er/x.py", "c.TXT", "d.txt.gz"]:
        write_text(tmp_path / name, name)

    assert documents(tmp_path) == [
        (name, str(tmp_path / name)) for name in ["a/deep/er/x.py", "a/z.md", "b.txt", "c.TXT", "d.txt.gz"]
    ]


def test_a_folder_leaves_out_hidden_binary_and_other_files(tmp_path: Path) -> None:
    write_text(tmp_path / "kept.txt", "kept")
    for name in [
        ".hidden.txt",
        ".git/config.txt",
        ".git/objects/ab/deep/readme.md",
        "sub/.cache/x/y.txt",
        "a.png",
        "b",
    ]:
        write_text(tmp_path / name)
    (tmp_path / "garbage.txt").write_bytes(GARBAGE)
    (tmp_path / "utf16.log").write_bytes("text".encode("utf-16"))

    assert documents(tmp_path) == [("kept", str(tmp_path / "kept.txt"))]


def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path) -> None:
    write_text(tmp_path / ".texts" / "a.txt", "a")
    write_text(tmp_path / ".texts" / "sub" / "b.txt", "b")

    assert [text for text, _ in documents(tmp_path / ".texts")] == ["a", "b"]


def test_a_folder_may_hold_rows_beside_texts(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    write_rows(tmp_path / "b.jsonl", [{"text": "b1"}, {"text": "b2"}])
    write_rows(tmp_path / "c.jsonl.gz", [{"text": "c1"}])
    write_parquet(tmp_path / "d.parquet", text=["d1"])

    assert [text for text, _ in documents(tmp_path)] == ["a", "b1", "b2", "c1", "d1"]


@pytest.mark.parametrize("files", [[], ["a.png"], [".hidden.txt"]], ids=["empty", "no-texts", "only-hidden"])
def test_a_folder_without_texts_is_refused(files: list[str], tmp_path: Path, refuses: Refuses) -> None:
    for name in files:
        write_text(tmp_path / name)

    with refuses(CorpusError, str(tmp_path), "no text files"):
        documents(tmp_path)


def test_a_glob_gives_its_matches_in_order(tmp_path: Path) -> None:
    for name in ["b.txt", "a.txt", "c.md", "sub/d.txt", "e.txt/inside.md"]:
        write_text(tmp_path / name, name)

    assert [text for text, _ in documents(tmp_path / "*.txt")] == ["a.txt", "b.txt"]
    assert [text for text, _ in documents(tmp_path / "**/*.txt")] == ["a.txt", "b.txt", "sub/d.txt"]
    assert [text for text, _ in documents(tmp_path / "[ac].*")] == ["a.txt", "c.md"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "other")
    path = write_text(tmp_path / "[a].txt", "itself")

    assert documents(path) == [("itself", str(path))]


def test_a_glob_without_matches_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(CorpusError, "Nothing matches", "*.txt"):
        documents(tmp_path / "*.txt")


def test_a_binary_file_that_a_glob_matches_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "a.bin").write_bytes(GARBAGE)

    with refuses(CorpusError, "a.bin", "not UTF-8 text"):
        documents(tmp_path / "*.bin")


def test_sources_are_read_in_the_order_they_are_given(tmp_path: Path) -> None:
    for name in ["a.txt", "b.txt", "c.txt"]:
        write_text(tmp_path / name, name)

    assert [text for text, _ in documents(tmp_path / "c.txt", tmp_path / "[ab].txt", tmp_path / "c.txt")] == [
        "c.txt",
        "a.txt",
        "b.txt",
        "c.txt",
    ]


def test_a_bad_source_is_refused_only_when_it_is_reached(tmp_path: Path) -> None:
    stream = iter_documents([str(write_text(tmp_path / "a.txt")), str(tmp_path / "nowhere.txt")])

    assert next(stream) == Document(text=TEXT, source=str(tmp_path / "a.txt"))
    with pytest.raises(CorpusError):
        next(stream)


def test_a_path_may_start_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text(tmp_path / "texts" / "a.txt")

    assert documents("~/texts/a.txt") == documents("~/texts") == documents("~/texts/*.txt")
    assert documents("~/texts") == [(TEXT, str(tmp_path / "texts" / "a.txt"))]


# JSONL


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "A.JSONL"])
def test_jsonl_gives_one_document_per_line_with_its_number(name: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / name, '{"text": "eins"}\n\n{"id": 2, "text": "zw\\u00f6lf\\n中"}\n{"text": ""}')

    assert documents(path) == [("eins", f"{path}:1"), ("zwölf\n中", f"{path}:3"), ("", f"{path}:4")]


def test_jsonl_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", '\ufeff{"text": "a"}\n{"text": "b"}\n')

    assert [text for text, _ in documents(path)] == ["a", "b"]


def test_the_text_field_chooses_the_column(tmp_path: Path) -> None:
    rows = [{"text": "wrong", "body": "right"}]
    jsonl = write_rows(tmp_path / "a.jsonl", rows)
    parquet = write_parquet(tmp_path / "b.parquet", text=["wrong"], body=["right"])

    assert [text for text, _ in documents(jsonl, parquet, text_field="body")] == ["right", "right"]


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", r'{"text": "a\ud83d b \ud83d\ude00"}')

    assert documents(path)[0][0] == "a\ufffd b 😀"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", ["line 2", "not JSON"]),
        ('{"text": "cut sho', ["line 2", "not JSON"]),
        ("[" * 100_000, ["line 2", "not JSON"]),
        ('{"body": "b", "id": 3}', ["line 2", "'text'", "body, id", "--text-field"]),
        ('{"text": 5}', ["line 2", "'text'", "--text-field"]),
        ('{"text": null}', ["line 2", "'text'", "--text-field"]),
        ('["text"]', ["line 2", "'text'", "--text-field"]),
        ('"text"', ["line 2", "'text'", "--text-field"]),
    ],
    ids=["no-json", "cut-short", "too-deep", "no-field", "a-number", "null", "a-list", "a-string"],
)
def test_a_bad_line_of_jsonl_is_named(line: str, words: list[str], tmp_path: Path, refuses: Refuses) -> None:
    path = write_text(tmp_path / "a.jsonl", '{"text": "good"}\n' + line + "\n")

    with refuses(CorpusError, str(path), *words):
        documents(path)


def test_jsonl_that_is_not_utf8_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "é"}'.encode("latin-1"))

    with refuses(CorpusError, "line 1", "not JSON"):
        documents(path)


# Parquet


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large", "dictionary"],
)
def test_parquet_gives_one_document_per_row_that_is_not_null(kind: pa.DataType, tmp_path: Path) -> None:
    rows = pa.array(["eins", None, TEXT, ""]).cast(kind)
    path = write_parquet(tmp_path / "a.parquet", id=[1, 2, 3, 4], text=rows)

    assert documents(path) == [("eins", f"{path}:1"), (TEXT, f"{path}:3"), ("", f"{path}:4")]


def test_parquet_of_many_row_groups_is_read_in_order(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=700)

    assert documents(tmp_path / "a.parquet") == [
        (text, f"{tmp_path}/a.parquet:{number}") for number, text in enumerate(texts, start=1)
    ]


def test_parquet_without_the_text_column_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["b"], id=[1])

    with refuses(CorpusError, str(path), "'text'", "body, id", "--text-field"):
        documents(path)


def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[1, 2])

    with refuses(CorpusError, str(path), "'text'", "int64", "--text-field"):
        documents(path)


@pytest.mark.parametrize("kept", [0, 3, 200], ids=["empty", "tiny", "half-written"])
def test_half_written_parquet_is_refused(kept: int, tmp_path: Path, refuses: Refuses) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["some text"] * 50)
    path.write_bytes(path.read_bytes()[:kept])

    with refuses(CorpusError, str(path), "not a Parquet file"):
        documents(path)


def test_parquet_with_damaged_pages_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=[f"text {i}" for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[100:400] = random.Random(1).randbytes(300)
    path.write_bytes(data)

    with refuses(CorpusError, str(path)):
        documents(path)


def test_parquet_strings_that_are_not_utf8_are_refused(tmp_path: Path, refuses: Refuses) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.array([b"\xff\xfe"], pa.binary()).view(pa.string()))

    with refuses(CorpusError, str(path), "damaged"):
        documents(path)


# Hub data sets


def test_a_hub_data_set_without_the_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # which makes its import fail

    with refuses(CorpusError, "pip install 'saescope[hub]'"):
        documents("hub:owner/name")


class HubDouble:
    """Stands in for the `datasets` module: rows or an error, and what was asked for."""

    def __init__(self, outcome: list[dict[str, Any]] | Exception) -> None:
        self.outcome = outcome
        self.asked: tuple[Any, ...] = ()

    def load_dataset(self, path: str, config: str | None, **options: Any) -> list[dict[str, Any]]:
        self.asked = (path, config, options)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("source", "path", "config"),
    [("hub:owner/name", "owner/name", None), ("hub:owner/name:en", "owner/name", "en")],
)
def test_a_hub_data_set_is_streamed_with_its_configuration(
    source: str, path: str, config: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubDouble([{"body": "a"}, {"body": "b"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)

    assert documents(source, text_field="body") == [("a", "hub:owner/name:0"), ("b", "hub:owner/name:1")]
    assert hub.asked == (path, config, {"split": "train", "streaming": True})


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ([{"body": "a", "id": 1}], ["'text'", "body, id", "--text-field"]),
        (ConnectionError("no route\nto host"), ["owner/name", "ConnectionError", "network"]),
        (FileNotFoundError("Dataset doesn't exist"), ["owner/name", "check its name"]),
        (ValueError("Config name is missing."), ["owner/name", "hub:owner/name:CONFIG"]),
    ],
    ids=["no-column", "offline", "unknown", "no-configuration"],
)
def test_a_hub_data_set_that_cannot_be_read_is_refused(
    outcome: list[dict[str, Any]] | Exception, words: list[str], monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", HubDouble(outcome))

    with refuses(CorpusError, *words):
        documents("hub:owner/name")


@pytest.mark.slow
def test_a_local_data_set_folder_streams_through_datasets(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_rows(tmp_path / "train.jsonl", [{"text": "eins"}, {"text": "中文"}])

    assert documents(f"hub:{tmp_path}") == [("eins", f"hub:{tmp_path}:0"), ("中文", f"hub:{tmp_path}:1")]


# Names


@pytest.mark.parametrize(
    ("sources", "name"),
    [
        (["python-docs"], "python-docs"),
        (["/data/books"], "books"),
        (["data/a.txt", "b.jsonl"], "a.txt+b.jsonl"),
        (["hub:owner/name:en"], "name"),
        (["a", "b", "c", "d", "e"], "a+b+c+2 more"),
        (["/"], "/"),
    ],
)
def test_a_corpus_without_a_name_is_called_after_its_sources(sources: list[str], name: str) -> None:
    assert corpus_name(sources) == name


# Conversations

SAID = [{"role": "user", "content": "Where is the sea?"}, {"role": "assistant", "content": "Là-bas \ud83d\udc0b"}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_may_hold_conversations(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"talk.{kind}"
    said = [
        {"role": m["role"], "content": m["content"].encode("utf-16", "surrogatepass").decode("utf-16")} for m in SAID
    ]
    if kind == "jsonl":
        path.write_text(json.dumps({"messages": SAID}) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": said}]), path)

    (document,) = iter_documents([str(path)], text_field="messages")

    assert document.messages == (("user", "Where is the sea?"), ("assistant", "Là-bas 🐋"))
    assert (document.text, document.source) == ("", f"{path}:1")


@pytest.mark.parametrize(
    "value", [[], ["text"], [{"role": "user"}], [{"role": "user", "content": 3}], {"role": "user"}]
)
def test_what_is_no_conversation_is_refused(value: object, tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": value}) + "\n")

    with refuses(CorpusError, "line 1", "--text-field"):
        list(iter_documents([str(path)], text_field="messages"))
