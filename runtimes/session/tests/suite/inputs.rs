//! The inputs of a call by name.

use crate::{MAMBA, RETNET, exported};
use densessm_proto::GraphKind;
use densessm_session::{Bundle, HostTensor, TokenBatch, Values, inputs::complete};
use std::collections::BTreeMap;

fn integers(shape: &[usize], values: &[i64]) -> HostTensor {
    HostTensor { shape: shape.to_vec(), values: Values::Int64(values.to_vec()) }
}

fn lengths(values: &[i32]) -> HostTensor {
    HostTensor { shape: vec![values.len()], values: Values::Int32(values.to_vec()) }
}

fn given(tensors: &[(&str, HostTensor)]) -> BTreeMap<String, HostTensor> {
    tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect()
}

fn error(bundle: &Bundle, kind: GraphKind, tensors: &[(&str, HostTensor)]) -> String {
    complete(bundle, kind, given(tensors)).unwrap_err().to_string()
}

#[test]
fn absent_inputs_stand_for_a_fresh_sequence() {
    let (_folder, bundle) = exported(RETNET);
    let ids = integers(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let inputs = complete(&bundle, GraphKind::Parallel, given(&[("input_ids", ids.clone())])).unwrap();
    let graph = bundle.manifest().graph(GraphKind::Parallel).unwrap();
    assert!(inputs.iter().map(|(name, _)| name).eq(graph.inputs.iter().map(|entry| &entry.name)));
    let inputs: BTreeMap<String, HostTensor> = inputs.into_iter().collect();
    assert_eq!(inputs["input_ids"], ids);
    assert_eq!(inputs["sequence_lengths"], lengths(&[3, 3]));
    assert_eq!(inputs["past_length"], integers(&[2], &[0, 0]));
    for state in bundle.states() {
        let HostTensor { shape, values } = &inputs[&state.past];
        assert_eq!((shape[0], &shape[1..]), (2, &state.shape[..]));
        assert_eq!(values, &Values::Float32(vec![0.0; 2 * state.elements()]));
    }
}

#[test]
fn given_inputs_are_passed_on_as_they_are() {
    let (_folder, bundle) = exported(RETNET);
    let (ids, past) = (integers(&[2, 1], &[5, 6]), integers(&[2], &[7, 1 << 40]));
    let inputs =
        complete(&bundle, GraphKind::Recurrent, given(&[("input_ids", ids.clone()), ("past_length", past.clone())]));
    let inputs: BTreeMap<String, HostTensor> = inputs.unwrap().into_iter().collect();
    assert_eq!((&inputs["input_ids"], &inputs["past_length"]), (&ids, &past));
    assert!(!inputs.contains_key("sequence_lengths"));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (_folder, retnet) = exported(RETNET);
    let (parallel, recurrent) = (GraphKind::Parallel, GraphKind::Recurrent);
    let ids = integers(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let ids = || ("input_ids", ids.clone());
    type Given<'a> = Vec<(&'a str, HostTensor)>;
    let cases: [(GraphKind, Given<'_>, &str); 11] = [
        (parallel, vec![], "input_ids: missing"),
        (parallel, vec![("input_id", ids().1)], "input_id: no input of the parallel graph, which are "),
        (recurrent, vec![ids()], "input_ids: expected int64 [2, 1], got int64 [2, 3]"),
        (parallel, vec![("input_ids", lengths(&[1, 2]))], "input_ids: expected int64 [2, 0], got int32 [2]"),
        (parallel, vec![("input_ids", integers(&[0, 3], &[]))], "input_ids: expected int64 [0, 3]"),
        (parallel, vec![("input_ids", integers(&[1, 2], &[1, 96]))], "input_ids: token 1: expected an id from 0 to 95"),
        (parallel, vec![("input_ids", integers(&[1, 1], &[-1]))], "input_ids: token 0: expected an id from 0 to 95"),
        (parallel, vec![ids(), ("sequence_lengths", lengths(&[3]))], "expected int32 [2], got int32 [1]"),
        (parallel, vec![ids(), ("sequence_lengths", lengths(&[3, 4]))], "expected lengths of 1 to 3, got 4"),
        (parallel, vec![ids(), ("sequence_lengths", lengths(&[0, 3]))], "expected lengths of 1 to 3, got 0"),
        (parallel, vec![ids(), ("past_length", integers(&[2], &[0, -1]))], "past_length: expected counts of tokens"),
    ];
    for (kind, tensors, words) in cases {
        let error = error(&retnet, kind, &tensors);
        assert!(error.contains(words), "expected {words:?}, got {error:?}");
    }
    let (_other, mamba) = exported(MAMBA);
    let past = integers(&[2], &[0, 0]);
    assert!(error(&mamba, parallel, &[ids(), ("past_length", past)]).starts_with("past_length: no input"));
    let conv = HostTensor { shape: vec![2, 128, 3], values: Values::Float32(vec![0.0; 5]) };
    let name = "past_key_values.0.conv_state";
    assert!(error(&mamba, parallel, &[ids(), (name, conv)]).starts_with(name), "fewer numbers than the shape says");
}

#[test]
fn rows_of_tokens_are_equally_wide_and_none_is_empty() {
    let batch = TokenBatch::new(&[1, 2, 3, 4, 5, 0], &[3, 2]).unwrap();
    assert_eq!((batch.rows(), batch.width(), batch.lengths()), (2, 3, &[3, 2][..]));
    for (ids, lengths) in [(&[1, 2, 3][..], &[1, 2][..]), (&[], &[]), (&[1], &[]), (&[], &[1]), (&[1, 2], &[0, 1])] {
        assert!(TokenBatch::new(ids, lengths).is_err(), "{ids:?} {lengths:?}");
    }
    let error = TokenBatch::new(&[1, 2, 3, 4], &[2, 3]).unwrap_err().to_string();
    assert_eq!(error, "tokens: row 1: expected a length of 1 to 2, got 3");
}
