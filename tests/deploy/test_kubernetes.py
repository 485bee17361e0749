"""The manifests against Kubernetes' own schemas, offline, and against what the software needs of them.

The schemas of KubeRay's resources are in no package that pip has: of the `RayService` the pods are held against Kubernetes'
schema of a pod template, the embedded configuration against Ray's own, and what is between them against names of KubeRay's API.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from rm_server.app import create_app
from rm_server.service import Service
from rm_server.settings import Settings
from tests.fakes import AppTransport, fake_ladder, registry_of

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = "1.34"


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()) if one]


def of_kind(kind: str, name: str = "server.yaml") -> dict[str, Any]:
    (found,) = [one for one in documents(name) if one["kind"] == kind]
    return found


def as_template(template: dict[str, Any]) -> dict[str, Any]:
    """A pod template as a resource of its own, which has a schema."""
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "of-the-test"}, "template": template}


def ray_templates() -> list[dict[str, Any]]:
    cluster = of_kind("RayService", "rayservice.yaml")["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        *((one, f"{file}:{one['kind']}") for file in ("server.yaml", "autoscaler-queue.yaml") for one in documents(file)),
        *((as_template(one), f"rayservice.yaml:{number}") for number, one in enumerate(ray_templates())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resources_follow_the_schemas(resource, name):
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    spoilt = copy.deepcopy(resource)
    (spoilt.get("spec") or spoilt["template"]["spec"])["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):  # the schemas are strict: a misspelt field is found
        kubernetes_validate.validate(spoilt, KUBERNETES, strict=True)


def pods() -> list[dict[str, Any]]:
    return [of_kind("Deployment")["spec"]["template"]["spec"], *(template["spec"] for template in ray_templates())]


@pytest.mark.parametrize("pod", pods())
def test_pods_run_as_nobody_on_a_root_they_cannot_write(pod):
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001  # the Dockerfile's user
    (container,) = pod["containers"]
    locked = container["securityContext"]
    assert (
        locked["readOnlyRootFilesystem"]
        and not locked["allowPrivilegeEscalation"]
        and locked["capabilities"] == {"drop": ["ALL"]}
    )
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/models"]["readOnly"] and "/tmp" in mounts
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("pod", pods())
def test_tokens_come_from_a_secret_and_every_setting_exists(pod):
    environment = {one["name"]: one for one in pod["containers"][0]["env"]}
    assert environment["FINPERCEP_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "finpercep", "key": "token"}
    assert "value" not in environment.get("FINPERCEP_ADMIN_TOKEN", {})
    names = {name.removeprefix("FINPERCEP_").lower() for name in environment if name.startswith("FINPERCEP_")}
    assert names <= set(Settings.model_fields)


def test_probes_ask_routes_that_the_server_has_without_a_token():
    container = of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    app = AppTransport(create_app(registry_of(fake_ladder()), Settings(token="a-token-of-sixteen")))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path, port = container[probe]["httpGet"]["path"], container[probe]["httpGet"]["port"]
        assert port in [one["name"] for one in container["ports"]]
        with httpx.Client(transport=app, base_url="http://server") as http:
            assert http.get(path).status_code == 200


def test_parts_find_each_other():
    deployment, service = of_kind("Deployment"), of_kind("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for autoscaler in (of_kind("HorizontalPodAutoscaler"), of_kind("HorizontalPodAutoscaler", "autoscaler-queue.yaml")):
        target = autoscaler["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", deployment["metadata"]["name"])
        assert "replicas" not in deployment["spec"]  # the autoscaler's to say


def test_a_pod_has_time_to_drain():
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    drain = next(int(one["value"]) for one in container["env"] if one["name"] == "FINPERCEP_DRAIN_SECONDS")
    assert pod["terminationGracePeriodSeconds"] > drain + container["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_the_queue_that_is_scaled_by_is_a_metric_of_the_server():
    service = Service(registry_of(fake_ladder()), Settings())
    try:
        exported = service.metrics.text().decode()
    finally:
        service.close()
    metric = of_kind("HorizontalPodAutoscaler", "autoscaler-queue.yaml")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"\n{metric} 0.0" in exported


# -- KubeRay ----------------------------------------------------------------------------------------------------------

FIELDS = {
    "service": {"serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc"},
    "cluster": {"headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "suspend"},
    "head": {"rayStartParams", "template", "serviceType", "headService", "enableIngress"},
    "worker": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "numOfHosts",
        "rayStartParams",
        "template",
        "scaleStrategy",
    },
}
"""Names in KubeRay's API, ray.io/v1."""


def test_the_rayservice_has_only_fields_that_kuberay_has():
    service = of_kind("RayService", "rayservice.yaml")
    assert service["apiVersion"] == "ray.io/v1"
    assert set(service["spec"]) <= FIELDS["service"]
    cluster = service["spec"]["rayClusterConfig"]
    assert set(cluster) <= FIELDS["cluster"]
    assert {"rayStartParams", "template"} <= set(cluster["headGroupSpec"]) <= FIELDS["head"]
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= set(group) <= FIELDS["worker"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for parameters in (
        cluster["headGroupSpec"]["rayStartParams"],
        *(group["rayStartParams"] for group in cluster["workerGroupSpecs"]),
    ):
        assert all(isinstance(value, str) for value in parameters.values())


def test_rays_version_is_the_one_that_is_installed():
    import ray

    assert of_kind("RayService", "rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def test_the_embedded_configuration_is_the_one_for_any_ray_cluster():
    embedded = yaml.safe_load(of_kind("RayService", "rayservice.yaml")["spec"]["serveConfigV2"])
    assert embedded == yaml.safe_load((DEPLOY / "ray" / "reward.yaml").read_text())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own
def test_serve_and_the_application_read_the_configuration(monkeypatch):
    """Ray's own schema, and ours for what it passes on."""
    from ray.serve.schema import ServeDeploySchema

    from rm_server.cluster import DEPLOYMENT, UserConfig, build

    config = ServeDeploySchema.model_validate(yaml.safe_load((DEPLOY / "ray" / "reward.yaml").read_text()))
    (application,) = config.applications
    assert application.import_path == "rm_server.cluster:build"
    (deployment,) = application.deployments
    assert deployment.name == DEPLOYMENT
    assert UserConfig.model_validate(deployment.user_config).rungs == {}
    monkeypatch.setenv("FINPERCEP_TOKEN", "a-token-of-sixteen")
    assert build(application.args)
    autoscaling = deployment.autoscaling_config
    assert autoscaling["target_ongoing_requests"] < deployment.max_ongoing_requests
