"""How settings are named in the environment."""

PREFIX = "LAST_SYNC_"


def variable(field: str) -> str:
    return PREFIX + field.upper()
