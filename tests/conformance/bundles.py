#!/usr/bin/env python3
"""Export every model of the repository in every mode, and validate each bundle with independent tools.

    bundles.py path/to/densessm path/to/libdensessm_ops.so [MODEL ...]

The tools are `check_bundle.py` (Python's ONNX Runtime, which knows the contract only, with the operator library and
without), `onnx.checker` with its full check, and strict shape inference. For the lowering `function`, the kernels that a
step runs in each layer are counted after ONNX Runtime's optimisation. In half precision every graph is validated; ONNX Runtime
on the CPU runs the portable graphs in bf16 and, as it has no product in bf16, those with half activations in fp16. Prints a line for each bundle and ends with
"N passed, N failed"; exit code 1 if any failed. Further arguments select models by name.
"""
import collections
import itertools
import pathlib
import re
import subprocess
import sys
import tempfile

import onnx
import onnxruntime

TESTS = pathlib.Path(__file__).resolve().parent.parent
MODELS = sorted((TESTS / "goldens").iterdir()) + sorted((TESTS / "checkpoints").iterdir())
LOWERINGS = ["function", "inline"]
LOGITS = ["last", "all"]
# Twice `Tolerance::half` for logits in proto/src/tolerance.rs: rounding is compared with weights that are not rounded.
HALF = {"fp16": 2e-2, "bf16": 1.6e-1}
# Kernels that a step may run in a layer; the first name that a model's name contains counts.
KERNELS = {"falcon": 17, "mamba": 15, "retnet": 18}


def onnx_accepts(path):
    """None, or why `onnx` rejects a graph."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"{path.name}: {error}"
    return None


def optimised_step_is_lean(bundle, library, limit):
    """None, or which nodes ONNX Runtime's optimisation should have removed from the step graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    options.optimized_model_filepath = str(bundle / "optimised.onnx")
    onnxruntime.InferenceSession(bundle / "recurrent.onnx", options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    if transposes := [node.name for node in nodes if node.op_type == "Transpose"]:
        return f"recurrent.onnx: expected no Transpose, got {transposes}"
    # Fused nodes are named after what they came from; all write a value of their layer or its states.
    layers = (re.search(r"(?:layers/|present\.)(\d+)", " ".join([node.name, *node.output])) for node in nodes)
    kernels = collections.Counter(layer.group(1) for layer in layers if layer)
    if not kernels or max(kernels.values()) > limit:
        return f"recurrent.onnx: expected 1 to {limit} kernels in each layer, got {dict(kernels)}"
    return None


def judge(command, library, model, lowering, logits, folder):
    """The complaints about one bundle."""
    bundle = folder / f"{model.name}-{lowering}-{logits}"
    export = [command, "export", "--model", model, "--out", bundle, "--lowering", lowering, "--logits", logits]
    run = subprocess.run(export, capture_output=True, text=True)
    if run.returncode:
        return [f"export: {run.stderr.strip()}"]
    complaints = [onnx_accepts(bundle / name) for name in ("parallel.onnx", "recurrent.onnx")]
    check = [sys.executable, TESTS / "conformance" / "check_bundle.py", bundle, model / "golden.safetensors"]
    for options in [[]] + [["--ops-library", library]] * (lowering == "function"):
        run = subprocess.run(check + options, capture_output=True, text=True)
        if run.returncode:
            failed = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
            complaints.append(f"check_bundle.py {options}: " + "; ".join(failed + [run.stderr.strip()]))
    if lowering == "function":
        limit = next(limit for family, limit in KERNELS.items() if family in model.name)
        complaints.append(optimised_step_is_lean(bundle, library, limit))
    return [complaint for complaint in complaints if complaint]


def judge_half(command, library, model, precision, folder):
    """The complaints about a bundle in half precision."""
    bundle = folder / f"{model.name}-{precision}"
    lowering = {"fp16": "inline", "bf16": "function"}[precision]
    export = [command, "export", "--model", model, "--out", bundle, "--lowering", lowering, "--precision", precision]
    run = subprocess.run(export, capture_output=True, text=True)
    if run.returncode:
        return [f"export: {run.stderr.strip()}"]
    names = [f"{kind}{suffix}.onnx" for kind in ("parallel", "recurrent") for suffix in ("", f".{precision}")]
    names += [path.name for path in bundle.glob("step.*.onnx")]
    complaints = [onnx_accepts(bundle / name) for name in names]
    options = ["--rtol", str(HALF[precision]), "--atol", str(HALF[precision])]
    options += {"fp16": ["--activations", "fp16"], "bf16": ["--ops-library", library]}[precision]
    check = [sys.executable, TESTS / "conformance" / "check_bundle.py", bundle, model / "golden.safetensors"]
    run = subprocess.run(check + options, capture_output=True, text=True)
    if run.returncode:
        failed = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
        complaints.append(f"check_bundle.py {options}: " + "; ".join(failed + [run.stderr.strip()]))
    if lowering == "function":
        limit = next(limit for family, limit in KERNELS.items() if family in model.name)
        complaints.append(optimised_step_is_lean(bundle, library, limit))
    return [complaint for complaint in complaints if complaint]


def main():
    command, library = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    models = [model for model in MODELS if model.name in sys.argv[3:] or not sys.argv[3:]]
    passed = failed = 0

    def report(what, complaints):
        nonlocal passed, failed
        passed, failed = passed + (not complaints), failed + bool(complaints)
        print(f"{'FAIL' if complaints else 'ok  '} {what}", *complaints, sep="\n     ")

    with tempfile.TemporaryDirectory() as folder:
        for model, lowering, logits in itertools.product(models, LOWERINGS, LOGITS):
            complaints = judge(command, library, model, lowering, logits, pathlib.Path(folder))
            report(f"{model.name}, {lowering}, logits {logits}", complaints)
        for model, precision in itertools.product(models, HALF):
            report(f"{model.name}, {precision}", judge_half(command, library, model, precision, pathlib.Path(folder)))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
