//! Invalid calls are errors that name the operand and say what is wrong.

use crate::{
    call::{Given, Lengths, Random, Tensor, call},
    retention::Retention,
    scan::Scan,
};
use densessm_kernels::{Level, Operand, ResultBuffer, Shape, SingleThreaded, cpu};

#[track_caller]
fn refused(name: &str, given: &Given, operands: &[Operand<'_>], message: &str) {
    let error = call(name, given, Level::best(), operands, &SingleThreaded).unwrap_err().to_string();
    assert_eq!(error, message);
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let scan = Scan::random([1, 3, 8, 4], vec![3], [true, true], 1, true);
    let good = scan.operands();
    let short = Tensor::random(&mut Random(1), &[1, 3, 7], 1.0);
    let sizes = "with batch = 1, time = 3, channels = 8";
    for (index, message) in [
        (1, format!("own_delta: expected shape [batch, time, channels] {sizes}, got [1, 3, 7]")),
        (3, "own_a: expected shape [channels, states] with channels = 8, got [1, 3, 7]".to_owned()),
        (10, format!("channel_gate: expected shape [batch, time, channels] {sizes}, got [1, 3, 7]")),
        (14, "neighbours_0_delta_bias: expected shape [channels] with channels = 8, got [1, 3, 7]".to_owned()),
        (18, "projections_0: expected shape [states, states] with states = 4, got [1, 3, 7]".to_owned()),
    ] {
        let mut operands = good.clone();
        operands[index] = short.operand();
        refused("SelectiveScan", &scan.given(), &operands, &message);
    }
    let message = "neighbours: expected 1 of them, 6 operands, got 3";
    refused("SelectiveScan", &scan.given(), &good[..15], message);
    let long = Lengths(vec![4]);
    let mut operands = good;
    operands[9] = long.operand();
    refused("SelectiveScan", &scan.given(), &operands, "lengths: row 0: expected 0 to 3, got 4");
}

#[test]
fn attributes_that_are_missing_or_out_of_range_are_named() {
    let retention = Retention::random([1, 1, 2, 4, 4], vec![1]);
    let operands = retention.operands(false);
    for (heads, got) in [(None, "no attribute"), (Some(0), "0"), (Some(1 << 20), "1048576")] {
        let given = Given { integer: heads.map(|heads| ("heads", heads)), epsilon: Some(1e-6) };
        let message = format!("heads: expected an integer from 1 to 1048575, got {got}");
        refused("RetentionStep", &given, &operands, &message);
    }
    let given = Given { integer: Some(("heads", 3)), epsilon: Some(1e-6) };
    let message = "q: expected shape [batch, 1, 2*heads*pairs] with batch = 1, heads = 3, got [1, 1, 8]";
    refused("RetentionStep", &given, &operands, message);
    for (epsilon, got) in [(f32::NAN, "NaN"), (-1.0, "-1"), (f32::INFINITY, "inf")] {
        let given = Given { integer: Some(("heads", 2)), epsilon: Some(epsilon) };
        let message = format!("epsilon: expected a finite float of at least 0, got {got}");
        refused("RetentionStep", &given, &operands, &message);
    }
}

#[test]
fn buffers_of_another_number_or_size_are_named() {
    let retention = Retention::random([1, 1, 2, 4, 4], vec![1]);
    let operands = retention.operands(false);
    let kernel = cpu::kernel("RetentionStep").unwrap().prepare(&retention.given(), &Level::best()).unwrap();
    let (mut o, mut present) = ([0.0; 8], [0.0; 31]);
    let one = kernel.run(&operands, &mut [ResultBuffer::F32(&mut o)], &SingleThreaded);
    assert_eq!(one.unwrap_err().to_string(), "results: expected 2 buffers, got 1");
    let mut results = [ResultBuffer::F32(&mut o), ResultBuffer::F32(&mut present)];
    let short = kernel.run(&operands, &mut results, &SingleThreaded).unwrap_err().to_string();
    assert_eq!(short, "present: expected 32 elements of fp32, got 31 of fp32");
}

#[test]
fn memory_that_is_shorter_than_its_shape_is_refused() {
    let (u, state) = ([0.0; 3], [0.0; 1]);
    let shape = |sizes: &[usize]| Shape::new(sizes).unwrap();
    let weight = Operand::F32(shape(&[2, 1]), &u[..2]);
    let operands = [Operand::F32(shape(&[1, 4, 1]), &u), weight, Operand::F32(shape(&[1, 1, 1]), &state)];
    let given = Given { integer: None, epsilon: None };
    refused("CausalConv", &given, &operands, "u: expected 4 elements, got another number");
}

#[test]
fn empty_calls_do_nothing() {
    let empty = |shape: &[usize]| Tensor::random(&mut Random(1), shape, 1.0);
    let given = Given { integer: None, epsilon: None };
    let (u, weight, state) = (empty(&[1, 0, 5]), empty(&[4, 5]), empty(&[1, 5, 3]));
    let got =
        call("CausalConv", &given, Level::best(), &[u.operand(), weight.operand(), state.operand()], &SingleThreaded);
    assert_eq!(got.unwrap()[1].values, state.values);
    let u = empty(&[0, 4, 5]);
    let state = empty(&[0, 5, 3]);
    let got =
        call("CausalConv", &given, Level::best(), &[u.operand(), weight.operand(), state.operand()], &SingleThreaded);
    assert!(got.unwrap()[0].values.is_empty());
    assert_eq!(Shape::new(&[1, 2, 3, 4, 5]), None);
    assert_eq!(Shape::new(&[usize::MAX, 2]), None);
}
