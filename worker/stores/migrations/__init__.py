"""The schema of the SQL stores, step by step."""

HEAD = "last_sync_0005"  # the newest step; named so that no other program's is taken for ours
VERSION_TABLE = "last_sync_schema"  # of our own, for a database may be shared
