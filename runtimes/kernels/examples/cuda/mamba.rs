//! The whole decode step of Mamba and DenseMamba as one kernel.
//!
//! Each variant is checked on a small model and timed on the published sizes.

use super::{
    gpu::{Gpu, Outcome, relative_error},
    mamba_model::{EPSILON, Matrix, Model, Row, STATES},
    mamba_variants::{Variant, all, measured, units, variants},
};
use densessm_cuda::{Buffer, Function, LaunchShape};
use densessm_kernels::cuda::units::MambaShape;
use std::collections::BTreeMap;

/// Tokens that are checked.
const COUNT: usize = 3;
/// Steps of a graph that is timed.
const STEPS: usize = 8;
/// What the CPU says about some tokens: the texts, and of the first and the last row the logits of each token and the
/// last layer's states.
struct Expected {
    texts: Vec<Vec<usize>>,
    rows: Vec<(usize, Vec<Vec<f64>>, Vec<f64>)>,
}

impl Expected {
    fn new(gpu: &mut Gpu, model: &Model, name: &str) -> Self {
        let MambaShape { batch, layers, .. } = model.shape;
        let texts: Vec<Vec<usize>> =
            (0..COUNT).map(|_| (0..batch).map(|_| gpu.bits() as usize % model.vocabulary).collect()).collect();
        // The CPU is slow: the first and the last row stand for all.
        let rows = if batch == 1 { vec![0] } else { vec![0, batch - 1] };
        let rows: Vec<_> = rows
            .into_iter()
            .map(|n| {
                let mut row = Row::new(&model.shape);
                let logits: Vec<_> = texts.iter().map(|text| row.step(model, text[n], false)).collect();
                (n, logits, row.states[layers - 1].clone())
            })
            .collect();
        // The same steps with operands rounded to fp16 show what rounding alone costs.
        let mut rounded = Row::new(&model.shape);
        for (i, text) in texts.iter().enumerate() {
            let got: Vec<f32> = rounded.step(model, text[0], true).iter().map(|x| *x as f32).collect();
            println!("{name} token {i}, of rounding alone on the CPU: {:.2e}", relative_error(&got, &rows[0].1[i]));
        }
        Self { texts, rows }
    }
}

pub(crate) fn check(gpu: &mut Gpu) -> Outcome {
    let variants = variants()?;
    gpu.compile(&units(&variants))?;
    let mut table: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    for (name, shape, vocabulary, batches) in all() {
        let mut model = Model::random(gpu, shape, vocabulary)?;
        for batch in batches {
            model.shape.batch = batch;
            let name = format!("{name} batch {batch}");
            let expected = Expected::new(gpu, &model, &name);
            for variant in measured(&variants, batch) {
                let full = format!("mamba_step {name} {}", variant.name);
                match run(gpu, &model, &expected, variant, &full) {
                    Ok(Some(median)) => table.entry(variant.name.clone()).or_default().push((name.clone(), median)),
                    Ok(None) => {}
                    Err(error) => gpu.failed(&full, &error.to_string()),
                }
            }
        }
    }
    for (variant, columns) in table {
        let columns: Vec<_> = columns.iter().map(|(name, median)| format!("{name} {:.1} us", median * 1e3)).collect();
        println!("table: {variant}: {}", columns.join(", "));
    }
    Ok(())
}

/// What the kernel writes, and the memory that it uses.
struct Memory {
    conv: Buffer<f32>,
    states: Buffer<f32>,
    logits: Buffer<f32>,
    tokens: Buffer<i64>,
    exchange: Vec<Buffer<u64>>,
    step: Buffer<u32>,
}

impl Memory {
    fn new(gpu: &Gpu, model: &Model, words: &[u32]) -> Outcome<Self> {
        let MambaShape { inner, taps, layers, batch, .. } = model.shape;
        Ok(Self {
            conv: gpu.zeros(layers * batch * inner * (taps - 1))?,
            states: gpu.zeros(layers * batch * inner * STATES)?,
            logits: gpu.zeros(batch * model.vocabulary)?,
            tokens: gpu.zeros(batch)?,
            exchange: words.iter().map(|&words| gpu.zeros(words as usize)).collect::<Outcome<_>>()?,
            step: gpu.zeros(1)?,
        })
    }

    fn arguments(&self, model: &Model) -> Vec<u64> {
        let MambaShape { inner, taps, batch, .. } = model.shape;
        let embedding = model.embedding.device.address();
        let mut arguments =
            vec![self.tokens.address(), embedding, model.norm.address(), embedding, self.logits.address()];
        arguments.extend(self.exchange.iter().map(Buffer::address));
        arguments.extend([self.step.address(), model.vocabulary as u64, u64::from(EPSILON.to_bits())]);
        for (l, layer) in model.layers.iter().enumerate() {
            let conv = self.conv.address() + (l * batch * inner * (taps - 1) * 4) as u64;
            let state = self.states.address() + (l * batch * inner * STATES * 4) as u64;
            let of = |matrix: &Matrix| matrix.device.address();
            arguments.extend([
                layer.norm.address(),
                of(&layer.in_proj),
                layer.gates.as_ref().map_or(0, of),
                layer.conv_weight.address(),
                layer.conv_bias.address(),
                of(&layer.x_proj),
                of(&layer.dt_proj),
                layer.dt_bias.address(),
                of(&layer.channel_gate),
                of(&layer.state_gate),
                layer.a.address(),
                layer.skip.address(),
                of(&layer.out_proj),
                conv,
                state,
                conv,
                state,
            ]);
        }
        arguments
    }
}

/// Checks a variant; returns the median time of a step in milliseconds, for models of many layers.
fn run(gpu: &mut Gpu, model: &Model, expected: &Expected, variant: &Variant, name: &str) -> Outcome<Option<f64>> {
    let MambaShape { inner, layers, batch, .. } = model.shape;
    let module = gpu.module(&variant.unit(&model.shape))?;
    let function = module.function("mamba_step")?;
    let [blocks, threads, shared, words @ ..] = module.constants::<7>(&gpu.stream, "mamba_step_shape")?;
    let shape = LaunchShape::new([blocks, 1, 1], threads).shared(shared).cooperative();
    let memory = Memory::new(gpu, model, &words)?;
    let arguments = memory.arguments(model);

    // The tokens twice from the beginning: the results must be the same bits.
    let first = generate(gpu, &function, shape, &memory, &arguments, expected)?;
    for (i, (a, b)) in generate(gpu, &function, shape, &memory, &arguments, expected)?.iter().zip(&first).enumerate() {
        if a.iter().zip(b).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(format!("token {i}: the same step twice gives other logits").into());
        }
    }
    let mut states = vec![0.0; memory.states.len()];
    memory.states.read(&gpu.stream, 0, &mut states)?;
    for (n, logits, last_states) in &expected.rows {
        for (i, logits) in logits.iter().enumerate() {
            let got = &first[i][n * model.vocabulary..][..model.vocabulary];
            gpu.report_error(&format!("{name} row {n} token {i}"), relative_error(got, logits), 1.5e-3);
        }
        let got = &states[((layers - 1) * batch + n) * inner * STATES..][..inner * STATES];
        gpu.report_error(&format!("{name} row {n} last state"), relative_error(got, last_states), 2e-3);
    }
    if layers < 40 {
        return Ok(None);
    }
    let bytes = (model.bytes() + 2 * 4 * states.len()) as f64;
    let median =
        gpu.time_graph(|| (0..STEPS).try_for_each(|_| gpu.launch(&function, shape, &arguments)))? / STEPS as f64;
    gpu.report_time(name, median, bytes);
    println!("{name}: {:.0} steps/s, {:.0} tokens/s", 1e3 / median, 1e3 * batch as f64 / median);
    Ok(Some(median))
}

/// The logits of some tokens, from states of zeros.
fn generate(
    gpu: &Gpu,
    function: &Function,
    shape: LaunchShape,
    memory: &Memory,
    arguments: &[u64],
    expected: &Expected,
) -> Outcome<Vec<Vec<f32>>> {
    memory.conv.fill_bytes(&gpu.stream, 0)?;
    memory.states.fill_bytes(&gpu.stream, 0)?;
    let step = |text: &Vec<usize>| {
        memory.tokens.write(&gpu.stream, 0, &text.iter().map(|token| *token as i64).collect::<Vec<_>>())?;
        memory.logits.fill_bytes(&gpu.stream, 0xff)?;
        gpu.launch(function, shape, arguments)?;
        let mut got = vec![0.0; memory.logits.len()];
        memory.logits.read(&gpu.stream, 0, &mut got)?;
        Ok(got)
    };
    expected.texts.iter().map(step).collect()
}
