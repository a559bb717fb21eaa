"""Organizations: corrected under an ETag, paged and filtered; a member knows its own only."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.errors import PreconditionFailed
from quota.identity import service
from quota.identity.tables import organizations
from quota.schemas.identity import NewOrganization, OrganizationChange, OrganizationKind
from tests.builders import OPERATOR, Api, a_problem, an_api
from tests.integration.quota.token_world import World, a_world, at_once

PATH = "/v1/organizations/alpha"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def tag(api: Api) -> str:
    return str(api.call(api.operator, "GET", PATH).headers["ETag"])


def test_a_change_is_made_and_audited(api: Api) -> None:
    change = OrganizationChange(kind=OrganizationKind.UNIVERSITY, reason="it is one")
    changed = api.operator.change_organization("alpha", change, tag(api))
    assert (changed.name, changed.kind) == ("Alpha", OrganizationKind.UNIVERSITY)
    assert api.operator.read_organization("alpha") == changed
    (row,) = api.hub.rows(audit, action="organization.change")
    assert json.loads(row.before) == {"name": "Alpha", "kind": "startup"}
    assert json.loads(row.after) == {"name": "Alpha", "kind": "university"}
    assert (row.subject, row.reason, row.address) == ("alpha", "it is one", "127.0.0.1")


def test_a_stale_tag_is_refused(api: Api) -> None:
    old = tag(api)
    api.operator.change_organization("alpha", OrganizationChange(name="Alpha Labs", reason="r"), old)
    assert tag(api) != old
    with a_problem("precondition_failed", 412):
        api.operator.change_organization("alpha", OrganizationChange(name="Alpha Ltd", reason="r"), old)
    assert api.operator.read_organization("alpha").name == "Alpha Labs"
    api.operator.change_organization("alpha", OrganizationChange(name="Any", reason="r"), "*")


def test_what_is_so_already_writes_nothing(api: Api) -> None:
    before = tag(api)
    api.operator.change_organization("alpha", OrganizationChange(name="Alpha", reason="r"))
    assert tag(api) == before
    assert api.hub.rows(audit, action="organization.change") == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reason": "r"}, "name"),
        ({"name": "x"}, "reason"),
        ({"name": "", "reason": "r"}, "name"),
        ({"kind": "club", "reason": "r"}, "kind"),
        ({"frozen": True, "reason": "r"}, "frozen"),
        ({"id": "beta", "reason": "r"}, "id"),
    ],
)
def test_a_wrong_change_names_its_field(api: Api, body: dict[str, object], field: str) -> None:
    answer = api.refused(api.operator, "PATCH", PATH, json=body)
    assert (answer["http_status"], answer["errors"][0]["field"]) == (422, field)


def test_of_two_changes_of_one_version_one_is_refused(world: World) -> None:
    with world.database.read() as connection:
        version = service.organization_tag(service.read_organization(connection, "alpha"))

    def change(number: int) -> object:
        body = OrganizationChange(name=f"Alpha {number}", reason="r")
        return world.database.write(
            lambda tx: service.change_organization(tx, OPERATOR, "alpha", version, body)
        )

    results = at_once(4, change)
    assert sum(isinstance(result, PreconditionFailed) for result in results) == 3
    (won,) = [result for result in results if not isinstance(result, Exception)]
    assert world.rows(organizations, id="alpha")[0].name == won.name
    assert len(world.rows(audit, action="organization.change")) == 1


def test_a_member_reads_its_own_only(api: Api) -> None:
    alpha = api.firms["alpha"]
    assert alpha.read_organization("alpha").name == "Alpha"
    for unseen in ("beta", "nobody"):
        with a_problem("not_found", 404) as caught:
            alpha.read_organization(unseen)
        assert caught[0].detail == f"there is no organization {unseen}", "another's looks like none"
    assert [item.id for item in alpha.list_organizations(limit=1).items] == ["alpha"]
    assert alpha.list_organizations(limit=1).next is None
    with a_problem("not_found", 404):
        api.operator.change_organization("nobody", OrganizationChange(name="x", reason="r"))


def test_a_repeated_creation_answers_the_first_ones_reply(api: Api) -> None:
    body = NewOrganization(id="delta", name="Delta")
    assert api.operator.create_organization(body, "key") == api.operator.create_organization(body, "key")
    with a_problem("already_exists", 409):
        api.operator.create_organization(body)


def test_organizations_are_paged_and_filtered(api: Api) -> None:
    for number in range(4):
        kind = OrganizationKind.UNIVERSITY if number % 2 else OrganizationKind.SME
        api.operator.create_organization(NewOrganization(id=f"org-{number}", name="Org", kind=kind))
    after, seen = None, []
    for _ in range(7):
        page = api.operator.list_organizations(after, 3)
        seen += [item.id for item in page.items]
        after = page.next
        if after is None:
            break
    assert seen == ["alpha", "beta", "gamma", "org-0", "org-1", "org-2", "org-3"]

    def ids(**asked: object) -> list[str]:
        return [item.id for item in api.operator.list_organizations(**asked).items]  # type: ignore[arg-type]

    assert ids(kind=OrganizationKind.UNIVERSITY) == ["org-1", "org-3"]
    assert ids(kind=OrganizationKind.UNIVERSITY, limit=1) == ["org-1"]
    assert ids(frozen=True) == []
    api.hub.database.write(
        lambda tx: tx.connection.execute(
            organizations.update().where(organizations.c.id == "beta").values(frozen=True)
        )
    )
    assert ids(frozen=True) == ["beta"]
    assert "beta" not in ids(frozen=False)


def test_a_frozen_organization_keeps_its_tag(api: Api) -> None:
    """The tag is of what this room edits; freezing goes its own way."""
    before = tag(api)
    api.hub.database.write(lambda tx: tx.connection.execute(organizations.update().values(frozen=True)))
    assert tag(api) == before
