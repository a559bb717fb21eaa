"""The API's documentation page works in a closed network: everything it loads comes from the service itself."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from tests.builders import an_api

LOADS = re.compile(r"""(?:src|href)=["']([^"']+)["']|url:\s*["']([^"']+)["']""")


def loaded(page: str) -> list[str]:
    """Addresses that a page makes a browser fetch."""
    return [one or other for one, other in LOADS.findall(page)]


def strangers(addresses: list[str], host: str) -> list[str]:
    """Those that lead to another host."""
    return [address for address in addresses if urlsplit(address).netloc not in ("", host)]


def test_documentation_loads_from_the_service_alone(sqlite_url: str) -> None:
    with an_api(sqlite_url) as api:
        host = urlsplit(api.base_url).netloc
        page = api.call(api.operator, "GET", "/docs")
        assert page.status_code == 200
        addresses = loaded(page.text)
        assert len(addresses) >= 3, "a style sheet, a script and the OpenAPI document"
        assert strangers(addresses, host) == []
        for address in addresses:
            answer = api.call(api.operator, "GET", urlsplit(address).path)
            assert answer.status_code == 200, address
            assert len(answer.content) > 500, address


def test_a_page_that_loads_from_elsewhere_is_noticed() -> None:
    page = '<script src="https://cdn.example.org/swagger.js"></script><link href="/local.css">'
    assert strangers(loaded(page), "127.0.0.1:8080") == ["https://cdn.example.org/swagger.js"]
