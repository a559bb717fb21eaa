"""What the API's document shows as an example: values by field name, and whole bodies built from a schema.

The amounts of a grant add up: 100 hours granted = 25 used + 8 held + 67 available.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BY_NAME: Mapping[str, object] = {
    "account_id": "grant:grant-01jd8x2m9q4t6v8w0y2z4b",
    "action": "grant.award",
    "actor": "tok-01jd8x2m9q4t6v8w0y2z4b",
    "address": "203.0.113.7",
    "agent_epoch": "5f0c1d2e3b4a59687f6e5d4c3b2a1908",
    "attempt": 1,
    "available_gpu_hours": "67",
    "available_gpu_us": "241200000000",
    "awarded_gpu_us": "360000000000",
    "budget_gpu_hours": "1500",
    "budget_gpu_us": "5400000000000",
    "busy_ms": 3_400_000,
    "cluster": "sim",
    "code": "no_free_gpu",
    "command": ["python", "train.py"],
    "count": 8,
    "cycle": 4211,
    "detail": "",
    "epoch": 7,
    "evidence": "letter 2026-11-03/17",
    "exit_code": 0,
    "field": "walltime_s",
    "gpu_class": "h100",
    "gpu_hours": "100",
    "gpu_uuid": "GPU-6f9619ff-8b86-d011-b42d-00cf4fc964ff",
    "gpus": 8,
    "gpus_per_pod": 8,
    "grace_ms": 30_000,
    "grace_s": 30,
    "grant_id": "grant-01jd8x2m9q4t6v8w0y2z4b",
    "granted_gpu_hours": "100",
    "granted_gpu_us": "360000000000",
    "held_gpu_hours": "8",
    "held_gpu_us": "28800000000",
    "hold_id": "job-01jd8x2m9q4t6v8w0y2z4b:1:hold",
    "holder": "scheduler-0",
    "id": "alpha-lab",
    "image": "registry.example/alpha/resnet:3",
    "instance": "0b1c2d3e4f5a6978",
    "job_id": "job-01jd8x2m9q4t6v8w0y2z4b",
    "kind": "simulated",
    "krw": 32_000,
    "label": "Alpha Lab, CI",
    "left_gpu_us": "36000000000",
    "message": "this is not a whole number",
    "name": "ResNet-50, run 3",
    "needed_gpu_us": "39600000000",
    "node": "sim-0",
    "observed_ms": 3_600_000,
    "organization_id": "alpha-lab",
    "overlap_s": 86_400,
    "pods": 1,
    "prefix": "ghub_Q2xvc2V",
    "price_krw": 4000,
    "program_id": "ax-2026",
    "rate_id": "h100@1",
    "rate_thousandths": 1000,
    "reason": "agreed at the review of 3 November",
    "remaining_gpu_hours": "1400",
    "remaining_gpu_us": "5040000000000",
    "secret": "ghub_Q2xvc2VkIGJvb2tzLCBvcGVuIGRvb3JzLiBIZWxsbyE",
    "seq": 8812,
    "speed": 1,
    "stream": "decisions",
    "stream_seq": 118,
    "subject": "grant-01jd8x2m9q4t6v8w0y2z4b",
    "token_id": "tok-01jd8x2m9q4t6v8w0y2z4b",
    "total": 8,
    "total_krw": 100_000,
    "transfer_id": "job-01jd8x2m9q4t6v8w0y2z4b:1:settle:1",
    "ttl_s": 15.0,
    "type": "settle",
    "used_gpu_hours": "25",
    "used_gpu_us": "90000000000",
    "walltime_ms": 3_600_000,
    "walltime_s": 3600,
}
"""What a field of this name shows, if its schema takes it."""
OF_MODEL: Mapping[str, object] = {
    "Grant.id": "grant-01jd8x2m9q4t6v8w0y2z4b",
    "GpuClass.id": "h100",
    "GpuClass.name": "NVIDIA H100 80GB",
    "Job.id": "job-01jd8x2m9q4t6v8w0y2z4b",
    "JobDetail.id": "job-01jd8x2m9q4t6v8w0y2z4b",
    "Exemption.id": "exemption-01jd8x2m9q4t6v8w0y2z4b",
    "Exemption.kind": "organization",
    "Exemption.subject": "alpha-lab",
    "NewExemption.kind": "organization",
    "NewExemption.subject": "alpha-lab",
    "NewCluster.id": "sim",
    "NewGpuClass.id": "h100",
    "NewGpuClass.name": "NVIDIA H100 80GB",
    "NewOrganization.name": "Alpha Lab",
    "NewProgram.id": "ax-2026",
    "NewProgram.name": "AX vouchers 2026",
    "Organization.name": "Alpha Lab",
    "Cluster.id": "sim",
    "Program.account_id": "program:ax-2026",
    "Program.id": "ax-2026",
    "Program.name": "AX vouchers 2026",
    "StartItem.account_path": ["grant:grant-01jd8x2m9q4t6v8w0y2z4b"],
    "StopItem.kind": "stop",
    "Token.id": "tok-01jd8x2m9q4t6v8w0y2z4b",
    "Token.role": "member",
    "TokenWithSecret.id": "tok-01jd8x2m9q4t6v8w0y2z4b",
    "TokenWithSecret.role": "member",
}
"""The same for one model's field, where the name alone does not say it."""
LATER = {"ends_at": "2027-05-22T15:00:00.000Z", "expires_at": "2027-05-22T15:00:00.000Z"}
"""Times that lie after the others."""
WHOLE: Mapping[str, object] = {
    "ReportBatch": {
        "epoch": 7,
        "stream": "cluster:sim",
        "seq": 119,
        "cluster": "sim",
        "items": [
            {
                "kind": "ended",
                "job_id": "job-01jd8x2m9q4t6v8w0y2z4b",
                "attempt": 1,
                "first_started_at": "2026-11-22T08:00:00.000Z",
                "last_started_at": "2026-11-22T08:00:02.000Z",
                "ended_at": "2026-11-22T09:00:00.000Z",
                "exit_code": 0,
                "reason": "completed",
            }
        ],
        "observed_through": "2026-11-22T09:00:00.000Z",
    },
    "NewBooking": {
        "organization_id": "alpha-lab",
        "name": "Deep learning, spring term",
        "gpu_class": "h100",
        "gpus_per_pod": 1,
        "pods": 4,
        "timetable": {
            "weekdays": ["tue", "thu"],
            "begins": "10:00",
            "ends": "13:00",
            "first_day": "2027-03-02",
            "last_day": "2027-05-20",
            "without": ["2027-04-20"],
        },
        "reason": "timetable of the spring term",
    },
    "GrantEdit": {"ends_at": "2027-05-22T15:00:00.000Z", "reason": "agreed at the review of 3 November"},
    "OrganizationChange": {"name": "Alpha Lab Seoul", "reason": "the firm has a new name"},
    "ProgramChange": {"name": "AX vouchers 2026/27", "reason": "agreed at the review of 3 November"},
    "WhatIfRequest": {
        "changes": [
            {"kind": "fair_share", "changes": {"reservations": 4, "preemption": {"notice_ms": 900_000}}}
        ],
        "horizon_h": 168,
    },
    "GpuReport": {
        "gpus": [
            {
                "gpu_uuid": "GPU-6f9619ff-8b86-d011-b42d-00cf4fc964ff",
                "node": "sim-0",
                "gpu_class": "h100",
                "model": "NVIDIA H100 80GB HBM3",
                "serial": "1654123000111",
                "pci_bus_id": "00000000:1B:00.0",
                "driver": "570.124.06",
                "health": "unhealthy",
                "proven": False,
                "observed_at": "2026-11-22T09:00:00.000Z",
            }
        ],
        "verdicts": [
            {
                "id": "3f9c2a7e11d04b6a-12",
                "gpu_uuid": "GPU-6f9619ff-8b86-d011-b42d-00cf4fc964ff",
                "node": "sim-0",
                "health": "unhealthy",
                "rule": "xid_hardware",
                "xid": 79,
                "fault": True,
                "since": "2026-11-22T08:59:51.000Z",
                "at": "2026-11-22T08:59:51.000Z",
                "detail": "XID 79: GPU has fallen off the bus",
                "holders": [{"job_id": "job-01jd8x2m9q4t6v8w0y2z4b", "attempt": 1}],
            }
        ],
    },
    "ReconcileDay": {"day": "2026-11-20"},
    "ShareMove": {
        "from_organization_id": "alpha-lab",
        "to_organization_id": "beta-robotics",
        "gpu_hours": "100",
        "reason": "agreed between the parties on 3 November",
    },
    "NewToken": {
        "role": "member",
        "organization_id": "alpha-lab",
        "label": "Alpha Lab, CI",
        "scopes": ["jobs:read", "jobs:write"],
        "expires_at": "2027-05-22T15:00:00.000Z",
    },
    "RankingDocument": {
        "epoch": 7,
        "cycle": 4211,
        "base_cycle": None,
        "at": "2026-11-22T09:00:00.000Z",
        "order": ["job-01jd8x2m9q4t6v8w0y2z4b"],
        "reasons": {
            "job-01jd8x2m9q4t6v8w0y2z4b": {
                "code": "no_free_gpu",
                "numbers": {"gpu_class": "h100", "needed": 8, "free": 3},
            }
        },
        "paces": {"grant-01jd8x2m9q4t6v8w0y2z4b": {"lag_ms": 7_200_000, "as_of": "2026-11-22T09:00:00.000Z"}},
    },
    "EtaItem": {
        "low": "2026-11-22T09:20:00.000Z",
        "median": "2026-11-22T11:00:00.000Z",
        "high": "2026-11-22T15:30:00.000Z",
        "basis": "exact",
    },
    "ForecastDocument": {
        "epoch": 7,
        "as_of": "2026-11-22T09:00:00.000Z",
        "etas": {
            "job-01jd8x2m9q4t6v8w0y2z4b": {
                "low": "2026-11-22T09:20:00.000Z",
                "median": "2026-11-22T11:00:00.000Z",
                "high": "2026-11-22T15:30:00.000Z",
                "basis": "exact",
            }
        },
    },
}
"""Examples of models whose fields depend on each other, by the model's name."""
TEXTS: Mapping[str, str] = {
    "application/jsonl": '{"kind": "header", "format": "gpuhub-ledger/1"}\n',
    "text/csv": "grant_id,seq,at,type,used_gpu_us,krw\r\n",
    "text/plain": "epoch 1 loss 0.9091\n",
    "text/html": "<!doctype html><html>…</html>",
}
"""How replies that are no JSON document begin, by media type."""

Schema = Mapping[str, Any]


def of_schema(schema: Schema, models: Mapping[str, Schema], *, name: str = "", brief: bool = False) -> Any:
    """An example of a JSON schema; `brief` leaves out what a request need not say."""
    if "$ref" in schema:
        model = str(schema["$ref"]).rpartition("/")[2]
        return WHOLE[model] if model in WHOLE else _of_model(model, models, name, brief)
    if "const" in schema:
        return schema["const"]
    if _takes(schema, BY_NAME.get(name)):
        return BY_NAME[name]
    if schema.get("format") == "date-time" and name in LATER:
        return LATER[name]
    for stated in ("examples", "enum"):
        if schema.get(stated):
            return schema[stated][0]
    if schema.get("default") is not None:
        return schema["default"]
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return of_schema(schema[choice][0], models, name=name, brief=brief)
    return _of_type(schema, models, brief)


def _of_model(model: str, models: Mapping[str, Schema], name: str, brief: bool) -> Any:
    schema = models[model]
    if schema.get("type") != "object":
        return of_schema(schema, models, name=name, brief=brief)
    own = {
        key: OF_MODEL[f"{model}.{key}"]
        for key in schema.get("properties", {})
        if f"{model}.{key}" in OF_MODEL
    }
    return _of_object(schema, models, brief) | own


def _of_type(schema: Schema, models: Mapping[str, Schema], brief: bool) -> Any:
    match schema.get("type"):
        case "object":
            return _of_object(schema, models, brief)
        case "array":
            return [of_schema(schema["items"], models, brief=brief)] if schema.get("items") else []
        case "integer" | "number":
            return max(schema.get("minimum", 0), min(1, schema.get("maximum", 1)))
        case "boolean":
            return False
        case "string":
            return "text"
        case _:
            return None


def _of_object(schema: Schema, models: Mapping[str, Schema], brief: bool) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        key: of_schema(part, models, name=key, brief=brief)
        for key, part in schema.get("properties", {}).items()
        if key in required or "const" in part or not brief
    }


def _takes(schema: Schema, value: object) -> bool:
    """Whether a field of this schema takes a value of the table."""
    if value is None or "enum" in schema:
        return False
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    return any(_fits(part, value) for part in kinds)


def _fits(schema: Schema, value: object) -> bool:
    match schema.get("type"):
        case "string":
            plain = "format" not in schema and isinstance(value, str)
            return plain and re.search(schema.get("pattern", ""), str(value)) is not None
        case "integer" | "number":
            return isinstance(value, int | float)
        case "array":
            return isinstance(value, list) and schema.get("items", {}).get("type") == "string"
        case _:
            return False
