"""Searches by terms, in the full-text index of each database, in the order of density; more orders of lists."""

import re
import struct
import unicodedata
import zlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ROWS_PER_CHUNK = 5000
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TERM = re.compile(rf"[^\W_{_SPACELESS}]+|\S")


def upgrade() -> None:
    connection = op.get_bind()
    rows = _texts(connection)
    op.drop_table("feature_texts")
    op.drop_column("labels", "search_text")
    table = op.create_table(
        "feature_texts",
        sa.Column("search_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=False),
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("feature_index", sa.Integer, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("promotes", sa.Text, nullable=False),
        sa.Column("fires_on", sa.Text, nullable=False),
        sa.Column("examples", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("search_id", name="pk_feature_texts"),
        sa.UniqueConstraint("index_id", "feature_index", name="uq_feature_texts_index_id"),
        sa.ForeignKeyConstraint(
            ["index_id"], ["indexes.index_id"], name="fk_feature_texts_index_id", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "feature_texts_by_label", "feature_texts", ["index_id", sa.text("substr(label, 1, 64)"), "feature_index"]
    )
    op.create_index("labels_by_score", "labels", ["sae_id", "kind", "score", "feature_index"])
    for name, column in (("mean_activation", "mean_activation"), ("cosine", "encoder_decoder_cosine")):
        op.create_index(f"features_by_{name}", "features", ["index_id", column, "feature_index", "density"])
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        connection.execute(sa.insert(table), rows[start : start + _ROWS_PER_CHUNK])
    if connection.dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE feature_search USING fts5(label, promotes, fires_on, examples, "
            "content='feature_texts', content_rowid='search_id', tokenize='ascii', prefix='3 4', columnsize=0)"
        )
        op.execute("INSERT INTO feature_search(feature_search) VALUES ('rebuild')")
        return
    op.execute(
        "ALTER TABLE feature_texts ADD COLUMN terms tsvector GENERATED ALWAYS AS ("
        "to_tsvector('simple', label || ' t ' || promotes || ' t ' || fires_on || ' t ' || examples || "
        "replace(' ' || label, ' t', ' a') || replace(' ' || promotes, ' t', ' b') || "
        "replace(' ' || fires_on, ' t', ' c') || replace(' ' || examples, ' t', ' d'))) STORED"
    )
    op.execute("CREATE INDEX feature_texts_terms ON feature_texts USING gin (terms)")


def _texts(connection: sa.Connection) -> list[dict[str, Any]]:
    """The new rows. What was searched before, promoted tokens and peaks in one, stands for the text of examples."""
    names = _names(connection)
    shown = {
        (row.sae_id, row.feature_index): row.text
        for row in connection.execute(sa.text("SELECT * FROM labels ORDER BY kind"))  # "human" after "automatic"
    }
    found = connection.execute(
        sa.text(
            "SELECT f.index_id, f.feature_index, f.promoted_tokens, f.sampled_tokens, t.search_text, "
            "i.sae_id, s.model_id FROM features f "
            "JOIN indexes i ON i.index_id = f.index_id JOIN saes s ON s.sae_id = i.sae_id "
            "LEFT JOIN feature_texts t ON t.index_id = f.index_id AND t.feature_index = f.feature_index "
            "ORDER BY f.index_id, f.density DESC, f.feature_index DESC"
        )
    )
    rows: list[dict[str, Any]] = []
    rank = 0
    for row in found:
        rank = rank + 1 if rows and rows[-1]["index_id"] == row.index_id else 0
        tokens = names[row.model_id]
        promoted = [i for i, _ in struct.iter_unpack("<If", row.promoted_tokens)]
        drawn = row.sampled_tokens or b"\0\0\0"
        fired_on = [i for i, _, _ in struct.iter_unpack("<IHf", drawn[3 : 3 + 10 * drawn[2]])]
        rows.append(
            {
                "search_id": (row.index_id << 32) + rank,
                "index_id": row.index_id,
                "feature_index": row.feature_index,
                "label": _joined([shown.get((row.sae_id, row.feature_index), "")]),
                "promotes": _joined([tokens.get(i, "") for i in promoted]),
                "fires_on": _joined([tokens.get(i, "") for i in fired_on]),
                "examples": _joined((row.search_text or "").split("\n")),
            }
        )
    return rows


def _names(connection: sa.Connection) -> dict[int, dict[int, str]]:
    """By model: the text of each token."""
    found = {}
    for row in connection.execute(sa.text("SELECT model_id, vocabulary FROM models")):
        names: dict[int, str] = {}
        if row.vocabulary:
            data = zlib.decompress(row.vocabulary)
            (n,) = struct.unpack_from("<I", data)
            start = 4 + 4 * n
            for number, length in enumerate(struct.unpack_from(f"<{n}I", data, 4)):
                names[number] = data[start : start + length].decode("utf-8", "replace")
                start += length
        found[row.model_id] = names
    return found


def _joined(texts: list[str]) -> str:
    return " t ".join(dict.fromkeys(found for text in texts if (found := " ".join(_terms(text)))))


def _terms(text: str) -> list[str]:
    clean = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return [_written(term[:64]) for term in _TERM.findall(unicodedata.normalize("NFKC", clean).casefold())]


def _written(term: str) -> str:
    return "t" + "".join(c if c.isascii() and c.isalnum() else f"u{ord(c):04x}" for c in term)
