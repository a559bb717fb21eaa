"""What the hub's things are called on Kubernetes: labels, annotations, namespaces."""

from __future__ import annotations

from typing import Final

JOB_ID: Final = "hub/job-id"
ATTEMPT: Final = "hub/attempt"
ORGANIZATION: Final = "hub/organization"
GPU_CLASS: Final = "hub/gpu-class"
ABANDONED: Final = "hub/abandoned"
"""Label of a Job whose attempt never runs, or never runs again."""

TOMBSTONE: Final = "hub/tombstone"
"""Annotation of a Job that was created suspended: no pod ever had its name."""
SPEC_HASH: Final = "hub/spec-hash"
PLACEMENT: Final = "hub/placement"
"""Annotation of a Job: its pods as JSON `[[index, node, gpu_class, count], …]`. Also the name of the gate."""
WALLTIME_MS: Final = "hub/walltime-ms"
GRACE_MS: Final = "hub/grace-ms"

STOP_AT: Final = "hub/stop-at"
"""Annotation of a pod: when it will be stopped, in RFC 3339. Shown to it as the file `stop-at`."""
STOP_REASON: Final = "hub/stop-reason"
NOTICE_FOLDER: Final = "/etc/hub"
"""Where a pod finds what it is told."""

END_SEEN: Final = "hub/end-seen"
"""Finalizer that keeps a pod's end readable until it is recorded."""
MANAGED_TAINT: Final = "hub/managed"

JOB_NAME: Final = "batch.kubernetes.io/job-name"
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
HOSTNAME: Final = "kubernetes.io/hostname"

CONTAINER: Final = "main"


def namespace_of(prefix: str, organization_id: str) -> str:
    """The namespace in which an organization's jobs run."""
    return f"{prefix}{organization_id}"
