"""The scheduler's latest forecast of who starts when; it stays until a later one comes, and shows its age."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Sequence

from pydantic import TypeAdapter
from sqlalchemy import Connection, insert, select, update

from quota.db import Tx
from quota.dispatch import lease
from quota.dispatch.tables import forecast
from quota.schemas.forecasts import EtaBasis, ForecastDocument, ForecastReply, JobEta, NewcomerItem

_NEWCOMERS = TypeAdapter(tuple[NewcomerItem, ...])


def put_forecast(tx: Tx, document: ForecastDocument) -> ForecastReply:
    """Keep a forecast in place of the last one, unless that is of a later moment. Raises StaleEpoch.

    A forecast takes a while, so an older one may come late; sending one again changes nothing.
    """
    lease.check_epoch(tx, document.epoch)
    row = tx.connection.execute(select(forecast.c.as_of_ms).where(forecast.c.id == 1)).one_or_none()
    # a clock that was set back must not let one forecast stand for ever
    if row is not None and document.as_of < row.as_of_ms <= tx.now_ms:
        return ForecastReply(as_of=row.as_of_ms)
    etas = {id: [eta.low, eta.median, eta.high, eta.basis.value] for id, eta in document.etas.items()}
    values = {
        "as_of_ms": document.as_of,
        "stored_at_ms": tx.now_ms,
        "body": zlib.compress(json.dumps(etas).encode(), 1),
        "newcomers": zlib.compress(_NEWCOMERS.dump_json(document.newcomers), 1),
    }
    if row is None:
        tx.connection.execute(insert(forecast), values | {"id": 1})
    else:
        tx.connection.execute(update(forecast).where(forecast.c.id == 1).values(**values))
    return ForecastReply(as_of=document.as_of)


class StoredForecast:
    """The stored forecast, unpacked once per document and process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._etas: dict[str, JobEta] = {}
        self._newcomers: dict[str, list[NewcomerItem]] = {}

    def refresh(self, connection: Connection) -> None:
        """Take over the stored forecast if it is another one."""
        columns = select(forecast.c.as_of_ms, forecast.c.stored_at_ms).where(forecast.c.id == 1)
        row = connection.execute(columns).one_or_none()
        if row is None or (row.as_of_ms, row.stored_at_ms) == self._version:
            return
        with self._lock:
            full = connection.execute(select(forecast).where(forecast.c.id == 1)).one()
            self._etas = {
                job_id: JobEta(low=low, median=median, high=high, basis=EtaBasis(basis), as_of=full.as_of_ms)
                for job_id, (low, median, high, basis) in json.loads(zlib.decompress(full.body)).items()
            }
            newcomers: dict[str, list[NewcomerItem]] = {}
            if full.newcomers is not None:
                for item in _NEWCOMERS.validate_json(zlib.decompress(full.newcomers)):
                    newcomers.setdefault(item.organization_id, []).append(item)
            self._newcomers = newcomers
            self._version = (full.as_of_ms, full.stored_at_ms)

    def eta(self, job_id: str) -> JobEta | None:
        """When a job is likely to start; None if the last forecast does not say."""
        return self._etas.get(job_id)

    def as_of_ms(self) -> int | None:
        """The moment that the last forecast was made for; None if there never was one."""
        return None if self._version is None else self._version[0]

    def newcomers(self, organization_id: str) -> Sequence[NewcomerItem]:
        """What the last forecast says of jobs that the organization may submit, the closest likenesses first."""
        return self._newcomers.get(organization_id, ())
