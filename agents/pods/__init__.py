"""Who holds the node's GPUs: what the kubelet lists, checked against cgroups, and kept as spans of holding."""
