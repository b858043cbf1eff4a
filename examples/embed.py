#!/usr/bin/env python3
"""A bundle in Python: `onnxruntime` and `libdensessm_ops`, nothing of densessm's code.

    embed.py BUNDLE LIBRARY TOKEN,TOKEN,... COUNT

The twin of embed.rs: reads the prompt's tokens with the parallel graph, then steps with the recurrent one, and prints
the most likely token COUNT times. States stay in ONNX Runtime's memory: two sets of tensors alternate as input and
output of a step.
"""
import sys

import numpy
import onnxruntime

bundle, library, tokens, count = sys.argv[1:]
tokens = [int(token) for token in tokens.split(",")]

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
parallel, recurrent = (
    onnxruntime.InferenceSession(f"{bundle}/{graph}.onnx", options, providers=["CPUExecutionProvider"])
    for graph in ("parallel", "recurrent")
)


def states():
    """Tensors of zeros for every state of one sequence, by the name of the input."""
    dtypes = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
    # Every axis but the batch is static.
    shapes = {i.name: ([1] + i.shape[1:], dtypes[i.type]) for i in recurrent.get_inputs() if i.name.startswith("past_")}
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(numpy.zeros(*shape)) for name, shape in shapes.items()}


def call(session, inputs, past, present):
    """Runs a graph on tokens, from some states to others, and returns the most likely next token."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_cpu_input(name, value)
    for name, state in past.items():
        binding.bind_ortvalue_input(name, state)
    for name, state in present.items():
        binding.bind_ortvalue_output(name.replace("past_key_values", "present").replace("past_length", "present_length"), state)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    return int(binding.get_outputs()[-1].numpy().argmax())


past, present = states(), states()
prompt = {"input_ids": numpy.array([tokens]), "sequence_lengths": numpy.array([len(tokens)], numpy.int32)}
token = call(parallel, prompt, past, present)
for _ in range(int(count)):
    print(token)
    past, present = present, past
    token = call(recurrent, {"input_ids": numpy.array([[token]])}, past, present)
