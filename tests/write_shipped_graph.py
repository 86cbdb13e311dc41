"""Write model.onnx of an installed model: `python tests/write_shipped_graph.py lungs --images ARCHIVE`.

The graph refers to the weights in model.safetensors. With it, `segment` needs neither torch nor a conversion. Run this
after the weights of a model were changed; the gate of `lungseg export-model` must let it through in every installed
backend. `tests/model/test_shipped_graph.py` compares it with the weights.
"""

import argparse
from pathlib import Path

from lungseg import logs
from lungseg.inference.backends import RUNTIMES
from lungseg.inference.backends.export_gate import ExportGate, list_images
from lungseg.model import checkpoint, sources
from lungseg.model.onnx_cache import SHIPPED, describe_onnx
from lungseg.model.onnx_export import export_graph
from lungseg.model.onnx_file import OnnxFile
from lungseg.model.shared_weights import WEIGHTS, share_weights
from lungseg.pipelines.export_graph import measure_checks


def main() -> None:
    logs.configure()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name of an installed model")
    parser.add_argument("--images", required=True, help="real X-rays for the gate")
    options = parser.parse_args()
    source = checkpoint.verify(sources.installed()[options.model])
    folder = Path(source.folder)
    graph = share_weights(export_graph(source), (folder / WEIGHTS).read_bytes())
    metadata, path = describe_onnx(source), folder / SHIPPED
    path.write_bytes(OnnxFile(graph, metadata).encode())
    items = list_images(options.images, source, 50)
    gate = ExportGate(source, items)
    verdicts = [gate.judge(str(path), runtime) for runtime in RUNTIMES]
    problems = [verdict.problem for verdict in verdicts if verdict.problem]
    if problems:
        path.unlink()
        raise SystemExit("; ".join(problems))
    checks = measure_checks(path, verdicts, source, items)
    path.write_bytes(OnnxFile(graph, {**metadata, "checks": checks}).encode())


if __name__ == "__main__":
    main()
