"""The tables of numbers: complete, and each class as the driver's makers and other exporters found it."""

from __future__ import annotations

import pynvml
import pytest

from agents.gpus.nvml.classes import gpu_class
from agents.gpus.nvml.codes import (
    CLOCKS_EVENT_REASONS,
    ERRORS,
    EVENT_TYPES,
    RECOVERY_ACTION_FIELD,
    RECOVERY_ACTIONS,
    THROTTLE_FIELDS,
    XIDS,
    Meaning,
    XidClass,
    meaning_of,
    name_of,
    xid_class,
)


def constants(prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in vars(pynvml).items()
        if name.startswith(prefix) and isinstance(value, int)
    }


def test_every_error_of_the_library_is_in_the_table_under_its_name() -> None:
    named = {error.name: code for code, error in ERRORS.items() if code > 0}
    assert named == constants("NVML_ERROR_")


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (1, Meaning.RESTART),
        (3, Meaning.UNSUPPORTED),
        (4, Meaning.FORBIDDEN),
        (6, Meaning.NO_NEWS),
        (9, Meaning.RESTART),
        (12, Meaning.RESTART),
        (13, Meaning.UNSUPPORTED),
        (15, Meaning.LOST),
        (17, Meaning.DOOR_CLOSED),
        (18, Meaning.RESTART),
        (28, Meaning.RESTART),
        (999, Meaning.DOOR_CLOSED),
        (31_337, Meaning.FAILED),
    ],
)
def test_what_an_error_means(code: int, meaning: Meaning) -> None:
    assert meaning_of(code) is meaning


def test_an_error_of_a_newer_driver_has_a_name() -> None:
    assert name_of(31_337) == "code_31337"


@pytest.mark.parametrize(
    ("xids", "expected"),
    [
        ((48, 62, 64, 74, 79, 95, 119, 120), XidClass.HARDWARE),
        ((94,), XidClass.CONTAINED),
        # Taking 45 for a fault once flagged 77 healthy nodes after one job's crash.
        ((13, 31, 43, 45, 68, 109), XidClass.APPLICATION),
        ((63, 92), XidClass.INFORMATIONAL),
        ((0, 1_000), XidClass.UNKNOWN),
    ],
)
def test_who_has_to_act_on_an_xid(xids: tuple[int, ...], expected: XidClass) -> None:
    assert {xid_class(xid) for xid in xids} == {expected}


def test_every_xid_says_where_its_class_comes_from() -> None:
    assert all(xid.source and xid.title for xid in XIDS.values())


def test_recovery_actions_are_those_of_the_library() -> None:
    known = constants("NVML_GPU_RECOVERY_ACTION_")
    assert [value for _, value in sorted((value, value) for value in known.values())] == list(
        range(len(RECOVERY_ACTIONS))
    )
    assert {name: known[name] for name in RECOVERY_ACTIONS if name in known}.items() <= {
        name: value for value, name in enumerate(RECOVERY_ACTIONS)
    }.items()
    assert pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION == RECOVERY_ACTION_FIELD


def test_bits_and_fields_are_those_of_the_library() -> None:
    assert (
        pynvml.nvmlClocksEventReasonHwThermalSlowdown
        == {v: k for k, v in CLOCKS_EVENT_REASONS.items()}["hw_thermal_slowdown"]
    )
    assert sum(CLOCKS_EVENT_REASONS) & ~pynvml.nvmlClocksEventReasonAll == 0
    assert pynvml.nvmlClocksEventReasonGpuIdle not in CLOCKS_EVENT_REASONS
    assert sum(EVENT_TYPES) & ~pynvml.nvmlEventTypeAll == 0
    assert set(THROTTLE_FIELDS) == {
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP,
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
        pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("NVIDIA \ufffd\ufffd", "unknown"),
    ],
)
def test_the_class_of_a_product(name: str, expected: str) -> None:
    assert gpu_class(name, "", {}) == expected


def test_the_class_of_a_mig_device_names_its_profile() -> None:
    parent = "NVIDIA H100 80GB HBM3"
    assert gpu_class(f"{parent} MIG 1g.10gb", parent, {}) == "h100-1g.10gb"
    assert gpu_class(f"{parent} MIG 1g.10gb+me", parent, {}) == "h100-1g.10gb.me"
    assert gpu_class("", parent, {}) == "h100-mig"
    assert gpu_class(f"{parent} MIG 1g.10gb", parent, {parent: "h100-sxm"}) == "h100-sxm-1g.10gb"
    assert gpu_class(f"{parent} MIG 1g.10gb", parent, {f"{parent} MIG 1g.10gb": "slice"}) == "slice"
