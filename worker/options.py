"""What the commands share: options, settings, and how they print.

Help, completion and wrong usage need the options alone, so that what takes long to import (the
settings, asyncio) is imported by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from worker.text import harmless, json_text
from worker.variables import PREFIX, variable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

    from worker.settings import Settings

PROGRAM = "last-sync"
FAILED, CANNOT_START = 1, 3

Decorated = TypeVar("Decorated", bound="Callable[..., Any]")
Result = TypeVar("Result")


class SettingOption(click.Option):
    """An option that sets one of the settings; the setting itself says what that is."""

    @property
    def help(self) -> str:
        info = about(self.human_readable_name)
        notes = [f"env var: {variable(self.human_readable_name)}"]
        if info.default not in (None, ""):
            notes.append(f"default: {info.default}")
        return f"{info.description}.  [{'; '.join(notes)}]"

    @help.setter  # noqa: A003 - Click's name
    def help(self, _: str | None) -> None:
        """Leave out what Click sets."""


def setting(flag: str, field: str) -> Callable[[Decorated], Decorated]:
    return click.option(
        flag,
        field,
        cls=SettingOption,
        metavar=flag.strip("-").upper(),
        shell_complete=completed(lambda: literals(field)),
    )


def literals(field: str) -> list[str]:
    """What the setting can be, where that is one of a few words."""
    return [value for value in get_args(about(field).annotation) if isinstance(value, str)]


def about(field: str) -> FieldInfo:
    from worker.settings import Settings  # noqa: PLC0415

    return Settings.model_fields[field]


def completed(
    values: Callable[[], Iterable[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Offer these values to the shell; others are for the command to judge."""

    def matching(_: click.Context, __: click.Parameter, typed: str) -> list[str]:
        return [value for value in values() if value.startswith(typed)]

    return matching


def broker_settings(command: Decorated) -> Decorated:
    command = setting("--topic", "kafka_topic")(command)
    return setting("--bootstrap-servers", "kafka_bootstrap_servers")(command)


def kafka_settings(command: Decorated) -> Decorated:
    command = setting("--group-id", "kafka_group_id")(command)
    command = setting("--dead-letter-topic", "kafka_dead_letter_topic")(command)
    return broker_settings(command)


def broker_only(command: Decorated) -> Decorated:
    """For commands that read the dead letters, and belong to no group."""
    command = setting("--dead-letter-topic", "kafka_dead_letter_topic")(command)
    return setting("--bootstrap-servers", "kafka_bootstrap_servers")(command)


def flag(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """An option of the command alone; Click names its environment variable after the command."""
    return click.option(*names, show_envvar=True, **attributes)


store_setting = setting("--store", "store_url")
as_json = flag("--json", "as_json", envvar=f"{PREFIX}JSON", is_flag=True, help="Print JSON.")


def loaded(given: Mapping[str, Any]) -> Settings:
    """Combine the options that were given with environment and `.env`, and start logging."""
    from worker import logs, settings  # noqa: PLC0415

    options = {name: value for name, value in given.items() if value is not None}
    root = click.get_current_context().find_root().command
    known = [
        name
        for path, command in commands(root)
        for param in command.params
        if (name := flag_variable(path, param))
    ]
    found = settings.load(options, also_known=known)
    logs.configure(found.log_level, found.log_format)
    return found


def given_settings() -> dict[str, tuple[str, str]]:
    """The settings that were typed as options, with the option that each was typed as."""
    context = click.get_current_context()
    return {
        param.name or "": (param.opts[0], str(context.params[param.name or ""]))
        for param in context.command.params
        if isinstance(param, SettingOption)
        and context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    }


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The command and all below it, each with its path."""
    yield path, command
    if isinstance(command, click.Group):
        for name, sub in sorted(command.commands.items()):
            yield from commands(sub, (*path, name))


def flag_variable(path: Sequence[str], param: click.Parameter) -> str | None:
    """The environment variable of an option that is no setting, as Click makes it."""
    if isinstance(param, SettingOption) or not isinstance(param, click.Option):
        return None
    if isinstance(param.envvar, str):
        return param.envvar
    words = [PREFIX.rstrip("_"), *path, param.name or ""]
    return "_".join(words).upper().replace("-", "_")


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    import asyncio  # noqa: PLC0415

    return asyncio.run(main)


def example(text: str) -> str:
    """The end of every help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in text.splitlines())


def out(text: str) -> None:
    """Print what was asked for; whoever chose an id or a text in it cannot steer the terminal."""
    click.echo(harmless(text))


def say(text: str) -> None:
    """Print a sentence beside it."""
    click.echo(harmless(text), err=True)


def put(document: object) -> None:
    click.echo(json_text(document))
