//! The kernels and the operators' bodies compute the same, on calls made from the schemas.

use crate::{constants::Constants, graph::plan, inline::inline, kernels::known};
use calls::{HEADS, Variation, graph, operand_type, operands};
use densessm_graph::{Dim, ExternalData, TensorType};
use densessm_proto::{
    DType, Lowering,
    onnx::ModelProto,
    operators::{SCHEMAS, Schema},
};
use prost::Message;
use std::{collections::HashMap, path::Path};
use tract_onnx::prelude::*;

#[path = "../../../../exporters/models/tests/calls/mod.rs"]
mod calls;

/// Relative to 1 + |expected|, fp32.
const TOLERANCE: f32 = 2e-5;

/// A linear congruential generator: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }
}

/// The tensors of a call by name; decay rates are negative, and lengths go from 1 to the number of tokens.
fn tensors(types: &HashMap<String, TensorType>, time: usize, random: &mut Random) -> HashMap<String, Tensor> {
    let mut names: Vec<&String> = types.keys().collect();
    names.sort();
    let tensor = |name: &String| {
        let shape: Vec<usize> = types[name].shape.iter().map(|size| size.known().unwrap()).collect();
        let count: usize = shape.iter().product();
        let rates = name == "a" || name.ends_with("_a");
        let tensor = match types[name].dtype {
            DType::I32 => {
                let lengths: Vec<i32> = (0..count).map(|_| 1 + random.below(time as u64) as i32).collect();
                Tensor::from_shape(&shape, &lengths)
            }
            _ => {
                let numbers = (0..count).map(|_| random.number());
                let numbers: Vec<f32> = numbers.map(|x| if rates { -0.1 - x.abs() } else { x }).collect();
                Tensor::from_shape(&shape, &numbers)
            }
        };
        (name.clone(), tensor.unwrap())
    };
    names.into_iter().map(tensor).collect()
}

/// The results of a call, in one lowering.
fn run(
    schema: &'static Schema,
    variation: Variation,
    types: &HashMap<String, TensorType>,
    tensors: &HashMap<String, Tensor>,
) -> TVec<TValue> {
    let place = |_: &densessm_graph::Initializer| ExternalData::new("none.data", 0, 0);
    let bytes = graph(schema, variation, &|name| types[name].clone()).unwrap().to_bytes_external(place);
    let mut model = ModelProto::decode(&*bytes).unwrap();
    inline(&mut model, known).unwrap();
    let onnx = model.graph.as_ref().unwrap();
    let custom = onnx.node.iter().filter(|node| !node.domain.is_empty()).count();
    assert_eq!(custom, usize::from(variation.lowering == Lowering::Function), "{}", schema.name);
    let inputs = onnx.input.iter().map(|input| tensors[&input.name].clone().into_tvalue()).collect();
    let plan = plan(&model, Path::new("."), &RunOptions::default(), &Constants::default())
        .unwrap_or_else(|error| panic!("{}, {variation:?}: {error:#}", schema.name));
    plan.run(inputs).unwrap_or_else(|error| panic!("{}, {variation:?}: {error:#}", schema.name))
}

#[test]
fn a_kernel_and_the_body_of_its_operator_agree_at_random_sizes() {
    let mut random = Random(23);
    for (schema, round) in SCHEMAS.into_iter().flat_map(|schema| (0..6).map(move |round| (schema, round))) {
        let least = usize::from(schema.name == "DenseNorm");
        let neighbours = if schema.groups.is_empty() { 0 } else { least.max(round % 4) };
        let optional = round % 2 == 1 && (neighbours > 0 || schema.groups.is_empty());
        let sizes: HashMap<&str, usize> = schema
            .dimensions
            .iter()
            .map(|dimension| (dimension.name, dimension.minimum.max(1) + random.below(6) as usize))
            .collect();
        let size = |name: &str| Dim::from(if name == "heads" { HEADS } else { sizes[name] });
        let variation = Variation { optional, neighbours, activation: DType::F32, lowering: Lowering::Function };
        let types = operands(schema, variation).into_iter();
        let types = types.map(|(name, operand)| (name, operand_type(operand, variation.activation, &size))).collect();
        let time = sizes.get("time").copied().unwrap_or(1);
        let tensors = tensors(&types, time, &mut random);

        let kernel = run(schema, variation, &types, &tensors);
        let body = run(schema, Variation { lowering: Lowering::Inline, ..variation }, &types, &tensors);
        assert_eq!(kernel.len(), schema.results.len());
        // Results after a row's end are unspecified.
        let lengths = tensors.get("lengths").filter(|_| optional || schema.name != "CausalConv");
        let lengths: Option<Vec<i32>> = lengths.map(|l| l.try_as_plain_ram().unwrap().as_slice().unwrap().to_vec());
        for (i, (got, expected)) in kernel.iter().zip(&body).enumerate() {
            assert_eq!(got.shape(), expected.shape(), "{}", schema.results[i].name);
            let [got, expected] = [got, expected].map(|tensor| tensor.try_as_plain_ram().unwrap());
            let (got, expected) = (got.as_slice::<f32>().unwrap(), expected.as_slice::<f32>().unwrap());
            let batch = kernel[i].shape()[0];
            for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
                let (row, token) = (at * batch / kernel[i].len(), at * batch * time / kernel[i].len() % time);
                let padded = i == 0 && lengths.as_ref().is_some_and(|lengths| token >= lengths[row] as usize);
                let error = (got - expected).abs();
                let name = schema.results[i].name;
                assert!(
                    padded || error <= TOLERANCE * (1.0 + expected.abs()),
                    "{}, {variation:?}, {name}[{at}]: expected {expected}, got {got}",
                    schema.name
                );
            }
        }
    }
}
