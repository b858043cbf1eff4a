//! A Mamba or DenseMamba model of random weights, and its decode step on the CPU in f64.

use super::gpu::{Gpu, Outcome, Tensor, silu, softplus};
use densessm_cuda::Buffer;
use densessm_kernels::cuda::{Activation, units::MambaShape};
use half::f16;

pub(crate) const STATES: usize = 16;
pub(crate) const EPSILON: f32 = 1e-5;

/// A matrix of fp16 numbers.
pub(crate) struct Matrix {
    pub(crate) host: Vec<u16>,
    pub(crate) device: Buffer<u16>,
    pub(crate) width: usize,
}

pub(crate) struct Layer {
    pub(crate) norm: Tensor,
    pub(crate) in_proj: Matrix,
    pub(crate) gates: Option<Matrix>,
    pub(crate) conv_weight: Tensor,
    pub(crate) conv_bias: Tensor,
    pub(crate) x_proj: Matrix,
    pub(crate) dt_proj: Matrix,
    pub(crate) dt_bias: Tensor,
    pub(crate) channel_gate: Matrix,
    pub(crate) state_gate: Matrix,
    pub(crate) a: Tensor,
    pub(crate) skip: Tensor,
    pub(crate) out_proj: Matrix,
}

pub(crate) struct Model {
    pub(crate) shape: MambaShape,
    pub(crate) vocabulary: usize,
    pub(crate) layers: Vec<Layer>,
    pub(crate) embedding: Matrix,
    pub(crate) norm: Tensor,
    pub(crate) numbers: Vec<f32>,
}

impl Model {
    pub(crate) fn random(gpu: &mut Gpu, shape: MambaShape, vocabulary: usize) -> Outcome<Self> {
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

    pub(crate) fn bytes(&self) -> usize {
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
pub(crate) struct Row {
    pub(crate) conv: Vec<Vec<f64>>,
    pub(crate) states: Vec<Vec<f64>>,
}

fn norm(x: &[f64], weight: &Tensor) -> Vec<f64> {
    let factor = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + f64::from(EPSILON)).sqrt().recip();
    x.iter().zip(&weight.host).map(|(x, w)| x * factor * f64::from(*w)).collect()
}

impl Row {
    pub(crate) fn new(shape: &MambaShape) -> Self {
        let MambaShape { inner, taps, layers, .. } = *shape;
        Self { conv: vec![vec![0.0; inner * (taps - 1)]; layers], states: vec![vec![0.0; inner * STATES]; layers] }
    }

    /// One token; returns the logits. `rounded` rounds the operands of products to fp16, as the kernel does.
    pub(crate) fn step(&mut self, model: &Model, token: usize, rounded: bool) -> Vec<f64> {
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
                    .map(|k| at(&layer.conv_weight, k * inner + c) * window.get(k).copied().unwrap_or(uz[c]))
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
