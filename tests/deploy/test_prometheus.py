"""The alert rules: right by Prometheus' own tools, and about metrics that exist."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Run
from tests.deploy.metrics import exposed
from tests.deploy.promql import Labels, labels

FOLDER = DEPLOY / "prometheus"
GROUPS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
ROOT = DEPLOY.parent


def known() -> Mapping[str, Labels]:
    """Give what is exposed and what the recording rules make of it."""
    series = dict(exposed())
    for rule in RULES:
        if "record" in rule:
            series[rule["record"]] = labels(rule["expr"], series)
    return series


def test_prometheus_takes_configuration_and_rules(promtool: Run) -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")


def test_each_alert_speaks_when_it_should_and_only_then(promtool: Run) -> None:
    promtool("test", "rules", "alerts_test.yml", cwd=FOLDER)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_test_that_fires_it_and_one_in_which_it_is_quiet(alert: str) -> None:
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    found = [
        bool(expected.get("exp_alerts"))
        for case in cases
        for expected in case.get("alert_rule_test", ())
        if expected["alertname"] == alert
    ]
    assert set(found) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_each_rule_asks_for_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    found = labels(rule["expr"], known())
    texts = " ".join(rule.get("annotations", {}).values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= found


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(
    alert: dict[str, Any],
) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(ROOT / page)


def test_the_page_has_a_section_for_each_alert_and_for_no_other() -> None:
    page = (ROOT / "docs" / "running.md").read_text()
    assert set(re.findall(r"^### (LastSync\w+)$", page, re.MULTILINE)) == ALERTS.keys()


def anchors(page: Path) -> set[str]:
    """Give the headings' anchors, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("last_sync_lag > 0", "no metric last_sync_lag"),
        ("sum by (partition) (last_sync_holding)", "no label"),
        ('last_sync_holding{reason="store"}', "no label"),
        ("last_sync_holding and on (cause) last_sync_assigned_partitions", "no label"),
        ("histogram_quantile(0.9, rate(last_sync_step_seconds_sum[5m]))", "no label"),
    ],
)
def test_an_expression_about_what_does_not_exist_is_found(expression: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        labels(expression, known())
