//! The kernels on one thread, at the sizes of DenseMamba-360M and DenseRetNet-350M, on every level of instructions.
//!
//! `cargo bench -p densessm-kernels -- NAME` runs those whose names contain NAME.
#![allow(missing_docs, reason = "criterion's macros write functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use densessm_kernels::{Attributes, Function, Level, Operand, ResultBuffer, Shape, SingleThreaded, cpu};

struct Given;

impl Attributes for Given {
    fn integer(&self, name: &str) -> Option<i64> {
        Some(if name == "heads" { 2 } else { 0 })
    }

    fn float(&self, _: &str) -> Option<f32> {
        Some(1e-6)
    }
}

/// Numbers that are neither special nor all the same; `rate` makes them decay rates.
fn numbers(shape: &[usize], rate: bool) -> Vec<f32> {
    let wave = |i: usize| (i as f32 * 0.618).sin();
    (0..shape.iter().product()).map(|i| if rate { -1.5 + wave(i) } else { wave(i) }).collect()
}

fn operator(c: &mut Criterion, name: &str, shapes: &[&[usize]], lengths: Option<i32>, bytes: u64) {
    let registration = cpu::kernel(name).unwrap();
    let values: Vec<Vec<f32>> =
        shapes.iter().enumerate().map(|(i, shape)| numbers(shape, name.starts_with("Sel") && i == 3)).collect();
    let lengths = lengths.map(|length| [length]);
    let mut operands: Vec<Operand<'_>> = shapes
        .iter()
        .zip(&values)
        .map(
            |(shape, values)| {
                if shape.is_empty() { Operand::Absent } else { Operand::F32(Shape::new(shape).unwrap(), values) }
            },
        )
        .collect();
    operands.extend(lengths.as_ref().map(|length| Operand::I32(Shape::new(&[1]).unwrap(), length)));
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes)).sample_size(20);
    for level in Level::all() {
        let kernel = registration.prepare(&Given, &level).unwrap();
        let call = kernel.signature().bind(&operands).unwrap();
        let size = |result: usize| call.result_shape(result).unwrap().elements();
        let mut results: Vec<Vec<f32>> =
            (0..registration.schema().results.len()).map(|result| vec![0.0; size(result)]).collect();
        group.bench_function(level.to_string(), |bencher| {
            bencher.iter(|| {
                let mut results: Vec<ResultBuffer<'_>> =
                    results.iter_mut().map(|values| ResultBuffer::F32(values)).collect();
                kernel.run(&operands, &mut results, &SingleThreaded).unwrap();
            });
        });
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let (t, d, n, k) = (256, 2048, 16, 4);
    let sequence: &[usize] = &[1, t, d];
    let states: &[usize] = &[1, t, n];
    let of_scan: [&[usize]; 9] = [sequence, sequence, &[d], &[d, n], states, &[1, d, n], states, &[d], sequence];
    operator(c, "SelectiveScan", &of_scan, Some(t as i32), (4 * 4 * t * d) as u64);
    operator(c, "CausalConv", &[sequence, &[k, d], &[1, d, k - 1], &[d]], None, (2 * 4 * t * d) as u64);
    let (token, state): (&[usize], &[usize]) = (&[1, 1, d], &[1, 1, n]);
    let of_step: [&[usize]; 9] = [token, token, &[d], &[d, n], state, &[1, d, n], state, &[d], token];
    operator(c, "SelectiveStep", &of_step, None, (3 * 4 * d * n) as u64);

    let (heads, keys, values) = (2, 768, 3072);
    let shapes = |t: usize| {
        [
            vec![1, t, keys],
            vec![1, t, keys],
            vec![1, t, values],
            vec![1, t, keys / heads / 2],
            vec![1, t, keys / heads / 2],
            vec![1, t, heads],
            vec![1, heads, keys / heads, values / heads],
            vec![1, t, values],
            vec![values / heads],
        ]
    };
    let (long, one) = (shapes(256), shapes(1));
    let bytes = (2 * 4 * heads * (keys / heads) * (values / heads)) as u64;
    operator(c, "Retention", &long.each_ref().map(Vec::as_slice), Some(256), bytes);
    operator(c, "RetentionStep", &one.each_ref().map(Vec::as_slice), None, bytes);
}

fn functions(c: &mut Criterion) {
    let mut group = c.benchmark_group("functions");
    group.throughput(Throughput::Elements(4096));
    for function in [Function::Exp2, Function::Exp, Function::Silu, Function::Softplus] {
        for level in Level::all() {
            let values = numbers(&[4096], false);
            let mut work = values.clone();
            group.bench_function(format!("{function:?} {level}"), |bencher| {
                bencher.iter(|| {
                    work.copy_from_slice(&values);
                    function.apply(level, &mut work);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, kernels, functions);
criterion_main!(benches);
