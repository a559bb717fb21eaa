"""Raw JSON over the official client's connections and credentials: one call, or one stream of lines.

The client's models are left alone: they reject what they do not know, cost most of the time of a call, and
one odd object fails a whole list.
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config

from scheduler.clusters.kubernetes.settings import BadClusterFile, KubernetesSettings
from scheduler.clusters.port import ClusterUnavailable

Json = dict[str, Any]
JsonPatch = list[dict[str, object]]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

CONNECT_S = 5.0
CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said."""

    status: int
    body: Json

    @property
    def message(self) -> str:
        """Its own words, if it has any."""
        return str(self.body.get("message") or self.body)[:500]


class Pace:
    """A token bucket: `burst` calls at once, `qps` over time. Thread-safe."""

    def __init__(
        self,
        qps: float,
        burst: int,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._qps = qps
        self._burst = float(burst)
        self._monotonic_s = monotonic_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = float(burst)
        self._at_s = monotonic_s()

    def take(self) -> None:
        """Wait for a turn."""
        with self._lock:
            now_s = self._monotonic_s()
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._qps)
            self._at_s = now_s
            self._tokens -= 1.0
            wait_s = max(0.0, -self._tokens / self._qps)
        if wait_s:
            self._sleep(wait_s)

    def hold(self, pause_s: float) -> None:
        """The server asks for a pause: nobody's turn comes before its end."""
        with self._lock:
            self._tokens = min(self._tokens, -pause_s * self._qps)


class KubernetesApi:
    """One API server as one account. Thread-safe; `close` ends its connections."""

    def __init__(self, name: str, settings: KubernetesSettings) -> None:
        """Raises BadClusterFile when the credentials cannot be read."""
        self._name = name
        self._timeout_s = settings.call_timeout_s
        self._pace = Pace(settings.qps, settings.burst)
        # what the kubeconfig carries inside is written into files for a moment; client certificates need them longer
        self._folder = tempfile.TemporaryDirectory(prefix="gpuhub-kubernetes-", ignore_cleanup_errors=True)
        try:
            configuration = _load(settings, self._folder.name)
        except (config.ConfigException, OSError) as error:
            self._folder.cleanup()
            source = settings.kubeconfig or "the pod's service account"
            raise BadClusterFile(f"cluster {name}: {source}: {error}") from error
        if not str(configuration.cert_file or "").startswith(self._folder.name):
            self._folder.cleanup()
        configuration.retries = False
        configuration.keep_alive = True
        configuration.connection_pool_maxsize = 32
        self._client = client.ApiClient(configuration)
        self._client.user_agent = "gpuhub-scheduler"

    def get(self, path: str, *, fine: tuple[int, ...] = (), **query: object) -> Answer:
        """Read. Statuses other than success and `fine` raise ClusterUnavailable."""
        return self._judge("GET", path, self._send("GET", path, query), fine)

    def post(self, path: str, body: Mapping[str, object], *, fine: tuple[int, ...] = ()) -> Answer:
        """Create."""
        return self._judge("POST", path, self._send("POST", path, {}, body), fine)

    def patch(
        self,
        path: str,
        body: Mapping[str, object] | JsonPatch,
        *,
        content: str = MERGE_PATCH,
        fine: tuple[int, ...] = (),
        **query: object,
    ) -> Answer:
        """Change."""
        return self._judge("PATCH", path, self._send("PATCH", path, query, body, content=content), fine)

    def apply(
        self,
        path: str,
        body: Mapping[str, object],
        manager: str,
        *,
        fine: tuple[int, ...] = (),
        **query: object,
    ) -> Answer:
        """Create or change (server-side apply); what others set of the same fields is overruled."""
        asked = {"fieldManager": manager, "force": True, **query}
        # as text: JSON is YAML, and not every version of the library knows this type for an object
        sent = self._send("PATCH", path, asked, json.dumps(body), content=APPLY_PATCH)
        return self._judge("PATCH", path, sent, fine)

    def delete(self, path: str, *, fine: tuple[int, ...] = (), **query: object) -> Answer:
        """Delete."""
        return self._judge("DELETE", path, self._send("DELETE", path, query), fine)

    def lines(
        self, path: str, read_timeout_s: float, *, expired: type[Exception], **query: object
    ) -> Iterator[Json]:
        """A stream of JSON lines until the server ends it.

        Raises ClusterUnavailable, also for silence; `expired` when the server answers 410.
        """
        response = self._open("GET", path, query, None, JSON, read_timeout_s)
        try:
            if response.status == 410:
                raise expired(answer_of(response).message)
            if response.status != 200:
                raise self._unavailable("GET", path, answer_of(response))
            rest = b""
            for chunk in response.stream(CHUNK):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line:
                        yield json.loads(line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnavailable(f"cluster {self._name}: GET {path}: {error!r}") from error
        finally:
            # what was not read to its end cannot be used again
            response.close()
            response.release_conn()

    def text(self, path: str, read_timeout_s: float, **query: object) -> urllib3.BaseHTTPResponse:
        """A stream of bytes, such as a log; the caller closes it."""
        return self._open("GET", path, query, None, JSON, read_timeout_s)

    def kubeconfig_of(self, user: str, token: str) -> Json:
        """A kubeconfig for the same server as another account."""
        configuration = self._client.configuration
        cluster: Json = {
            "server": configuration.host,
            "insecure-skip-tls-verify": not configuration.verify_ssl,
        }
        if configuration.ca_cert_data:
            authority = str(configuration.ca_cert_data).encode()
            cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        if configuration.tls_server_name:
            cluster["tls-server-name"] = configuration.tls_server_name
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self._name, "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": self._name, "context": {"cluster": self._name, "user": user}}],
            "current-context": self._name,
        }

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._folder.cleanup()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Mapping[str, object] | JsonPatch | str | None = None,
        *,
        content: str = JSON,
    ) -> Answer:
        response = self._open(method, path, query, body, content, self._timeout_s)
        try:
            return answer_of(response)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            response.close()
            raise ClusterUnavailable(f"cluster {self._name}: {method} {path}: {error!r}") from error

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: Mapping[str, object] | JsonPatch | str | None,
        content: str,
        read_timeout_s: float,
    ) -> urllib3.BaseHTTPResponse:
        self._pace.take()
        headers = {"Accept": JSON}
        if body is not None:
            headers["Content-Type"] = content
        asked = [(key, _query_text(value)) for key, value in query.items() if value is not None]
        try:
            # a fresh token of the service account is read here, when the old one has run out
            request = self._client.param_serialize(
                method, path, query_params=asked, header_params=headers, auth_settings=["BearerToken"]
            )
            answer = self._client.call_api(
                request[0],
                request[1],
                request[2],
                body=body,
                _request_timeout=(min(CONNECT_S, self._timeout_s), read_timeout_s),
            )
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise ClusterUnavailable(f"cluster {self._name}: {method} {path}: {error!r}") from error
        response: urllib3.BaseHTTPResponse = answer.response
        return response

    def _judge(self, method: str, path: str, answer: Answer, fine: tuple[int, ...]) -> Answer:
        if 200 <= answer.status < 300 or answer.status in fine:
            return answer
        raise self._unavailable(method, path, answer)

    def _unavailable(self, method: str, path: str, answer: Answer) -> ClusterUnavailable:
        if answer.status == 429:
            seconds = answer.body.get("details", {}).get("retryAfterSeconds", 1)
            self._pace.hold(float(seconds))
        return ClusterUnavailable(
            f"cluster {self._name}: {method} {path} answered {answer.status}: {answer.message}"
        )


def _load(settings: KubernetesSettings, folder: str) -> client.Configuration:
    configuration = client.Configuration()
    if settings.kubeconfig is None:
        config.load_incluster_config(client_configuration=configuration)
        # its file stays, and a new authority is written into it
        return configuration
    config.load_kube_config(
        str(settings.kubeconfig), settings.context, client_configuration=configuration, temp_file_path=folder
    )
    if configuration.ssl_ca_cert:
        configuration.ca_cert_data = Path(configuration.ssl_ca_cert).read_text()
        configuration.ssl_ca_cert = None
    return configuration


def answer_of(response: urllib3.BaseHTTPResponse) -> Answer:
    """A whole answer, read to its end."""
    data = response.data
    if response.headers.get("content-type", "").startswith(JSON):
        return Answer(response.status, json.loads(data))
    return Answer(response.status, {"message": data[:500].decode(errors="replace")})


def _query_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
