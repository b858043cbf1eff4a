//! A bundle in a service of one's own: the `ort` crate and `libdensessm_ops`, nothing of densessm's code.
//!
//! ```text
//! embed BUNDLE LIBRARY TOKEN,TOKEN,… COUNT
//! ```
//!
//! reads the prompt's tokens with the parallel graph, then steps with the recurrent one, and prints the argmax token
//! COUNT times. States stay in ONNX Runtime's memory: two sets of tensors take turns as input and output of a step.
//! ONNX Runtime is found in `ORT_DYLIB_PATH`.

use anyhow::{Context, Result};
use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, TensorElementType},
};
use std::collections::BTreeMap;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, library, tokens, count] = &arguments[..] else {
        anyhow::bail!("expected BUNDLE LIBRARY TOKEN,TOKEN,… COUNT");
    };
    let tokens = tokens.split(',').map(str::parse).collect::<Result<Vec<i64>, _>>().context("tokens")?;
    let runtime = std::env::var_os("ORT_DYLIB_PATH").context("ORT_DYLIB_PATH: expected libonnxruntime, got none")?;
    let environment = ort::init_from(runtime)?.build()?;
    let open = |graph: &str| -> Result<Session> {
        let builder = Session::builder(&environment)?;
        let mut builder = builder.with_operator_library(library).map_err(ort::Error::<()>::from)?;
        Ok(builder.commit_from_file(format!("{bundle}/{graph}.onnx"))?)
    };
    let (mut parallel, mut recurrent) = (open("parallel")?, open("recurrent")?);

    // A sequence starts from zeros: whatever the graph takes as `past…`, it gives back as `present…`.
    let zeros = || states(&recurrent);
    let (mut past, mut present) = (zeros()?, zeros()?);

    let prompt = Tensor::from_array(([1, tokens.len()], tokens.clone()))?;
    let mut binding = parallel.create_binding()?;
    binding.bind_input("input_ids", &prompt)?;
    binding.bind_input("sequence_lengths", &Tensor::from_array(([1], vec![tokens.len() as i32]))?)?;
    let mut token = call(&mut parallel, &mut binding, &past, &mut present)?;

    for _ in 0..count.parse::<usize>().context("COUNT")? {
        println!("{token}");
        std::mem::swap(&mut past, &mut present);
        let mut binding = recurrent.create_binding()?;
        binding.bind_input("input_ids", &Tensor::from_array(([1, 1], vec![token]))?)?;
        token = call(&mut recurrent, &mut binding, &past, &mut present)?;
    }
    Ok(())
}

/// Tensors of zeros for every state of one sequence, by the name of the input.
fn states(session: &Session) -> Result<BTreeMap<String, DynTensor>> {
    let states = session.inputs().iter().filter(|input| input.name().starts_with("past_"));
    states
        .map(|input| {
            // Every axis but the batch is static.
            let sizes = input.dtype().tensor_shape().context("a state is a tensor")?;
            let shape: Vec<i64> = sizes.iter().map(|&size| size.max(1)).collect();
            let tensor = match input.dtype().tensor_type() {
                Some(TensorElementType::Int64) => Tensor::<i64>::new(&Allocator::default(), shape)?.upcast(),
                _ => Tensor::<f32>::new(&Allocator::default(), shape)?.upcast(),
            };
            Ok((input.name().to_owned(), tensor))
        })
        .collect()
}

/// Runs a graph whose tokens are bound, from some states to others, and returns the argmax next token.
fn call(
    session: &mut Session,
    binding: &mut IoBinding,
    past: &BTreeMap<String, DynTensor>,
    present: &mut BTreeMap<String, DynTensor>,
) -> Result<i64> {
    for (name, state) in past {
        binding.bind_input(name, state)?;
    }
    for (name, state) in present {
        let name = name.replacen("past_key_values", "present", 1).replacen("past_length", "present_length", 1);
        binding.bind_output(name, state)?;
    }
    binding.bind_output_to_device("logits", Allocator::default().memory_info())?;
    let outputs = session.run_binding(binding)?;
    let (_, logits) = outputs["logits"].try_extract_tensor::<f32>()?;
    let argmax = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    Ok(argmax.map_or(0, |(token, _)| token as i64))
}
