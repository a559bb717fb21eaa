"""The state of scheduling, and what would be if."""

from __future__ import annotations

from quota.client.transport import Sink, Transport
from quota.schemas import snapshots, what_if

PATIENCE_S = 120.0
"""A large hub's state is read in one transaction, and a queue is played before anything is answered."""


class SnapshotCalls(Transport):
    """The state of scheduling, and what would be if."""

    def read_scheduler_state(self) -> snapshots.SchedulerState:
        """Everything that decides who runs next, at one moment (operators, auditors)."""
        return self._get("/v1/scheduler/state", snapshots.SchedulerState, PATIENCE_S)

    def save_scheduler_state(self, target: Sink, *, pseudonyms: bool = False) -> int:
        """The same byte for byte into `target`, for a file; answers the number of bytes.

        `pseudonyms`: numbers for the names of organizations, programmes, grants and accounts.
        Raises ServiceUnavailable when the answer breaks off.
        """
        params = {"pseudonyms": "true"} if pseudonyms else None
        return self._copy("/v1/scheduler/state", target, PATIENCE_S, params)

    def ask_what_if(self, body: what_if.WhatIfRequest) -> what_if.WhatIfReply:
        """What would be under other numbers (operators); nothing is changed."""
        # a field that was not set is left out: null would ask for a change
        content = body.model_dump_json(exclude_unset=True).encode()
        headers = {"Content-Type": "application/json"}
        return self._call(
            "POST",
            "/v1/what-if",
            what_if.WhatIfReply,
            content=content,
            headers=headers,
            patience_s=PATIENCE_S,
        )
