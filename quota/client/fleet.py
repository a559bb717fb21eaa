"""Calls about clusters, GPU classes and nodes."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import fleet


class FleetCalls(Transport):
    """Calls about clusters, GPU classes and nodes."""

    def create_cluster(self, body: fleet.NewCluster) -> fleet.Cluster:
        """Register a cluster."""
        return self._send("POST", "/v1/clusters", body, fleet.Cluster)

    def list_clusters(self) -> fleet.ClusterList:
        """All clusters."""
        return self._get("/v1/clusters", fleet.ClusterList)

    def put_gpu_class(self, body: fleet.NewGpuClass) -> fleet.GpuClass:
        """Add a GPU class, or give it a new rate version."""
        return self._send("PUT", f"/v1/gpu-classes/{body.id}", body, fleet.GpuClass)

    def list_gpu_classes(self) -> fleet.GpuClassList:
        """All GPU classes with their present rates."""
        return self._get("/v1/gpu-classes", fleet.GpuClassList)

    def list_nodes(self) -> fleet.NodeList:
        """All nodes with their capacity."""
        return self._get("/v1/nodes", fleet.NodeList)

    def change_node(self, cluster: str, node: str, body: fleet.NodeChange) -> fleet.Node:
        """Cordon a node or let it take jobs again (operators)."""
        return self._send("PATCH", f"/v1/nodes/{cluster}/{node}", body, fleet.Node)
