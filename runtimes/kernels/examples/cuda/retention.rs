//! The kernels of retention.

use super::gpu::{Gpu, Outcome, Tensor, relative_error, tolerance};
use densessm_cuda::{Buffer, LaunchShape};
use densessm_kernels::cuda::{Activation, units};

const F32: Activation = Activation::F32;
const EPSILON: f32 = 1e-6;

struct Inputs {
    sizes: [usize; 5],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cosines: Tensor,
    sines: Tensor,
    scale: Tensor,
    state: Tensor,
    gate: Tensor,
    norm: Tensor,
}

impl Inputs {
    /// `[batch, time, heads, keys, values]`.
    fn new(gpu: &mut Gpu, activation: Activation, sizes: [usize; 5]) -> Outcome<Self> {
        let [batch, time, heads, keys, values] = sizes;
        let tokens = batch * time;
        let angles: Vec<f32> = (0..tokens * keys / 2).map(|_| 3.0 * gpu.random()).collect();
        let upload = |gpu: &Gpu, values: Vec<f32>| -> Outcome<Tensor> {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            Ok(Tensor { device: Buffer::from_slice(&gpu.stream, &bytes)?, host: values, activation: F32 })
        };
        Ok(Self {
            sizes,
            q: gpu.tensor(activation, tokens * heads * keys, |x| x)?,
            k: gpu.tensor(activation, tokens * heads * keys, |x| 0.05 * x)?,
            v: gpu.tensor(activation, tokens * heads * values, |x| x)?,
            cosines: upload(gpu, angles.iter().map(|x| x.cos()).collect())?,
            sines: upload(gpu, angles.iter().map(|x| x.sin()).collect())?,
            scale: gpu.tensor(F32, tokens * heads, |x| 0.6 + 0.4 * x)?,
            state: gpu.tensor(F32, batch * heads * keys * values, |x| 0.2 * x)?,
            gate: gpu.tensor(activation, tokens * heads * values, |x| x)?,
            norm: gpu.tensor(F32, values, |x| 1.0 + 0.5 * x)?,
        })
    }

    /// The result and the state in f64.
    fn expected(&self, lengths: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let [batch, time, heads, keys, values] = self.sizes;
        let mut y = vec![0.0; batch * time * heads * values];
        let mut states: Vec<f64> = self.state.host.iter().map(|x| f64::from(*x)).collect();
        std::thread::scope(|scope| {
            let parts = states.chunks_mut(keys * values).enumerate();
            let threads: Vec<_> =
                parts.map(|(bh, state)| scope.spawn(move || self.head(bh, state, lengths[bh / heads]))).collect();
            for (bh, thread) in threads.into_iter().enumerate() {
                let o = thread.join().unwrap_or_default();
                for (t, o) in o.chunks(values).enumerate() {
                    y[((bh / heads * time + t) * heads + bh % heads) * values..][..values].copy_from_slice(o);
                }
            }
        });
        (y, states)
    }

    fn head(&self, bh: usize, state: &mut [f64], length: usize) -> Vec<f64> {
        let [_, time, heads, keys, values] = self.sizes;
        let (b, h) = (bh / heads, bh % heads);
        let decay = 1.0 - 2.0_f64.powi(-5 - h as i32);
        let mut all = Vec::new();
        for t in 0..length {
            let at = b * time + t;
            let rotate = |x: &Tensor| -> Vec<f64> {
                let x = &x.host[(at * heads + h) * keys..][..keys];
                let pairs = x.chunks(2).enumerate().map(|(j, pair)| {
                    let (c, s) = (
                        f64::from(self.cosines.host[at * (keys / 2) + j]),
                        f64::from(self.sines.host[at * (keys / 2) + j]),
                    );
                    let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
                    [a * c - b * s, b * c + a * s]
                });
                pairs.flatten().collect()
            };
            let (q, k) = (rotate(&self.q), rotate(&self.k));
            let v = &self.v.host[(at * heads + h) * values..][..values];
            let mut o = vec![0.0; values];
            for (row, (q, k)) in state.chunks_mut(values).zip(q.iter().zip(&k)) {
                for ((s, v), o) in row.iter_mut().zip(v).zip(&mut o) {
                    *s = decay * *s + k * f64::from(*v);
                    *o += q * *s;
                }
            }
            let scale = f64::from(self.scale.host[at * heads + h]);
            let squares = o.iter().map(|o| (o * scale).powi(2)).sum::<f64>() / values as f64;
            let factor = scale * (squares + f64::from(EPSILON)).sqrt().recip();
            let gate = &self.gate.host[(at * heads + h) * values..][..values];
            all.extend(
                o.iter().zip(&self.norm.host).zip(gate).map(|((o, w), g)| o * factor * f64::from(*w) * f64::from(*g)),
            );
        }
        all
    }
}

pub(crate) fn step(gpu: &mut Gpu) -> Outcome {
    for activation in Activation::ALL {
        for (batch, heads, keys, values, check) in [
            (2, 2, 384, 1536, true),
            (1, 4, 320, 1280, true),
            (3, 3, 10, 37, true),
            (1, 2, 384, 1536, false),
            (6, 2, 384, 1536, false),
            (64, 2, 384, 1536, false),
        ] {
            if !check && activation != Activation::F16 {
                continue;
            }
            for splits in if check { vec![1, 3] } else { vec![2, 4, 6, 8, 12, 16] } {
                step_case(gpu, activation, [batch, 1, heads, keys, values], splits, check)?;
            }
        }
    }
    Ok(())
}

fn step_case(gpu: &mut Gpu, activation: Activation, sizes: [usize; 5], splits: usize, check: bool) -> Outcome {
    let [batch, _, heads, keys, values] = sizes;
    let module = gpu.module(&units::retention_step(activation, keys, values))?;
    let function = module.function("retention_step")?;
    let inputs = Inputs::new(gpu, activation, sizes)?;
    let (y, present) = (gpu.output(activation, batch * heads * values)?, gpu.output(F32, inputs.state.host.len())?);
    let partial: Buffer<f32> = gpu.zeros(batch * heads * splits * values)?;
    let arrived: Buffer<u32> = gpu.zeros(batch * heads)?;
    let arguments = |state: u64, present: u64| {
        let of = [&inputs.q, &inputs.k, &inputs.v, &inputs.cosines, &inputs.sines, &inputs.scale].map(Tensor::address);
        let mut arguments = of.to_vec();
        arguments.extend([state, inputs.gate.address(), inputs.norm.address(), y.address(), present]);
        arguments.extend([partial.address(), arrived.address(), heads as u64, u64::from(EPSILON.to_bits())]);
        arguments
    };
    let shape = LaunchShape::new([values.div_ceil(128) as u32, splits as u32, (batch * heads) as u32], 256);
    let name = format!("retention_step {} {batch}x{heads}x{keys}x{values} splits {splits}", activation.name());
    if !check {
        // Sixteen layers, as the states of one would stay in the cache.
        let states = (0..16).map(|_| gpu.zeros::<f32>(inputs.state.host.len())).collect::<Result<Vec<_>, _>>()?;
        for state in &states {
            let bytes: Vec<f32> = inputs.state.host.clone();
            state.write(&gpu.stream, 0, &bytes)?;
        }
        for (kind, shape) in [("", shape), (" dependent", shape.dependent())] {
            let median = gpu.time_graph(|| {
                states
                    .iter()
                    .try_for_each(|state| gpu.launch(&function, shape, &arguments(state.address(), state.address())))
            })?;
            gpu.report_time(&format!("{name}{kind}"), median / 16.0, (2 * 4 * inputs.state.host.len()) as f64);
        }
        return Ok(());
    }
    // Twice: the first call must leave the counters as they were.
    for _ in 0..2 {
        gpu.launch(&function, shape, &arguments(inputs.state.address(), present.address()))?;
    }
    let (expected, states) = inputs.expected(&vec![1; batch]);
    gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), tolerance(activation));
    gpu.report_error(&format!("{name} state"), relative_error(&gpu.read(&present)?, &states), 2e-6);
    Ok(())
}

pub(crate) fn recurrent(gpu: &mut Gpu) -> Outcome {
    sequence(gpu, F32, [2, 77, 2, 384, 1536], false, 1, true)?;
    sequence(gpu, F32, [2, 9, 3, 10, 37], false, 1, true)?;
    sequence(gpu, Activation::F16, [1, 20, 2, 320, 1280], false, 1, true)?;
    sequence(gpu, F32, [1, 2048, 2, 384, 1536], false, 1, false)?;
    sequence(gpu, F32, [8, 2048, 2, 384, 1536], false, 1, false)
}

pub(crate) fn chunks(gpu: &mut Gpu) -> Outcome {
    for activation in [Activation::F16, Activation::Bf16] {
        sequence(gpu, activation, [2, 333, 2, 384, 1536], true, 1, true)?;
        sequence(gpu, activation, [2, 333, 2, 384, 1536], true, 3, true)?;
        sequence(gpu, activation, [2, 50, 4, 320, 1280], true, 1, true)?;
        sequence(gpu, activation, [2, 150, 2, 32, 64], true, 2, true)?;
    }
    for (batch, time, segments) in
        [(1, 512, 1), (1, 512, 2), (1, 512, 4), (1, 2048, 1), (1, 2048, 2), (1, 2048, 4), (1, 2048, 8), (8, 2048, 1)]
    {
        sequence(gpu, Activation::F16, [batch, time, 2, 384, 1536], true, segments, false)?;
    }
    Ok(())
}

fn sequence(
    gpu: &mut Gpu,
    activation: Activation,
    sizes: [usize; 5],
    chunked: bool,
    segments: usize,
    check: bool,
) -> Outcome {
    let [batch, time, heads, keys, values] = sizes;
    let unit = if chunked { units::retention_chunks } else { units::retention };
    let module = gpu.module(&unit(activation, keys, values))?;
    let inputs = Inputs::new(gpu, activation, sizes)?;
    let lengths: Vec<usize> = (0..batch).map(|b| if check { time - b * (time / 3) } else { time }).collect();
    let on_gpu = gpu.integers(&lengths.iter().map(|length| *length as i32).collect::<Vec<_>>())?;
    let (y, present) =
        (gpu.output(activation, batch * time * heads * values)?, gpu.output(F32, inputs.state.host.len())?);
    let tokens = if chunked { 64 } else { 8 };
    let padded = time.next_multiple_of(tokens);
    let rotated = || -> Outcome<Buffer<f32>> { gpu.zeros(batch * heads * padded * keys.next_multiple_of(4)) };
    let (queries, rotated_keys) = (rotated()?, rotated()?);
    let scores: Buffer<u16> = gpu.zeros(batch * heads * padded * 64)?;
    let segment_states: Buffer<f32> = gpu.zeros(segments * inputs.state.host.len())?;
    let segment_tokens = padded.div_ceil(segments).next_multiple_of(tokens);
    let mut arguments = [
        &inputs.q,
        &inputs.k,
        &inputs.v,
        &inputs.cosines,
        &inputs.sines,
        &inputs.scale,
        &inputs.state,
        &inputs.gate,
        &inputs.norm,
    ]
    .map(Tensor::address)
    .to_vec();
    arguments.extend([
        on_gpu.address(),
        y.address(),
        present.address(),
        queries.address(),
        rotated_keys.address(),
        scores.address(),
        segment_states.address(),
    ]);
    arguments.extend([time, padded, heads, segments, segment_tokens].map(|size| size as u64));
    arguments.push(u64::from(EPSILON.to_bits()));
    let rows = (batch * heads) as u32;
    let finish = module.function("retention_finish")?;
    let finish_shape = LaunchShape::new([time as u32, rows, 1], 128);
    let (first, first_shape, main, main_shape, states) = if chunked {
        let [threads, tile, shared, prepare_threads, prepare_shared] =
            module.constants::<5>(&gpu.stream, "retention_chunks_shape")?;
        let of_segments = |count: u32| LaunchShape::new([values as u32 / tile, rows, count], threads).shared(shared);
        (
            module.function("retention_chunks_prepare")?,
            LaunchShape::new([(padded / 64) as u32, rows, 1], prepare_threads).shared(prepare_shared),
            module.function("retention_chunks")?,
            of_segments(segments as u32),
            Some((module.function("retention_chunks_states")?, of_segments(segments as u32 - 1))),
        )
    } else {
        let stage = 8 * (2 * keys.next_multiple_of(4) + 64) * 4;
        (
            module.function("retention_rotate")?,
            LaunchShape::new([padded as u32, rows, 1], 128),
            module.function("retention")?,
            LaunchShape::new([values.div_ceil(64) as u32, rows, 1], 256).shared(2 * stage as u32),
            None,
        )
    };
    let launch_main = |gpu: &Gpu| -> Outcome {
        if let Some((states, shape)) = states.as_ref().filter(|_| segments > 1) {
            gpu.launch(states, *shape, &arguments)?;
        }
        gpu.launch(&main, main_shape, &arguments)
    };
    let launch = |gpu: &Gpu| -> Outcome {
        gpu.launch(&first, first_shape, &arguments)?;
        launch_main(gpu)?;
        gpu.launch(&finish, finish_shape, &arguments)
    };
    let kind = if chunked { "retention_chunks" } else { "retention_recurrent" };
    let name = format!("{kind} {} {batch}x{time}x{heads}x{keys}x{values} segments {segments}", activation.name());
    if !check {
        let bytes = (inputs.q.device.len() * 2 + inputs.v.device.len() * 2 + y.device.len()) as f64;
        let median = gpu.time(|| launch(gpu))?;
        gpu.report_time(&name, median, bytes);
        if chunked {
            let median = gpu.time(|| gpu.launch(&first, first_shape, &arguments))?;
            gpu.report_time(&format!("{name}: prepare"), median, inputs.q.device.len() as f64 * 4.0);
            let median = gpu.time(|| launch_main(gpu))?;
            gpu.report_time(&format!("{name}: main"), median, bytes);
            let median = gpu.time(|| gpu.launch(&finish, finish_shape, &arguments))?;
            gpu.report_time(&format!("{name}: finish"), median, y.device.len() as f64 * 3.0);
        }
        return Ok(());
    }
    launch(gpu)?;
    let (expected, ends) = inputs.expected(&lengths);
    let factor = if chunked { 2.0 } else { 1.0 };
    let of_y = if activation == F32 { 1e-5 } else { factor * tolerance(activation) };
    gpu.report_error(&name, relative_error(&gpu.read(&y)?, &expected), of_y);
    let of_state = if chunked { tolerance(activation) } else { 5e-6 };
    gpu.report_error(&format!("{name} state"), relative_error(&gpu.read(&present)?, &ends), of_state);
    Ok(())
}
