"""Run by Alembic, which `store_engine.migrate` calls with an open connection, inside a transaction and under a lock."""

from alembic import context

from sae_core.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
