#!/usr/bin/env python3
"""A bundle in Python: `onnxruntime` and `libdensessm_ops`, nothing of densessm's code.

    embed.py BUNDLE LIBRARY TOKEN,TOKEN,... COUNT [cpu|cuda|cuda:N]

The twin of embed.rs: reads the prompt's tokens with the parallel graph, then steps with the recurrent one, and prints
the most likely token COUNT times. States stay on the device: what a call returns is what the next one reads.
"""
import sys

import numpy
import onnxruntime

bundle, library, tokens, count, device = (sys.argv[1:] + ["cpu"])[:5]
tokens = [int(token) for token in tokens.split(",")]
device, index = (device.split(":") + ["0"])[:2]
if device not in ("cpu", "cuda"):
    sys.exit(f"expected cpu, cuda or cuda:N, got {device}")

# Without TF32, which rounds the factors of products to ten bits.
cuda = ("CUDAExecutionProvider", {"device_id": index, "use_tf32": "0"})
providers = [cuda] if device == "cuda" else ["CPUExecutionProvider"]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
parallel, recurrent = (
    onnxruntime.InferenceSession(f"{bundle}/{graph}.onnx", options, providers=providers)
    for graph in ("parallel", "recurrent")
)
# Python's onnxruntime would otherwise go on without a provider that does not load.
if providers[0][0] == "CUDAExecutionProvider" and "CUDAExecutionProvider" not in parallel.get_providers():
    sys.exit("the CUDA provider did not load; see the messages above")


def zeros():
    """Tensors of zeros for every state of one sequence, by the name of the input."""
    dtypes = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
    # Every axis but the batch is static.
    shapes = {i.name: ([1] + i.shape[1:], dtypes[i.type]) for i in recurrent.get_inputs() if i.name.startswith("past_")}
    place = (device, int(index))
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros(*shape), *place) for name, shape in shapes.items()}


def call(session, inputs, past):
    """Runs a graph on tokens from some states; returns the most likely next token and the states after it."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    for name, state in past.items():
        binding.bind_ortvalue_input(name, state)
        present = name.replace("past_key_values", "present").replace("past_length", "present_length")
        binding.bind_output(present, device, int(index))
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    *states, logits = binding.get_outputs()
    return int(logits.numpy().argmax()), dict(zip(past, states))


prompt = {"input_ids": numpy.array([tokens]), "sequence_lengths": numpy.array([len(tokens)], numpy.int32)}
token, states = call(parallel, prompt, zeros())
for _ in range(int(count)):
    print(token)
    token, states = call(recurrent, {"input_ids": numpy.array([[token]])}, states)
