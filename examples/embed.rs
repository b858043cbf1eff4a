//! A bundle in a service of one's own: the `ort` crate and `libdensessm_ops`, nothing of densessm's code.
//!
//! ```text
//! embed BUNDLE LIBRARY TOKEN,TOKEN,… COUNT [cpu|cuda|cuda:N]
//! ```
//!
//! reads the prompt's tokens with the parallel graph, then steps with the recurrent one, and prints the argmax token
//! COUNT times. States stay on the device: what a call returns is what the next one reads. ONNX Runtime is found in
//! `ORT_DYLIB_PATH`.

use anyhow::{Context, Result};
use ort::{
    ep::CUDA,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session},
    value::{DynValue, Tensor, TensorElementType},
};
use std::collections::BTreeMap;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (arguments, device) = match &arguments[..] {
        [arguments @ .., device] if arguments.len() == 4 => (arguments, &device[..]),
        arguments => (arguments, "cpu"),
    };
    let [bundle, library, tokens, count] = arguments else {
        anyhow::bail!("expected BUNDLE LIBRARY TOKEN,TOKEN,… COUNT [cpu|cuda|cuda:N]");
    };
    let gpu = match device.strip_prefix("cuda") {
        Some(index) => Some(index.strip_prefix(':').unwrap_or("0").parse::<i32>().context("device")?),
        None if device == "cpu" => None,
        None => anyhow::bail!("expected cpu, cuda or cuda:N, got {device}"),
    };
    let tokens = tokens.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>().context("tokens")?;
    let runtime = std::env::var_os("ORT_DYLIB_PATH").context("ORT_DYLIB_PATH: expected libonnxruntime, got none")?;
    let environment = ort::init_from(runtime)?.build()?;
    let open = |graph: &str| -> Result<Session> {
        let mut builder = Session::builder(&environment)?;
        if let Some(index) = gpu {
            // Without TF32, which rounds the factors of products to ten bits.
            let cuda = CUDA::default().with_device_id(index).with_tf32(false).build().error_on_failure();
            builder = builder.with_execution_providers([cuda]).map_err(ort::Error::<()>::from)?;
        }
        let mut builder = builder.with_operator_library(library).map_err(ort::Error::<()>::from)?;
        Ok(builder.commit_from_file(format!("{bundle}/{graph}.onnx"))?)
    };
    let (mut parallel, mut recurrent) = (open("parallel")?, open("recurrent")?);
    let on_device = |device| MemoryInfo::new(device, gpu.unwrap_or(0), AllocatorType::Device, MemoryType::Default);
    let memory = on_device(if gpu.is_some() { AllocationDevice::CUDA } else { AllocationDevice::CPU })?;

    let prompt = Tensor::from_array(([1, tokens.len()], tokens.clone()))?;
    let mut binding = parallel.create_binding()?;
    binding.bind_input("input_ids", &prompt)?;
    binding.bind_input("sequence_lengths", &Tensor::from_array(([1], vec![tokens.len() as i32]))?)?;
    // A sequence starts from zeros: whatever the graph takes as `past…`, it gives back as `present…`.
    let zeros = zeros(&parallel)?;
    let (mut token, mut states) = call(&mut parallel, &mut binding, &zeros, &memory)?;

    for _ in 0..count.parse::<usize>().context("COUNT")? {
        println!("{token}");
        let mut binding = recurrent.create_binding()?;
        binding.bind_input("input_ids", &Tensor::from_array(([1, 1], vec![token]))?)?;
        (token, states) = call(&mut recurrent, &mut binding, &states, &memory)?;
    }
    Ok(())
}

/// Tensors of zeros for every state of one sequence, by the name of the input.
fn zeros(session: &Session) -> Result<BTreeMap<String, DynValue>> {
    let states = session.inputs().iter().filter(|input| input.name().starts_with("past_"));
    states
        .map(|input| {
            // Every axis but the batch is static.
            let sizes = input.dtype().tensor_shape().context("a state is a tensor")?;
            let shape: Vec<i64> = sizes.iter().map(|&size| size.max(1)).collect();
            let tensor = match input.dtype().tensor_type() {
                Some(TensorElementType::Int64) => Tensor::<i64>::new(&Allocator::default(), shape)?.into_dyn(),
                _ => Tensor::<f32>::new(&Allocator::default(), shape)?.into_dyn(),
            };
            Ok((input.name().to_owned(), tensor))
        })
        .collect()
}

/// Runs a graph whose tokens are bound from some states; returns the argmax next token and the states after it.
fn call(
    session: &mut Session,
    binding: &mut IoBinding,
    past: &BTreeMap<String, DynValue>,
    memory: &MemoryInfo<'_>,
) -> Result<(i64, BTreeMap<String, DynValue>)> {
    let present =
        |name: &str| name.replacen("past_key_values", "present", 1).replacen("past_length", "present_length", 1);
    for (name, state) in past {
        binding.bind_input(name, state)?;
        binding.bind_output_to_device(present(name), memory)?;
    }
    binding.bind_output_to_device("logits", Allocator::default().memory_info())?;
    let mut outputs = session.run_binding(binding)?;
    let (_, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
    let argmax = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let token = argmax.map_or(0, |(token, _)| token as i64);
    let states =
        past.keys().map(|name| Ok((name.clone(), outputs.remove(present(name)).context("a state is missing")?)));
    Ok((token, states.collect::<Result<_>>()?))
}
