import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.label_files import COLUMNS, read_labels, write_labels
from sae_core.errors import InputError
from sae_core.store_labels import UNDATED
from tests.factories import NOW, make_label

LABELS = [
    (0, make_label('words, for "a" spouse\nand more')),
    (0, make_label("海 & <ships>", kind="automatic", author="describer", score=0.875)),
    (2, make_label("=1+1", author="-ana")),
    (3, make_label("'=quoted", author="")),
    (4, make_label("''plain")),
    (5, replace(make_label("when?"), created_at=UNDATED)),
]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_labels_come_back_as_they_went(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"labels{suffix}"

    assert write_labels(LABELS, path) == len(LABELS)

    assert list(read_labels(path)) == LABELS


def test_no_spreadsheet_takes_a_label_for_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    write_labels(LABELS, path)

    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]

    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")


def test_only_number_and_label_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,feature_index,mine\nspouses,7,x\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('\n{"feature_index": "7", "label": "spouses"}\n', encoding="utf-8")

    for path in (tmp_path / "a.csv", tmp_path / "a.jsonl"):
        ((index, label),) = read_labels(path)
        assert (index, label.text, label.kind, label.author, label.score) == (7, "spouses", "human", "", None)
        assert label.created_at == UNDATED


GOOD = {
    "feature_index": 1,
    "kind": "human",
    "label": "x",
    "author": "ana",
    "score": None,
    "created_at": NOW.isoformat(),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feature_index": "many"}, "feature_index 'many'"),
        ({"feature_index": -1}, "feature_index '-1'"),
        ({"feature_index": 2**31}, "feature's number"),
        ({"label": ""}, "has no label"),
        ({"label": None}, "has no label"),
        ({"kind": "divine"}, "kind 'divine'"),
        ({"score": "high"}, "score 'high'"),
        ({"score": "nan"}, "score 'nan'"),
        ({"created_at": "yesterday"}, "created_at 'yesterday'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_bad_line_is_named(suffix: str, change: dict[str, object], words: str, tmp_path: Path) -> None:
    path, row = tmp_path / f"labels{suffix}", GOOD | change
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows([GOOD, row])
        place = "line 3"
    else:
        path.write_text(json.dumps(GOOD) + "\n" + json.dumps(row) + "\n")
        place = "line 2"

    with pytest.raises(InputError) as caught:
        list(read_labels(path))
    assert str(caught.value).startswith(f"{path} {place} ") and words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("labels.txt", b"", "neither .jsonl nor .csv"),
        ("labels.csv", b"a,b\n1,2\n", "no column feature_index"),
        ("labels.csv", b"feature_index,label\n1,\xff\n", "not UTF-8"),
        ("labels.jsonl", b"{half\n", "line 1 is not JSON"),
        ("labels.jsonl", b"[]\n", "line 1 is no JSON object"),
        ("labels.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, data: bytes | None, words: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)

    with pytest.raises(InputError) as caught:
        list(read_labels(tmp_path / name))
    assert str(caught.value).startswith(str(tmp_path / name)) and words in str(caught.value)
