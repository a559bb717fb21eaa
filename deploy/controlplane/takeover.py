"""`python -m deploy.controlplane.takeover KUBECONFIG -- KWOK …`: become kwok in the place of one that died.

Every kwok process signs the nodes' leases with a new name and would wait until its predecessor's run out. The
predecessor is dead when this runs, so its leases are removed first.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from deploy import lifeline

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def main() -> None:
    """Remove the leases, then run kwok in this very process."""
    kubeconfig, _, *command = sys.argv[1:]
    lifeline.hold()
    try:
        _remove_leases(Path(kubeconfig))
    except (OSError, HTTPException) as trouble:
        # kwok then waits until the leases have run out.
        sys.stderr.write(f"the leases of an earlier kwok stay: {trouble}\n")
    lifeline.become(command)


def _remove_leases(kubeconfig: Path) -> None:
    known = json.loads(kubeconfig.read_bytes())
    cluster, user = known["clusters"][0]["cluster"], known["users"][0]["user"]
    ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
    line = HTTPSConnection(
        urlsplit(cluster["server"]).netloc, timeout=5.0, context=ssl.create_default_context(cadata=ca)
    )
    try:
        line.request("DELETE", LEASES, headers={"Authorization": f"Bearer {user['token']}"})
        line.getresponse().read()
    finally:
        line.close()


if __name__ == "__main__":
    main()
