"""A real Kubernetes control plane on this machine, its nodes played by kwok: for `gpuhub controlplane` and tests."""
