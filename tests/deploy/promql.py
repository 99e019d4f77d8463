"""What a PromQL expression takes for granted: metrics that exist, with the labels it names."""

from collections.abc import Mapping
from typing import Any

import promql_parser
from promql_parser import AggModifierType

TARGET = frozenset({"job", "instance", "namespace"})  # from the scrape; a cluster adds namespace
RATE_INTERVAL = "5m"  # what Grafana puts for $__rate_interval

Labels = frozenset[str]


def labels(expression: str, known: Mapping[str, Labels]) -> Labels:
    """Give the labels of the result; what does not exist is an AssertionError that names it."""
    return _labels(
        promql_parser.parse(expression.replace("$__rate_interval", RATE_INTERVAL)), known
    )


def _labels(node: Any, known: Mapping[str, Labels]) -> Labels:
    kind = type(node).__name__
    if kind in {"NumberLiteral", "StringLiteral"}:
        return frozenset()
    if kind in {"ParenExpr", "SubqueryExpr", "UnaryExpr"}:
        return _labels(node.expr, known)
    if kind == "MatrixSelector":
        return _selected(node.vector_selector, known)
    return _KINDS[kind](node, known)


def _selected(node: Any, known: Mapping[str, Labels]) -> Labels:
    assert node.name in known, f"there is no metric {node.name}"
    found = known[node.name] | TARGET
    _check({matcher.name for matcher in node.matchers.matchers}, found, node.name)
    return found


def _aggregated(node: Any, known: Mapping[str, Labels]) -> Labels:
    found = _labels(node.expr, known)
    if node.modifier is None:
        return frozenset()
    asked = frozenset(node.modifier.labels)
    _check(asked, found, node.prettify())
    return asked if node.modifier.type == AggModifierType.By else found - asked


def _combined(node: Any, known: Mapping[str, Labels]) -> Labels:
    left, right = _labels(node.lhs, known), _labels(node.rhs, known)
    if node.modifier is not None and node.modifier.matching is not None:
        _check(node.modifier.matching.labels, left & right, node.prettify())
    return left if str(node.op) in {"and", "unless"} else left | right


def _called(node: Any, known: Mapping[str, Labels]) -> Labels:
    found = frozenset[str]().union(*(_labels(argument, known) for argument in node.args))
    if node.func.name != "histogram_quantile":
        return found
    _check({"le"}, found, node.prettify())
    return found - {"le"}


def _check(asked: Any, found: Labels, where: str) -> None:
    assert set(asked) <= found, f"no label {sorted(set(asked) - found)} in {where}"


_KINDS = {
    "VectorSelector": _selected,
    "AggregateExpr": _aggregated,
    "BinaryExpr": _combined,
    "Call": _called,
}
