"""Everything the service says exists in Korean; which language is chosen."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from babel.messages.pofile import read_po

import quota.schemas
from quota import problems
from quota.dispatch import logs
from quota.i18n import DOMAINS, Language, catalogue, choose
from quota.schemas.values import Request
from tests.unit.quota.said_texts import ROOT, error_classes, everything_said, said

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def _fields(template: str) -> set[str]:
    return set(_FIELD.findall(template))


def _templates() -> set[str]:
    titles = {kind.title() for kind in error_classes().values()}
    raised = {one.template for one in everything_said() if one.template is not None}
    return (raised | {problems.UNREADABLE, problems.OUT_OF_RANGE, *logs.LAST_LINES}) - titles


def test_every_error_is_raised_with_a_template() -> None:
    """A text put together at run time has no Korean one; values go into named fields."""
    assert [one for one in everything_said() if one.template is None] == []


def test_every_template_has_a_korean_text_and_no_text_is_stale() -> None:
    assert set(catalogue(Language.KOREAN, "details")) == _templates()


def test_every_code_has_a_korean_title_and_no_title_is_stale() -> None:
    codes = {kind.code for kind in error_classes().values()} | set(problems.TITLES)
    assert set(catalogue(Language.KOREAN, "titles")) == codes


def test_both_languages_name_the_same_fields() -> None:
    for template, korean in catalogue(Language.KOREAN, "details").items():
        assert _fields(template) == _fields(korean), template


def test_titles_have_no_fields() -> None:
    for kind in error_classes().values():
        assert not _fields(kind.title())
    assert not any(_fields(text) for text in catalogue(Language.KOREAN, "titles").values())


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_catalogues_are_whole(domain: str) -> None:
    path = ROOT / "texts" / "ko" / "LC_MESSAGES" / f"{domain}.po"
    with path.open("rb") as stored:
        messages = [message for message in read_po(stored, locale="ko", abort_invalid=True) if message.id]
    assert messages
    for message in messages:
        assert message.string, message.id
        assert not message.fuzzy, message.id
        assert re.search(r"[가-힣]", str(message.string)), message.id


# the types of errors that pydantic raises for each kind of core schema; see pydantic's "Validation errors"
KIND_ERRORS = {
    "str": {
        "string_type",
        "string_too_short",
        "string_too_long",
        "string_pattern_mismatch",
        "string_unicode",
    },
    "int": {
        "int_type",
        "int_parsing",
        "int_parsing_size",
        "int_from_float",
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "multiple_of",
        "finite_number",
    },
    "float": {"float_type", "float_parsing", "finite_number"},
    "bool": {"bool_type", "bool_parsing"},
    "enum": {"enum"},
    "literal": {"literal_error"},
    "dict": {"dict_type", "too_long", "too_short", "invalid_key"},
    "list": {"list_type", "too_long", "too_short"},
    "tuple": {"tuple_type", "too_long", "too_short"},
    "model": {"model_type", "model_attributes_type"},
    "model-fields": {"missing", "extra_forbidden", "model_attributes_type"},
    "tagged-union": {"union_tag_invalid", "union_tag_not_found"},
    "union": set(),
    "none": {"none_required"},
    "date": set(),  # parsed before, with a message of its own
    "function-before": {"value_error", "assertion_error"},
    "function-after": {"value_error", "assertion_error"},
    "function-plain": set(),
    "function-wrap": {"value_error", "assertion_error"},
    "nullable": set(),
    "default": set(),
    "model-field": set(),
    "no-info": set(),
    "with-info": set(),
    "definitions": set(),
    "definition-ref": set(),
    "any": set(),
    "json": set(),
}
ANYWHERE = {"json_invalid", "recursion_loop", "repeated_parameter", "unknown_parameter"}


def _requests(kind: type[Request] = Request) -> Iterator[type[Request]]:
    for below in kind.__subclasses__():
        yield below
        yield from _requests(below)


def _kinds(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema["type"]
        for key, part in schema.items():
            if key != "serialization":
                yield from _kinds(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from _kinds(part)


def test_every_message_about_a_field_has_a_korean_text() -> None:
    for module in pkgutil.iter_modules(quota.schemas.__path__):
        import_module(f"quota.schemas.{module.name}")
    kinds = {kind for model in _requests() for kind in _kinds(model.__pydantic_core_schema__)}
    assert {"str", "int", "bool", "enum", "tuple", "dict", "tagged-union"} <= kinds
    assert kinds <= set(KIND_ERRORS), "a new kind of field: find out what it may say, and translate it"
    possible = ANYWHERE | {error for kind in kinds for error in KIND_ERRORS[kind]}
    assert possible <= set(catalogue(Language.KOREAN, "fields"))


def test_no_model_raises_a_text_of_its_own() -> None:
    """A ValueError's text would be shown in English only; `wrong` takes a template."""
    for path in sorted((ROOT / "schemas").rglob("*.py")):
        assert "raise ValueError" not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("source", "template"),
    [
        ('raise NotFound("there is no {x}", x=1)', "there is no {x}"),
        ("raise NotFound(f'there is no {x}')", None),
        ("raise NotFound('there is no ' + x)", None),
        ("raise errors.NotFound('a' 'b')", "ab"),
        ("error = wrong('no')", "no"),
    ],
)
def test_templates_are_found_in_source(source: str, template: str | None) -> None:
    assert [one.template for one in said(source, "x.py", {"NotFound", "wrong"})] == [template]


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", Language.ENGLISH),
        ("ko", Language.KOREAN),
        ("KO-kr", Language.KOREAN),
        ("en-GB", Language.ENGLISH),
        ("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", Language.KOREAN),
        ("en;q=0.5, ko;q=0.9", Language.KOREAN),
        ("ko;q=0.5, en;q=0.9", Language.ENGLISH),
        ("ko, en", Language.KOREAN),
        ("en, ko", Language.ENGLISH),
        ("fr", Language.ENGLISH),
        ("fr, ko;q=0.1", Language.KOREAN),
        ("ko;q=0", Language.ENGLISH),
        ("ko;q=0, *", Language.ENGLISH),
        ("en;q=0, *;q=0.1", Language.KOREAN),
        ("*", Language.ENGLISH),
        ("*, ko;q=0.2", Language.ENGLISH),
        ("kok", Language.ENGLISH),
        ("ko;q=2", Language.ENGLISH),
        ("ko;q=", Language.ENGLISH),
        ("ko;q=NaN", Language.ENGLISH),
        (",;,=;q,", Language.ENGLISH),
        ("ko;" * 10_000, Language.ENGLISH),
        ("x," * 10_000 + "ko", Language.ENGLISH),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_language_is_chosen(header: str, language: Language) -> None:
    assert choose(header) is language
