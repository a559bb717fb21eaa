"""scheduler/core is pure: stdlib, numpy and itself; no clock, chance, system, log, file or print."""

import ast
import sys
from pathlib import Path

import pytest

import scheduler.core

FORBIDDEN_MODULES = {
    "asyncio", "calendar", "datetime", "http", "io", "logging", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "time", "urllib", "uuid",
}  # fmt: skip
FORBIDDEN_NAMES = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}
FORBIDDEN_ATTRIBUTES = {"environ", "now", "random", "time_ns", "today", "urandom", "utcnow"}
FILES = sorted(Path(scheduler.core.__path__[0]).rglob("*.py"))


def impurities(source: str) -> list[str]:
    """What in this source reaches outside, by line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        for module in _imported(node):
            top = module.split(".")[0]
            ours = module == "scheduler.core" or module.startswith("scheduler.core.")
            known = ours or top == "numpy" or top in sys.stdlib_module_names
            if not known or top in FORBIDDEN_MODULES or module.startswith("numpy.random"):
                found.append(f"imports {module}")
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(f"uses {node.id}")
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            found.append(f"uses .{node.attr}")
    return found


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(level=0, module=str(module)):
            return [module, *(f"{module}.{alias.name}" for alias in node.names if module == "scheduler")]
        case ast.ImportFrom():
            return [f"relative import {node.module}"]
    return []


def test_there_is_something_to_look_at() -> None:
    assert {"model.py", "policy.py", "entitlement.py", "order.py", "fit.py", "placement.py", "cycle.py"} <= {
        file.name for file in FILES
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_core_reaches_nothing_outside(file: Path) -> None:
    assert impurities(file.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import time",
        "import os.path",
        "from datetime import datetime",
        "import random",
        "import logging",
        "import pydantic",
        "import quota.schemas",
        "from quota.client import Client",
        "from scheduler import clusters",
        "from scheduler.clusters.port import Cluster",
        "from . import cycle",
        "from ..clusters import port",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.default_rng()",
        "def f():\n    from time import time",
        "def f():\n    print(1)",
        "with open('x') as f: pass",
        "x = later.now()",
        "__import__('time')",
    ],
)
def test_the_checker_finds_what_is_planted(planted: str) -> None:
    assert impurities(planted) != []


@pytest.mark.parametrize(
    "clean",
    [
        "import math\nimport numpy as np\nfrom collections.abc import Mapping",
        "from scheduler.core.model import Job\nimport scheduler.core.fit",
        "def f(now_ms: int) -> int:\n    return now_ms",
    ],
)
def test_the_checker_lets_the_clean_pass(clean: str) -> None:
    assert impurities(clean) == []
