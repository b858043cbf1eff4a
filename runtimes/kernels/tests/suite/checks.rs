//! Wrong calls are errors that say what is wrong.

use crate::{
    call::{Given, Lengths, Random, Tensor, call},
    retention::Retention,
    scan::Scan,
};
use densessm_kernels::{Level, OPERATORS, Operand, Shape, SingleThreaded};

#[track_caller]
fn refused(name: &str, given: &Given, operands: &[Operand<'_>], words: &str) {
    let error = call(name, given, Level::best(), operands, &SingleThreaded).unwrap_err().to_string();
    assert!(error.contains(words), "expected `{words}` in `{error}`");
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let scan = Scan::random([1, 3, 8, 4], vec![3], [true, true], 1, true);
    let good = scan.operands();
    let short = Tensor::random(&mut Random(1), &[1, 3, 7], 1.0);
    for (index, words) in [
        (1, "delta: expected shape [1, 3, 8], got [1, 3, 7]"),
        (4, "b: expected shape [1, 3, 4], got [1, 3, 7]"),
        (10, "channel_gate: expected shape [1, 3, 8], got [1, 3, 7]"),
        (14, "neighbour operand 3: expected shape [8], got [1, 3, 7]"),
        (18, "neighbour operand 7: expected shape [4, 4], got [1, 3, 7]"),
    ] {
        let mut operands = good.clone();
        operands[index] = short.operand();
        refused("SelectiveScan", &scan.given(), &operands, words);
    }
    let mut operands = good.clone();
    operands[8] = Operand::Absent;
    refused("SelectiveScan", &scan.given(), &operands, "z: expected shape [1, 3, 8], got no operand");
    refused("SelectiveScan", &scan.given(), &good[..15], "neighbour operands: expected 6 or 7 for each of 1");
    let long = Lengths(vec![4]);
    operands = good;
    operands[9] = long.operand();
    refused("SelectiveScan", &scan.given(), &operands, "lengths: row 0: expected 0 to 3, got 4");
}

#[test]
fn attributes_that_are_missing_or_out_of_range_are_named() {
    let retention = Retention::random([1, 1, 2, 4, 4], vec![1]);
    let operands = retention.operands(false);
    for (heads, words) in [(None, "heads: expected an integer"), (Some(0), "heads: expected 1 or more, got 0")] {
        let given = Given { integer: heads.map(|heads| ("heads", heads)), epsilon: Some(1e-6) };
        refused("RetentionStep", &given, &operands, words);
    }
    let given = Given { integer: Some(("heads", 3)), epsilon: Some(1e-6) };
    refused("RetentionStep", &given, &operands, "q: expected a multiple of 6 keys, got 8");
    let given = Given { integer: Some(("heads", 2)), epsilon: Some(f32::NAN) };
    refused("RetentionStep", &given, &operands, "epsilon: expected a positive number");
}

#[test]
fn no_operands_at_all_are_refused_by_every_operator() {
    let given = Given { integer: Some(("heads", 2)), epsilon: Some(1e-6) };
    let scan = Given { integer: Some(("neighbours", 2)), epsilon: None };
    for definition in OPERATORS {
        let given = if definition.name.starts_with("Selective") { &scan } else { &given };
        refused(definition.name, given, &[], "got no operand");
    }
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
