"""Calls about the limits inside a grant."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import limits


class LimitCalls(Transport):
    """Calls about the limits inside a grant: shares, tranches, the cap."""

    def read_limits(self, grant_id: str) -> limits.GrantLimits:
        """Shares, tranches and cap of a grant; a party sees its own share."""
        return self._get(f"/v1/grants/{grant_id}/limits", limits.GrantLimits)

    def put_share(
        self, grant_id: str, organization_id: str, body: limits.ShareChange, if_match: str | None = None
    ) -> limits.Share:
        """Set what a party may use in all; 0 closes its share."""
        path = f"/v1/grants/{grant_id}/shares/{organization_id}"
        return self._send("PUT", path, body, limits.Share, if_match=if_match)

    def read_share(self, grant_id: str, organization_id: str) -> limits.Share:
        """A party's share of a grant."""
        return self._get(f"/v1/grants/{grant_id}/shares/{organization_id}", limits.Share)

    def move_share(self, grant_id: str, body: limits.ShareMove, key: str | None = None) -> limits.ShareList:
        """Move hours from one party to another."""
        return self._send("POST", f"/v1/grants/{grant_id}/share-moves", body, limits.ShareList, key)

    def open_tranches(
        self, grant_id: str, body: limits.NewTranches, key: str | None = None
    ) -> limits.TrancheList:
        """Divide a grant into tranches, once."""
        return self._send("POST", f"/v1/grants/{grant_id}/tranches", body, limits.TrancheList, key)

    def put_tranche(
        self, grant_id: str, position: int, body: limits.TrancheChange, if_match: str | None = None
    ) -> limits.Tranche:
        """Set what a tranche has in all."""
        path = f"/v1/grants/{grant_id}/tranches/{position}"
        return self._send("PUT", path, body, limits.Tranche, if_match=if_match)

    def release_tranche(
        self, grant_id: str, position: int, body: limits.TrancheRelease, key: str | None = None
    ) -> limits.TrancheList:
        """Release the next tranche on evidence."""
        path = f"/v1/grants/{grant_id}/tranches/{position}/release"
        return self._send("POST", path, body, limits.TrancheList, key)
