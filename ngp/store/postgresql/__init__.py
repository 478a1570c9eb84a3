"""PostgreSQL: the ledgers of one or several identities in one database.

Each identity has a schema of its own, with the same tables, columns and indices as SQLite's file, so all queries are
the same, and gateways with different versions of ngp can share a database. What they have in common is one table,
`ngp.let_networks`: the database itself refuses a network that overlaps another one in it.
"""

from ngp.store.postgresql.store import PostgresStore

__all__ = ["PostgresStore"]
