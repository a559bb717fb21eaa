"""The scheduler's lease, epoch, streams and ranking, and how the hub shares GPUs."""

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Table, Text, text

from quota.db import metadata

scheduler_epoch = Table(
    "scheduler_epoch",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
)

scheduler_lease = Table(
    "scheduler_lease",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("instance", String(64), nullable=False),
    Column("url", String(500), nullable=False),
    Column("expires_wall_ms", BigInteger, nullable=False),
    Column("door_secret", String(64), nullable=False, server_default=text("''")),
)

streams = Table(
    "streams",
    metadata,
    Column("stream", String(80), primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("body_sha256", String(64), nullable=False),
    Column("reply", Text, nullable=False),
)

ranking = Table(
    "ranking",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("cycle", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # the room that is promised to waiting jobs, as JSON: for the scheduler that comes next
    Column("reservations", Text, nullable=False, server_default=text("'[]'")),
    # where it has the room of bookings, as JSON
    Column("booked", Text, nullable=False, server_default=text("'[]'")),
)

forecast = Table(
    "forecast",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("as_of_ms", BigInteger, nullable=False),
    Column("stored_at_ms", BigInteger, nullable=False),
    # zlib of JSON: job -> [low, median, high, basis]
    Column("body", LargeBinary, nullable=False),
    # zlib of JSON: NewcomerItem, closest likenesses first; null: of a program that knew none
    Column("newcomers", LargeBinary),
)

fair_share = Table(
    "fair_share",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    # a FairShare as JSON; what it does not name is the default
    Column("document", Text, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
)

clock_row = Table(
    "clock",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("business_at_ms", BigInteger, nullable=False),
    Column("wall_at_ms", BigInteger, nullable=False),
    Column("speed", Integer, nullable=False),
)
