"""The operators' desk in a lived year: awards, moves, limits, refunds, rates, and the statements that it issues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from quota.fleet import service as fleet
from quota.jobs import extending, grant_edits, refunding, switches
from quota.programs import awards, changes, endings, shares, tranches
from quota.reports import statements
from quota.schemas.fleet import NewGpuClass
from quota.schemas.job_changes import JobExtension, JobRefund
from quota.schemas.ledger import RefundKind
from quota.schemas.limits import NewTranche, ShareChange, ShareMove, TrancheChange, TrancheRelease
from quota.schemas.programs import Adjustment, Award, CarryOver, GrantCut, GrantTransfer, LimitCut, TopUp
from quota.schemas.statements import StatementFormat, StatementLanguage
from quota.schemas.switches import GrantEdit, RequeueRequest
from tests.builders import AUDITOR, DAY_MS, GPU_HOUR_US, OPERATOR
from tests.property.ledger.year_life import Given, Year

QUARTER_US = GPU_HOUR_US // 4
WHY = {"reason": "it was decided", "evidence": "decision 12"}


class NobodyFitsError(Exception):
    """What an operator would do has no grant to be done to."""


@dataclass(frozen=True)
class Issued:
    """What somebody was given: the question, the bytes and their hash."""

    grant: str
    since: int | None
    as_of: int
    form: StatementFormat
    language: StatementLanguage
    content: bytes
    sha256: str


@dataclass
class Desk:
    """What operators do in a year, and its diary of the hours that moved."""

    year: Year
    consortia: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The parties by the organization that leads them."""
    issued: list[Issued] = field(default_factory=list)

    # --- grants ---

    def open(self) -> None:
        """The first awards: every firm, every consortium, every university."""
        year = self.year
        firms = year.firms()
        for lead in firms[: year.size.consortia]:
            others = [firm for firm in firms if firm != lead]
            self.consortia[lead] = (lead, *year.rng.sample(others, year.rng.randrange(1, 4)))
        for firm in firms:
            self._award("firms", firm)
        for lead in self.consortia:
            self._award("poc", lead)
        for university in year.universities():
            self._award("edu", university)

    def renew(self) -> None:
        """Grants that have ended are awarded anew, and half of what they left is carried over."""
        year = self.year
        for old in [given for given in year.grants.values() if given.ends_at <= year.now]:
            del year.grants[old.id]
            new = self._award(old.program, old.owner)
            if new is None:
                continue
            hours = year.rng.choice(("0.25", "2", "40"))
            body = CarryOver(to_grant_id=new.id, gpu_hours=hours, **WHY)
            answer = year.try_to(
                "carry over", lambda tx, o=old, b=body: endings.carry_over(tx, OPERATOR, o.id, b)
            )
            if answer is not None:
                year.diary.given[new.id] += body.gpu_hours
                year.diary.carried[new.program] += body.gpu_hours

    def _award(self, program: str, owner: str) -> Given | None:
        year, rng = self.year, self.year.rng
        parties = self.consortia[owner] if program == "poc" else ()
        hours = rng.randrange(60, 240) * 2
        days = rng.randrange(40, 150)
        parts = tuple(NewTranche(gpu_hours=hours // 2, label=f"milestone {n}") for n in (1, 2))
        body = Award(
            program_id=program,
            organization_id=owner,
            gpu_hours=hours,
            # at any millisecond, and some at the very end of a day in Seoul
            ends_at=year.now + days * DAY_MS + (rng.randrange(0, DAY_MS) if rng.random() < 0.8 else 0),
            tranches=parts if parties else (),
            max_gpus=rng.choice((None, None, 16)),
            reason="the call",
        )
        grant = year.try_to(f"award {program}", lambda tx: awards.award(tx, OPERATOR, body))
        if grant is None:
            return None
        given = Given(grant.id, grant.account_id, program, owner, body.ends_at, parties, 1 if parties else 0)
        year.grants[given.id] = given
        year.diary.given[given.id] = body.gpu_hours
        for party in parties:
            self._put_share(given, party, hours // (len(parties) + 1))
        return given

    def act(self) -> None:
        """One thing that operators do, chosen by chance."""
        rng = self.year.rng
        choices: list[tuple[Callable[[], object], int]] = [
            (self._top_up, 4),
            (self._cut, 4),
            (self._transfer, 4),
            (self._adjust_grant, 2),
            (self._adjust_program, 1),
            (self._share, 5),
            (self._move_share, 5),
            (self._release, 2),
            (self._put_tranche, 2),
            (self._extend, 8),
            (self._refund, 6),
            (self._cancel, 3),
            (self._requeue, 2),
            (self._edit, 2),
            (self.year.preempt, 4),
        ]
        act = rng.choices([choice for choice, _ in choices], [weight for _, weight in choices])[0]
        try:
            act()
        except NobodyFitsError:
            self.year.done["nobody fits"] += 1

    def _any(self, *, consortium: bool | None = None) -> Given:
        known = self.year.grants.values()
        fitting = [given for given in known if consortium is None or bool(given.parties) == consortium]
        return self._one_of(fitting)

    def _one_of(self, fitting: list[Given]) -> Given:
        """One by chance: late in a year a programme can have spent its budget and be left with a single grant."""
        if not fitting:
            raise NobodyFitsError
        return self.year.rng.choice(fitting)

    def _hours(self) -> int:
        """Quarters of an hour up to twelve hours, and now and then far too much; in GPU-us."""
        return self.year.rng.choice((1, 3, 10, 48, 100_000)) * QUARTER_US

    def _top_up(self) -> None:
        given, gpu_us = self._any(), self._hours()
        body = TopUp(gpu_hours=_text(gpu_us), **WHY)
        if self.year.try_to("top up", lambda tx: changes.top_up(tx, OPERATOR, given.id, body)):
            self.year.diary.given[given.id] += gpu_us

    def _cut(self) -> None:
        given, gpu_us = self._any(), self._hours()
        children = self._children(given, gpu_us)
        body = GrantCut(gpu_hours=_text(gpu_us), children=children, **WHY)
        if self.year.try_to("cut", lambda tx: changes.cut(tx, OPERATOR, given.id, body)):
            self.year.diary.given[given.id] -= gpu_us

    def _transfer(self) -> None:
        given, gpu_us = self._any(), self._hours()
        peers = [
            peer for peer in self.year.grants.values() if peer.program == given.program and peer is not given
        ]
        target = self._one_of(peers)
        body = GrantTransfer(
            to_grant_id=target.id, gpu_hours=_text(gpu_us), children=self._children(given, gpu_us), **WHY
        )
        if self.year.try_to("transfer", lambda tx: changes.transfer(tx, OPERATOR, given.id, body)):
            self.year.diary.given[given.id] -= gpu_us
            self.year.diary.given[target.id] += gpu_us

    def _children(self, given: Given, gpu_us: int) -> tuple[LimitCut, ...]:
        """Of a consortium a cut names its newest tranche and its first party, who lose the same."""
        if not given.parties:
            return ()
        names = (f"share:{given.id}:{given.parties[0]}", f"tranche:{given.id}:{given.released}")
        return tuple(LimitCut(account_id=name, gpu_hours=_text(gpu_us)) for name in names)

    def _adjust_grant(self) -> None:
        given, gpu_us = self._any(), self._hours() * self.year.rng.choice((1, -1))
        body = Adjustment(gpu_hours=_text(gpu_us), **WHY)
        if self.year.try_to("adjust a grant", lambda tx: changes.adjust_grant(tx, OPERATOR, given.id, body)):
            self.year.diary.given[given.id] += gpu_us

    def _adjust_program(self) -> None:
        program, gpu_us = self.year.rng.choice(("firms", "poc", "edu")), self._hours()
        gpu_us *= self.year.rng.choice((1, -1))
        body = Adjustment(gpu_hours=_text(gpu_us), **WHY)
        if self.year.try_to(
            "adjust a programme", lambda tx: changes.adjust_program(tx, OPERATOR, program, body)
        ):
            self.year.diary.adjusted[program] += gpu_us

    def _edit(self) -> None:
        """An end is moved by days, or the cap is set."""
        year, given = self.year, self._any()
        ends_at = given.ends_at + year.rng.choice((-3, 5, 20)) * DAY_MS + 1
        body = GrantEdit(ends_at=ends_at, max_gpus=year.rng.choice((None, 8, 32)), reason="agreed")
        if year.try_to("edit", lambda tx: grant_edits.edit_grant(tx, OPERATOR, given.id, body, None)):
            given.ends_at = ends_at

    # --- limits ---

    def _put_share(self, given: Given, party: str, hours: int) -> None:
        body = ShareChange(gpu_hours=str(hours), reason="the agreement")
        self.year.try_to("share", lambda tx: shares.put_share(tx, OPERATOR, given.id, party, body, None))

    def _share(self) -> None:
        given = self._any(consortium=True)
        self._put_share(given, self.year.rng.choice(given.parties), self.year.rng.choice((0, 20, 45, 90)))

    def _move_share(self) -> None:
        given, rng = self._any(consortium=True), self.year.rng
        giver, taker = rng.sample(given.parties, 2)
        body = ShareMove(
            from_organization_id=giver,
            to_organization_id=taker,
            gpu_hours=_text(self._hours()),
            reason="needed",
        )
        self.year.try_to("move a share", lambda tx: shares.move_share(tx, OPERATOR, given.id, body))

    def _release(self) -> None:
        given = self._any(consortium=True)
        body = TrancheRelease(reason="milestone reached", evidence="report 7")
        if self.year.try_to("release", lambda tx: tranches.release_tranche(tx, OPERATOR, given.id, 2, body)):
            given.released = 2

    def _put_tranche(self) -> None:
        given, rng = self._any(consortium=True), self.year.rng
        body = TrancheChange(gpu_hours=str(rng.randrange(0, 120)), reason="agreed")
        self.year.try_to(
            "tranche", lambda tx: tranches.put_tranche(tx, OPERATOR, given.id, rng.choice((1, 2)), body, None)
        )

    # --- jobs ---

    def _extend(self) -> None:
        year = self.year
        if not year.running:
            return
        run = year.rng.choice(list(year.running.values()))
        body = JobExtension(walltime_s=year.rng.choice((60, 1801, 7200)), reason="two epochs more")
        extended = year.try_to("extend", lambda tx: extending.extend(tx, OPERATOR, run.key[0], body))
        if extended is not None:
            run.walltime_ms = extended.walltime_s * 1000

    def _refund(self) -> None:
        """A stretch at the end of something that ran lately, twice by chance: what was given back stays so."""
        year, rng = self.year, self.year.rng
        lately = [run for run in year.finished[-60:] if run.ran.last is not None and run.ran.end is not None]
        if not lately:
            return
        run = rng.choice(lately)
        begin = rng.randrange(run.ran.last, max(run.ran.last, run.ends) + 1)
        body = JobRefund(
            attempt=run.number,
            starts_at=begin,
            ends_at=begin + rng.choice((1, 60_001, 3_600_000)),
            kind=rng.choice((RefundKind.FAULT, RefundKind.PREEMPTED)),
            reason="the network was down",
            evidence="finding 9",
        )
        year.try_to("refund", lambda tx: refunding.refund(tx, OPERATOR, run.key[0], body))

    def _cancel(self) -> None:
        if self.year.running:
            run = self.year.rng.choice(list(self.year.running.values()))
            self.year.try_to("cancel", lambda tx: self.year._cancel(tx, run.waiting.job))

    def _requeue(self) -> None:
        if self.year.running:
            run = self.year.rng.choice(list(self.year.running.values()))
            body = RequeueRequest(reason="the node is needed")
            queue = self.year.hub.queue
            self.year.try_to("requeue", lambda tx: switches.requeue(tx, OPERATOR, run.key[0], body, queue))

    def change_rates(self) -> None:
        """A new version of both classes: other rates, other prices."""
        year = self.year
        for name, (rate, price) in list(year.rates.items()):
            body = NewGpuClass(id=name, name=name.upper(), rate_thousandths=rate + 3, price_krw=price + 17)
            if year.try_to("rate", lambda tx, body=body: fleet.put_gpu_class(tx, OPERATOR, body)):
                year.rates[name] = (body.rate_thousandths, body.price_krw)

    # --- statements ---

    def issue(
        self,
        grant: str,
        since: int | None,
        as_of: int,
        form: StatementFormat = StatementFormat.JSON,
        language: StatementLanguage = StatementLanguage.EN,
    ) -> Issued:
        """Issue one, and remember what was answered."""
        written = self._read(grant, since, as_of, form, language)
        issued = Issued(grant, since, as_of, form, language, written.content, written.sha256)
        self.issued.append(issued)
        self.year.done[f"statement {form.value}"] += 1
        return issued

    def changed(self) -> list[str]:
        """Statements that were issued and come out with other bytes now."""
        found = []
        for one in self.issued:
            again = self._read(one.grant, one.since, one.as_of, one.form, one.language)
            if (again.content, again.sha256) != (one.content, one.sha256):
                found.append(f"{one.grant} of {one.as_of} as {one.form}")
        return found

    def _read(
        self, grant: str, since: int | None, as_of: int, form: StatementFormat, language: StatementLanguage
    ) -> statements.Written:
        return statements.read_statement(
            self.year.hub.database,
            AUDITOR,
            grant,
            as_of_ms=as_of,
            since_ms=since,
            form=form,
            language=language,
        )


def _text(gpu_us: int) -> str:
    """Hours as people write them; a quarter of an hour is exact."""
    return f"{Decimal(gpu_us) / GPU_HOUR_US:f}"
