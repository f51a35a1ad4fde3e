"""How the database came to its present tables, step by step. Run by `store_engine` when a database is opened."""
