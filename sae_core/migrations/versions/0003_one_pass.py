"""What the one-pass index keeps of every feature, and a row of examples per feature in place of a row per example."""

import struct
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_EXAMPLES_PER_CHUNK = 50_000


def upgrade() -> None:
    for column in (
        sa.Column("mean_square", sa.Double),
        sa.Column("encoder_norm", sa.Double),
        sa.Column("decoder_norm", sa.Double),
        sa.Column("profile", sa.LargeBinary),
        sa.Column("sampled_tokens", sa.LargeBinary),
        sa.Column("promoted_share", sa.Double),
        sa.Column("coactive", sa.LargeBinary),
    ):
        op.add_column("features", column)
    op.add_column("saes", sa.Column("weights_sha256", sa.Text))
    for name in ("examples_sha256", "contexts_sha256"):
        op.add_column("indexes", sa.Column(name, sa.Text))
    _write_all_edges("features", "histogram", ("index_id", "feature_index"))
    _write_all_edges("indexes", "encoder_decoder_histogram", ("index_id",))
    _pack_examples()


def _write_all_edges(name: str, column: str, keys: tuple[str, ...]) -> None:
    """Histograms held the first and the last edge of bins that are equally wide; now all edges."""
    connection = op.get_bind()
    table = sa.table(name, sa.column(column), *(sa.column(key) for key in keys))
    rows = connection.execute(sa.select(*(table.c[key] for key in keys), table.c[column])).all()
    changed = [
        {"packed": _with_edges(row[-1]), **{f"key_{key}": value for key, value in zip(keys, row[:-1], strict=True)}}
        for row in rows
        if row[-1]
    ]
    if changed:
        same = (table.c[key] == sa.bindparam(f"key_{key}") for key in keys)
        connection.execute(sa.update(table).where(*same).values({column: sa.bindparam("packed")}), changed)


def _with_edges(packed: bytes) -> bytes:
    low, high = struct.unpack_from("<2d", packed)
    n = (len(packed) - 16) // 4
    inner = (low + (high - low) * i / n for i in range(1, n))
    return struct.pack(f"<H{n + 1}d", n + 1, low, *inner, high) + packed[16:]


def _pack_examples() -> None:
    connection = op.get_bind()
    op.rename_table("examples", "old_examples")
    if connection.dialect.name == "postgresql":
        op.execute("ALTER INDEX pk_examples RENAME TO pk_old_examples")
        op.execute("ALTER TABLE old_examples RENAME CONSTRAINT fk_examples_index_id TO fk_old_examples_index_id")
    new = op.create_table(
        "examples",
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("feature_index", sa.Integer, nullable=False),
        sa.Column("packed", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("index_id", "feature_index", name="pk_examples"),
        sa.ForeignKeyConstraint(["index_id"], ["indexes.index_id"], name="fk_examples_index_id", ondelete="CASCADE"),
    )
    old = sa.table(
        "old_examples",
        *(
            sa.column(name)
            for name in (
                "index_id", "feature_index", "band", "rank", "context_id", "position", "activation",
                "packed_positions", "packed_values",
            )
        ),
    )  # fmt: skip
    key = (old.c.index_id, old.c.feature_index)
    query = sa.select(old).order_by(*key, old.c.band, old.c.rank)
    chunk = []
    for (index_id, feature_index), rows in groupby(connection.execute(query).all(), key=lambda row: row[:2]):
        chunk.append({"index_id": index_id, "feature_index": feature_index, "packed": _packed(list(rows))})
        if len(chunk) >= _EXAMPLES_PER_CHUNK:
            connection.execute(sa.insert(new), chunk)
            chunk = []
    if chunk:
        connection.execute(sa.insert(new), chunk)
    op.drop_table("old_examples")


def _packed(rows: list[Any]) -> bytes:
    n = len(rows)
    columns = (
        struct.pack(f"<{n}{code}", *values)
        for code, values in (
            ("B", [row.band for row in rows]),
            ("I", [row.context_id for row in rows]),
            ("H", [row.position for row in rows]),
            ("f", [row.activation for row in rows]),
            ("I", [0] * n),  # copies were not counted
            ("H", [len(row.packed_positions) // 2 for row in rows]),
        )
    )
    runs = [*(row.packed_positions for row in rows), *(row.packed_values for row in rows)]
    return struct.pack("<H", n) + b"".join(columns) + b"".join(runs)
