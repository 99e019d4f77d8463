"""The surfaces that anybody's bytes reach, one module each."""

from importlib import import_module

from tests.fuzz.inputs import Target

NAMES = ("batch", "decode", "letters", "replay", "edit", "api", "cli")


def named(name: str) -> Target:
    target: Target = import_module(f"{__name__}.{name}").TARGET
    return target
