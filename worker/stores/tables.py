"""The tables of the SQL stores, for SQLAlchemy and its migrations."""

from dataclasses import fields
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from schemas.last_sync import LAST_SYNC_FIELDS, LAST_SYNC_TIMES
from worker.stores import rows
from worker.stores.base import Registration

# SQLite keeps as text what PostgreSQL has types for, and compares text by code point anyway.
ID = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
JSON = Text().with_variant(postgresql.JSON(), "postgresql")

_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(rows.COUNTS, BigInteger()),
    "sync_cursor": JSON,
    **dict.fromkeys(LAST_SYNC_TIMES, TIME),
}

_METADATA = MetaData()

STORE = Table(rows.STORE_TABLE, _METADATA, Column("id", Text, primary_key=True))
CONNECTORS = Table(
    rows.TABLE,
    _METADATA,
    Column("id", ID, primary_key=True),
    *(Column(field, _TYPES.get(field, Text())) for field in LAST_SYNC_FIELDS),
    Column("stamps", JSON, nullable=False),
    Column("deleted_at", TIME),
    *(
        Column(field.name, Boolean() if field.name == "is_native" else ID)
        for field in fields(Registration)
    ),
)
STATE = [CONNECTORS.c[name] for name in rows.STATE]
REGISTRATION = [CONNECTORS.c[field.name] for field in fields(Registration)]
