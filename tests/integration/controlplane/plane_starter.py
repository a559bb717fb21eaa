"""`python -m tests.integration.controlplane.plane_starter FOLDER`: starts a plane, says so, and waits to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.kubernetes_plane import a_plane

if __name__ == "__main__":
    with a_plane(Path(sys.argv[1]), "sim-0:h100=8") as plane:
        print("started", flush=True)
        time.sleep(3600)
