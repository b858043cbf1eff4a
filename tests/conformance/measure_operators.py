#!/usr/bin/env python3
"""Time the selective scan and the retention step beside ONNX Runtime's nearest operator, in one program.

    measure_operators.py path/to/libdensessm_ops.so [threads]

`com.microsoft.LinearAttention` runs the scan in its best form: one query head, one key head, and a head of values for
each channel. Retention steps run over the state of one layer, which stays in the cache, and over those of 16 layers in
turn, as in a model, which come from memory; beside them stands what the machine copies. Prints medians.
"""
import statistics
import sys
import threading
import time

import numpy
import onnxruntime
from onnx import TensorProto, helper

LIBRARY = sys.argv[1]
THREADS = int(sys.argv[2]) if len(sys.argv) > 2 else 2
ROUNDS = 30
LAYERS = 16


def session(nodes, shapes, outputs):
    """A session of some nodes, bound to random inputs and to outputs of these shapes."""
    types = {"lengths": TensorProto.INT32}
    inputs = [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), s) for n, s in shapes.items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()]
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.densessm", 1), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, results), opset_imports=sets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.register_custom_ops_library(LIBRARY)
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, random = made.io_binding(), numpy.random.default_rng(0)
    for name, shape in shapes.items():
        if name == "lengths":
            value = numpy.array([shapes["u"][1]], numpy.int32)
        else:
            value = random.normal(size=shape).astype(numpy.float32)
            value = -numpy.abs(value) if name in ("a", "decay") else value
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    for name, shape in outputs.items():
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros(shape, numpy.float32)))
    return lambda: made.run_with_iobinding(binding)


def scan(t=256, d=2048, n=16):
    tokens, states = [1, t, d], [1, t, n]
    shapes = {"u": tokens, "delta": tokens, "bias": [d], "a": [d, n], "b": states, "state": [1, d, n], "c": states}
    shapes |= {"skip": [d], "z": tokens, "lengths": [1]}
    node = helper.make_node("SelectiveScan", [*shapes, "", ""], ["y", "present"], domain="ai.densessm", neighbours=0)
    ours = session([node], shapes, {"y": tokens, "present": [1, d, n]})
    # A decay for each channel and state, as here; query and key are shared by all channels.
    shapes = {"query": states, "key": states, "value": tokens, "past": [1, d, n, 1], "decay": [1, t, d * n]}
    node = helper.make_node(
        "LinearAttention", [*shapes], ["y", "present"], domain="com.microsoft",
        q_num_heads=1, kv_num_heads=d, update_rule="gated", scale=1.0,
    )
    return ours, session([node], shapes, {"y": tokens, "present": [1, d, n, 1]})


def retention(layers, heads=2, dk=384, dv=1536):
    keys, values = [1, 1, heads * dk], [1, 1, heads * dv]
    shared = {"q": keys, "k": keys, "v": values, "cos": [1, 1, dk // 2], "sin": [1, 1, dk // 2], "scale": [1, 1, heads]}
    shared |= {"gate": values, "norm": [dv], "decay": [1, 1, heads]}
    past = {f"past{layer}": [1, heads, dk, dv] for layer in range(layers)}
    results = {f"o{layer}": values for layer in range(layers)}
    results |= {f"present{layer}": [1, heads, dk, dv] for layer in range(layers)}

    def ours(layer):
        inputs = ["q", "k", "v", "cos", "sin", "scale", f"past{layer}", "gate", "norm"]
        return helper.make_node(
            "RetentionStep", inputs, [f"o{layer}", f"present{layer}"], domain="ai.densessm", heads=heads, epsilon=1e-6
        )

    def theirs(layer):
        return helper.make_node(
            "LinearAttention", ["q", "k", "v", f"past{layer}", "decay"], [f"o{layer}", f"present{layer}"],
            domain="com.microsoft", q_num_heads=heads, kv_num_heads=heads, update_rule="gated", scale=1.0,
        )

    return [
        session([node(layer) for layer in range(layers)], shared | past, results) for node in (ours, theirs)
    ]


def copying(numbers=2 * 384 * 1536 * LAYERS):
    """Copies as many numbers as the states of all layers have, on all threads."""
    source, target = numpy.ones(numbers, numpy.float32), numpy.zeros(numbers, numpy.float32)
    parts = [slice(i * numbers // THREADS, (i + 1) * numbers // THREADS) for i in range(THREADS)]

    def run():
        threads = [threading.Thread(target=numpy.copyto, args=(target[part], source[part])) for part in parts]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]

    return run


def medians(*runs):
    """Median times in milliseconds. Each runs for a while before another does: idle sessions' threads spin at first."""
    times = [[] for _ in runs]
    for _ in range(3):
        for run, list_ in zip(runs, times):
            time.sleep(0.3)
            for _ in range(ROUNDS):
                start = time.perf_counter()
                run()
                list_.append(time.perf_counter() - start)
    return [1e3 * statistics.median(list_) for list_ in times]


def main():
    ours, theirs = medians(*scan())
    print(f"scan, T 256, D 2048, N 16: {ours:.3f} ms; LinearAttention {theirs:.2f} ms: {theirs / ours:.1f} times as fast")
    shape = "2 heads of 384 x 1536"
    ours, theirs = medians(*retention(1))
    print(f"retention step, {shape}, one layer: {ours:.3f} ms; LinearAttention {theirs:.2f} ms: {theirs / ours:.1f} times as fast")
    ours, theirs, copy = (milliseconds / LAYERS for milliseconds in medians(*retention(LAYERS), copying()))
    print(f"retention step, {shape}, {LAYERS} layers: {ours:.3f} ms each; LinearAttention {theirs:.2f} ms: {theirs / ours:.1f} times as fast")
    bytes_ = 2 * 4 * 2 * 384 * 1536
    print(f"  reads and writes {bytes_ / ours / 1e6:.1f} GB/s; a copy {bytes_ / copy / 1e6:.1f} GB/s: {copy / ours:.0%}")


if __name__ == "__main__":
    main()
