"""What the worker exposes, as expressions see it: series names, each with its labels."""

from collections import defaultdict
from collections.abc import Mapping

from tests.deploy.promql import Labels
from worker.metrics import Metrics


def exposed() -> Mapping[str, Labels]:
    """Give the series of the worker's own registry, and the one that Prometheus adds."""
    metrics = Metrics("")
    metrics.lag({0: 0}, None)  # a label that nothing else fills
    found: dict[str, Labels] = defaultdict(frozenset)
    for family in metrics.registry.collect():
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return {**found, "up": frozenset()}
