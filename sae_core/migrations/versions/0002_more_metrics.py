"""What `saescope eval` measures, beside the metrics of each index; NULL for indexes that are older."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("cosine", sa.Double),
        sa.Column("reconstruction_bias", sa.Double),
        sa.Column("ce_loss", sa.Double),
        sa.Column("ce_loss_with_sae", sa.Double),
        sa.Column("ce_loss_with_zeros", sa.Double),
        sa.Column("kl", sa.Double),
        sa.Column("ce_tokens", sa.BigInteger),
        sa.Column("encoder_decoder_cosine", sa.Double),
        sa.Column("encoder_decoder_histogram", sa.LargeBinary),
    ):
        op.add_column("indexes", column)
