"""What a start relies on besides its job and its grant: nothing is paused, nobody is frozen, the class has a rate.

The rooms that own these ask for each by itself (`check_open`, `check_not_frozen`, `read_rate`); a batch starts many
jobs of few firms, and each of their questions would be a statement. So one statement reads and locks all of it, and
leaves the answers where those rooms look first: in what the transaction has read already.
"""

from __future__ import annotations

from sqlalchemy import bindparam, select

from quota.db import Tx
from quota.fleet.rules import Rate
from quota.fleet.switches import HUB
from quota.fleet.tables import clusters, gpu_classes, hub_switches, rates
from quota.identity.tables import organizations
from quota.prepared import Prepared

_FOOTING = Prepared(
    select(
        hub_switches.c.placement_paused.label("hub_paused"),
        clusters.c.paused.label("cluster_paused"),
        gpu_classes.c.paused.label("class_paused"),
        organizations.c.frozen,
        rates.c.id.label("rate_id"),
        rates.c.rate_thousandths,
        rates.c.price_krw,
    )
    .select_from(hub_switches)
    .join(clusters, clusters.c.id == bindparam("on_cluster"))
    .join(gpu_classes, gpu_classes.c.id == bindparam("of_class"))
    .join(rates, rates.c.id == gpu_classes.c.rate_id)
    .join(organizations, organizations.c.id == bindparam("organization"))
    .where(hub_switches.c.id == 1)
    # FOR KEY SHARE: watermark and decayed usage on the same rows may move meanwhile, a switch may not
    .with_for_update(read=True, key_share=True)
)


def rely_on(tx: Tx, cluster: str, gpu_class: str, organization_id: str) -> None:
    """Read and lock it; nothing of it changes until `tx` is committed.

    When something of it is not there, nothing is remembered: the room that misses it says so when it is asked.
    """
    tx.once(
        ("footing", cluster, gpu_class, organization_id),
        lambda: _read(tx, cluster, gpu_class, organization_id),
    )


def _read(tx: Tx, cluster: str, gpu_class: str, organization_id: str) -> bool:
    wanted = {"on_cluster": cluster, "of_class": gpu_class, "organization": organization_id}
    row = _FOOTING.one_or_none(tx.connection, wanted)
    if row is None:
        return False
    tx.memo |= {
        ("paused", "hub", HUB): row.hub_paused,
        ("paused", "cluster", cluster): row.cluster_paused,
        ("paused", "gpu_class", gpu_class): row.class_paused,
        ("frozen", organization_id): row.frozen,
        ("rate", gpu_class): Rate(row.rate_id, gpu_class, row.rate_thousandths, row.price_krw),
    }
    return True
