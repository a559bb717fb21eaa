"""The API server by raw JSON: one HTTPS connection per call and a bearer token, nothing of Kubernetes' own client."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

Reply = tuple[int, dict[str, Any]]
"""HTTP status and the object, or the `Status` that tells what was wrong."""


@dataclass(frozen=True, slots=True)
class Api:
    """Where the API server is, how to know it again, and who calls."""

    url: str
    ca_file: Path
    token: str
    timeout_s: float = 30.0

    def get(self, path: str) -> Reply:
        """Read an object or a list."""
        return self.call("GET", path)

    def post(self, path: str, body: object, content_type: str = JSON) -> Reply:
        """Create an object."""
        return self.call("POST", path, body, content_type)

    def put(self, path: str, body: object, content_type: str = JSON) -> Reply:
        """Replace an object."""
        return self.call("PUT", path, body, content_type)

    def patch(self, path: str, body: object, content_type: str = MERGE_PATCH) -> Reply:
        """Change an object."""
        return self.call("PATCH", path, body, content_type)

    def delete(self, path: str, body: object = None, content_type: str = JSON) -> Reply:
        """Delete an object, with DeleteOptions if any."""
        return self.call("DELETE", path, body, content_type)

    def call(self, method: str, path: str, body: object = None, content_type: str = JSON) -> Reply:
        """One request. Raises OSError or HTTPException when no reply came."""
        line = self.connect()
        try:
            line.request(
                method,
                quote(path, safe="/?&=%,:!()"),
                None if body is None else json.dumps(body).encode(),
                {"Authorization": f"Bearer {self.token}", "Accept": JSON, "Content-Type": content_type},
            )
            reply = line.getresponse()
            return reply.status, _object(reply.read())
        finally:
            line.close()

    def connect(self) -> http.client.HTTPSConnection:
        """A connection that trusts the plane's own CA only; for watches and other long replies."""
        return http.client.HTTPSConnection(
            urlsplit(self.url).netloc,
            timeout=self.timeout_s,
            context=ssl.create_default_context(cafile=str(self.ca_file)),
        )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": body.decode(errors="replace")}
