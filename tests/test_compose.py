"""What docker-compose.yml promises, as far as its text shows it; `make stack-test` runs it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = (ROOT / "docker-compose.yml").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(:-[^}]+)?\}")


def lines(key: str) -> list[str]:
    return [line.strip() for line in FILE.splitlines() if line.strip().startswith(f"{key}: ")]


def test_every_variable_has_a_default_and_is_none_of_the_program_s() -> None:
    found = VARIABLE.findall(FILE)
    assert found
    for name, default in found:
        assert default, name
        assert not name.startswith("LAST_SYNC_")


def test_every_image_tag_is_a_variable() -> None:
    images = lines("image")
    assert len(images) >= 6
    assert all(re.search(r":\$\{\w+:-[\w.-]+\}$", image) for image in images)


def test_every_port_is_a_variable_and_published_on_loopback_alone() -> None:
    ports = lines("ports")
    assert len(ports) >= 5
    assert all(re.fullmatch(r'ports: \["127\.0\.0\.1:\$\{\w+:-\d+\}:\d+"\]', one) for one in ports)


def test_every_variable_is_documented_with_its_default() -> None:
    page = (ROOT / "docs" / "stack.md").read_text()
    documented = re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", page, re.MULTILINE)
    assert {(name, default[2:]) for name, default in VARIABLE.findall(FILE)} == set(documented)


def test_every_mounted_file_is_there() -> None:
    """Docker makes an empty directory where one is missing."""
    mounted = re.findall(r"(\./[^:\"]+):/", FILE)
    assert len(mounted) >= 5
    assert all((ROOT / path).exists() for path in mounted)
