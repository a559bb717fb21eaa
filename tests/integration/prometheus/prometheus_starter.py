"""`python -m tests.integration.prometheus.prometheus_starter FOLDER`: starts one, says so, and waits to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.prometheus_server import a_prometheus

if __name__ == "__main__":
    with a_prometheus(Path(sys.argv[1]), {}) as prometheus:
        print(prometheus.server.pid, prometheus.url, flush=True)
        time.sleep(3600)
