"""Statements for people: CSV for a spreadsheet, HTML to print. Figures are those of the JSON, never computed anew."""

from __future__ import annotations

import csv
import io
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from quota.schemas.statements import StatementLanguage
from quota.schemas.values import gpu_hours_text

_Text = dict[StatementLanguage, str]
KO, EN = StatementLanguage.KO, StatementLanguage.EN

WORDS: dict[str, _Text] = {
    "title": {KO: "GPU 시간 명세서", EN: "Statement of GPU time"},
    "grant": {KO: "배정 번호", EN: "Grant"},
    "organization": {KO: "기관", EN: "Organization"},
    "program": {KO: "사업", EN: "Programme"},
    "account": {KO: "계정", EN: "Account"},
    "as_of": {KO: "작성기준일시", EN: "As of"},
    "since": {KO: "기초 기준일시", EN: "Since"},
    "beginning": {KO: "처음부터", EN: "the beginning"},
    "seal": {KO: "감사 봉인", EN: "Audit seal"},
    "provisional": {KO: "봉인 전 잠정 수치입니다", EN: "Provisional: not sealed"},
    "opening": {KO: "기초 잔액", EN: "Opening balance"},
    "closing": {KO: "기말 잔액", EN: "Closing balance"},
    "line": {KO: "번호", EN: "No."},
    "at": {KO: "일시", EN: "Time"},
    "type": {KO: "구분", EN: "Type"},
    "reason": {KO: "사유", EN: "Reason"},
    "actor": {KO: "처리자", EN: "Actor"},
    "evidence": {KO: "근거", EN: "Evidence"},
    "job": {KO: "작업", EN: "Job"},
    "attempt": {KO: "시도", EN: "Attempt"},
    "starts_at": {KO: "시작", EN: "Start"},
    "ends_at": {KO: "종료", EN: "End"},
    "milliseconds": {KO: "밀리초", EN: "Milliseconds"},
    "gpus": {KO: "GPU 수(장)", EN: "GPUs"},
    "gpu_class": {KO: "GPU 종류", EN: "GPU class"},
    "rate": {KO: "환산율(천분율)", EN: "Rate (thousandths)"},
    "rate_id": {KO: "환산율 번호", EN: "Rate version"},
    "price_krw": {KO: "단가(원/시간)", EN: "Price (won/h)"},
    "slice": {KO: "구간 번호", EN: "Slice"},
    "refund_of": {KO: "환불 대상", EN: "Refund of"},
    "granted": {KO: "배정", EN: "Granted"},
    "held": {KO: "예약", EN: "Held"},
    "used": {KO: "사용", EN: "Used"},
    "available": {KO: "잔여", EN: "Available"},
    "krw": {KO: "금액(원)", EN: "Won"},
    "total_krw": {KO: "금액 합계(원)", EN: "Total (won)"},
    "transfer": {KO: "전표 번호", EN: "Transfer"},
    "hours": {KO: "GPU 시간(H100 환산)", EN: "GPU hours (H100)"},
    "exact": {KO: "GPU 마이크로초", EN: "GPU microseconds"},
    "deposit": {KO: "배정", EN: "deposit"},
    "hold": {KO: "예약", EN: "hold"},
    "extend": {KO: "연장", EN: "extend"},
    "settle": {KO: "정산", EN: "settle"},
    "release": {KO: "예약 해제", EN: "release"},
    "refund": {KO: "환불", EN: "refund"},
    "transfer_type": {KO: "이전", EN: "transfer"},
    "pullback": {KO: "회수", EN: "pullback"},
    "expire": {KO: "소멸", EN: "expire"},
    "adjust": {KO: "조정", EN: "adjust"},
    "arithmetic": {
        KO: "금액 = 밀리초 × GPU 수 × 단가 ÷ 3,600,000, 줄마다 한 번 반올림(사사오입)",
        EN: "won = milliseconds × GPUs × price ÷ 3,600,000, rounded half up once per line",
    },
}
"""Korean and English words of a statement. Changing one changes bytes: then `statements.FORMAT` gets a new number."""

_COLUMNS = (
    "line",
    "at",
    "type",
    "reason",
    "actor",
    "evidence",
    "job",
    "attempt",
    "starts_at",
    "ends_at",
    "milliseconds",
    "gpus",
    "gpu_class",
    "rate",
    "rate_id",
    "price_krw",
    "krw",
    "granted",
    "held",
    "used",
    "available",
    "slice",
    "refund_of",
    "transfer",
)
# also as full-width characters, which Korean and Japanese input methods write
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_bytes(document: dict[str, Any], language: StatementLanguage) -> bytes:
    """A statement as CSV: one table from opening to closing balance, then what it is a statement of.

    UTF-8 with BOM and CRLF, for Excel; amounts are exact GPU-microseconds; a text cell that a spreadsheet would
    take for a formula begins with an apostrophe.
    """
    out = io.StringIO(newline="")
    write = csv.writer(out, lineterminator="\r\n").writerow
    write([_word(name, language) for name in _COLUMNS])
    write(_balance_row("opening", language, *_opening(document)))
    for number, line in enumerate(document["lines"], 1):
        write(_cells(number, line, language))
    granted, held, used = (int(document[f"{name}_gpu_us"]) for name in ("granted", "held", "used"))
    write(_balance_row("closing", language, granted, held, used, document["total_krw"]))
    write([])
    for name, value in _facts(document, language):
        write([_word(name, language), _safe(value)])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def html_bytes(document: dict[str, Any], language: StatementLanguage) -> bytes:
    """A statement as one page of HTML to read and print; it loads nothing."""
    granted, held, used = _opening(document)
    page = _environment().get_template("statement.html")
    return page.render(
        language=language.value,
        word=lambda name: _word(name, language),
        type_word=lambda name: _type(name, language),
        hours=lambda amount: gpu_hours_text(int(amount)),
        facts=_facts(document, language),
        opening=(granted, held, used, granted - held - used),
        closing=tuple(document[f"{name}_gpu_us"] for name in ("granted", "held", "used", "available")),
        document=document,
    ).encode()


def _cells(number: int, line: dict[str, Any], language: StatementLanguage) -> list[object]:
    part = line["slice"] or {}
    return [
        number,
        line["at"],
        _type(line["type"], language),
        _safe(line["reason"]),
        _safe(line["actor"]),
        _safe(line["evidence"]),
        line["job_id"],
        line["attempt"],
        part.get("starts_at"),
        part.get("ends_at"),
        part.get("milliseconds"),
        part.get("gpus"),
        part.get("gpu_class"),
        part.get("rate_thousandths"),
        part.get("rate_id"),
        part.get("price_krw"),
        line["krw"] if part else None,
        line["granted_gpu_us"],
        line["held_gpu_us"],
        line["used_gpu_us"],
        line["available_gpu_us"],
        line["slice_id"],
        line["refund_of"],
        _safe(line["transfer_id"]),
    ]


def _balance_row(
    name: str, language: StatementLanguage, granted: int, held: int, used: int, total_krw: int | None = None
) -> list[object]:
    row = dict.fromkeys(_COLUMNS, "") | {
        "type": _word(name, language),
        "granted": granted,
        "held": held,
        "used": used,
        "available": granted - held - used,
        "krw": "" if total_krw is None else total_krw,
    }
    return [row[column] for column in _COLUMNS]


def _opening(document: dict[str, Any]) -> tuple[int, int, int]:
    opening = document["opening"]
    return int(opening["granted_gpu_us"]), int(opening["held_gpu_us"]), int(opening["used_gpu_us"])


def _facts(document: dict[str, Any], language: StatementLanguage) -> list[tuple[str, str]]:
    seal, since = document["seal"], document["since"]
    stamp = _word("provisional", language) if seal is None else f"{seal['number']} {seal['sha256']}"
    start = (
        _word("beginning", language)
        if since is None
        else f"{since['at']} ({since['number']} {since['sha256']})"
    )
    return [
        ("grant", document["grant_id"]),
        ("organization", document["organization_id"] or ""),
        ("program", document["program_id"]),
        ("account", document["account_id"]),
        ("since", start),
        ("as_of", document["as_of"]),
        ("seal", stamp),
        ("arithmetic", _word("arithmetic", language)),
    ]


def _safe(text: str | None) -> str | None:
    """Spreadsheets run what begins like a formula; people wrote this text."""
    return f"'{text}" if text and text.startswith(_FORMULA_STARTS) else text


def _type(name: str, language: StatementLanguage) -> str:
    return _word("transfer_type" if name == "transfer" else name, language)


def _word(name: str, language: StatementLanguage) -> str:
    return WORDS[name][language]


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("quota.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
