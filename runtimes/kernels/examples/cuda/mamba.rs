//! The whole decode step of Mamba and DenseMamba as one kernel.

use super::gpu::{Gpu, Outcome, Tensor, relative_error, silu, softplus};
use densessm_cuda::{Buffer, LaunchShape};
use densessm_kernels::cuda::{
    Activation,
    units::{self, MambaShape},
};
use half::f16;

const STATES: usize = 16;
const EPSILON: f32 = 1e-5;

/// A matrix of fp16 numbers.
struct Matrix {
    host: Vec<u16>,
    device: Buffer<u16>,
    width: usize,
}

struct Layer {
    norm: Tensor,
    in_proj: Matrix,
    gates: Option<Matrix>,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Matrix,
    dt_proj: Matrix,
    dt_bias: Tensor,
    channel_gate: Matrix,
    state_gate: Matrix,
    a: Tensor,
    skip: Tensor,
    out_proj: Matrix,
}

struct Model {
    shape: MambaShape,
    vocabulary: usize,
    layers: Vec<Layer>,
    embedding: Matrix,
    norm: Tensor,
    numbers: Vec<f32>,
}

impl Model {
    fn random(gpu: &mut Gpu, shape: MambaShape, vocabulary: usize) -> Outcome<Self> {
        let MambaShape { hidden, inner, rank, taps, gate, neighbours, layers, .. } = shape;
        let f32s = |gpu: &mut Gpu, len: usize, number: fn(f32) -> f32| gpu.tensor(Activation::F32, len, number);
        let mut all = Vec::new();
        for l in 0..layers {
            all.push(Layer {
                norm: f32s(gpu, hidden, |x| 1.0 + 0.3 * x)?,
                in_proj: matrix(gpu, 2 * inner, hidden, 1.0)?,
                gates: if neighbours > 0 && l > 0 { Some(matrix(gpu, 2 * gate, hidden, 1.0)?) } else { None },
                conv_weight: f32s(gpu, inner * taps, |x| x)?,
                conv_bias: f32s(gpu, inner, |x| 0.3 * x)?,
                x_proj: matrix(gpu, rank + 2 * STATES, inner, 1.0)?,
                dt_proj: matrix(gpu, inner, rank, 1.0)?,
                dt_bias: f32s(gpu, inner, |x| 2.0 * x - 4.0)?,
                channel_gate: matrix(gpu, inner, gate, 1.0)?,
                state_gate: matrix(gpu, STATES, gate, 1.0)?,
                a: f32s(gpu, inner * STATES, |x| -8.5 - 7.5 * x)?,
                skip: f32s(gpu, inner, |x| x)?,
                out_proj: matrix(gpu, hidden, inner, 1.0)?,
            });
        }
        Ok(Self {
            shape,
            vocabulary,
            layers: all,
            embedding: matrix(gpu, vocabulary, hidden, 30.0)?,
            norm: f32s(gpu, hidden, |x| 1.0 + 0.3 * x)?,
            numbers: (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect(),
        })
    }

    fn bytes(&self) -> usize {
        let of_layer = |l: &Layer| {
            let matrices = [&l.in_proj, &l.x_proj, &l.dt_proj, &l.channel_gate, &l.state_gate, &l.out_proj];
            let numbers: usize = matrices.iter().map(|m| m.host.len()).sum();
            2 * (numbers + l.gates.as_ref().map_or(0, |m| m.host.len())) + l.a.device.len() + l.conv_weight.device.len()
        };
        self.layers.iter().map(of_layer).sum::<usize>() + 2 * self.embedding.host.len()
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

/// A sequence's states on the CPU.
struct Row {
    conv: Vec<Vec<f64>>,
    states: Vec<Vec<f64>>,
}

fn norm(x: &[f64], weight: &Tensor) -> Vec<f64> {
    let factor = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(EPSILON)).sqrt().recip();
    x.iter().zip(&weight.host).map(|(x, w)| x * factor * f64::from(*w)).collect()
}

impl Row {
    fn new(shape: &MambaShape) -> Self {
        let MambaShape { inner, taps, layers, .. } = *shape;
        Self { conv: vec![vec![0.0; inner * (taps - 1)]; layers], states: vec![vec![0.0; inner * STATES]; layers] }
    }

    /// One token; returns the logits. `rounded` rounds the operands of products to fp16, as the kernel does.
    fn step(&mut self, model: &Model, token: usize, rounded: bool) -> Vec<f64> {
        let round = |x: Vec<f64>| -> Vec<f64> {
            if rounded { x.into_iter().map(|x| f16::from_f64(x).to_f64()).collect() } else { x }
        };
        let MambaShape { hidden, inner, rank, taps, gate, neighbours, .. } = model.shape;
        let number = |bits: &u16| f64::from(model.numbers[usize::from(*bits)]);
        let mut x: Vec<f64> = model.embedding.host[token * hidden..][..hidden].iter().map(number).collect();
        for (l, layer) in model.layers.iter().enumerate() {
            let at = |values: &Tensor, i: usize| f64::from(values.host[i]);
            let normed = round(norm(&x, &layer.norm));
            let uz = model.product(&layer.in_proj, &normed);
            let mut u = vec![0.0; inner];
            for (c, u) in u.iter_mut().enumerate() {
                let window = &mut self.conv[l][c * (taps - 1)..][..taps - 1];
                let sum: f64 = (0..taps)
                    .map(|k| at(&layer.conv_weight, c * taps + k) * window.get(k).copied().unwrap_or(uz[c]))
                    .sum();
                *u = silu(sum + at(&layer.conv_bias, c));
                window.rotate_left(1);
                window[taps - 2] = uz[c];
            }
            let projected = model.product(&layer.x_proj, &round(u.clone()));
            let delta = model.product(&layer.dt_proj, &round(projected[..rank].to_vec()));
            let (b, c_vector) = (&projected[rank..rank + STATES], &projected[rank + STATES..]);
            let gates = layer.gates.as_ref().map(|gates| {
                let middle = round(model.product(gates, &normed).into_iter().map(silu).collect());
                let of_channels = model.product(&layer.channel_gate, &middle[..gate]);
                (of_channels, model.product(&layer.state_gate, &middle[gate..]))
            });
            let mut y = vec![0.0; inner];
            for c in 0..inner {
                let delta = softplus(delta[c] + at(&layer.dt_bias, c));
                for n in 0..STATES {
                    let i = c * STATES + n;
                    let h = (delta * at(&layer.a, i)).exp() * self.states[l][i] + delta * u[c] * b[n];
                    self.states[l][i] = h;
                    let mut fused = h;
                    if let Some((channels, states)) = &gates {
                        let below: f64 = (1..=neighbours.min(l)).map(|j| self.states[l - j][i]).sum();
                        fused += silu(channels[c]) * silu(states[n]) * below;
                    }
                    y[c] += fused * c_vector[n];
                }
                y[c] = (y[c] + at(&layer.skip, c) * u[c]) * silu(uz[inner + c]);
            }
            x.iter_mut().zip(model.product(&layer.out_proj, &round(y))).for_each(|(x, out)| *x += out);
        }
        model.product(&model.embedding, &round(norm(&x, &model.norm)))
    }
}

pub(crate) fn check(gpu: &mut Gpu) -> Outcome {
    let dense =
        MambaShape { hidden: 1024, inner: 2048, rank: 64, taps: 4, gate: 64, neighbours: 2, layers: 50, batch: 1 };
    let mamba = MambaShape { neighbours: 0, layers: 48, ..dense };
    let few = MambaShape { layers: 4, ..dense };
    for (name, shape, vocabulary, batches) in [
        ("densemamba of 4 layers", few, 5000, vec![1, 2, 3, 4, 6, 7, 8]),
        ("densemamba-360m", dense, 32000, vec![1, 6, 8]),
        ("mamba-370m", mamba, 50280, vec![1, 6]),
    ] {
        let mut model = Model::random(gpu, shape, vocabulary)?;
        for batch in batches {
            model.shape.batch = batch;
            if let Err(error) = run(gpu, &model, &format!("mamba_step {name} batch {batch}")) {
                gpu.failed(name, &error.to_string());
            }
        }
    }
    Ok(())
}

fn run(gpu: &mut Gpu, model: &Model, name: &str) -> Outcome {
    let MambaShape { inner, taps, layers, batch, .. } = model.shape;
    let module = gpu.module(&units::mamba_step(Activation::F16, &model.shape))?;
    let function = module.function("mamba_step")?;
    let [blocks, threads, shared, x_words, g_words, y_words, sums_words] =
        module.constants::<7>(&gpu.stream, "mamba_step_shape")?;
    let launch_shape = LaunchShape::new([blocks, 1, 1], threads).shared(shared).cooperative();

    let conv: Buffer<f32> = gpu.zeros(layers * batch * inner * (taps - 1))?;
    let states: Buffer<f32> = gpu.zeros(layers * batch * inner * STATES)?;
    let logits: Buffer<f32> = gpu.zeros(batch * model.vocabulary)?;
    let x: Buffer<u64> = gpu.zeros(x_words as usize)?;
    let g: Buffer<u64> = gpu.zeros(g_words as usize)?;
    let y: Buffer<u64> = gpu.zeros(y_words as usize)?;
    // A variant below has up to four times as many sums.
    let sums: Buffer<u64> = gpu.zeros(4 * sums_words as usize)?;
    let step: Buffer<u32> = gpu.zeros(1)?;
    let tokens: Buffer<i32> = gpu.zeros(batch)?;
    let mut arguments = vec![
        tokens.address(),
        model.embedding.device.address(),
        model.norm.address(),
        model.embedding.device.address(),
        logits.address(),
        x.address(),
        g.address(),
        y.address(),
        sums.address(),
        step.address(),
        model.vocabulary as u64,
        u64::from(EPSILON.to_bits()),
    ];
    for (l, layer) in model.layers.iter().enumerate() {
        let conv = conv.address() + (l * batch * inner * (taps - 1) * 4) as u64;
        let state = states.address() + (l * batch * inner * STATES * 4) as u64;
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

    // Some tokens against the CPU, and again from the beginning: the results must be the same bits.
    let count = 3;
    let texts: Vec<Vec<usize>> =
        (0..count).map(|_| (0..batch).map(|_| gpu.bits() as usize % model.vocabulary).collect()).collect();
    let mut first: Vec<Vec<f32>> = Vec::new();
    for pass in 0..2 {
        conv.fill_bytes(&gpu.stream, 0)?;
        states.fill_bytes(&gpu.stream, 0)?;
        for (i, text) in texts.iter().enumerate() {
            tokens.write(&gpu.stream, 0, &text.iter().map(|token| *token as i32).collect::<Vec<_>>())?;
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
    let mut got_states = vec![0.0; states.len()];
    states.read(&gpu.stream, 0, &mut got_states)?;
    // The CPU is slow: the first and the last row stand for all. The same steps on the CPU with operands rounded to fp16
    // show what rounding alone costs.
    for n in if batch == 1 { vec![0] } else { vec![0, batch - 1] } {
        let (mut row, mut rounded) = (Row::new(&model.shape), Row::new(&model.shape));
        for (i, text) in texts.iter().enumerate() {
            let expected = row.step(model, text[n], false);
            let got = &first[i][n * model.vocabulary..][..model.vocabulary];
            gpu.report_error(&format!("{name} row {n} token {i}"), relative_error(got, &expected), 1.5e-3);
            if n == 0 {
                let emulated: Vec<f32> = rounded.step(model, text[n], true).iter().map(|x| *x as f32).collect();
                println!("  of rounding alone, on the CPU: {:.2e}", relative_error(&emulated, &expected));
            }
        }
        let last = layers - 1;
        let got = &got_states[(last * batch + n) * inner * STATES..][..inner * STATES];
        gpu.report_error(&format!("{name} row {n} last state"), relative_error(got, &row.states[last]), 2e-3);
    }

    let bytes = (model.bytes() + 2 * 4 * states.len()) as f64;
    let median = gpu.time(|| gpu.launch(&function, launch_shape, &arguments))?;
    gpu.report_time(&format!("{name} single"), median, bytes);
    let median = gpu.time_graph(|| (0..20).try_for_each(|_| gpu.launch(&function, launch_shape, &arguments)))? / 20.0;
    gpu.report_time(name, median, bytes);
    println!("{name}: {:.0} steps/s, {:.0} tokens/s", 1e3 / median, 1e3 * batch as f64 / median);

    if layers < 40 {
        return Ok(());
    }
    variants(gpu, model, name, &arguments, (launch_shape, &sums), bytes)
}

/// Where the time goes: the same kernel without waiting for other blocks (its results are wrong), without copying
/// weights, and with other constants.
fn variants(
    gpu: &mut Gpu,
    model: &Model,
    name: &str,
    arguments: &[u64],
    (shape, sums): (LaunchShape, &Buffer<u64>),
    bytes: f64,
) -> Outcome {
    let source = units::mamba_step(Activation::F16, &model.shape).source();
    let none = [
        ("expect_bytes(barrier, rows * width * 2)", "expect_bytes(barrier, 0)"),
        ("if (lane < rows) bulk_copy", "if (false) bulk_copy"),
    ];
    let replicas = "constexpr int REPLICAS = BATCH <= 2 ? 4 : 2;";
    let flight = "constexpr int FLIGHT = 3;";
    let all: [(&str, &[(&str, &str)]); 9] = [
        ("without waits", &[("} while (!all);", "} while (false);")]),
        ("without copies", &none),
        ("without asking for the rest", &[("if (bytes >= 16) prefetch", "if (false) prefetch")]),
        ("1 replica", &[(replicas, "constexpr int REPLICAS = 1;")]),
        ("2 or 4 replicas", &[(replicas, "constexpr int REPLICAS = BATCH <= 2 ? 2 : 4;")]),
        ("2 pieces under way", &[(flight, "constexpr int FLIGHT = 2;")]),
        ("4 pieces under way", &[(flight, "constexpr int FLIGHT = 4;")]),
        ("6 pieces under way", &[(flight, "constexpr int FLIGHT = 6;")]),
        ("8 pieces under way", &[(flight, "constexpr int FLIGHT = 8;")]),
    ];
    for (variant, replacements) in all {
        let mut changed = source.to_owned();
        for (from, to) in replacements {
            if !changed.contains(from) {
                return Err(format!("{variant}: the source has no `{from}`").into());
            }
            changed = changed.replace(from, to);
        }
        let unit = units::mamba_step(Activation::F16, &model.shape).with_source(changed.leak());
        let function = gpu.module(&unit)?.function("mamba_step")?;
        sums.fill_bytes(&gpu.stream, 0)?;
        let launch = || gpu.launch(&function, shape, arguments);
        launch()?;
        let median = gpu.time_graph(|| (0..20).try_for_each(|_| launch()))? / 20.0;
        gpu.report_time(&format!("{name} {variant}"), median, bytes);
    }
    Ok(())
}
