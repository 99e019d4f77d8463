"""What the worker exposes, as expressions see it: series names, each with its labels."""

from collections.abc import Mapping

from tests.deploy.promql import Labels

COUNTERS = {
    "last_sync_events": {"outcome", "reason"},
    "last_sync_dead_letters_written": {"reason"},
    "last_sync_holds": {"cause"},
    "last_sync_rebalances": set(),
    "last_sync_commits": {"result"},
    "last_sync_store_retries": set(),
    "last_sync_key_mismatches": set(),
    "last_sync_reused_event_ids": set(),
}
HISTOGRAMS = {
    "last_sync_batch_records": set(),
    "last_sync_step_seconds": {"step"},
    "last_sync_event_delay_seconds": set(),
}
GAUGES = {
    "last_sync_consumer_lag_records": {"partition"},
    "last_sync_oldest_unprocessed_event_age_seconds": set(),
    "last_sync_holding": {"cause"},
    "last_sync_assigned_partitions": set(),
    "last_sync_last_progress_timestamp_seconds": set(),
    "last_sync_build_info": {"version"},
}


def exposed() -> Mapping[str, Labels]:
    series = {f"{name}_total": frozenset(labels) for name, labels in COUNTERS.items()}
    series |= {name: frozenset(labels) for name, labels in GAUGES.items()}
    for name, labels in HISTOGRAMS.items():
        series |= {f"{name}_{end}": frozenset(labels) for end in ("sum", "count")}
        series[f"{name}_bucket"] = frozenset({*labels, "le"})
    process = (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    )
    return series | dict.fromkeys(process, frozenset()) | {"up": frozenset()}
