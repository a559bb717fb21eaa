"""The process that answers one what-if question for a leader: question on standard input, answer on standard output.

A process of its own, because it takes a core for seconds: the leader's cycles must not wait for it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from pydantic import ValidationError

from quota.schemas.what_if import WhatIfRequest
from scheduler.snapshots.file import BadSnapshot, checked
from scheduler.whatif.changing import BadChange
from scheduler.whatif.playing import what_if

NICER_BY = 10
"""It yields to everything else on the leader's machine."""


def main() -> None:
    """Answer `{"request": …, "state": …}`; the argument is how many seconds of a core it may take."""
    limit_s = int(sys.argv[1])
    # a leader that dies does not end its child: this does
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    os.nice(NICER_BY)
    sys.stdout.write(answered(json.load(sys.stdin.buffer)))


def answered(question: dict[str, Any]) -> str:
    """A `WhatIfReply` as JSON, or `{"error": {"field", "detail"}}`."""
    try:
        request = WhatIfRequest.model_validate(question["request"])
        return what_if(checked(question["state"], "the state"), request).model_dump_json()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return _refused(".".join(map(str, first["loc"])), str(first["msg"]))
    except BadChange as wrong:
        return _refused(wrong.field, wrong.detail)
    except BadSnapshot as wrong:
        return _refused("", str(wrong))


def _refused(field: str, detail: str) -> str:
    return json.dumps({"error": {"field": field, "detail": detail}})


if __name__ == "__main__":
    main()
