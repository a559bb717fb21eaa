"""Every `gpuhub …` that the README and docs/ show exists, with its options, its choices and its arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from typer._click.exceptions import ClickException
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from deploy.cli import PROGRAMS, firm_app

ROOT = Path(__file__).parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^ *```")
_INLINE = re.compile(r"`(?:\.venv/bin/)?(gpuhub(?: [^`]*)?)`")
_LINE = re.compile(r"(?:^|[;&|] *)(?:\.venv/bin/)?(gpuhub [^;&|]*)")


def lines_of(page: str) -> Iterator[tuple[str, bool]]:
    """Command lines in a page, and whether each is whole: mentions in the text and synopses need not be."""
    inside = False
    for line in page.replace("\\\n", " ").splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif inside or line.startswith("    "):
            yield from (
                (found.strip(), "[" not in found) for found in _LINE.findall(re.sub(r" +# .*", "", line))
            )
        else:
            yield from ((found.strip(), False) for found in _INLINE.findall(line))


def trouble(line: str, whole: bool, root: TyperGroup) -> str:
    """What is wrong with a command line, or nothing. A whole one is parsed as the command itself would."""
    words = shlex.split(line)[1:]
    command: TyperCommand | TyperGroup = root
    name = "gpuhub"
    while words and isinstance(command, TyperGroup) and words[0] in command.commands:
        word = words.pop(0)
        if command is root and word in PROGRAMS:
            found: object = get_command(import_module(PROGRAMS[word][0]).app)
        else:
            found = command.commands[word]
        assert isinstance(found, TyperCommand | TyperGroup)
        command, name = found, f"{name} {word}"
    if isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        names = words[0].split("|")
        missing = [word for word in names if word != "…" and word not in command.commands]
        return f"{name} has no command {missing[0]}" if missing else ""
    if whole:
        try:
            command.make_context(name, words)
        except ClickException as error:
            return f"{name}: {error.format_message()}"
        return ""
    known = {text for option in command.params for text in (*option.opts, *option.secondary_opts)}
    options = [word.partition("=")[0].strip("[]") for word in words if word.lstrip("[").startswith("--")]
    return next((f"{name} has no option {word}" for word in options if word not in known), "")


@pytest.fixture(scope="module")
def root() -> TyperGroup:
    found = get_command(firm_app())
    assert isinstance(found, TyperGroup)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists(page: Path, root: TyperGroup) -> None:
    wrong = {
        line: found for line, whole in lines_of(page.read_text()) if (found := trouble(line, whole, root))
    }
    assert wrong == {}


def test_every_command_is_shown_somewhere(root: TyperGroup) -> None:
    shown = {" ".join(line.split()[:3]) for page in PAGES for line, _ in lines_of(page.read_text())}
    missing = [
        name for name, _ in leaves(root) if not any(f"{line} ".startswith(f"{name} ") for line in shown)
    ]
    assert set(missing) <= EXPLAINED_BY_THEIR_HELP, missing


EXPLAINED_BY_THEIR_HELP = {
    *("gpuhub jobs", "gpuhub whoami", "gpuhub placement", "gpuhub transfers"),
    *("gpuhub organization list", "gpuhub organization change", "gpuhub organization revoke-tokens"),
    *("gpuhub token list", "gpuhub node uncordon", "gpuhub class list", "gpuhub class set"),
    *("gpuhub grant list", "gpuhub grant show", "gpuhub grant cut", "gpuhub policy list"),
    *("gpuhub program list", "gpuhub program adjust", "gpuhub program change", "gpuhub share move"),
    *("gpuhub tranche open", "gpuhub tranche set", "gpuhub resume", "gpuhub unfreeze"),
    *("gpuhub statements", "gpuhub token revoke"),
}


def leaves(group: TyperGroup, path: str = "gpuhub") -> Iterator[tuple[str, object]]:
    for name, command in group.commands.items():
        if path == "gpuhub" and name in PROGRAMS:
            continue
        if isinstance(command, TyperGroup):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_and_option_has_its_help(root: TyperGroup) -> None:
    bare = [name for name, command in leaves(root) if not getattr(command, "help", "")]
    for name, command in leaves(root):
        assert isinstance(command, TyperCommand)
        bare += [f"{name} {option.name}" for option in command.params if not getattr(option, "help", "")]
    assert bare == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("gpuhub grant bestow X", "gpuhub grant has no command bestow"),
        ("gpuhub conjure", "gpuhub has no command conjure"),
        ("gpuhub jobs --sorted", "gpuhub jobs: No such option: --sorted"),
        ("gpuhub up --speed 3", "gpuhub up: No such option: --speed"),
        ("gpuhub quota polish", "gpuhub quota has no command polish"),
        ("gpuhub jobs --state asleep", "gpuhub jobs: Invalid value for '--state'"),
        ("gpuhub grant cut GRANT --hours 3", "gpuhub grant cut: Missing option '--reason'"),
        ("gpuhub audit --colour red", "gpuhub audit: No such option: --colour"),
    ],
)
def test_a_command_that_is_not_there_is_found(line: str, told: str, root: TyperGroup) -> None:
    page = f"Text.\n\n```sh\n.venv/bin/{line}   # a remark\n```\n\nAnd `{line}`.\n"
    assert list(lines_of(page)) == [(line, True), (line, False)]
    assert told in trouble(line, True, root)


def test_an_option_that_is_not_there_is_found_in_a_mention(root: TyperGroup) -> None:
    assert trouble("gpuhub submit … --dry", False, root) == "gpuhub submit has no option --dry"
    assert trouble("gpuhub submit … --dry-run", False, root) == ""


def test_the_pages_show_commands_at_all() -> None:
    assert sum(len(list(lines_of(page.read_text()))) for page in PAGES) > 80
