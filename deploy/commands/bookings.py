"""`gpuhub bookings`: GPUs promised to an organization for a time, once or weekly."""

from __future__ import annotations

from datetime import date
from typing import Annotated

import typer

from deploy.moments import MOMENT_HELP, maybe_moment_ms
from deploy.session import UsageTrouble, service
from deploy.show import OPERATORS, JsonOption, console, json_out, moment, table
from quota.client.paging import every
from quota.schemas.bookings import (
    Booking,
    BookingCancellation,
    NewBooking,
    Occurrence,
    Timetable,
    Weekday,
)

Json = Annotated[bool, JsonOption]
Why = Annotated[str, typer.Option("--reason", help="Why; kept in the audit trail.")]
BookingId = Annotated[str, typer.Argument(help="The booking's id.")]
DAYS = ",".join(Weekday)

bookings_app = typer.Typer(
    no_args_is_help=True, help="GPUs promised for a time: once, or a weekly timetable."
)


@bookings_app.command("create")
def create(
    organization: Annotated[str, typer.Argument(help="The organization that they are promised to.")],
    name: Annotated[str, typer.Option(help="What for, such as a course.")],
    gpu_class: Annotated[str, typer.Option("--class", help="The GPU class.")],
    reason: Why,
    gpus: Annotated[int, typer.Option(help="GPUs per pod, on one node together.")] = 1,
    pods: Annotated[int, typer.Option(help="How many such pods.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="In this cluster; default: whichever has room.")] = None,
    grant: Annotated[str | None, typer.Option(help="Only for jobs that draw on this grant.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the room though nobody uses it.")] = False,
    starts: Annotated[str | None, typer.Option("--from", help=f"Once, from: {MOMENT_HELP}.")] = None,
    ends: Annotated[str | None, typer.Option("--until", help="Once, until then.")] = None,
    days: Annotated[str | None, typer.Option(help=f"Weekly, on these days of {DAYS}.")] = None,
    times: Annotated[str | None, typer.Option(help="Weekly, at these hours in Seoul: 10:00-13:00.")] = None,
    first_day: Annotated[str | None, typer.Option(help="Weekly, from this day on: 2027-03-02.")] = None,
    last_day: Annotated[str | None, typer.Option(help="Weekly, up to this day.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Weekly, not on this day; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Book GPUs once (--from, --until) or weekly (--days, --times, --first-day, --last-day)."""
    body = NewBooking(
        organization_id=organization,
        name=name,
        gpu_class=gpu_class,
        gpus_per_pod=gpus,
        pods=pods,
        cluster=cluster,
        grant_id=grant,
        hold=hold,
        starts_at=maybe_moment_ms("--from", starts),
        ends_at=maybe_moment_ms("--until", ends),
        timetable=_timetable(days, times, first_day, last_day, without or []),
        reason=reason,
    )
    with service() as client:
        made = client.create_booking(body)
    _tell(made, as_json)


@bookings_app.command("list")
def list_all(
    organization: Annotated[str | None, typer.Option(help="Only of this organization.")] = None,
    as_json: Json = False,
) -> None:
    """List bookings with their next times."""
    with service() as client:
        found = list(every(client.list_bookings, organization_id=organization))
    if as_json:
        json_out(found)
        return
    columns = ("id", "organization", "what", "GPUs", ">times", "first (KST)", "last until (KST)")
    rows = []
    for one in found:
        kept = [each for each in one.occurrences if each.cancelled_at is None]
        first = moment(kept[0].starts_at) if kept else "cancelled"
        last = moment(kept[-1].ends_at) if kept else "-"
        rows.append((one.id, one.organization_id, one.name, _size(one), str(len(kept)), first, last))
    console().print(table("", columns, rows))


@bookings_app.command("show")
def show(booking_id: BookingId, as_json: Json = False) -> None:
    """Show a booking, and where the room of its coming times is."""
    with service() as client:
        found = client.read_booking(booking_id)
    _tell(found, as_json)


@bookings_app.command("cancel")
def cancel(
    booking_id: BookingId,
    reason: Why,
    occurrence: Annotated[
        list[str] | None,
        typer.Option(help="Only this time, by its id; repeatable. Default: all that are not over."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cancel single times of a booking, or all that are not over."""
    body = BookingCancellation(occurrences=tuple(occurrence or ()), reason=reason)
    with service() as client:
        done = client.cancel_booking(booking_id, body)
    _tell(done, as_json)


def _timetable(
    days: str | None, times: str | None, first_day: str | None, last_day: str | None, without: list[str]
) -> Timetable | None:
    given = {"--days": days, "--times": times, "--first-day": first_day, "--last-day": last_day}
    if days is None or times is None or first_day is None or last_day is None:
        if without or any(value is not None for value in given.values()):
            missing = ", ".join(name for name, value in given.items() if value is None)
            raise UsageTrouble(f"a weekly booking needs {missing} as well")
        return None
    begins, sign, ends = times.partition("-")
    unknown = [day for day in days.split(",") if day not in tuple(Weekday)]
    if unknown or not sign:
        raise UsageTrouble(f"--days are some of {DAYS}, --times look like 10:00-13:00: {days} {times}")
    return Timetable(
        weekdays=tuple(Weekday(day) for day in days.split(",")),
        begins=begins,
        ends=ends,
        first_day=_day("--first-day", first_day),
        last_day=_day("--last-day", last_day),
        without=tuple(_day("--without", day) for day in without),
    )


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageTrouble(f"{option} {text!r} is not a day such as 2027-03-02") from error


def _size(one: Booking) -> str:
    return f"{one.pods} x {one.gpus_per_pod} {one.gpu_class}"


def _tell(one: Booking, as_json: bool) -> None:
    if as_json:
        json_out(one)
        return
    facts = [one.name, f"for {one.organization_id}", _size(one), f"in {one.cluster or 'any cluster'}"]
    facts += [f"grant {one.grant_id}"] if one.grant_id else []
    facts += ["held though unused"] if one.hold else []
    rows = [(each.id, moment(each.starts_at), moment(each.ends_at), _state(each)) for each in one.occurrences]
    console().print(
        table(f"{one.id}: {', '.join(facts)}", ("time", "from (KST)", "until (KST)", "room"), rows)
    )


def _state(each: Occurrence) -> str:
    room = each.room
    if each.cancelled_at is not None:
        return "cancelled"
    if room is None:
        return "-"
    if room.released:
        return "released: nobody came"
    said = f"{room.gpus} GPUs on {room.cluster or 'no cluster'}"
    said += f", {room.short_gpus} of them short" if room.short_gpus else ""
    return said + (", used" if room.used else "")


def register(app: typer.Typer) -> None:
    """Add these commands to the app."""
    app.add_typer(bookings_app, name="bookings", rich_help_panel=OPERATORS)
