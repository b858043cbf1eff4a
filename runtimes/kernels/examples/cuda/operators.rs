//! The kernels of Mamba, and the dense norm.

use super::gpu::{Gpu, Outcome, Tensor, relative_error, silu, softplus, tolerance};
use densessm_cuda::{Buffer, Function, LaunchShape, Module};
use densessm_kernels::cuda::{Activation, units};
use std::sync::Arc;

const F32: Activation = Activation::F32;

fn blocks(of: usize, size: usize) -> u32 {
    of.div_ceil(size) as u32
}

pub(crate) fn causal_conv(gpu: &mut Gpu) -> Outcome {
    for activation in Activation::ALL {
        let module = gpu.module(&units::causal_conv(activation, 4))?;
        let function = module.function("causal_conv")?;
        let case = |gpu: &mut Gpu, [batch, time, channels]: [usize; 3], check: bool| -> Outcome {
            let u = gpu.tensor(activation, batch * time * channels, |x| x)?;
            let weight = gpu.tensor(F32, 4 * channels, |x| x)?;
            let state = gpu.tensor(F32, batch * channels * 3, |x| x)?;
            let bias = gpu.tensor(F32, channels, |x| x)?;
            let lengths: Vec<i32> = (0..batch).map(|b| (time - (b * 5) % time.max(2).min(time)) as i32).collect();
            let on_gpu = gpu.integers(&lengths)?;
            let (y, present) = (gpu.output(activation, u.host.len())?, gpu.output(F32, state.host.len())?);
            let span = if time == 1 { 1 } else { 32 };
            let shape = LaunchShape::new([blocks(channels, 512), blocks(time, span), batch as u32], 128);
            let arguments = [
                u.address(),
                weight.address(),
                state.address(),
                bias.address(),
                on_gpu.address(),
                y.address(),
                present.address(),
                time as u64,
                channels as u64,
                span as u64,
            ];
            let name = format!("causal_conv {} {batch}x{time}x{channels}", activation.name());
            if !check {
                let time = gpu.time(|| gpu.launch(&function, shape, &arguments))?;
                gpu.report_time(&name, time, (u.device.len() + y.device.len()) as f64);
                return Ok(());
            }
            gpu.launch(&function, shape, &arguments)?;
            let mut expected = vec![0.0; u.host.len()];
            let mut states = vec![0.0; state.host.len()];
            for b in 0..batch {
                let length = lengths[b] as usize;
                let input = |c: usize, i: usize| {
                    f64::from(match i.checked_sub(3) {
                        None => state.host[(b * channels + c) * 3 + i],
                        Some(t) => u.host[(b * time + t) * channels + c],
                    })
                };
                for c in 0..channels {
                    for t in 0..length {
                        let sum = (0..4).map(|k| f64::from(weight.host[k * channels + c]) * input(c, t + k));
                        expected[(b * time + t) * channels + c] = silu(f64::from(bias.host[c]) + sum.sum::<f64>());
                    }
                    (0..3).for_each(|k| states[(b * channels + c) * 3 + k] = input(c, length + k));
                }
            }
            gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), tolerance(activation));
            gpu.report_error(&format!("{name} state"), relative_error(&gpu.read(&present)?, &states), 1e-7);
            Ok(())
        };
        case(gpu, [3, 71, 130], true)?;
        case(gpu, [2, 1, 256], true)?;
        case(gpu, [2, 2, 259], true)?;
        if activation != Activation::Bf16 {
            case(gpu, [8, 2048, 2048], false)?;
            case(gpu, [1, 1, 2048], false)?;
        }
    }
    Ok(())
}

struct Recurrence {
    u: Tensor,
    delta: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
}

impl Recurrence {
    fn new(gpu: &mut Gpu, activation: Activation, [batch, time, channels, states]: [usize; 4]) -> Outcome<Self> {
        Ok(Self {
            u: gpu.tensor(activation, batch * time * channels, |x| x)?,
            delta: gpu.tensor(activation, batch * time * channels, |x| 2.0 * x)?,
            bias: gpu.tensor(F32, channels, |x| 2.0 * x - 3.0)?,
            a: gpu.tensor(F32, channels * states, |x| -8.5 - 8.0 * x)?,
            b: gpu.tensor(activation, batch * time * states, |x| x)?,
            state: gpu.tensor(F32, batch * channels * states, |x| x)?,
        })
    }

    fn words(&self) -> [u64; 6] {
        [&self.u, &self.delta, &self.bias, &self.a, &self.b, &self.state].map(Tensor::address)
    }

    /// Advances channel c of row b by token t.
    fn advance(&self, h: &mut [f64], [b, t, c]: [usize; 3], [time, channels]: [usize; 2]) {
        let (at, states) = ((b * time + t) * channels + c, h.len());
        let delta = softplus(f64::from(self.delta.host[at]) + f64::from(self.bias.host[c]));
        for (n, h) in h.iter_mut().enumerate() {
            let input = delta * f64::from(self.u.host[at]) * f64::from(self.b.host[(b * time + t) * states + n]);
            *h = (delta * f64::from(self.a.host[c * states + n])).exp() * *h + input;
        }
    }
}

/// What is read out, for the scan and the step.
struct Readout {
    c: Tensor,
    skip: Tensor,
    z: Tensor,
    channel_gate: Option<Tensor>,
    state_gate: Option<Tensor>,
    projections: Vec<Tensor>,
}

impl Readout {
    fn new(
        gpu: &mut Gpu,
        activation: Activation,
        [batch, time, channels, states]: [usize; 4],
        projected: usize,
    ) -> Outcome<Self> {
        Ok(Self {
            c: gpu.tensor(activation, batch * time * states, |x| x)?,
            skip: gpu.tensor(F32, channels, |x| x)?,
            z: gpu.tensor(activation, batch * time * channels, |x| 2.0 * x)?,
            channel_gate: Some(gpu.tensor(activation, batch * time * channels, |x| 2.0 * x)?),
            state_gate: Some(gpu.tensor(activation, batch * time * states, |x| 2.0 * x)?),
            projections: (0..projected)
                .map(|_| gpu.tensor(F32, states * states, |x| 0.3 * x))
                .collect::<Result<_, _>>()?,
        })
    }

    /// `y` of a channel, from its own states and its neighbours'.
    fn read(&self, h: &[f64], others: &[Vec<f64>], u: f32, position: usize, [c, channels]: [usize; 2]) -> f64 {
        let states = h.len();
        let at = |values: &Tensor, n: usize| f64::from(values.host[position * states + n]);
        let own: f64 = (0..states).map(|n| h[n] * at(&self.c, n)).sum();
        let gated: Vec<f64> = (0..states)
            .map(|n| at(&self.c, n) * self.state_gate.as_ref().map_or(1.0, |gate| silu(at(gate, n))))
            .collect();
        let mut dense = 0.0;
        for (i, other) in others.iter().enumerate() {
            for n in 0..states {
                let r = match self.projections.get(i) {
                    None => gated[n],
                    Some(p) => (0..states).map(|k| gated[k] * f64::from(p.host[k * states + n])).sum(),
                };
                dense += other[n] * r;
            }
        }
        let channel = position * channels + c;
        let gate = self.channel_gate.as_ref().map_or(1.0, |gate| silu(f64::from(gate.host[channel])));
        (own + gate * dense + f64::from(self.skip.host[c]) * f64::from(u)) * silu(f64::from(self.z.host[channel]))
    }

    fn gates(&self) -> [u64; 2] {
        [&self.channel_gate, &self.state_gate].map(|gate| gate.as_ref().map_or(0, Tensor::address))
    }

    fn projections(&self, neighbours: usize) -> Vec<u64> {
        (0..neighbours.max(1)).map(|i| self.projections.get(i).map_or(0, Tensor::address)).collect()
    }
}

pub(crate) fn selective_scan(gpu: &mut Gpu) -> Outcome {
    for activation in Activation::ALL {
        for neighbours in [0, 2] {
            scan_case(gpu, activation, [3, 83, 136, 16], neighbours, 1, 0, true)?;
            scan_case(gpu, activation, [2, 200, 130, 16], neighbours, 3, neighbours, true)?;
            if activation != Activation::Bf16 {
                for (batch, time, segments) in
                    [(8, 2048, 1), (1, 2048, 4), (1, 2048, 8), (1, 2048, 16), (1, 512, 4), (1, 512, 8)]
                {
                    scan_case(gpu, activation, [batch, time, 2048, 16], neighbours, segments, 0, false)?;
                }
            }
        }
    }
    Ok(())
}

/// The kernels of a scan and how they are launched.
struct ScanLaunches {
    pass: Option<(Function, LaunchShape)>,
    scan: (Function, LaunchShape),
}

impl ScanLaunches {
    fn new(gpu: &Gpu, module: &Arc<Module>, [channels, batch, segments, neighbours]: [usize; 4]) -> Outcome<Self> {
        let [of_block, threads] = module.constants::<2>(&gpu.stream, "selective_scan_shape")?;
        let shape = |depth: usize| {
            let grid = [blocks(channels, of_block as usize), (batch * segments) as u32, depth as u32];
            LaunchShape::new(grid, threads)
        };
        let pass = module.function("selective_scan_segments")?;
        let scan = (module.function("selective_scan")?, shape(1));
        Ok(Self { pass: (segments > 1).then(|| (pass, shape(1 + neighbours))), scan })
    }

    fn run(&self, gpu: &Gpu, arguments: &[u64]) -> Outcome {
        for (function, shape) in self.pass.iter().chain([&self.scan]) {
            gpu.launch(function, *shape, arguments)?;
        }
        Ok(())
    }
}

fn scan_case(
    gpu: &mut Gpu,
    activation: Activation,
    sizes: [usize; 4],
    neighbours: usize,
    segments: usize,
    projected: usize,
    check: bool,
) -> Outcome {
    let [batch, time, channels, states] = sizes;
    let module = gpu.module(&units::selective_scan(activation, states, neighbours))?;
    let all = (0..=neighbours).map(|_| Recurrence::new(gpu, activation, sizes)).collect::<Result<Vec<_>, _>>()?;
    let readout = Readout::new(gpu, activation, sizes, projected)?;
    let lengths: Vec<i32> = (0..batch).map(|b| if check { (time - b * 30) as i32 } else { time as i32 }).collect();
    let on_gpu = gpu.integers(&lengths)?;
    let (y, present) = (gpu.output(activation, batch * time * channels)?, gpu.output(F32, batch * channels * states)?);
    let work: Buffer<f32> = gpu.zeros((1 + neighbours) * segments * batch * channels * states)?;
    let sums: Buffer<f32> = gpu.zeros((1 + neighbours) * segments * batch * channels)?;
    let mut arguments: Vec<u64> = all.iter().flat_map(Recurrence::words).collect();
    arguments.extend(readout.projections(neighbours));
    arguments.extend([readout.c.address(), readout.skip.address(), readout.z.address(), on_gpu.address()]);
    arguments.extend(readout.gates());
    arguments.extend([y.address(), present.address(), work.address(), sums.address()]);
    let tokens = time.div_ceil(segments).next_multiple_of(16);
    arguments.extend([batch, time, channels, segments, tokens].map(|size| size as u64));
    let name =
        format!("selective_scan {} {batch}x{time}x{channels} m {neighbours} segments {segments}", activation.name());
    if !check {
        let numbers = batch * time * channels * (4 + if neighbours > 0 { 1 + 2 * neighbours } else { 0 });
        let bytes = (numbers * activation.bytes()) as f64;
        let lanes = "STATES % 4 == 0 ? 4 : 1";
        let source = units::selective_scan(activation, states, neighbours).source();
        for (kind, changed) in [("", source.to_owned()), (" 2 lanes", source.replace(lanes, "2"))] {
            let unit = units::selective_scan(activation, states, neighbours).with_source(changed.leak());
            let module = gpu.module(&unit)?;
            let launches = ScanLaunches::new(gpu, &module, [channels, batch, segments, neighbours])?;
            let median = gpu.time(|| launches.run(gpu, &arguments))?;
            gpu.report_time(&format!("{name}{kind}"), median, bytes);
        }
        return Ok(());
    }
    ScanLaunches::new(gpu, &module, [channels, batch, segments, neighbours])?.run(gpu, &arguments)?;
    let mut expected = vec![0.0; batch * time * channels];
    let mut ends = vec![0.0; batch * channels * states];
    for b in 0..batch {
        for c in 0..channels {
            let start = |r: &Recurrence| -> Vec<f64> {
                r.state.host[(b * channels + c) * states..][..states].iter().map(|h| f64::from(*h)).collect()
            };
            let mut h: Vec<Vec<f64>> = all.iter().map(start).collect();
            for t in 0..lengths[b] as usize {
                for (recurrence, h) in all.iter().zip(&mut h) {
                    recurrence.advance(h, [b, t, c], [time, channels]);
                }
                let position = b * time + t;
                let u = all[0].u.host[position * channels + c];
                expected[position * channels + c] = readout.read(&h[0], &h[1..], u, position, [c, channels]);
            }
            ends[(b * channels + c) * states..][..states].copy_from_slice(&h[0]);
        }
    }
    let tolerance_of_y = if activation == F32 { 5e-6 } else { tolerance(activation) };
    gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), tolerance_of_y);
    gpu.report_error(&format!("{name} state"), relative_error(&gpu.read(&present)?, &ends), 5e-6);
    Ok(())
}

pub(crate) fn selective_step(gpu: &mut Gpu) -> Outcome {
    for activation in Activation::ALL {
        for (neighbours, projected) in [(0, 0), (2, 0), (2, 2)] {
            for (batch, channels, states, check) in
                [(3, 70, 16, true), (2, 33, 5, true), (1, 2048, 16, false), (64, 2048, 16, false)]
            {
                if check || projected == 0 {
                    step_case(gpu, activation, [batch, channels, states], neighbours, projected, check)?;
                }
            }
        }
    }
    Ok(())
}

fn step_case(
    gpu: &mut Gpu,
    activation: Activation,
    [batch, channels, states]: [usize; 3],
    neighbours: usize,
    projected: usize,
    check: bool,
) -> Outcome {
    let sizes = [batch, 1, channels, states];
    let module = gpu.module(&units::selective_step(activation, states, neighbours))?;
    let function = module.function("selective_step")?;
    let own = Recurrence::new(gpu, activation, sizes)?;
    let readout = Readout::new(gpu, activation, sizes, projected)?;
    let others = (0..neighbours.max(1))
        .map(|_| gpu.tensor(F32, batch * channels * states, |x| x))
        .collect::<Result<Vec<_>, _>>()?;
    let (y, present) = (gpu.output(activation, batch * channels)?, gpu.output(F32, batch * channels * states)?);
    let [u, delta, bias, a, b, state] = own.words();
    let [channel_gate, state_gate] = readout.gates();
    let mut arguments = vec![
        u,
        delta,
        bias,
        a,
        b,
        state,
        readout.c.address(),
        readout.skip.address(),
        readout.z.address(),
        channel_gate,
        state_gate,
    ];
    arguments.extend(others.iter().map(Tensor::address));
    arguments.extend(readout.projections(neighbours));
    arguments.extend([y.address(), present.address(), channels as u64]);
    let lanes = if states % 4 == 0 { states / 4 } else { 1 };
    let shape = LaunchShape::new([blocks(channels * lanes, 128), batch as u32, 1], 128);
    let name = format!(
        "selective_step {} {batch}x{channels}x{states} m {neighbours} projected {projected}",
        activation.name()
    );
    if !check {
        let median = gpu.time_graph(|| (0..50).try_for_each(|_| gpu.launch(&function, shape, &arguments)))? / 50.0;
        gpu.report_time(&name, median, ((2 + neighbours) * batch * channels * states * 4) as f64);
        return Ok(());
    }
    gpu.launch(&function, shape, &arguments)?;
    let (mut expected, mut ends) = (Vec::new(), Vec::new());
    for b in 0..batch {
        for c in 0..channels {
            let numbers = |values: &Tensor| -> Vec<f64> {
                values.host[(b * channels + c) * states..][..states].iter().map(|h| f64::from(*h)).collect()
            };
            let mut h = numbers(&own.state);
            own.advance(&mut h, [b, 0, c], [1, channels]);
            let below: Vec<Vec<f64>> = others.iter().take(neighbours).map(numbers).collect();
            expected.push(readout.read(&h, &below, own.u.host[b * channels + c], b, [c, channels]));
            ends.extend(h);
        }
    }
    gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), tolerance(activation));
    gpu.report_error(&format!("{name} state"), relative_error(&gpu.read(&present)?, &ends), 2e-6);
    Ok(())
}

pub(crate) fn dense_norm(gpu: &mut Gpu) -> Outcome {
    for activation in Activation::ALL {
        for (rows, width, neighbours) in [(5, 768, 2), (3, 3072, 1), (4, 37, 2), (2, 64, 0), (16384, 3072, 2)] {
            let module = gpu.module(&units::dense_norm(activation, width, neighbours))?;
            let function = module.function("dense_norm")?;
            let own = gpu.tensor(activation, rows * width, |x| x)?;
            let weight = gpu.tensor(F32, width, |x| x)?;
            let gate = gpu.tensor(activation, rows * width, |x| 2.0 * x)?;
            let others = (0..neighbours.max(1))
                .map(|_| gpu.tensor(activation, rows * width, |x| x))
                .collect::<Result<Vec<_>, _>>()?;
            let y = gpu.output(activation, rows * width)?;
            let mut arguments = vec![own.address(), weight.address(), gate.address()];
            arguments.extend(others.iter().map(Tensor::address));
            arguments.extend([y.address(), u64::from(1e-6_f32.to_bits())]);
            let shape = LaunchShape::new([rows as u32, 1, 1], if width >= 2048 { 256 } else { 128 });
            let name = format!("dense_norm {} {rows}x{width} m {neighbours}", activation.name());
            if rows > 1000 {
                let median = gpu.time(|| gpu.launch(&function, shape, &arguments))?;
                gpu.report_time(&name, median, (rows * width * (3 + neighbours) * activation.bytes()) as f64);
                continue;
            }
            gpu.launch(&function, shape, &arguments)?;
            let mut expected = Vec::new();
            for row in 0..rows {
                let x: Vec<f64> = (row * width..(row + 1) * width)
                    .map(|i| {
                        let sum: f64 = others.iter().take(neighbours).map(|other| f64::from(other.host[i])).sum();
                        f64::from(own.host[i]) + silu(f64::from(gate.host[i])) * sum
                    })
                    .collect();
                let factor = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-6).sqrt().recip();
                expected.extend(x.iter().zip(&weight.host).map(|(x, w)| x * factor * f64::from(*w)));
            }
            gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), tolerance(activation));
        }
    }
    Ok(())
}
