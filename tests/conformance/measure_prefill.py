#!/usr/bin/env python3
"""Measure the memory that one call of the prefill graph takes, by the length of the prompt.

    measure_prefill.py path/to/bundle path/to/libdensessm_ops.so [tokens ...]

Each length (512 and 4096 if none is given) runs in a process of its own, twice; prints the most that was resident, with ONNX
Runtime's memory pattern and, as `densessm` runs it, without. Linux only.
"""
import pathlib
import re
import subprocess
import sys

import numpy
import onnxruntime


def run(bundle, library, tokens, pattern):
    """Feeds a prompt twice; returns the most that was resident, in MB."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.enable_mem_pattern = pattern
    options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(pathlib.Path(bundle, "parallel.onnx"), options, providers=["CPUExecutionProvider"])
    # Loading takes more for a moment: the peak counts from here.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    inputs = {"input_ids": numpy.arange(tokens)[None] % 1000, "sequence_lengths": numpy.array([tokens], numpy.int32)}
    kinds = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
    for value in session.get_inputs():
        if value.name not in inputs:
            shape = [size if isinstance(size, int) else 1 for size in value.shape]
            inputs[value.name] = numpy.zeros(shape, kinds[value.type])
    for _ in range(2):
        session.run(None, inputs)
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024 / 1e6


def main():
    bundle, library, *lengths = sys.argv[1:]
    if lengths[:1] == ["--once"]:
        print(run(bundle, library, int(lengths[1]), lengths[2] == "with"))
        return
    for pattern in ("with", "without"):
        for tokens in lengths or ["512", "4096"]:
            command = [sys.executable, __file__, bundle, library, "--once", tokens, pattern]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{tokens:>6} tokens in one call, {pattern:>7} memory pattern: {peak:.0f} MB resident")


if __name__ == "__main__":
    main()
