//! The whole decode step of DenseRetNet as one kernel.

use super::gpu::{Gpu, Outcome, Tensor, relative_error, silu};
use densessm_cuda::{Buffer, LaunchShape};
use densessm_kernels::cuda::{
    Activation,
    units::{self, RetNetShape},
};
use half::f16;
use std::f64::consts::TAU;

const EPSILON: f32 = 1e-6;

/// A matrix of fp16 numbers.
struct Matrix {
    host: Vec<u16>,
    device: Buffer<u16>,
    width: usize,
}

struct Gate {
    first: Matrix,
    second: Matrix,
}

struct Layer {
    norm: Tensor,
    q: Matrix,
    k: Matrix,
    /// The rows of v, then those of g.
    hidden: Matrix,
    gates: Option<[Gate; 2]>,
    norms: Option<[Tensor; 2]>,
    group_norm: Tensor,
    out: Matrix,
}

struct Model {
    shape: RetNetShape,
    vocabulary: usize,
    layers: Vec<Layer>,
    embedding: Matrix,
    head: Matrix,
    norm: Tensor,
    /// The fp16 numbers by their bits.
    numbers: Vec<f32>,
    /// Random numbers that the states are at first, from different places. Zeros would not do: the readout of a state of
    /// few tokens may cancel, and its norm then magnifies rounding.
    initial: Vec<f32>,
}

/// Between the places in `Model::initial` of one state and of the next.
const APART: usize = 1236;

impl Model {
    fn random(gpu: &mut Gpu, shape: RetNetShape, vocabulary: usize) -> Outcome<Self> {
        let RetNetShape { hidden, inner, query_keys, heads, key_gate, value_gate, neighbours, layers, .. } = shape;
        let norm = |gpu: &mut Gpu, len: usize| gpu.tensor(Activation::F32, len, |x| 1.0 + 0.3 * x);
        let mut all = Vec::new();
        for l in 0..layers {
            let gate = |gpu: &mut Gpu, middle: usize, rows: usize| -> Outcome<Gate> {
                Ok(Gate { first: matrix(gpu, middle, hidden, 1.0)?, second: matrix(gpu, rows, middle, 1.0)? })
            };
            let gated = l > 0 && neighbours > 0;
            let gates =
                if gated { Some([gate(gpu, key_gate, query_keys)?, gate(gpu, value_gate, inner)?]) } else { None };
            all.push(Layer {
                norm: norm(gpu, hidden)?,
                q: matrix(gpu, query_keys, hidden, 1.0)?,
                k: matrix(gpu, query_keys, hidden, 1.0)?,
                hidden: matrix(gpu, 2 * inner, hidden, 1.0)?,
                gates,
                norms: if l > 0 { Some([norm(gpu, query_keys)?, norm(gpu, inner)?]) } else { None },
                group_norm: norm(gpu, inner / heads)?,
                out: matrix(gpu, hidden, inner, 1.0)?,
            });
        }
        Ok(Self {
            shape,
            vocabulary,
            layers: all,
            embedding: matrix(gpu, vocabulary, hidden, 30.0)?,
            head: matrix(gpu, vocabulary, hidden, 1.0)?,
            norm: norm(gpu, hidden)?,
            numbers: (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect(),
            initial: (0..query_keys * inner / heads + 8 * layers * APART).map(|_| gpu.random()).collect(),
        })
    }

    /// `[heads, keys, values]` of row `n` of the batch and layer `l`.
    fn initial_state(&self, n: usize, l: usize) -> &[f32] {
        let RetNetShape { inner, query_keys, heads, layers, .. } = self.shape;
        &self.initial[(n * layers + l) * APART..][..query_keys * inner / heads]
    }

    /// The bytes of what a step reads.
    fn bytes(&self) -> usize {
        let of_layer = |l: &Layer| {
            let gates = l.gates.iter().flatten().map(|gate| gate.first.host.len() + gate.second.host.len());
            let own = [&l.q, &l.k, &l.hidden, &l.out].map(|matrix| matrix.host.len());
            2 * gates.chain(own).sum::<usize>()
        };
        self.layers.iter().map(of_layer).sum::<usize>() + 2 * self.head.host.len()
    }

    /// `x Wᵀ` in f64, over all processors.
    fn product(&self, matrix: &Matrix, x: &[f64]) -> Vec<f64> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows = matrix.host.len() / matrix.width;
        let dot =
            |row: &[u16]| row.iter().zip(x).map(|(w, x)| f64::from(self.numbers[usize::from(*w)]) * x).sum::<f64>();
        if matrix.host.len() < 1 << 16 {
            return matrix.host.chunks(matrix.width).map(dot).collect();
        }
        let each = rows.div_ceil(threads) * matrix.width;
        std::thread::scope(|scope| {
            let parts: Vec<_> = matrix
                .host
                .chunks(each)
                .map(|part| scope.spawn(move || part.chunks(matrix.width).map(dot).collect::<Vec<_>>()))
                .collect();
            parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
        })
    }
}

fn matrix(gpu: &mut Gpu, rows: usize, width: usize, scale: f32) -> Outcome<Matrix> {
    let scale = scale / (width as f32).sqrt();
    let table: Vec<u16> = (0..1 << 16).map(|_| f16::from_f32(scale * 1.7 * gpu.random()).to_bits()).collect();
    let mut host = Vec::with_capacity(rows * width);
    while host.len() < rows * width {
        let bits = gpu.bits();
        host.extend([0, 16, 32, 48].map(|shift| table[(bits >> shift) as u16 as usize]));
    }
    let device = Buffer::from_slice(&gpu.stream, &host)?;
    Ok(Matrix { host, device, width })
}

fn norm(x: &[f64], weight: &Tensor) -> Vec<f64> {
    let factor = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(EPSILON)).sqrt().recip();
    x.iter().zip(&weight.host).map(|(x, w)| x * factor * f64::from(*w)).collect()
}

/// A sequence's states on the CPU: of each layer `[heads, keys, values]`.
struct Row {
    states: Vec<Vec<f64>>,
}

impl Row {
    /// The states of row `n` of the batch as they are at first.
    fn new(model: &Model, n: usize) -> Self {
        let of_layer = |l| model.initial_state(n, l).iter().map(|x| f64::from(*x)).collect();
        Self { states: (0..model.shape.layers).map(of_layer).collect() }
    }

    /// The token at `position`; returns the logits. `rounded` rounds the operands of products to fp16, as the kernel
    /// does.
    fn step(&mut self, model: &Model, token: usize, position: usize, rounded: bool) -> Vec<f64> {
        let round = |x: Vec<f64>| -> Vec<f64> {
            if rounded { x.into_iter().map(|x| f16::from_f64(x).to_f64()).collect() } else { x }
        };
        let RetNetShape { hidden, inner, query_keys, heads, neighbours, .. } = model.shape;
        let (keys, values) = (query_keys / heads, inner / heads);
        let activated = |matrix: &Matrix, x: &[f64]| -> Vec<f64> {
            let mut y = model.product(matrix, x);
            y.iter_mut().for_each(|y| *y = silu(*y));
            y
        };
        let rotate = |x: &mut [f64]| {
            for (i, pair) in x.chunks_exact_mut(2).enumerate() {
                let j = i % (keys / 2);
                let turns = 10000_f64.powf(-(j as f64) / (keys / 2 - 1) as f64) / TAU * position as f64;
                let (sin, cos) = (turns.fract() * TAU).sin_cos();
                let (a, b) = (pair[0], pair[1]);
                (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
            }
        };
        let mut x: Vec<f64> = model.embedding.host[token * hidden..][..hidden]
            .iter()
            .map(|bits| f64::from(model.numbers[usize::from(*bits)]))
            .collect();
        let mut below: Vec<[Vec<f64>; 2]> = Vec::new();
        for (layer, state) in model.layers.iter().zip(&mut self.states) {
            let normed = round(norm(&x, &layer.norm));
            let mut q = activated(&layer.q, &normed);
            let mut k = activated(&layer.k, &normed);
            k.iter_mut().for_each(|k| *k /= (keys as f64).sqrt());
            let mut v = activated(&layer.hidden, &normed);
            let g = v.split_off(inner);
            let own = [k.clone(), v.clone()];
            for (i, fused) in [&mut k, &mut v].into_iter().enumerate() {
                if let Some(gates) = &layer.gates {
                    let gate = activated(&gates[i].second, &round(activated(&gates[i].first, &normed)));
                    for neighbour in below.iter().rev().take(neighbours) {
                        fused
                            .iter_mut()
                            .zip(&gate)
                            .zip(&neighbour[i])
                            .for_each(|((x, gate), other)| *x += gate * other);
                    }
                }
                if let Some(norms) = &layer.norms {
                    *fused = norm(fused, &norms[i]);
                }
            }
            below.push(own);
            rotate(&mut q);
            rotate(&mut k);
            let mut y = Vec::new();
            for h in 0..heads {
                let gap = 2.0_f64.powi(-5 - h as i32);
                let sum = -((position + 1) as f64 * (-gap).ln_1p()).exp_m1() / gap;
                let mut o = vec![0.0; values];
                let v = &v[h * values..][..values];
                for i in h * keys..(h + 1) * keys {
                    for ((s, v), o) in state[i * values..][..values].iter_mut().zip(v).zip(&mut o) {
                        *s = (1.0 - gap) * *s + k[i] * v;
                        *o += q[i] * *s;
                    }
                }
                o.iter_mut().for_each(|o| *o /= sum.sqrt());
                y.extend(norm(&o, &layer.group_norm).iter().zip(&g[h * values..]).map(|(o, g)| o * g));
            }
            x.iter_mut().zip(model.product(&layer.out, &round(y))).for_each(|(x, out)| *x += out);
        }
        model.product(&model.head, &round(norm(&x, &model.norm)))
    }
}

/// `CASE` in the environment is a part of the names of the cases to run.
pub(crate) fn check(gpu: &mut Gpu) -> Outcome {
    let case = std::env::var("CASE").unwrap_or_default();
    let dense = RetNetShape {
        hidden: 1536,
        inner: 3072,
        query_keys: 768,
        heads: 2,
        key_gate: 192,
        value_gate: 48,
        neighbours: 2,
        layers: 16,
        batch: 1,
    };
    let few = RetNetShape { layers: 4, ..dense };
    let plain = RetNetShape { neighbours: 0, ..few };
    let small = RetNetShape {
        hidden: 512,
        inner: 1024,
        query_keys: 512,
        heads: 4,
        key_gate: 64,
        value_gate: 16,
        layers: 3,
        neighbours: 1,
        ..dense
    };
    for (name, shape, vocabulary, batches) in [
        ("small", small, 1000, vec![1, 2, 4, 6, 8]),
        ("retnet of 4 layers", plain, 5000, vec![1, 6]),
        ("denseretnet of 4 layers", few, 5000, vec![1, 2, 4, 6, 8]),
        ("denseretnet-350m", dense, 32001, vec![1, 2, 4, 6, 8]),
    ] {
        let named = |batch: usize| format!("retnet_step {name} batch {batch}");
        let batches: Vec<usize> = batches.into_iter().filter(|batch| named(*batch).contains(&case)).collect();
        if batches.is_empty() {
            continue;
        }
        let mut model = Model::random(gpu, shape, vocabulary)?;
        for batch in batches {
            model.shape.batch = batch;
            if let Err(error) = run(gpu, &model, &named(batch)) {
                gpu.failed(&named(batch), &error.to_string());
            }
        }
    }
    Ok(())
}

fn run(gpu: &mut Gpu, model: &Model, name: &str) -> Outcome {
    let RetNetShape { hidden, inner, query_keys, heads, layers, batch, .. } = model.shape;
    let module = gpu.module(&units::retnet_step(Activation::F16, &model.shape))?;
    let function = module.function("retnet_step")?;
    let [blocks, threads, shared, lengths @ ..] = module.constants::<8>(&gpu.stream, "retnet_step_shape")?;
    let launch_shape = LaunchShape::new([blocks, 1, 1], threads).shared(shared).cooperative();

    let of_layer = batch * query_keys * inner / heads;
    let states: Buffer<f32> = gpu.zeros(layers * of_layer)?;
    let logits: Buffer<f32> = gpu.zeros(batch * model.vocabulary)?;
    let exchanged = lengths.iter().map(|len| gpu.zeros::<u64>(*len as usize)).collect::<Result<Vec<_>, _>>()?;
    let step: Buffer<u32> = gpu.zeros(1)?;
    let tokens: Buffer<i32> = gpu.zeros(batch)?;
    let past: Buffer<u64> = gpu.zeros(batch)?;
    let of = |matrix: &Matrix| matrix.device.address();
    let mut arguments = vec![
        tokens.address(),
        past.address(),
        of(&model.embedding),
        model.norm.address(),
        of(&model.head),
        logits.address(),
    ];
    arguments.extend(exchanged.iter().map(Buffer::address));
    arguments.extend([step.address(), model.vocabulary as u64, u64::from(EPSILON.to_bits())]);
    for (l, layer) in model.layers.iter().enumerate() {
        let state = states.address() + (l * of_layer * 4) as u64;
        let values = of(&layer.hidden);
        arguments.extend([layer.norm.address(), of(&layer.q), of(&layer.k), values]);
        arguments.push(values + (inner * hidden * 2) as u64);
        let gates = layer.gates.as_ref();
        arguments.extend(gates.map_or([0; 2], |[k, v]| [of(&k.first), of(&v.first)]));
        arguments.extend(gates.map_or([0; 2], |[k, v]| [of(&k.second), of(&v.second)]));
        arguments.extend(layer.norms.as_ref().map_or([0; 2], |[k, v]| [k.address(), v.address()]));
        arguments.extend([layer.group_norm.address(), of(&layer.out), state, state]);
    }

    // Some tokens against the CPU, and again from the beginning: the results must be the same bits.
    let count = 3;
    let position = |n: usize, i: usize| n * 977 + i;
    let texts: Vec<Vec<usize>> =
        (0..count).map(|_| (0..batch).map(|_| gpu.bits() as usize % model.vocabulary).collect()).collect();
    let mut first: Vec<Vec<f32>> = Vec::new();
    for pass in 0..2 {
        for (l, n) in (0..layers).flat_map(|l| (0..batch).map(move |n| (l, n))) {
            states.write(&gpu.stream, l * of_layer + n * of_layer / batch, model.initial_state(n, l))?;
        }
        for (i, text) in texts.iter().enumerate() {
            tokens.write(&gpu.stream, 0, &text.iter().map(|token| *token as i32).collect::<Vec<_>>())?;
            past.write(&gpu.stream, 0, &(0..batch).map(|n| position(n, i) as u64).collect::<Vec<_>>())?;
            logits.fill_bytes(&gpu.stream, 0xff)?;
            gpu.launch(&function, launch_shape, &arguments)?;
            let mut got = vec![0.0; logits.len()];
            logits.read(&gpu.stream, 0, &mut got)?;
            if pass == 0 {
                first.push(got);
            } else if first[i].iter().zip(&got).any(|(a, b)| a.to_bits() != b.to_bits()) {
                return Err(format!("token {i}: the same step twice gives other logits").into());
            }
        }
    }
    let mut got_states = vec![0.0; of_layer];
    states.read(&gpu.stream, (layers - 1) * of_layer, &mut got_states)?;
    // The CPU is slow: the first and the last row stand for all. The same steps on the CPU with operands rounded to fp16
    // show what rounding alone costs.
    for n in if batch == 1 { vec![0] } else { vec![0, batch - 1] } {
        let (mut row, mut rounded) = (Row::new(model, n), Row::new(model, n));
        for (i, text) in texts.iter().enumerate() {
            let expected = row.step(model, text[n], position(n, i), false);
            let got = &first[i][n * model.vocabulary..][..model.vocabulary];
            gpu.report_error(&format!("{name} row {n} token {i}"), relative_error(got, &expected), 3e-3);
            let emulated = rounded.step(model, text[n], position(n, i), true);
            let emulated: Vec<f32> = emulated.iter().map(|x| *x as f32).collect();
            println!("  of rounding alone, on the CPU: {:.2e}", relative_error(&emulated, &expected));
        }
        let of_row = of_layer / batch;
        let got = &got_states[n * of_row..][..of_row];
        gpu.report_error(&format!("{name} row {n} last state"), relative_error(got, &row.states[layers - 1]), 3e-3);
    }

    let bytes = (model.bytes() + 2 * 4 * states.len()) as f64;
    let median = gpu.time_graph(|| (0..20).try_for_each(|_| gpu.launch(&function, launch_shape, &arguments)))? / 20.0;
    gpu.report_time(name, median, bytes);
    println!("{name}: {:.0} steps/s, {:.0} tokens/s", 1e3 / median, 1e3 * batch as f64 / median);
    Ok(())
}
