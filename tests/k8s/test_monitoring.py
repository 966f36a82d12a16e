"""What is scraped, alerted of and drawn: it speaks of metrics that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployments.http_app import build_metrics
from deployments.served_model import ServedModel
from engine.tokenizer import Tokenizer
from tests.deployments.fake_token_source import FakeTokenSource
from tests.deployments.tiny_tokenizer import make_tokenizer
from tests.k8s.render import K8S, Object, kustomize

COMPONENT: Final = K8S / "components" / "monitoring"
MONITORED: Final = Path(__file__).parent / "monitored"
CASES: Final = Path(__file__).parent / "alert_cases.yaml"
NAME: Final = re.compile(r"\bpageray_[a-z0-9_]+")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all series that a frontend shows."""
    tokenizer: Tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    source = FakeTokenSource(tokenizer)
    model = ServedModel("tiny", max_model_len=100, tokenizer=tokenizer, source=source)
    metrics = build_metrics([model], "frontend")
    metrics.count_error(500, "tiny")
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {sample.name for family in families for sample in family.samples}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    panels = json.loads((COMPONENT / "pageray.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_alert_speaks_of_metrics_that_there_are(names: set[str]) -> None:
    for rule in rules():
        used = set(NAME.findall(rule["expr"]))
        assert used, rule
        assert used <= names, rule
        assert {"summary", "action"} <= rule["annotations"].keys()


def test_every_panel_does(names: set[str]) -> None:
    assert len(queries()) > 20
    for query in queries():
        assert NAME.findall(query), query
        assert set(NAME.findall(query)) <= names, query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here")
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    spec = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())["spec"]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(spec))
    subprocess.run([str(shutil.which("promtool")), "check", "rules", str(file)], check=True)


def alert_cases() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = yaml.safe_load(CASES.read_text())
    return cases


def test_every_alert_has_a_case() -> None:
    assert [rule["alert"] for rule in rules()] == list(alert_cases())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not here")
@pytest.mark.parametrize("alert", alert_cases())
def test_an_alert_fires_when_it_should_and_then_alone(alert: str, tmp_path: Path) -> None:
    case = alert_cases()[alert]
    [rule] = [rule for rule in rules() if rule["alert"] == alert]
    fired = [{"exp_labels": {**case["labels"], **rule["labels"]}}]
    # What it says to whom it wakes is not told twice.
    bare = {name: value for name, value in rule.items() if name != "annotations"}
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "pageray", "rules": [bare]}]})
    )
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": values} for name, values in case[state].items()
            ],
            "alert_rule_test": [
                {"eval_time": "25m", "alertname": alert, "exp_alerts": expected},
            ],
        }
        for state, expected in (("fires", fired), ("quiet", []))
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    command = [str(shutil.which("promtool")), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(kustomize() is None, reason="renders with kustomize or kubectl")
def test_an_overlay_takes_the_component() -> None:
    command = kustomize()
    assert command is not None
    done = subprocess.run([*command, str(MONITORED)], stdout=subprocess.PIPE, check=True)
    objects: list[Object] = list(yaml.safe_load_all(done.stdout))
    kinds = {each["kind"] for each in objects}
    assert {"RayService", "ScrapeConfig", "PodMonitor", "PrometheusRule"} <= kinds
    [dashboard] = [each for each in objects if each["metadata"]["name"] == "pageray-dashboard"]
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert all(each["metadata"].get("namespace") in (None, "pageray") for each in objects)
    [service] = [each for each in objects if each["kind"] == "RayService"]
    [scrape] = [each for each in objects if each["kind"] == "ScrapeConfig"]
    [target] = scrape["spec"]["staticConfigs"][0]["targets"]
    assert target == f"{service['metadata']['name']}-serve-svc.pageray.svc:8000"
