"""The dashboard: provisioned as it is, and about metrics that exist."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Run
from tests.deploy.metrics import exposed
from tests.deploy.promql import RATE_INTERVAL, labels

FOLDER = DEPLOY / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "last-sync-worker.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel, target) for panel in PANELS for target in panel["targets"]]


def provisioned(kind: str) -> Any:
    (file,) = (FOLDER / "provisioning" / kind).glob("*.yml")
    return yaml.safe_load(file.read_text())


def title(value: Any) -> str:
    return str(value["title"]) if isinstance(value, dict) and "title" in value else ""


def data_sources(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("datasource"), dict):
            yield value["datasource"]["uid"]
        for inner in value.values():
            yield from data_sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from data_sources(inner)


@pytest.mark.parametrize(("panel", "target"), TARGETS, ids=title)
def test_each_panel_asks_for_metrics_and_labels_that_exist(
    panel: dict[str, Any], target: dict[str, Any]
) -> None:
    found = labels(target["expr"], exposed())
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= found


@pytest.mark.parametrize(("panel", "target"), TARGETS, ids=title)
def test_each_panel_follows_the_choice_of_jobs_and_workers(
    panel: dict[str, Any], target: dict[str, Any]
) -> None:
    selectors = re.findall(r"\b(?:last_sync|process)_\w+(\S*)", target["expr"])
    assert all(found.startswith('{job=~"$job",') for found in selectors)


def test_all_means_all_workers_and_not_whatever_else_prometheus_scrapes() -> None:
    for variable in BOARD["templating"]["list"]:
        assert variable["includeAll"]
        assert "allValue" not in variable  # so that "All" is the list of what the query found
        assert variable["query"]["query"].startswith("label_values(last_sync_build_info")


def test_prometheus_itself_understands_every_expression(promtool: Run, tmp_path: Any) -> None:
    rules = [
        {"record": f"panel:{n}", "expr": target["expr"].replace("$__rate_interval", RATE_INTERVAL)}
        for n, (_, target) in enumerate(TARGETS)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_everything_asks_the_data_source_that_is_provisioned() -> None:
    (source,) = provisioned("datasources")["datasources"]
    assert set(data_sources(BOARD)) == {source["uid"]}


def test_the_dashboard_lies_where_its_provider_looks_and_can_be_linked_to() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert BOARD["uid"] == "last-sync-worker"
    assert "id" not in BOARD


def test_panels_do_not_overlap_and_each_says_what_it_is_about() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert x + w <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
    assert all(panel["title"] and "description" in panel for panel in PANELS)


def test_every_metric_of_the_worker_is_looked_at_somewhere() -> None:
    text = json.dumps(BOARD)
    series = {re.sub(r"_(sum|count|bucket)$", "", name) for name in exposed()}
    assert not {name for name in series if name.startswith("last_sync_") and name not in text}
