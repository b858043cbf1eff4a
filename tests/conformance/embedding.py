#!/usr/bin/env python3
"""Run the two examples that use a bundle without densessm's code, and an ONNX Runtime that is too old.

    embedding.py path/to/densessm path/to/libdensessm_ops.so path/to/embed path/to/old/onnxruntime

The examples must print the greedy tokens that PyTorch chose; the old ONNX Runtime, a folder that holds its Python
package, must refuse the library with words and not with a crash.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = sorted((ROOT / "tests" / "checkpoints").iterdir())
OLD = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
try:
    options.register_custom_ops_library(sys.argv[1])
    onnxruntime.InferenceSession(sys.argv[2], options)
except Exception as error:
    print(onnxruntime.__version__, error)
"""


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def main():
    command, library, example, old = (pathlib.Path(argument).resolve() for argument in sys.argv[1:5])
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            bundle = pathlib.Path(folder) / model.name
            run(command, "export", "--model", model, "--out", bundle, check=True)
            greedy = json.loads((model / "greedy.json").read_text())
            tokens, prompt = greedy["token_ids"], greedy["prompt_tokens"]
            arguments = [bundle, library, ",".join(map(str, tokens[:prompt])), len(tokens) - prompt]
            for twin in ([example], [sys.executable, ROOT / "examples" / "embed.py"]):
                result = run(*twin, *arguments)
                good = result.stdout.split() == [str(token) for token in tokens[prompt:]]
                failed += not good
                print("ok  " if good else "FAIL", model.name, twin[-1].name, "" if good else result.stderr.strip()[-300:])
        refused = run(sys.executable, "-c", OLD, library, bundle / "recurrent.onnx", env={**os.environ, "PYTHONPATH": str(old)})
        good = refused.returncode == 0 and "expected ONNX Runtime 1." in refused.stdout
        failed += not good
        print("ok  " if good else "FAIL", "an old ONNX Runtime:", refused.stdout.strip(), refused.stderr.strip()[-300:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
