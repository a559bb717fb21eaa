"""Calls about clusters, GPU classes and nodes."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import fleet


class FleetCalls(Transport):
    """Calls about clusters, GPU classes and nodes."""

    def create_cluster(self, body: fleet.NewCluster, key: str | None = None) -> fleet.Cluster:
        """Register a cluster."""
        return self._send("POST", "/v1/clusters", body, fleet.Cluster, key)

    def list_clusters(self, after: str | None = None, limit: int | None = None) -> fleet.ClusterList:
        """Clusters in order of id; see `every` for all of them."""
        return self._get("/v1/clusters", fleet.ClusterList, after=after, limit=limit)

    def put_gpu_class(self, body: fleet.NewGpuClass, if_match: str | None = None) -> fleet.GpuClass:
        """Add a GPU class, or give it a new rate version; with `if_match` only if it still has that etag."""
        return self._send("PUT", f"/v1/gpu-classes/{body.id}", body, fleet.GpuClass, if_match=if_match)

    def list_gpu_classes(self, after: str | None = None, limit: int | None = None) -> fleet.GpuClassList:
        """GPU classes with their present rates, in order of id; see `every` for all of them."""
        return self._get("/v1/gpu-classes", fleet.GpuClassList, after=after, limit=limit)

    def list_nodes(
        self, after: str | None = None, limit: int | None = None, cluster: str | None = None
    ) -> fleet.NodeList:
        """Nodes with their capacity, in order of cluster and name; see `every` for all of them."""
        return self._get("/v1/nodes", fleet.NodeList, after=after, limit=limit, cluster=cluster)
