"""Run a check on every node of the cluster before work starts."""

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_S = 120.0  # the first task of a node starts a process, which may have to install an environment


def problem_of_a_node(check: Callable[[], str], resource: str) -> str:
    """Run `check` on every node that has a resource such as GPU; return the first problem, "" if there is none.

    check: returns what is wrong with its machine, such as `has no C compiler`, or "". Nodes that do not answer in time
    have no problem here: the work on them will say what is wrong.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]  # type: ignore[no-untyped-call]
    tasks = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[ray.remote(check).options(num_cpus=0, max_retries=1, scheduling_strategy=strategy).remote()] = node
    finished, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=_ANSWER_S) if tasks else ([], [])
    problems = {tasks[task]["NodeManagerHostname"]: problem for task in finished if (problem := _answer(task))}
    return " ".join(min(problems.items(), default=()))


def _answer(task: Any) -> str:
    try:
        return str(ray.get(task))
    except ray.exceptions.RayError:
        return ""
