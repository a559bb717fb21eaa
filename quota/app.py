"""The quota service as an ASGI application. Importing this does nothing; `create_app(settings)` makes it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import BaseRoute

from quota import docs_page, problems, schema_version, tasks, timekeeping
from quota.audit import routes as audit_chain
from quota.bookings import routes as bookings
from quota.clock import Clock
from quota.crash import open_database
from quota.dispatch import fair_share_routes as sharing
from quota.dispatch import forecast_routes as forecasting
from quota.dispatch import log_routes as job_logs
from quota.dispatch import routes as dispatch
from quota.dispatch import snapshot_routes as snapshots
from quota.dispatch.ranking import StoredQueue
from quota.door import Hub, HubRoute, access, answer, authenticate, hub_of, public
from quota.errors import Forbidden
from quota.fleet import gpu_routes as gpus
from quota.fleet import routes as fleet
from quota.identity import routes as identity
from quota.identity import trail_routes as trail
from quota.identity.doorkeeper import Doorkeeper
from quota.identity.lockout import Limits
from quota.jobs import caps_routes as caps
from quota.jobs import change_routes as job_changes
from quota.jobs import idle_routes as idle
from quota.jobs import routes as jobs
from quota.jobs import switch_routes as switches
from quota.metrics import HubCollector
from quota.openapi import complete
from quota.programs import change_routes as grant_changes
from quota.programs import funds_routes as funds
from quota.programs import limits_routes
from quota.programs import routes as programs
from quota.reports import export_routes as exports
from quota.reports import limits_routes as read_limits_routes
from quota.reports import reconciliation_routes as reconciliations
from quota.reports import statement_routes as statements
from quota.schemas.identity import Role, Scope
from quota.schemas.service import ClockReply, Health, TaskList
from quota.settings import Settings
from quota.throttle import Seats, Throttle

VERSION = "0.3.0"
BEARER = (Depends(HTTPBearer(auto_error=False)),)
"""Only for the OpenAPI document: who calls is found out by each route itself."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "testclient"})


class _Service(FastAPI):
    """An application whose OpenAPI document has examples, every problem, and the types that routes parse themselves."""

    def openapi(self) -> dict[str, Any]:
        """The document, built once."""
        if self.openapi_schema is None:
            complete(super().openapi())
        document = self.openapi_schema
        assert document is not None
        return document


def create_app(settings: Settings, clock: Clock | None = None) -> FastAPI:
    """The service over a migrated database; the clock is the database's unless one is given."""
    database = open_database(settings.database, clock or Clock(), settings.pool_size, os.environ)
    if clock is None:
        with database.read() as connection:
            clock = timekeeping.read_clock(connection)
        database.clock = clock
    doorkeeper = Doorkeeper(_lockout_limits(settings))
    hub = Hub(
        settings,
        database,
        clock,
        StoredQueue(),
        doorkeeper.authenticate,
        Throttle(settings),
        Seats(settings),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        periodic = tasks.start(database) if settings.tasks else None
        doorkeeper.start(database)
        yield
        if periodic is not None:
            periodic.shutdown(wait=True)
        doorkeeper.stop()
        database.close()

    app = _Service(
        title="gpuhub quota service",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        dependencies=BEARER,
    )
    app.state.hub = hub
    app.state.doorkeeper = doorkeeper
    problems.install(app)
    app.router.routes.extend(_rooms())
    _add_own_routes(app)
    docs_page.install(app)
    _build(app.routes)
    return app


@cache
def _rooms() -> tuple[BaseRoute, ...]:
    """All rooms' routes, built once: they find their hub in the request, so applications of one process share them."""
    together = APIRouter(dependencies=BEARER)
    # a request is compared with one route after the other, so the busiest come first
    together.include_router(dispatch.busy)
    together.include_router(forecasting.busy)
    for room in (
        dispatch,
        forecasting,
        jobs,
        job_logs,
        job_changes,
        switches,
        caps,
        idle,
        sharing,
        snapshots,
        programs,
        grant_changes,
        funds,
        limits_routes,
        read_limits_routes,
        statements,
        fleet,
        gpus,
        bookings,
        identity,
        trail,
        audit_chain,
        exports,
        reconciliations,
    ):
        together.include_router(room.router)
    _build(together.routes)
    return tuple(together.routes)


def _build(routes: Sequence[BaseRoute]) -> None:
    """FastAPI builds the routes of an included router at the first request that passes it, with the process's warning
    filters changed meanwhile; threads that are at work by then would see each other's filters.
    """
    list(iter_route_contexts(routes))


def _lockout_limits(settings: Settings) -> Limits:
    return Limits(
        settings.lockout_pair_failures,
        settings.lockout_address_failures,
        settings.lockout_window_s * 1000,
        settings.lockout_s * 1000,
    )


def _add_own_routes(app: FastAPI) -> None:
    registry = CollectorRegistry()
    hub: Hub = app.state.hub
    registry.register(HubCollector(hub.database, hub.clock))
    router = APIRouter(tags=["service"], route_class=HubRoute)

    @router.get("/v1/clock", operation_id="read_clock", response_model=ClockReply, openapi_extra=public())
    def read_clock() -> Response:
        """The hub's clock: business time = business_at + (wall - wall_at) x speed."""
        clock = hub.clock
        return answer(
            ClockReply(
                business_at=clock.business_at_ms,
                wall_at=clock.wall_at_ms,
                speed=clock.speed,
                now=clock.now_ms(),
            )
        )

    @router.get(
        "/v1/tasks",
        operation_id="list_tasks",
        response_model=TaskList,
        openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
    )
    def list_tasks() -> Response:
        """Periodic tasks with their newest runs (operators, auditors)."""
        with hub.database.read() as connection:
            return answer(tasks.read_tasks(connection))

    @router.get("/metrics", include_in_schema=False, openapi_extra=public())
    def metrics(request: Request) -> Response:
        """Prometheus text. From another machine, or through a proxy, it needs an operator's or auditor's token."""
        host = request.client.host if request.client else ""
        if host not in LOOPBACK or "x-forwarded-for" in request.headers:
            caller = authenticate(request)
            if caller.role not in (Role.OPERATOR, Role.AUDITOR):
                raise Forbidden("metrics need a token of role operator or auditor")
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/-/healthy", operation_id="read_health", response_model=Health, openapi_extra=public())
    async def healthy() -> Response:
        """The process answers."""
        return answer(Health(status="ok"))

    @router.get("/-/ready", operation_id="read_readiness", response_model=Health, openapi_extra=public())
    def ready(request: Request) -> Response:
        """The database answers and has this program's schema; else 503 with what is wrong."""
        checks = _checks(hub_of(request))
        good = all(value == "ok" for value in checks.values())
        return answer(Health(status="ok" if good else "not ready", checks=checks), 200 if good else 503)

    app.include_router(router)


def _checks(hub: Hub) -> dict[str, str]:
    try:
        current = schema_version.is_current(hub.database)
    except SQLAlchemyError as error:
        return {"database": type(error).__name__}
    return {"database": "ok", "schema": "ok" if current else "not this program's"}
