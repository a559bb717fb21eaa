"""The simulated cluster's HTTP door: what `SimulatedCluster` and the agents call."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, assert_never

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.simulator import bodies, rules
from scheduler.simulator.events import Event
from scheduler.simulator.faults import DoorFaults, FaultyDoor, Planted
from scheduler.simulator.logs import Part, read_log
from scheduler.simulator.model import Model
from scheduler.simulator.readings import Readings
from scheduler.simulator.simulation import Simulation
from scheduler.simulator.view import nodes_view, object_view, objects_view

After = Annotated[int, Query(ge=0)]
Index = Annotated[int, Query(ge=0, le=10**6)]
WaitSeconds = Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)]


def create_app(simulation: Simulation, readings: Readings, token: str, speedy: bool) -> FastAPI:
    """The application around one simulation; its lifespan runs the background tick."""
    faults = DoorFaults()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tick = asyncio.create_task(simulation.tick_forever())
        yield
        tick.cancel()
        with suppress(asyncio.CancelledError):
            await tick

    app = FastAPI(
        title="gpuhub simulated cluster",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(TokenDoor, token=token), Middleware(FaultyDoor, faults=faults)],
    )
    _answer_errors(app, simulation)
    _serve_objects(app, simulation, faults, speedy)
    _serve_logs(app, simulation)
    _serve_nodes(app, simulation, readings)
    _serve_faults(app, simulation, faults)
    return app


class TokenDoor:
    """Lets in who carries the token; health is open."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and self._expected is not None and scope["path"] != "/-/healthy":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                detail = "a bearer token is needed"
                await _answer({"code": "unauthorized", "detail": detail}, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _answer(content: object, status: int = 200) -> Response:
    return _answer_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), status)


def _answer_text(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


def _answer_errors(app: FastAPI, simulation: Simulation) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, trouble: RequestValidationError) -> Response:
        first = trouble.errors()[0]
        # The location begins with where the value came from; for a fault its kind follows.
        parts = [str(part) for part in first["loc"][1:] if part not in bodies.FAULTS]
        field = ".".join(parts) or str(first["loc"][0])
        return _answer({"code": "invalid", "field": field, "detail": first["msg"]}, 422)

    @app.exception_handler(bodies.Invalid)
    async def senseless(_: Request, trouble: bodies.Invalid) -> Response:
        return _answer({"code": "invalid", "field": trouble.field, "detail": trouble.detail}, 422)

    @app.exception_handler(rules.Refusal)
    async def refused(_: Request, trouble: rules.Refusal) -> Response:
        where = {} if trouble.field is None else {"field": trouble.field}
        return _answer({"code": trouble.code, **where, "detail": trouble.detail}, trouble.status)

    @app.exception_handler(rules.NameTaken)
    async def taken(_: Request, trouble: rules.NameTaken) -> Response:
        thing = object_view(simulation.model, trouble.thing)
        detail = f"an object is called {thing['name']!r}"
        return _answer({"code": "already_exists", "detail": detail, "object": thing}, 409)


def _serve_objects(app: FastAPI, simulation: Simulation, faults: DoorFaults, speedy: bool) -> None:
    model = simulation.model

    @app.post("/v1/objects")
    async def create(body: bodies.CreateBody) -> Response:
        with simulation.turn() as now_ms:
            wanted = rules.create(model, body.event(now_ms, speedy))
            if not body.suspend and faults.take("refuse_start", None) is not None:
                raise rules.Refusal(503, "start_refused", "a planted fault declines this start")
            simulation.do(wanted)
        return _answer(object_view(model, model.objects[body.name]), 201)

    @app.get("/v1/objects")
    async def list_changed(after: After = 0, wait_s: WaitSeconds = 0.0) -> Response:
        simulation.present()
        if wait_s > 0:
            await simulation.wait_beyond(after, wait_s)
        now_ms = simulation.present()
        return _answer(objects_view(model, after, now_ms))

    @app.get("/v1/objects/{name}")
    async def show(name: str) -> Response:
        simulation.present()
        return _answer(object_view(model, rules.find_object(model, name)))

    @app.patch("/v1/objects/{name}")
    async def suspend(name: str, body: bodies.SuspendBody) -> Response:
        with simulation.turn() as now_ms:
            simulation.do(
                rules.suspend(model, now_ms, name, abandoned=body.abandoned, grace_ms=body.grace_ms)
            )
        return _answer(object_view(model, model.objects[name]))

    @app.delete("/v1/objects/{name}")
    async def delete(name: str) -> Response:
        with simulation.turn() as now_ms:
            simulation.do(rules.delete(model, now_ms, name))
        return _answer({"name": name})


def _serve_logs(app: FastAPI, simulation: Simulation) -> None:
    model = simulation.model

    @app.get("/v1/objects/{name}/logs")
    async def logs(
        name: str,
        pod: Index = 0,
        tail_lines: Index = 1000,
        since_s: Annotated[int | None, Query(ge=0, le=10**9)] = None,
        follow: bool = False,
        timestamps: bool = False,
    ) -> Response:
        now_ms = simulation.present()
        part = Part(tail_lines, None if since_s is None else now_ms - since_s * 1000, timestamps)
        first = read_log(model, name, pod).first(part)

        async def written() -> AsyncIterator[str]:
            shown = first
            while True:
                simulation.present()
                try:
                    log = read_log(model, name, pod)
                except rules.Refusal:
                    return  # deleted, or its node was lost, while somebody followed
                for line in log.lines(shown, timestamps):
                    yield line
                shown = max(shown, log.count)
                if log.is_over or not follow or not await simulation.wait_a_tick():
                    return

        return StreamingResponse(written(), media_type="text/plain; charset=utf-8")


def _serve_nodes(app: FastAPI, simulation: Simulation, readings: Readings) -> None:
    model = simulation.model

    @app.get("/-/healthy")
    async def healthy() -> Response:
        return _answer({"status": "ok", "now_ms": simulation.present()})

    @app.get("/v1/nodes")
    async def nodes() -> Response:
        return _answer(nodes_view(model, simulation.present()))

    @app.get("/v1/nodes/{name}/gpus")
    async def gpus_of_node(name: str, after_ms: After = 0) -> Response:
        now_ms = simulation.present()
        node = rules.find_node(model, name)
        if node.lost_ms is not None:
            raise rules.Refusal(503, "node_lost", f"node {name!r} does not answer")
        return _answer_text(readings.node_text(node, after_ms, now_ms))

    @app.get("/v1/gpus")
    async def gpus_of_fleet(after_ms: After = 0) -> Response:
        now_ms = simulation.present()
        return _answer_text(readings.fleet_text(list(model.nodes.values()), after_ms, now_ms))


def _serve_faults(app: FastAPI, simulation: Simulation, faults: DoorFaults) -> None:
    model = simulation.model

    @app.post("/v1/faults")
    async def plant(fault: bodies.FaultBody) -> Response:
        with simulation.turn() as now_ms:
            if isinstance(fault, bodies.DoorFault):
                faults.plant(_planted(fault))
            else:
                simulation.do(_strike(model, now_ms, fault))
        return _answer({"now_ms": now_ms, "faults": faults.listing()}, 201)

    @app.get("/v1/faults")
    async def planted() -> Response:
        lost = [
            {"fault": "lose_node", "node": node.node}
            for node in model.nodes.values()
            if node.lost_ms is not None
        ]
        return _answer({"faults": lost + faults.listing()})

    @app.delete("/v1/faults")
    async def clear() -> Response:
        faults.clear()
        return _answer({"faults": []})


def _planted(fault: bodies.DoorFault) -> Planted:
    match fault:
        case bodies.RefuseStart():
            return Planted(fault.fault, fault.count)
        case bodies.AnswerLate():
            return Planted(fault.fault, fault.count, fault.path, fault.delay_s)
        case bodies.ForgetReply():
            return Planted(fault.fault, fault.count, fault.path)
        case _:
            assert_never(fault)


def _strike(model: Model, now_ms: int, fault: bodies.ClusterFault) -> Event | None:
    match fault:
        case bodies.FailPod():
            return rules.fail_pod(model, now_ms, fault.name, fault.pod_index, fault.exit_code)
        case bodies.LoseNode():
            return rules.lose_node(model, now_ms, fault.node, fault.silent_ms)
        case bodies.ReturnNode():
            return rules.return_node(model, now_ms, fault.node)
        case bodies.BreakGpu():
            return rules.break_gpu(
                model,
                now_ms,
                fault.node,
                fault.gpu_uuid,
                fault.xid,
                lost=fault.lost,
                recovery_action=fault.recovery_action,
                withdrawn=fault.withdrawn,
                kills=fault.kills,
            )
        case bodies.MendGpu():
            return rules.mend_gpu(model, now_ms, fault.node, fault.gpu_uuid)
        case bodies.Foreign():
            return rules.set_foreign(model, now_ms, fault.node, fault.gpu_class, fault.count)
        case _:
            assert_never(fault)
