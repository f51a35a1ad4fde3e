"""Maps: every feature's place in the plane, a row per SAE."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "maps",
        sa.Column("sae_id", sa.Integer, sa.ForeignKey("saes.sae_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("places", sa.LargeBinary, nullable=False),
        sa.Column("n_neighbours", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
