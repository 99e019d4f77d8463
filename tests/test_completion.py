"""What a shell offers at TAB: Click's own completion, through the real program."""

import subprocess
from pathlib import Path

import pytest

from tests.programs import LAST_SYNC, Cli

# What bash runs at TAB, on words typed so far.
BASH = """\
eval "$(_LAST_SYNC_COMPLETE=bash_source last-sync)"
complete -p last-sync
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_last_sync_completion last-sync
printf '%s\\n' "${COMPREPLY[@]}"
"""


async def offered(cli: Cli, *words: str) -> set[str]:
    """Give what is offered after these words, of which the last is half typed."""
    typed = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = await cli(env={"_LAST_SYNC_COMPLETE": "bash_complete", **typed})
    assert (done.exit_code, done.stderr) == (0, "")
    return set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("dlq", "re"), {"plain,replay"}),
        (("connectors", "d"), {"plain,delete"}),
        (("run", "--dr"), {"plain,--drain"}),
        (("run", "--log-level", "wa"), {"plain,warning"}),
        (("run", "--log-format", ""), {"plain,auto", "plain,pretty", "plain,json"}),
        (("publish", "--status", "in"), {"plain,in_progress"}),
        (("publish", "--job-type", "a"), {"plain,access_control"}),
        (("dlq", "list", "--reason", "connector_n"), {"plain,connector_not_found"}),
        (("schema", "a"), {"plain,asyncapi"}),
        (("validate", ""), {"file,"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_commands_options_values_and_files_are_offered(
    cli: Cli, words: tuple[str, ...], found: set[str]
) -> None:
    assert await offered(cli, "last-sync", *words) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_there_is_a_script_for_each_shell(cli: Cli, shell: str) -> None:
    done = await cli(env={"_LAST_SYNC_COMPLETE": f"{shell}_source"})
    assert done.exit_code == 0
    assert f"_LAST_SYNC_COMPLETE={shell}_complete" in done.stdout


def test_bash_completes_a_half_typed_command(clean_env: dict[str, str]) -> None:
    path = f"{Path(LAST_SYNC).parent}:{clean_env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", "last-sync", "dlq", "disc"],
        env={**clean_env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    registered, *replies = done.stdout.splitlines()
    assert "_last_sync_completion last-sync" in registered
    assert replies == ["discard"]
