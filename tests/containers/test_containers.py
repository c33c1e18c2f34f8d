"""Container files, looked at by their linters, and against what the server has."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cris_deploy.cli.serve import _parser
from cris_deploy.serving.app import create_app
from cris_deploy.serving.haproxy import configuration
from cris_deploy.serving.metrics import Metrics
from cris_deploy.serving.options import ServeOptions
from cris_deploy.serving.ray_options import read_options
from tests.helpers.ray_app import environment, ray_python

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
KUBERNETES = CONTAINERS / "kubernetes"


def program(name: str) -> str:
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/usr/local/bin"
    )
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def manifests() -> list[dict[str, Any]]:
    found = list(yaml.safe_load_all((KUBERNETES / "cris-serve.yaml").read_text()))
    assert len(found) == 4
    return found


def ray_service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((KUBERNETES / "ray-service.yaml").read_text())
    return loaded["spec"]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    return loaded["services"]


@pytest.mark.parametrize(
    "name", ["Dockerfile.cpu", "Dockerfile.gpu", "Dockerfile.ray", "Dockerfile.triton"]
)
def test_dockerfiles(name: str) -> None:
    check(program("hadolint"), str(CONTAINERS / name))


def test_manifests_are_kubernetes_own() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="it is not installed")
    for manifest in manifests():
        validate.validate(manifest, "1.31", strict=True)


def test_pods_of_the_ray_service_are_kubernetes_own() -> None:
    """KubeRay's own part has no schema in a package; what it makes of it are pods."""
    validate = pytest.importorskip("kubernetes_validate", reason="it is not installed")
    cluster = ray_service()["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        validate.validate(pod, "1.31", strict=True)


def test_configs_are_ray_s_own() -> None:
    code = (
        "import json, sys; from ray.serve.schema import ServeDeploySchema; "
        "[ServeDeploySchema.model_validate(each) for each in json.load(sys.stdin)]"
    )
    local = yaml.safe_load((CONTAINERS / "ray/serve.yaml").read_text())
    configs = [local, yaml.safe_load(ray_service()["serveConfigV2"])]
    for given, passes in ((configs, True), ([{**local, "http_options": {"port": "x"}}], False)):
        done = subprocess.run(
            [ray_python(), "-c", code],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert (done.returncode == 0) is passes, done.stderr


def test_the_ray_service_asks_for_what_there_is() -> None:
    serve = yaml.safe_load(ray_service()["serveConfigV2"])
    local = yaml.safe_load((CONTAINERS / "ray/serve.yaml").read_text())
    cluster = ray_service()["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    for config in (serve, local):
        (application,) = config["applications"]
        assert application["import_path"] == "cris_deploy.serving.ray:app"
        options = read_options(application["args"])
        # Ray's end of a request is behind the engine's, so that the engine's sentence is told.
        assert config["http_options"]["request_timeout_s"] > options.timeout
    assert pod["terminationGracePeriodSeconds"] > read_options({"bundle": "b"}).timeout
    # A pod has room for a whole number of replicas, all pods for the most of them.
    cpus = float(pod["containers"][0]["resources"]["requests"]["cpu"])
    args = serve["applications"][0]["args"]
    assert cpus % args["cpus"] == 0
    assert workers["maxReplicas"] * cpus >= args["most_replicas"] * args["cpus"]
    ports = {port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert serve["http_options"]["port"] in ports
    dockerfile = (CONTAINERS / "Dockerfile.ray").read_text()
    assert f"ray[serve,data]=={cluster['rayVersion']}" in dockerfile
    assert cluster["authOptions"] == {"mode": "token"}


def test_proxy(tmp_path: Path) -> None:
    text = (CONTAINERS / "haproxy.cfg").read_text()
    # But for names and ports it is what the command writes.
    options = ServeOptions("x")
    written = configuration(8000, 2, front=8001, max_body=options.max_body, timeout=options.timeout)
    lines = [line.strip() for line in written.splitlines() if not line.strip().startswith("#")]
    here = {line.strip() for line in text.splitlines()}
    assert {line for line in lines if line and line not in here} == {
        "bind 127.0.0.1:8001",
        "server cris 127.0.0.1:8000 maxconn 128",
    }
    check(program("haproxy"), "-c", "-f", str(CONTAINERS / "haproxy.cfg"))


def test_prometheus(tmp_path: Path) -> None:
    text = (CONTAINERS / "prometheus.yml").read_text()
    token = tmp_path / "token"
    token.write_text("x")
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace("/tmp/token", str(token)))
    check(program("promtool"), "check", "config", str(path))


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    metrics = Metrics()
    known = set(re.findall(r"^# TYPE (\w+)", metrics.exposition().decode(), re.MULTILINE))
    known |= {f"{name}_{end}" for name in known for end in ("sum", "count", "bucket")}
    panels = json.loads((CONTAINERS / "grafana/dashboard.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for expression in asked:
        for name in re.findall(r"cris_\w+", expression):
            assert name in known, expression
    (pods,) = (
        metric["pods"]["metric"]["name"]
        for manifest in manifests()
        if manifest["kind"] == "HorizontalPodAutoscaler"
        for metric in manifest["spec"]["metrics"]
    )
    assert pods in known


def test_probes_and_ports_are_the_server_s() -> None:
    routes = {getattr(route, "path", None) for route in create_app(ServeOptions("x")).routes}
    pod = manifests()[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/ready", "/ready", "/live"]
    assert {probe["path"] for probe in probes} <= routes
    parser = _parser()
    default = parser.get_default("port")
    assert container["ports"] == [{"name": "http", "containerPort": default}]
    grace = parser.get_default("timeout") + 1
    assert pod["terminationGracePeriodSeconds"] > grace
    assert float(compose()["cris"]["stop_grace_period"].removesuffix("s")) > grace


def test_arguments_are_the_server_s() -> None:
    docker = [
        json.loads(line.removeprefix("CMD "))
        for name in ("Dockerfile.cpu", "Dockerfile.gpu")
        for line in (CONTAINERS / name).read_text().splitlines()
        if line.startswith('CMD ["/bundle')
    ]
    assert len(docker) == 2
    container = manifests()[0]["spec"]["template"]["spec"]["containers"][0]
    for arguments in (*docker, compose()["cris"]["command"], container["args"]):
        assert _parser().parse_args(arguments).host == "0.0.0.0"


def test_images_get_all_that_a_wheel_is_made_of() -> None:
    allowed = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for path in allowed:
        assert (ROOT / path).exists(), path
    # What CMake and the packaging name is among them.
    named = re.findall(r"kernels/|CMakeLists", (ROOT / "CMakeLists.txt").read_text())
    assert named
    packages = re.findall(r'^    "([\w/]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    roots = [name for name in packages if (ROOT / name / "__init__.py").exists()]
    assert set(roots) <= set(allowed)
    assert {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "kernels"} <= set(allowed)
