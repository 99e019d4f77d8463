"""The manifests: what kustomize makes of them, the API's schemas, and our own rules."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Run
from tests.deploy.manifests import Manifest, validate
from worker.app import running
from worker.settings import Settings
from worker.stores import postgresql_database
from worker.variables import variable

FOLDER = DEPLOY / "kubernetes"
PARTS = ("setup", "worker", "api", "example/setup", "example/worker", "example/api")
VERSION = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
MARGIN = 3  # seconds that a node may be slow for

Pod = dict[str, Any]
Container = dict[str, Any]


@pytest.fixture(scope="session")
def built(kustomize: Run) -> dict[str, list[Manifest]]:
    """Give the manifests of each part that people apply."""
    return {part: list(yaml.safe_load_all(kustomize(FOLDER / part))) for part in PARTS}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, built: dict[str, list[Manifest]]) -> list[Manifest]:
    return built[request.param]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (one for one in of_kind(manifests, kind) if one["metadata"]["name"] == name)
    return found


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    for manifest in manifests:
        if manifest["kind"] in {"Deployment", "Job"}:
            yield manifest["spec"]["template"]["spec"]


def containers(pod: Pod) -> list[Container]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def environment(container: Container) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


# --- the API ----------------------------------------------------------------------------------


def test_an_api_server_takes_every_manifest_and_drops_nothing(part: list[Manifest]) -> None:
    for manifest in part:
        validate(manifest)


def test_the_example_secrets_are_valid_and_part_of_nothing(part: list[Manifest]) -> None:
    for secret in yaml.safe_load_all((FOLDER / "example" / "secrets.yaml").read_text()):
        validate(secret)
    assert not of_kind(part, "Secret")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec", "template", "spec", "enableServiceLink")),
        ("PodDisruptionBudget", ("spec", "maxUnavailible")),
        ("ScaledObject", ("spec", "maxReplicas")),
        ("PodMonitor", ("spec", "podMetricsEndpoint")),
    ],
)
def test_a_misspelt_field_is_found(
    built: dict[str, list[Manifest]], kind: str, path: tuple[str, ...]
) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(of_kind(built["example/worker"], kind)[0]))
    at = manifest
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_every_file_is_part_of_a_kustomization() -> None:
    left = {file for file in FOLDER.rglob("*.*") if file.name != "kustomization.yaml"}
    for file in FOLDER.rglob("kustomization.yaml"):
        made = yaml.safe_load(file.read_text())
        generated = [
            env for one in made.get("configMapGenerator", ()) for env in one.get("envs", ())
        ]
        left -= {
            (file.parent / name).resolve() for name in [*made.get("resources", ()), *generated]
        }
    assert left == {FOLDER / "example" / "secrets.yaml"}


# --- what the program takes -------------------------------------------------------------------


def test_every_setting_is_one_of_the_program(part: list[Manifest]) -> None:
    known = {variable(name) for name in Settings.model_fields}
    given = {name for one in of_kind(part, "ConfigMap") for name in one["data"]}
    for pod in pods(part):
        given |= {name for container in containers(pod) for name in environment(container)}
    assert given
    assert given <= known


def test_the_shared_settings_are_accepted_by_the_program(part: list[Manifest]) -> None:
    (settings,) = of_kind(part, "ConfigMap")
    values = {
        name.removeprefix("LAST_SYNC_").lower(): text for name, text in settings["data"].items()
    }
    assert Settings(**values).kafka_security_protocol == "SASL_SSL"


def test_secrets_come_by_reference_and_their_keys_are_those_of_the_example(
    part: list[Manifest],
) -> None:
    example = {
        secret["metadata"]["name"]: secret["stringData"].keys()
        for secret in yaml.safe_load_all((FOLDER / "example" / "secrets.yaml").read_text())
    }
    secret_fields = {
        variable(name)
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    } | {"LAST_SYNC_API_KEY"}
    for pod in pods(part):
        for container in containers(pod):
            for name, value in environment(container).items():
                assert (name in secret_fields) <= isinstance(value, dict), name
                if isinstance(value, dict):
                    asked = value["secretKeyRef"]
                    assert asked["key"] in example[asked["name"]]
    assert not any(secret_fields & one["data"].keys() for one in of_kind(part, "ConfigMap"))


def test_the_image_is_this_version(part: list[Manifest]) -> None:
    for pod in pods(part):
        for container in containers(pod):
            name, _, tag = container["image"].rpartition(":")
            assert name.rpartition("/")[2] == "last-sync-worker"
            assert tag == VERSION


def test_service_links_which_would_look_like_settings_are_off(part: list[Manifest]) -> None:
    assert all(pod["enableServiceLinks"] is False for pod in pods(part))


# --- pod security -----------------------------------------------------------------------------


def test_the_namespace_enforces_the_restricted_profile(part: list[Manifest]) -> None:
    labels = only(part, "Namespace", "last-sync")["metadata"]["labels"]
    assert {
        labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")
    } == {"restricted"}


def test_each_pod_keeps_to_the_restricted_profile_and_a_read_only_root(
    part: list[Manifest],
) -> None:
    for pod in pods(part):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 10_000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod.get("volumes", ()):
            assert volume.keys() <= {"name", "secret", "emptyDir", "configMap", "projected"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_has_a_token_of_the_kubernetes_api(part: list[Manifest]) -> None:
    assert only(part, "ServiceAccount", "last-sync")["automountServiceAccountToken"] is False
    assert all(pod["automountServiceAccountToken"] is False for pod in pods(part))


def test_each_container_asks_for_what_it_needs_and_its_memory_is_limited(
    part: list[Manifest],
) -> None:
    for pod in pods(part):
        for container in containers(pod):
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}


def test_network_policies_cover_every_pod_and_let_nobody_in_from_everywhere(
    part: list[Manifest],
) -> None:
    policies = of_kind(part, "NetworkPolicy")
    (shared,) = (one for one in policies if "Egress" in one["spec"]["policyTypes"])
    assert shared["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in shared["spec"]
    for manifest in part:
        if manifest["kind"] in {"Deployment", "Job"}:
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            assert shared["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert all(
        rule["from"] and rule["ports"]
        for one in policies
        for rule in one["spec"].get("ingress", ())
    )


def test_the_network_lets_out_names_brokers_and_stores(part: list[Manifest]) -> None:
    shared = only(part, "NetworkPolicy", "last-sync")["spec"]
    names, services = shared["egress"]
    assert names["ports"] == [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]
    (settings,) = of_kind(part, "ConfigMap")
    brokers = settings["data"]["LAST_SYNC_KAFKA_BOOTSTRAP_SERVERS"].split(",")
    needed = {int(broker.rpartition(":")[2]) for broker in brokers} | {5432, 9200}
    assert needed <= {one["port"] for one in services["ports"] if one["protocol"] == "TCP"}


# --- the drain, the rollout, the group --------------------------------------------------------


def worker(built: dict[str, list[Manifest]], part: str = "worker") -> tuple[Manifest, Container]:
    deployment = only(built[part], "Deployment", "last-sync-worker")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return deployment, container


def test_the_grace_time_holds_the_pre_stop_the_drain_and_the_farewells(
    built: dict[str, list[Manifest]],
) -> None:
    deployment, container = worker(built)
    needed = (
        container["lifecycle"]["preStop"]["sleep"]["seconds"]
        + float(environment(container)["LAST_SYNC_SHUTDOWN_SECONDS"])
        + running.CLEANUP_TIMEOUT
        + postgresql_database.CLOSE_TIMEOUT
    )
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= needed + MARGIN


def test_the_worker_has_the_time_for_a_statement_of_the_store_when_it_stops(
    built: dict[str, list[Manifest]],
) -> None:
    _, container = worker(built)
    assert "statement_timeout = '15s'" in postgresql_database.SESSION
    assert float(environment(container)["LAST_SYNC_SHUTDOWN_SECONDS"]) >= 15


def test_probes_ask_the_port_that_the_worker_listens_on_from_outside(
    built: dict[str, list[Manifest]],
) -> None:
    _, container = worker(built)
    given = environment(container)
    (port,) = container["ports"]
    assert str(port["containerPort"]) == given["LAST_SYNC_HEALTH_PORT"]
    assert given["LAST_SYNC_HEALTH_HOST"] == "0.0.0.0"
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    }
    assert {kind: get["path"] for kind, get in paths.items()} == {
        "startup": "/livez", "liveness": "/livez", "readiness": "/readyz"
    }  # fmt: skip
    assert {get["port"] for get in paths.values()} == {port["name"]}


def test_the_kubelet_waits_for_longer_than_the_worker_takes_to_join_or_to_give_up(
    built: dict[str, list[Manifest]],
) -> None:
    _, container = worker(built)
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > running.JOIN_TIMEOUT


def test_a_release_that_holds_is_unready_before_the_rollout_goes_on(
    built: dict[str, list[Manifest]],
) -> None:
    deployment, container = worker(built)
    probe = container["readinessProbe"]
    seen = (probe["periodSeconds"] + probe["timeoutSeconds"]) * probe["failureThreshold"]
    assert deployment["spec"]["minReadySeconds"] >= seen


def test_a_rollout_adds_no_member_and_takes_one_away_at_a_time(
    built: dict[str, list[Manifest]],
) -> None:
    deployment, _ = worker(built)
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    budget = only(built["worker"], "PodDisruptionBudget", "last-sync-worker")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_replicas_are_bounded_by_the_partitions_that_setup_makes(
    built: dict[str, list[Manifest]],
) -> None:
    (job,) = pods(built["setup"])
    (topics,) = job["initContainers"]
    partitions = int(topics["args"][topics["args"].index("--partitions") + 1])
    scaled = only(built["example/worker"], "ScaledObject", "last-sync-worker")["spec"]
    assert scaled["maxReplicaCount"] == partitions
    assert 1 <= scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= partitions
    assert worker(built)[0]["spec"]["replicas"] <= partitions


def test_the_autoscaler_takes_its_group_from_the_workers_settings_and_owns_the_replicas(
    built: dict[str, list[Manifest]],
) -> None:
    scaled = only(built["example/worker"], "ScaledObject", "last-sync-worker")["spec"]
    deployment, _ = worker(built, "example/worker")
    assert "replicas" not in deployment["spec"]
    assert scaled["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    (trigger,) = scaled["triggers"]
    (settings,) = of_kind(built["example/worker"], "ConfigMap")
    asked = {key: name for key, name in trigger["metadata"].items() if key.endswith("FromEnv")}
    assert set(asked) == {"bootstrapServersFromEnv", "topicFromEnv", "consumerGroupFromEnv"}
    assert set(asked.values()) <= settings["data"].keys()
    assert trigger["metadata"]["limitToPartitionsWithLag"] == "true"


def test_the_autoscaler_speaks_to_the_brokers_as_the_worker_does(
    built: dict[str, list[Manifest]],
) -> None:
    (settings,) = of_kind(built["example/worker"], "ConfigMap")
    (trigger,) = only(built["example/worker"], "ScaledObject", "last-sync-worker")["spec"][
        "triggers"
    ]
    mechanism = settings["data"]["LAST_SYNC_KAFKA_SASL_MECHANISM"]
    assert trigger["metadata"]["sasl"] == mechanism.lower().replace("-sha-", "_sha")
    assert trigger["metadata"]["tls"] == "enable"
    login = only(built["example/worker"], "TriggerAuthentication", "last-sync-kafka")["spec"]
    parameters = {one["parameter"]: (one["name"], one["key"]) for one in login["secretTargetRef"]}
    _, container = worker(built, "example/worker")
    given = environment(container)
    for parameter in ("username", "password"):
        reference = given[f"LAST_SYNC_KAFKA_SASL_{parameter.upper()}"]["secretKeyRef"]
        assert parameters[parameter] == (reference["name"], reference["key"])


def test_the_monitor_finds_the_port_and_names_the_job_that_the_alerts_ask_for(
    built: dict[str, list[Manifest]],
) -> None:
    monitor = only(built["example/worker"], "PodMonitor", "last-sync-worker")["spec"]
    deployment, container = worker(built, "example/worker")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["jobLabel"]] == "last-sync-worker"
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == container["ports"][0]["name"]


def test_selectors_find_their_pods(part: list[Manifest]) -> None:
    labels = [
        one["spec"]["template"]["metadata"]["labels"] for one in part if one["kind"] == "Deployment"
    ]
    selectors = [
        one["spec"]["selector"]["matchLabels"] for one in of_kind(part, "PodDisruptionBudget")
    ]
    selectors += [one["spec"]["selector"] for one in of_kind(part, "Service")]
    for selector in selectors:
        assert any(selector.items() <= found.items() for found in labels)


def test_an_overlay_somewhere_else_builds_on_the_parts(kustomize: Run, tmp_path: Path) -> None:
    target = tmp_path / "ours"
    target.mkdir()
    relative = Path(*[".."] * (len(target.resolve().parts) - 1), *(FOLDER / "worker").parts[1:])
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative)],
        "replicas": [{"name": "last-sync-worker", "count": 3}],
    }
    (target / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    made = list(yaml.safe_load_all(kustomize(target)))
    assert only(made, "Deployment", "last-sync-worker")["spec"]["replicas"] == 3


def test_the_page_applies_folders_and_waits_for_things_that_are_there(
    built: dict[str, list[Manifest]],
) -> None:
    page = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    applied = set(re.findall(r"kubectl apply -[kf] (\S+)", page))
    assert applied
    assert all((DEPLOY.parent / path).exists() for path in applied)
    names = {one["metadata"]["name"] for part in built.values() for one in part}
    assert set(re.findall(r"(?:job|deploy|deployment)/(last-sync[a-z-]*)", page)) <= names
    secrets = yaml.safe_load_all((FOLDER / "example" / "secrets.yaml").read_text())
    keys = {one["metadata"]["name"]: set(one["stringData"]) for one in secrets}
    for name, options in re.findall(r"create secret generic (\S+) (.*)", page):
        assert set(re.findall(r"--from-file=(\S+)", options)) == keys[name]
    assert f"last-sync-worker:{VERSION}" in page
