//! What bundles rely on in tract, where it is easiest to get wrong: symbols, 64-bit integers, scans.

use super::build::*;
use crate::{constants::Constants, graph::plan};
use densessm_proto::{
    Precision, Tolerance, ToleranceClass,
    onnx::{GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType},
};
use std::path::Path;
use tract_onnx::prelude::*;

/// Rows and tokens that every case runs with, on one plan.
const SIZES: [(usize, usize); 4] = [(1, 1), (2, 7), (3, 4), (1, 9)];
/// How far the results of a standard operator may be off.
const TOLERANCE: Tolerance = Tolerance::of(ToleranceClass::Projection, Precision::Fp32);

struct Case {
    name: &'static str,
    inputs: Vec<ValueInfoProto>,
    output: ValueInfoProto,
    constants: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
    /// Inputs for so many rows and tokens.
    feed: fn(usize, usize) -> Vec<Tensor>,
    /// What must come out, as shape and numbers.
    expected: fn(usize, usize) -> (Vec<usize>, Numbers),
}

enum Numbers {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// Numbers between -1 and 1, the same each time.
fn noise(shape: &[usize], seed: usize) -> Vec<f32> {
    (0..shape.iter().product()).map(|i: usize| ((i * 37 + seed * 101 + 11) % 199) as f32 / 99.5 - 1.0).collect()
}

fn float_tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_shape(shape, &noise(shape, seed)).unwrap()
}

/// Lengths from 1 to `tokens`.
fn lengths(rows: usize, tokens: usize) -> Vec<i32> {
    (0..rows).map(|row| ((row * 3) % tokens) as i32 + 1).collect()
}

fn far_positions(rows: usize) -> Vec<i64> {
    (0..rows as i64).map(|row| (1 << 33) + 5 + row).collect()
}

const D: usize = 3;
const N: usize = 2;

fn cases() -> Vec<Case> {
    let x = || value("x", DataType::Float, &["batch", "sequence", "3"]);
    let lens = || value("lengths", DataType::Int32, &["batch"]);
    vec![
        Case {
            name: "tokens behind a row's end are masked",
            inputs: vec![x(), lens()],
            output: value("y", DataType::Float, &["batch", "sequence", "3"]),
            constants: vec![
                integers("zero", &[], &[0]),
                integers("one", &[], &[1]),
                integers("axis0", &[1], &[0]),
                integers("axis1", &[1], &[1]),
                integers("axis2", &[1], &[2]),
            ],
            nodes: vec![
                with(node("Shape", &["x"], &["t"]), [int("start", 1), int("end", 2)]),
                node("Squeeze", &["t", "axis0"], &["width"]),
                node("Range", &["zero", "width", "one"], &["range"]),
                cast("lengths", "l", DataType::Int64),
                node("Unsqueeze", &["l", "axis1"], &["ends"]),
                node("Less", &["range", "ends"], &["valid"]),
                cast("valid", "mask", DataType::Float),
                node("Unsqueeze", &["mask", "axis2"], &["mask3"]),
                node("Mul", &["x", "mask3"], &["y"]),
            ],
            feed: |b, t| vec![float_tensor(&[b, t, D], 0), tensor1(&lengths(b, t))],
            expected: |b, t| {
                let lengths = lengths(b, t);
                let kept = |i: usize| (i / D % t) < lengths[i / D / t] as usize;
                let numbers = noise(&[b, t, D], 0).into_iter().enumerate();
                (vec![b, t, D], Numbers::Floats(numbers.map(|(i, x)| if kept(i) { x } else { 0.0 }).collect()))
            },
        },
        Case {
            name: "the two inputs before each row's end are gathered",
            inputs: vec![x(), lens()],
            output: value("y", DataType::Float, &["batch", "2", "3"]),
            constants: vec![
                floats("before", &[1, 2, 3], &[0.0; 6]),
                integers("back", &[1, 2, 1], &[0, 1]),
                integers("axes", &[2], &[1, 2]),
                integers("tail", &[2], &[2, 3]),
            ],
            nodes: vec![
                with(node("Shape", &["x"], &["b"]), [int("start", 0), int("end", 1)]),
                with(node("Concat", &["b", "tail"], &["s"]), [int("axis", 0)]),
                node("Expand", &["before", "s"], &["wide"]),
                with(node("Concat", &["wide", "x"], &["window"]), [int("axis", 1)]),
                cast("lengths", "l", DataType::Int64),
                node("Unsqueeze", &["l", "axes"], &["l3"]),
                node("Add", &["l3", "back"], &["at"]),
                with(node("GatherND", &["window", "at"], &["y"]), [int("batch_dims", 1)]),
            ],
            feed: |b, t| vec![float_tensor(&[b, t, D], 1), tensor1(&lengths(b, t))],
            expected: |b, t| {
                let (x, lengths) = (noise(&[b, t, D], 1), lengths(b, t));
                let at = |row: usize, back: usize, d: usize| {
                    let token = lengths[row] as usize + back;
                    if token < 2 { 0.0 } else { x[(row * t + token - 2) * D + d] }
                };
                let numbers = (0..b * 2 * D).map(|i| at(i / D / 2, i / D % 2, i % D)).collect();
                (vec![b, 2, D], Numbers::Floats(numbers))
            },
        },
        Case {
            name: "counters of tokens keep 64 bits when a 32-bit length is added",
            inputs: vec![value("past", DataType::Int64, &["batch"]), lens()],
            output: value("y", DataType::Int64, &["batch"]),
            constants: vec![],
            nodes: vec![cast("lengths", "l", DataType::Int64), node("Add", &["past", "l"], &["y"])],
            feed: |b, t| vec![tensor1(&far_positions(b)), tensor1(&lengths(b, t))],
            expected: |b, t| {
                let sums = far_positions(b).into_iter().zip(lengths(b, t)).map(|(past, l)| past + i64::from(l));
                (vec![b], Numbers::Integers(sums.collect()))
            },
        },
        Case {
            name: "products of positions wrap around and leave their remainder right",
            inputs: vec![value("past", DataType::Int64, &["batch"]), x()],
            output: value("y", DataType::Int64, &["batch", "sequence"]),
            constants: vec![
                integers("zero", &[], &[0]),
                integers("one", &[], &[1]),
                integers("axis0", &[1], &[0]),
                integers("axis1", &[1], &[1]),
                integers("theta", &[], &[174_992_927_419]),
                integers("revolution", &[], &[1 << 40]),
            ],
            nodes: vec![
                with(node("Shape", &["x"], &["t"]), [int("start", 1), int("end", 2)]),
                node("Squeeze", &["t", "axis0"], &["width"]),
                node("Range", &["zero", "width", "one"], &["range"]),
                node("Unsqueeze", &["past", "axis1"], &["first"]),
                node("Add", &["first", "range"], &["position"]),
                node("Mul", &["position", "theta"], &["product"]),
                node("Mod", &["product", "revolution"], &["y"]),
            ],
            feed: |b, t| vec![tensor1(&far_positions(b)), float_tensor(&[b, t, D], 2)],
            expected: |b, t| {
                let position = |i: usize| far_positions(b)[i / t] + (i % t) as i64;
                let angle = |i: usize| (position(i) as i128 * 174_992_927_419 % (1 << 40)) as i64;
                (vec![b, t], Numbers::Integers((0..b * t).map(angle).collect()))
            },
        },
        Case {
            name: "softplus in its safe form neither overflows nor vanishes",
            inputs: vec![x()],
            output: value("y", DataType::Float, &["batch", "sequence", "3"]),
            constants: vec![floats("one", &[], &[1.0]), floats("hundred", &[], &[100.0])],
            nodes: vec![
                node("Mul", &["x", "hundred"], &["v"]),
                node("Relu", &["v"], &["positive"]),
                node("Abs", &["v"], &["size"]),
                node("Neg", &["size"], &["minus"]),
                node("Exp", &["minus"], &["e"]),
                node("Add", &["e", "one"], &["more"]),
                node("Log", &["more"], &["rest"]),
                node("Add", &["positive", "rest"], &["y"]),
            ],
            feed: |b, t| vec![float_tensor(&[b, t, D], 3)],
            expected: |b, t| {
                let softplus = |x: f32| f64::from(x * 100.0).max(0.0) + (-f64::from(x * 100.0).abs()).exp().ln_1p();
                let numbers = noise(&[b, t, D], 3).into_iter().map(|x| softplus(x) as f32).collect();
                (vec![b, t, D], Numbers::Floats(numbers))
            },
        },
        Case {
            name: "a scan along axis 1 carries its state and sees captured values",
            inputs: vec![
                value("h0", DataType::Float, &["batch", "3", "2"]),
                x(),
                value("a", DataType::Float, &["3", "2"]),
            ],
            output: value("y", DataType::Float, &["batch", "sequence", "3"]),
            constants: vec![integers("last", &[1], &[-1])],
            nodes: vec![
                node("Neg", &["a"], &["decay"]),
                with(
                    node("Scan", &["h0", "x"], &["h", "y"]),
                    [
                        int("num_scan_inputs", 1),
                        ints("scan_input_axes", &[1]),
                        ints("scan_output_axes", &[1]),
                        sub_graph("body", scan_body()),
                    ],
                ),
            ],
            feed: |b, t| vec![float_tensor(&[b, D, N], 4), float_tensor(&[b, t, D], 5), float_tensor(&[D, N], 6)],
            expected: |b, t| {
                let (mut h, x, a) = (noise(&[b, D, N], 4), noise(&[b, t, D], 5), noise(&[D, N], 6));
                let mut y = vec![0.0; b * t * D];
                for (row, token, d) in (0..b * t * D).map(|i| (i / D / t, i / D % t, i % D)) {
                    for n in 0..N {
                        let h = &mut h[(row * D + d) * N + n];
                        *h = -a[d * N + n] * *h + x[(row * t + token) * D + d];
                        y[(row * t + token) * D + d] += *h;
                    }
                }
                (vec![b, t, D], Numbers::Floats(y))
            },
        },
    ]
}

/// `h ← decay ∘ h + x`, `y = Σ_n h`.
fn scan_body() -> GraphProto {
    graph(
        vec![value("h_in", DataType::Float, &["batch", "3", "2"]), value("x_t", DataType::Float, &["batch", "3"])],
        vec![value("h_out", DataType::Float, &["batch", "3", "2"]), value("y_t", DataType::Float, &["batch", "3"])],
        vec![],
        vec![
            node("Mul", &["decay", "h_in"], &["kept"]),
            node("Unsqueeze", &["x_t", "last"], &["column"]),
            node("Add", &["kept", "column"], &["h_out"]),
            with(node("ReduceSum", &["h_out", "last"], &["y_t"]), [int("keepdims", 0)]),
        ],
    )
}

#[test]
fn one_plan_gives_the_right_numbers_at_every_size() {
    for case in cases() {
        let graph = graph(case.inputs, vec![case.output], case.constants, case.nodes);
        let plan = plan(&model(graph, vec![]), Path::new("."), &RunOptions::default(), &Constants::default())
            .unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
        for (rows, tokens) in SIZES {
            let inputs = (case.feed)(rows, tokens).into_iter().map(TValue::from).collect();
            let outputs = plan.run(inputs).unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
            let (shape, numbers) = (case.expected)(rows, tokens);
            assert_eq!(outputs[0].shape(), shape, "{}", case.name);
            let view = outputs[0].try_as_plain_ram().unwrap();
            match numbers {
                Numbers::Integers(expected) => assert_eq!(view.as_slice::<i64>().unwrap(), expected, "{}", case.name),
                Numbers::Floats(expected) => {
                    let compared = TOLERANCE.compare(view.as_slice::<f32>().unwrap(), &expected);
                    compared.unwrap_or_else(|error| panic!("{}: {error}", case.name));
                }
            }
        }
    }
}
