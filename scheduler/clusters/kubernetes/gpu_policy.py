"""The policy that says who may have GPUs. Pure.

It looks at everything that pods are made from, because a controller makes the pods of whatever it is given: what
is refused to a person has to be refused to the Job or the Deployment in which that person writes it.
"""

from __future__ import annotations

from typing import Final

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.accounts import SCHEDULER, user_of
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings
from scheduler.clusters.kubernetes.policy import (
    WRITE,
    Rule,
    either,
    in_groups,
    is_user,
    kube,
    outside_of_trusted,
    outsider,
    policy,
    text_list,
)
from scheduler.clusters.kubernetes.settings import KubernetesSettings

GPUS: Final = "gpuhub-gpus"
HUB_KEYS: Final = "hub/"
"""Labels, annotations, finalizers and taints of the hub begin so."""
GPU_PREFIXES: Final = ("nvidia.com/", "deviceclass.resource.kubernetes.io/")
"""Resources that are GPUs on any cluster; the second is what DRA calls a device class by its name."""
DEVICE_VARIABLES: Final = (
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_MIG_CONFIG_DEVICES",
    "NVIDIA_MIG_MONITOR_DEVICES",
    "NVIDIA_IMEX_CHANNELS",
)
"""What NVIDIA's runtime obeys: a container that sets the first has GPUs that nobody gave it."""
DEVICE_MOUNTS: Final = "/var/run/nvidia-container-"
CDI_KEYS: Final = "cdi.k8s.io/"

_JOB_CONTROLLERS = ("system:serviceaccount:kube-system:job-controller", "system:kube-controller-manager")
"""The second is the first's name on a control plane whose controllers share one account."""
_SAME_ORGANIZATION = (
    f"namespaceObject.metadata.?labels[?'{names.ORGANIZATION}'].orValue('') != '' && "
    f"object.metadata.?labels[?'{names.ORGANIZATION}'].orValue('') == "
    f"namespaceObject.metadata.labels['{names.ORGANIZATION}']"
)


def gpu_policy(settings: KubernetesSettings) -> Json:
    """Everywhere but in trusted namespaces: GPUs, the taint, hub's marks and node names are the hub's to give."""
    rules = settings.isolation
    return policy(
        GPUS,
        [
            Rule("", ("pods", "pods/ephemeralcontainers", "pods/resize"), WRITE),
            Rule("", ("podtemplates", "replicationcontrollers"), WRITE),
            Rule("apps", ("deployments", "replicasets", "statefulsets", "daemonsets"), WRITE),
            Rule("batch", ("jobs", "cronjobs"), WRITE),
            # a status carries labels, too, and what is written there stays
            Rule("", ("pods/status",), ("UPDATE",)),
            Rule("batch", ("jobs/status",), ("UPDATE",)),
        ],
        [
            *(
                (
                    f"variables.mayHave || !({offence})",
                    f"this {said}; GPUs come from the hub: submit a job to it",
                )
                for said, offence in _offences(settings).items()
            ),
            (
                f"{either(in_groups(rules.break_glass_groups), 'variables.mayChange')} || !({_reaches()})",
                "this reaches for devices past the device plugin",
            ),
        ],
        variables=_variables(rules),
        namespaces=outside_of_trusted(rules),
        # kubelets and controllers tell of every pod all the time
        outsiders=f"request.?subResource.orValue('') != 'status' || {outsider(rules, user_of(rules, SCHEDULER))}",
    )


def _variables(rules: IsolationSettings) -> dict[str, str]:
    amounts = [f"variables.containers.map(c, c.?resources.?{part}.orValue({{}}))" for part in _AMOUNTS]
    of_pod = [f"variables.pod.spec.?resources.?{part}.orValue({{}})" for part in _AMOUNTS]
    marks = [
        f"variables.{level}.?metadata.?{part}.orValue({{}})"
        for level in ("it", "outer", "pod")
        for part in ("labels", "annotations")
    ]
    scheduler = is_user(user_of(rules, SCHEDULER))
    return {
        "it": "dyn(object)",
        "creates": "request.operation == 'CREATE'",
        "kind": "request.resource.resource",
        # a CronJob has a template within a template; both may carry marks
        "outer": "variables.kind == 'cronjobs' ? variables.it.spec.jobTemplate : variables.it",
        "pod": (
            "variables.kind == 'pods' ? variables.it : variables.kind == 'podtemplates' ? "
            "variables.it.template : variables.outer.spec.template"
        ),
        "containers": " + ".join(
            f"variables.pod.spec.?{part}.orValue([])"
            for part in ("containers", "initContainers", "ephemeralContainers")
        ),
        "amounts": f"{' + '.join(amounts)} + [{', '.join(of_pod)}]",
        "marks": f"[{', '.join(marks)}]",
        "mayChange": f"!variables.creates && ({either(scheduler, kube(), in_groups(rules.admin_groups))})",
        "mayHave": either(
            in_groups(rules.break_glass_groups),
            "variables.mayChange",
            f"variables.creates && variables.kind == 'jobs' && {scheduler} && {_SAME_ORGANIZATION}",
            f"variables.creates && variables.kind == 'pods' && {is_user(*_JOB_CONTROLLERS)} && {_SAME_ORGANIZATION}",
            # a kubelet shows its static pods by name; it can show none of another node
            f"variables.creates && variables.kind == 'pods' && {in_groups(('system:nodes',))}",
        ),
    }


_AMOUNTS = ("limits", "requests")


def _offences(settings: KubernetesSettings) -> dict[str, str]:
    """What only the hub's jobs may do, by how it is said."""
    resources = {form.resource.partition("/")[0] for form in settings.classes.values()}
    prefixes = sorted({*GPU_PREFIXES, *(f"{domain}/" for domain in resources)})
    return {
        "asks for GPUs": (
            f"variables.amounts.exists(m, m.exists(k, {text_list(prefixes)}.exists(p, k.startsWith(p))))"
        ),
        "claims devices": "size(variables.pod.spec.?resourceClaims.orValue([])) > 0",
        f"tolerates the taint {names.MANAGED_TAINT}": (
            "variables.pod.spec.?tolerations.orValue([]).exists(t, "
            f"t.?key.orValue('') == '' || t.key.startsWith('{HUB_KEYS}'))"
        ),
        f"carries marks that begin with {HUB_KEYS}": (
            f"variables.marks.exists(m, m.exists(k, k.startsWith('{HUB_KEYS}'))) || "
            "[variables.it, variables.pod].exists(x, x.?metadata.?finalizers.orValue([])"
            f".exists(f, f.startsWith('{HUB_KEYS}')))"
        ),
        # every pod that runs has a node: it got it by its binding
        "names its node": (
            "(variables.creates || variables.kind != 'pods') && variables.pod.spec.?nodeName.orValue('') != ''"
        ),
        "names a scheduler of its own": (
            "!(variables.pod.spec.?schedulerName.orValue('default-scheduler') in "
            f"{text_list(settings.isolation.schedulers)})"
        ),
    }


def _reaches() -> str:
    """What nobody may do, the hub's jobs neither: their owners write parts of them."""
    harmless = text_list(("void", "none"))
    return " || ".join(
        (
            f"variables.containers.exists(c, c.?env.orValue([]).exists(e, e.name in {text_list(DEVICE_VARIABLES)} "
            f"&& !(e.?value.orValue('') in {harmless})))",
            "variables.containers.exists(c, c.?volumeMounts.orValue([]).exists(v, "
            f"v.mountPath.startsWith('{DEVICE_MOUNTS}')))",
            f"variables.marks.exists(m, m.exists(k, k.startsWith('{CDI_KEYS}')))",
        )
    )
