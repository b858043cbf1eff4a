//! The description of a bundle's deployment on TensorRT.

use densessm_proto::{
    Architecture, GraphEntry, GraphKind, Manifest, ShapeProfile,
    manifest::{Dimension, TensorEntry, WEIGHTS_FILE},
    states::{self, PAST_LENGTH, PRESENT_LENGTH},
};

/// Returns the text of a bundle's `README.md`.
pub(crate) fn readme(manifest: &Manifest) -> String {
    let profile = ShapeProfile::default();
    let mut text = introduction(manifest);
    for graph in &manifest.graphs {
        text += &trtexec(graph, &profile);
    }
    text += &onnx_runtime(manifest, &profile);
    text += &state_table(&manifest.architecture);
    text += PRECISION;
    text += PROMPTS;
    text += LIMITS;
    text
}

fn introduction(manifest: &Manifest) -> String {
    let graphs: String =
        manifest.graphs.iter().map(|graph| format!("| `{}` | {} |\n", graph.file, role(graph))).collect();
    let (version, precision, opset) = (&manifest.tool_version, manifest.precision, manifest.opset);
    format!(
        "# Deployment on TensorRT

Exported by densessm {version} with `--target tensorrt`: precision {precision}, operator set {opset}, standard operators
only (no custom domain, no functions), and a type for every value.

| file | content |
|---|---|
{graphs}| `{WEIGHTS_FILE}` | the weights of all graphs; keep it beside them |
| `densessm.json` | the manifest: every input and output with its type and shape |

## Engines with trtexec

Run the commands in this folder. The shapes are the smallest, the optimal and the largest that the engine accepts; the
first dimension of every input is the batch. Change them in all three lists to what is served: a larger maximum costs
memory, and the engine is fastest at the optimum.
"
    )
}

fn role(graph: &GraphEntry) -> &'static str {
    match graph.kind {
        GraphKind::Parallel => "processes a prompt",
        GraphKind::Recurrent => "processes one token of each sequence",
    }
}

fn trtexec(graph: &GraphEntry, profile: &ShapeProfile) -> String {
    let [min, opt, max] = profile.shapes(&graph.inputs);
    let file = &graph.file;
    let name = file.trim_end_matches(".onnx");
    let rows: String = graph.inputs.iter().map(|input| row(input, profile)).collect();
    format!(
        "
### `{file}`

| input | type | shape | smallest | optimal | largest |
|---|---|---|---|---|---|
{rows}
```sh
trtexec --onnx={file} --saveEngine={name}.engine \\
    --stronglyTyped --noTF32 --timingCacheFile=timing.cache \\
    --minShapes={min} \\
    --optShapes={opt} \\
    --maxShapes={max}
```
"
    )
}

fn row(input: &TensorEntry, profile: &ShapeProfile) -> String {
    let dimension = |dimension: &Dimension| match dimension {
        Dimension::Size(size) => size.to_string(),
        Dimension::Symbol(symbol) => symbol.clone(),
    };
    let shape: Vec<String> = input.shape.iter().map(dimension).collect();
    let bounds = profile.shapes(std::slice::from_ref(input));
    let bounds = bounds.map(|bound| bound.rsplit_once(':').map_or(String::new(), |(_, sizes)| sizes.to_owned()));
    let (name, dtype) = (&input.name, input.dtype);
    format!("| `{name}` | {dtype} | [{}] | {} |\n", shape.join(", "), bounds.join(" | "))
}

fn onnx_runtime(manifest: &Manifest, profile: &ShapeProfile) -> String {
    let Some(graph) = manifest.graphs.last() else { return String::new() };
    let [min, opt, max] = profile.shapes(&graph.inputs);
    format!(
        "
## ONNX Runtime's TensorRT provider

`densessm generate --device tensorrt --batch-profile MIN,OPT,MAX --prompt-profile MIN,OPT,MAX` sets all of this by itself.
In a program of your own:

| option | value | reason |
|---|---|---|
| `trt_profile_min_shapes`, `trt_profile_opt_shapes`, `trt_profile_max_shapes` | the lists of the graph, as above | every input has a dynamic batch: without all of them, the engine is built again when a shape is new |
| `trt_engine_cache_enable`, `trt_engine_cache_path` | 1, a folder for this bundle, GPU, TensorRT and ONNX Runtime | an engine fits nothing else |
| `trt_timing_cache_enable`, `trt_timing_cache_path` | 1, the same folder | later builds are shorter |
| `trt_fp16_enable`, `trt_bf16_enable` | 0, the default | the graph states the type of every value; with these options TensorRT may compute norms and recurrences in half precision |

For `{file}`:

```python
import os
os.environ.setdefault(\"NVIDIA_TF32_OVERRIDE\", \"0\")  # before the provider is loaded
import onnxruntime

options = {{
    \"trt_profile_min_shapes\": \"{min}\",
    \"trt_profile_opt_shapes\": \"{opt}\",
    \"trt_profile_max_shapes\": \"{max}\",
    \"trt_engine_cache_enable\": \"1\", \"trt_engine_cache_path\": \"engines\",
    \"trt_timing_cache_enable\": \"1\", \"trt_timing_cache_path\": \"engines\",
}}
providers = [(\"TensorrtExecutionProvider\", options), (\"CUDAExecutionProvider\", {{\"use_tf32\": \"0\"}})]
session = onnxruntime.InferenceSession(\"{file}\", providers=providers)
```
",
        file = graph.file
    )
}

fn state_table(architecture: &Architecture) -> String {
    let states = states::layout(architecture);
    let mut rows: String = states
        .iter()
        .map(|state| format!("| `{}` | `{}` | {:?} |\n", state.present, state.past, state.shape))
        .collect();
    if architecture.counts_positions() {
        rows += &format!("| `{PRESENT_LENGTH}` | `{PAST_LENGTH}` | [] |\n");
    }
    format!(
        "
## States

After each call, feed every output on the left to the input on the right in the next call of any graph, for the same
sequences in the same rows. A sequence starts from zeros in all of them. The outputs have the shapes of the inputs, so
two sets of buffers on the GPU, used in turn, avoid every copy: never bind the same buffer to both.

| output | input of the next call | shape of one sequence |
|---|---|---|
{rows}"
    )
}

const PRECISION: &str = "
## Precision

States and logits are fp32 in every precision; norms, softplus, exp, recurrences and states are computed in fp32.
`--stronglyTyped` makes TensorRT keep the types of the graph (from TensorRT 11 on it always does, and the flag can be
left out).

TensorRT by default rounds the factors of fp32 products to the ten bits of TF32, with which the outputs differ from those
of the checkpoint beyond the tolerance of `densessm parity`. `--noTF32` disables that for trtexec. ONNX Runtime has no
option for it: set `NVIDIA_TF32_OVERRIDE=0` in the environment before the provider is loaded. The `densessm` command does
this itself unless the variable is set.
";

const PROMPTS: &str = "
## Prompts

The parallel graph of a Mamba model contains a `Scan`, which TensorRT executes as a loop over the tokens. For long prompts
of these models, use `densessm --device cuda` with a bundle of `--lowering function`, whose kernels process a prompt in
parallel, and TensorRT for the steps. The parallel graph of DenseRetNet has no loop.
";

const LIMITS: &str = "
## What has been tested

The parser and the builder of TensorRT-RTX (1.7.1.116) accept the graphs that densessm exports from its trained test
models and build engines for SM80 and SM120. No engine has been run on a GPU: neither TensorRT nor ONNX Runtime's TensorRT provider
was available. Compare the first outputs with `densessm parity --device tensorrt`.
";
