"""Sent twice, or on top of somebody else's change: Idempotency-Keys and entity tags."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.client import QuotaClient
from quota.errors import IdempotencyMismatch, SecretAlreadyShown
from quota.identity.idempotency import once
from quota.identity.tables import idempotency
from quota.schemas.fleet import NewCluster, NewGpuClass, NodeChange
from quota.schemas.identity import NewOrganization, Organization
from quota.schemas.programs import NewProgram
from tests.builders import OPERATOR, Api, Hub, a_hub, a_problem, a_submission, an_api
from tests.integration.quota.door_world import operations


@pytest.fixture
def api(sqlite_url: str) -> Iterator[Api]:
    with an_api(sqlite_url) as made:
        yield made


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


# --- keys ------------------------------------------------------------------------------------------------


def test_whatever_makes_something_takes_a_key(api: Api) -> None:
    posts = [one for one in operations(api).values() if one.method == "POST"]
    making = [one for one in posts if "201" in one.document["responses"]]
    assert {"submit_job", "award_grant", "create_cluster", "create_token"} <= {one.id for one in making}
    for one in making:
        assert one.has_header("Idempotency-Key"), one.id
        assert "key" in inspect.signature(getattr(QuotaClient, one.id)).parameters, one.id


def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    api.hub.award("alpha", "10")
    client = api.firms["alpha"]
    job = client.submit_job(a_submission(), key="k")
    with a_problem("idempotency_key_reused", 422) as caught:
        client.submit_job(a_submission(walltime_s=7), key="k")
    assert caught[0].problem.errors[0]["field"] == "Idempotency-Key"
    assert [item.id for item in client.list_jobs().items] == [job.id]


def test_the_same_key_answers_the_same_thing_and_makes_it_once(api: Api) -> None:
    for operation, body in (
        ("create_program", {"id": "px", "name": "P", "budget_gpu_hours": "5"}),
        ("create_organization", {"id": "delta", "name": "D"}),
        ("create_cluster", {"id": "second", "kind": "simulated"}),
    ):
        path = operations(api)[operation].path
        headers = {"Idempotency-Key": operation}
        first = api.call(api.operator, "POST", path, json=body, headers=headers)
        again = api.call(api.operator, "POST", path, json=body, headers=headers)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.text == again.text
        assert api.refused(api.operator, "POST", path, json=body)["code"] == "already_exists"


def test_the_client_sends_keys(api: Api) -> None:
    operator = api.operator
    program = NewProgram(id="px", name="P", budget_gpu_hours="5")
    assert operator.create_program(program, key="a") == operator.create_program(program, key="a")
    cluster = NewCluster(id="second", kind="simulated")
    assert operator.create_cluster(cluster, key="b") == operator.create_cluster(cluster, key="b")


def test_a_key_belongs_to_one_token(api: Api) -> None:
    for firm in ("alpha", "beta"):
        api.hub.award(firm, "10")
    jobs = {api.firms[firm].submit_job(a_submission(), key="same").id for firm in ("alpha", "beta")}
    assert len(jobs) == 2


@pytest.mark.parametrize("key", ["", "x" * 201], ids=["empty", "too long"])
def test_a_key_has_a_length(api: Api, key: str) -> None:
    problem = api.refused(
        api.operator,
        "POST",
        "/v1/organizations",
        json={"id": "delta", "name": "D"},
        headers={"Idempotency-Key": key},
    )
    assert (problem["http_status"], problem["errors"][0]["field"]) == (422, "Idempotency-Key")


def _organization(hub: Hub, secret: str, body: NewOrganization) -> Organization:
    """Make something with a secret under key `k`: the organization's name stands for it."""
    made = Organization(id=body.id, name=secret, kind=body.kind, frozen=False, created_at=hub.now)
    return hub.database.write(
        lambda tx: once(
            tx, OPERATOR, "k", "make", body, Organization, lambda: made, keep=lambda one: {"made_id": one.id}
        )
    )


def test_a_reply_with_a_secret_is_not_stored_and_its_repeat_says_what_was_made(hub: Hub) -> None:
    body = NewOrganization(id="delta", name="D")
    assert _organization(hub, "hunter2", body).name == "hunter2"
    assert "hunter2" not in repr(hub.rows(idempotency))
    with pytest.raises(SecretAlreadyShown) as caught:
        _organization(hub, "hunter3", body)
    assert caught.value.numbers == {"made_id": "delta"}
    with pytest.raises(IdempotencyMismatch):
        _organization(hub, "hunter3", NewOrganization(id="epsilon", name="D"))


def test_what_fails_is_not_kept_under_its_key(hub: Hub) -> None:
    body = NewOrganization(id="delta", name="D")

    def fail() -> Organization:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        hub.database.write(lambda tx: once(tx, OPERATOR, "k", "make", body, Organization, fail))
    assert hub.rows(idempotency) == []
    assert _organization(hub, "now it works", body).name == "now it works"


# --- entity tags -----------------------------------------------------------------------------------------

H100 = NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=4000)


def test_a_class_is_changed_only_from_the_version_that_was_read(api: Api) -> None:
    operator = api.operator
    read = next(item for item in operator.list_gpu_classes().items if item.id == "h100")
    cheaper = H100.model_copy(update={"price_krw": 3000})
    dearer = H100.model_copy(update={"price_krw": 5000})
    put = operator.put_gpu_class(cheaper, if_match=read.etag)
    assert put.etag != read.etag
    with a_problem("precondition_failed", 412) as caught:
        operator.put_gpu_class(dearer, if_match=read.etag)
    assert caught[0].problem.numbers == {"tag": put.etag, "asked": read.etag}
    assert next(item for item in operator.list_gpu_classes().items if item.id == "h100") == put
    assert operator.put_gpu_class(dearer, if_match=put.etag).price_krw == 5000


def test_a_class_that_is_not_there_matches_nothing(api: Api) -> None:
    fresh = H100.model_copy(update={"id": "b200"})
    for tag in ('"x"', "*"):
        with a_problem("precondition_failed", 412):
            api.operator.put_gpu_class(fresh, if_match=tag)
    assert api.operator.put_gpu_class(fresh).id == "b200"


def test_a_node_is_changed_only_from_the_version_that_was_read(api: Api) -> None:
    operator = api.operator
    read = next(item for item in operator.list_nodes().items if item.node == "n0")
    close = NodeChange(cordoned=True, reason="r")
    changed = operator.change_node("sim", "n0", close, if_match=read.etag)
    assert changed.etag != read.etag
    before = api.hub.rows(audit)
    with a_problem("precondition_failed", 412):
        operator.change_node("sim", "n0", NodeChange(cordoned=False, reason="r"), if_match=read.etag)
    assert api.hub.rows(audit) == before
    assert operator.change_node("sim", "n0", close, if_match="*").cordoned
    assert operator.change_node("sim", "n0", NodeChange(cordoned=False, reason="r")).etag == read.etag


def test_the_tag_is_in_the_header_too(api: Api) -> None:
    path, body = "/v1/gpu-classes/h100", H100.model_dump(mode="json")
    answer = api.call(api.operator, "PUT", path, json=body)
    tag = answer.headers["ETag"]
    assert (answer.status_code, answer.json()["etag"]) == (200, tag)
    several = api.call(api.operator, "PUT", path, json=body, headers={"If-Match": f'"other", {tag}'})
    assert several.status_code == 200


def test_what_runs_on_a_node_does_not_change_its_tag(api: Api) -> None:
    grant = api.hub.award("alpha", "10")
    before = api.operator.list_nodes().items
    job = api.firms["alpha"].submit_job(a_submission())
    api.hub.start(job, grant, "n0")
    after = api.operator.list_nodes().items
    assert before != after
    assert [node.etag for node in before] == [node.etag for node in after]
