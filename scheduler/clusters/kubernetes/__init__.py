"""Jobs as `batch/v1` Jobs on a Kubernetes cluster. The only room that imports the `kubernetes` package."""
