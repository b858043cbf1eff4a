#!/usr/bin/env python3
"""Parse the graphs of bundles for TensorRT with TensorRT-RTX, and build engines of them, on a machine without a GPU.

    tensorrt.py path/to/densessm

Exports each trained checkpoint with `--target tensorrt`, in every precision that `densessm export` offers. Each graph
that the manifest lists must parse without an error and build into an engine for each of the architectures below, with
the shapes that the bundle's README.md gives to trtexec. The function lowering must be refused: that shows that the parser
judges. Engines are not run. Prints a line for each graph and ends with "N passed, N failed"; exit code 1 if any failed.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import tensorrt_rtx_bindings as trt

MODELS = sorted((pathlib.Path(__file__).resolve().parent.parent / "checkpoints").iterdir())
ARCHITECTURES = [trt.ComputeCapability.SM80, trt.ComputeCapability.SM120]


class Log(trt.ILogger):
    """Keeps errors, and no warnings."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message.strip())


def parse(log, builder, path):
    """The network of a graph, and the parser's complaints about it."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(path))
    complaints = [str(parser.get_error(index)) for index in range(parser.num_errors)]
    return network, complaints + ["not parsed"] * (not parsed and not complaints)


def shapes_of(readme, graph):
    """The smallest, the optimal and the largest shapes by input, from the graph's trtexec command."""
    command = re.search(rf"trtexec --onnx={re.escape(graph)} .*?```", readme, re.DOTALL).group()
    lists = [re.search(rf"--{bound}Shapes=(\S+)", command).group(1) for bound in ("min", "opt", "max")]
    return [
        {name: tuple(map(int, sizes.split("x"))) for name, sizes in (entry.rsplit(":", 1) for entry in text.split(","))}
        for text in lists
    ]


def build(log, builder, network, shapes, architecture):
    """None, or why there is no engine."""
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(architecture, 0)
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    dynamic = {name for name, tensor in inputs.items() if -1 in tuple(tensor.shape)}
    if dynamic != set(shapes[0]):
        return f"README.md: expected shapes for {sorted(dynamic)}, got {sorted(shapes[0])}"
    for name in dynamic:
        profile.set_shape(name, *(bound[name] for bound in shapes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return None if engine is not None and engine.nbytes > 0 else f"{architecture.name}: no engine; {log.errors}"


def judge(bundle, graph, inputs, outputs):
    """The complaints about one graph."""
    log = Log()
    builder = trt.Builder(log)
    network, complaints = parse(log, builder, bundle / graph)
    if complaints:
        return complaints
    names = [
        {network.get_input(index).name for index in range(network.num_inputs)},
        {network.get_output(index).name for index in range(network.num_outputs)},
    ]
    if names != [inputs, outputs]:
        return [f"expected the inputs and outputs of the manifest, got {names}"]
    shapes = shapes_of((bundle / "README.md").read_text(), graph)
    results = [build(log, builder, network, shapes, architecture) for architecture in ARCHITECTURES]
    return [complaint for complaint in results if complaint]


def refusal(path):
    """The complaints about a graph that should be refused: that it is not."""
    log = Log()
    network, complaints = parse(log, trt.Builder(log), path)
    return [] if complaints else [f"expected errors, got a network of {network.num_layers} layers"]


def precisions(command):
    """The precisions that `densessm export` offers."""
    run = subprocess.run([command, "export", "--model", "x", "--out", "y", "--precision", "?"], capture_output=True, text=True)
    return re.search(r"possible values: ([^\]]*)\]", run.stderr).group(1).split(", ")


def export(command, model, bundle, *options):
    subprocess.run([command, "export", "--model", model, "--out", bundle, *options], check=True, capture_output=True)
    return json.loads((bundle / "densessm.json").read_text())["graphs"]


def main():
    command = pathlib.Path(sys.argv[1]).resolve()
    passed = failed = 0

    def report(what, complaints, begin):
        nonlocal passed, failed
        passed, failed = passed + (not complaints), failed + bool(complaints)
        line = f"{'FAIL' if complaints else 'ok  '} {what} ({time.monotonic() - begin:.1f} s)"
        print(line, *complaints, sep="\n     ", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            for precision in precisions(command):
                bundle = pathlib.Path(folder) / f"{model.name}-{precision}"
                for graph in export(command, model, bundle, "--target", "tensorrt", "--precision", precision):
                    begin = time.monotonic()
                    names = [{tensor["name"] for tensor in graph[key]} for key in ("inputs", "outputs")]
                    report(f"{bundle.name}, {graph['file']}", judge(bundle, graph["file"], *names), begin)
            bundle = pathlib.Path(folder) / f"{model.name}-function"
            for graph in export(command, model, bundle, "--lowering", "function"):
                begin = time.monotonic()
                report(f"{bundle.name}, {graph['file']}: refused", refusal(bundle / graph["file"]), begin)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
