"""Gauges in Prometheus, with the names and labels that the dashboard uses."""

import json
import re
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray

from lungseg.cluster import gauges

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana.json"


def scrape() -> str:
    """Read the Prometheus metrics of the Ray agent on this machine."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}", timeout=10) as page:
        return str(page.read().decode())


def test_prometheus_reads_the_gauges(ray_cluster: None) -> None:
    shown = gauges.Gauges("train", "pooled-fold0", 3)
    shown.set("device_wait_share", 0.25)
    shown.set("rows", 7, "failed")
    deadline, page = time.monotonic() + 60, ""
    while "lungseg_rows" not in page and time.monotonic() < deadline:
        time.sleep(0.5)
        page = scrape()
    lines = [line for line in page.splitlines() if line.startswith("ray_lungseg")]
    (waits,) = [line for line in lines if "device_wait_share" in line]
    (rows,) = [line for line in lines if "lungseg_rows" in line]
    assert all(label in waits for label in ('stage="train"', 'run="pooled-fold0"', 'rank="3"'))
    assert waits.endswith(" 0.25")
    assert 'status="failed"' in rows
    assert rows.endswith(" 7.0")


def test_no_gauges_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(gauges, "Gauge", lambda name, *_, **__: created.append(name))
    gauges.Gauges("infer").set("images_per_second", 1.0)
    assert created == []


def test_dashboard_uses_existing_gauges_and_labels() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    own = {name for expression in expressions for name in re.findall(r"ray_(lungseg_\w+)", expression)}
    assert own == set(gauges._METRICS)
    selectors = [expression for expression in expressions if "lungseg" in expression]
    labels = {label for selector in selectors for label in re.findall(r"(\w+)!?=\"", selector)}
    groups = [group for expression in expressions for group in re.findall(r"by \((.*?)\)", expression)]
    grouped = {label for group in groups for label in group.split(", ")}
    assert labels | grouped <= set(gauges._TAGS)
    assert len({panel["title"] for panel in panels}) == len(panels)
