#!/usr/bin/env python3
"""Measure the export of a model of 360 million parameters: memory, speed, size of the graphs, time to load them.

    measure_export.py path/to/densessm [--preset densemamba-360m] [--lowering function] [--folder DIR]

Prints a line a figure. Needs 3 GB of disk in DIR (a temporary folder otherwise), which are given back.
"""
import argparse
import os
import pathlib
import subprocess
import tempfile
import time

import onnxruntime


def measured(*command):
    """Runs a command; returns its seconds and its own peak of resident memory in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("densessm", type=pathlib.Path)
    arguments.add_argument("--preset", default="densemamba-360m")
    arguments.add_argument("--lowering", default="function")
    arguments.add_argument("--folder")
    a = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        model, bundle = pathlib.Path(folder, "model"), pathlib.Path(folder, "bundle")
        measured(a.densessm, "init", "--preset", a.preset, "--out", model)
        seconds, peak = measured(a.densessm, "export", "--model", model, "--out", bundle, "--lowering", a.lowering)
        weights = (bundle / "model.onnx.data").stat().st_size
        graphs = [bundle / name for name in ("parallel.onnx", "recurrent.onnx")]
        print(f"weights                 {weights / 1e6:.0f} MB")
        print(f"export                  {seconds:.1f} s, {weights / 1e6 / seconds:.0f} MB/s")
        print(f"peak memory             {peak / 1e6:.0f} MB")
        print(f"graphs together         {sum(graph.stat().st_size for graph in graphs) / 1e6:.2f} MB")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        for graph in graphs:
            started = time.perf_counter()
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            print(f"loading {graph.name:<15} {time.perf_counter() - started:.1f} s in ONNX Runtime")
            del session


if __name__ == "__main__":
    main()
