"""Clusters, nodes, GPU classes with versioned rates, and what is taken on each node."""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, Integer, String, Table, false

from quota.db import metadata

clusters = Table(
    "clusters",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("observed_through_ms", BigInteger),
)

rates = Table(
    "rates",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("gpu_class", String(63), nullable=False),
    Column("rate_thousandths", Integer, nullable=False),
    Column("price_krw", Integer, nullable=False),
    Column("valid_from_ms", BigInteger, nullable=False),
    CheckConstraint("rate_thousandths > 0 AND price_krw >= 0", name="positive"),
)

gpu_classes = Table(
    "gpu_classes",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("rate_id", String(80), ForeignKey("rates.id"), nullable=False),
    Column("paused", Boolean, nullable=False, server_default=false()),
)

hub_switches = Table(
    "hub_switches",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("placement_paused", Boolean, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("cluster", String(40), ForeignKey("clusters.id"), primary_key=True),
    Column("node", String(253), primary_key=True),
    Column("schedulable", Boolean, nullable=False),
    Column("cordoned", Boolean, nullable=False),
    # as its cluster reports it; null: none is known
    Column("rack", String(63)),
    # a GPU of it is in quarantine, and the node might still give it to somebody
    Column("held_back", Boolean, nullable=False, server_default=false()),
)

node_capacity = Table(
    "node_capacity",
    metadata,
    Column("cluster", String(40), primary_key=True),
    Column("node", String(253), primary_key=True),
    Column("gpu_class", String(63), primary_key=True),
    Column("total", Integer, nullable=False),
    Column("foreign_used", Integer, nullable=False),
    Column("used", Integer, nullable=False),
    # a total lowered below `used` is a finding, not an error
    CheckConstraint("total >= 0 AND foreign_used >= 0 AND used >= 0", name="not_negative"),
)
