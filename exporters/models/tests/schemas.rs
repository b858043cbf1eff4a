//! The operators' bodies and operand lists are those that the schemas state.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod calls;

use calls::{HEADS, Variation, axis_size, graph, operand_type, operands};
use densessm_graph::{DType, Dim, Model, TensorType};
use densessm_proto::{
    Lowering,
    operators::{
        Arity, AttributeSchema, AxisSize, OperandSchema, OperandType, ResultSchema, ResultShape, SCHEMAS, Schema,
    },
};

/// Sizes that are all different, batch and time symbolic.
fn symbolic(dimension: &str) -> Dim {
    match dimension {
        "batch" => "batch".into(),
        "time" => "time".into(),
        "heads" => HEADS.into(),
        "pairs" => 5_usize.into(),
        "head_value" | "taps" => 3_usize.into(),
        "channels" | "width" => 11_usize.into(),
        "states" => 7_usize.into(),
        other => panic!("no size for {other}"),
    }
}

fn variations(schema: &Schema) -> Vec<Variation> {
    let neighbours = if schema.groups.is_empty() { 0..1 } else { usize::from(schema.name == "DenseNorm")..4 };
    let mut variations = Vec::new();
    for neighbours in neighbours {
        // Gates without neighbours have nothing to gate.
        let optional = if neighbours == 0 && !schema.groups.is_empty() { &[false][..] } else { &[false, true] };
        for optional in optional.iter().copied() {
            for activation in schema.activations.iter().copied() {
                for lowering in [Lowering::Function, Lowering::Inline] {
                    variations.push(Variation { optional, neighbours, activation, lowering });
                }
            }
        }
    }
    variations
}

/// The one with everything in it.
fn full(schema: &Schema) -> Variation {
    let neighbours = if schema.groups.is_empty() { 0 } else { 2 };
    Variation { optional: true, neighbours, activation: DType::F32, lowering: Lowering::Function }
}

/// The graph of a call whose operands are as the operator's own schema says.
fn call(checked_by: &'static Schema, own: &'static Schema, variation: Variation) -> Result<Model, String> {
    call_with(checked_by, own, variation, &|_, tensor| tensor)
}

fn call_with(
    checked_by: &'static Schema,
    own: &'static Schema,
    variation: Variation,
    edit: &dyn Fn(&str, TensorType) -> TensorType,
) -> Result<Model, String> {
    let known = operands(own, variation);
    let types = |name: &str| {
        let (_, operand) = known.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no `{name}`"));
        edit(name, operand_type(operand, variation.activation, &symbolic))
    };
    graph(checked_by, variation, &types).map_err(|error| error.to_string())
}

#[test]
fn bodies_give_the_results_that_the_schemas_state() {
    for schema in SCHEMAS {
        for variation in variations(schema) {
            let model =
                call(schema, schema, variation).unwrap_or_else(|e| panic!("{}, {variation:?}: {e}", schema.name));
            let results: Vec<TensorType> = model.outputs().map(|(_, tensor)| tensor.clone()).collect();
            let expected: Vec<TensorType> = schema
                .results
                .iter()
                .map(|result| {
                    let ResultShape::Like(like) = result.shape else { panic!("{}: {}", schema.name, result.name) };
                    let like = &schema.operands[schema.operand(like).unwrap()];
                    let shape = like.shape.iter().map(|axis| axis_size(axis, &symbolic));
                    TensorType::new(result.dtype.with(variation.activation), shape)
                })
                .collect();
            assert_eq!(results, expected, "{}, {variation:?}", schema.name);
        }
    }
}

/// How many axes of a call have a size that depends on a dimension, attributes counted.
fn uses(schema: &'static Schema, variation: Variation, dimension: &str) -> usize {
    let attributes = schema.attributes.iter().filter(|attribute| attribute.name == dimension).count();
    let operands = operands(schema, variation);
    let axes = operands.iter().flat_map(|(_, operand)| operand.shape);
    attributes + axes.filter(|axis| axis.dimensions.contains(&dimension)).count()
}

#[test]
fn an_operand_of_another_type_or_shape_is_named() {
    for schema in SCHEMAS {
        let variation = full(schema);
        for (name, operand) in operands(schema, variation) {
            let refused = |what: &str, edit: &dyn Fn(TensorType) -> TensorType| {
                let edit = |edited: &str, tensor| if edited == name { edit(tensor) } else { tensor };
                let error = call_with(schema, schema, variation, &edit).unwrap_err();
                let starts = |name: &str| error.starts_with(&format!("call of `{}`: operand `{name}`: ", schema.name));
                // Where the operand determines a dimension, another operand that has the dimension is named.
                let others = what == "size" && operands(schema, variation).iter().any(|(other, _)| starts(other));
                assert!(starts(&name) || others, "{}, {what} of {name}: {error}", schema.name);
                assert!(error.contains("mod.rs:"), "{error}");
            };
            refused("type", &|tensor| TensorType { dtype: DType::I64, ..tensor });
            refused("rank", &|mut tensor| {
                tensor.shape.push(Dim::from(1_usize));
                tensor
            });
            for (axis, size) in operand.shape.iter().enumerate() {
                let alone = |only: &str| size.factor == 1 && size.offset == 0 && uses(schema, variation, only) == 1;
                if matches!(size.dimensions, [only] if alone(only)) {
                    continue;
                }
                refused("size", &|mut tensor| {
                    tensor.shape[axis] = tensor.shape[axis].clone() + 1_usize;
                    tensor
                });
            }
        }
    }
}

#[test]
fn activations_of_two_types_in_one_call_are_refused() {
    for schema in SCHEMAS {
        let variation = full(schema);
        let operands = operands(schema, variation);
        let activations = || operands.iter().filter(|(_, operand)| operand.dtype == OperandType::Activation);
        for (name, _) in activations().skip(1) {
            let edit = |edited: &str, tensor: TensorType| match edited == name {
                true => TensorType { dtype: DType::F16, ..tensor },
                false => tensor,
            };
            let error = call_with(schema, schema, variation, &edit).unwrap_err();
            let expected = format!("call of `{}`: operand `{name}`: expected fp32, got fp16", schema.name);
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}

/// A copy of a schema, altered.
fn altered(schema: &Schema, alter: impl FnOnce(&mut Schema)) -> &'static Schema {
    let mut copy = *schema;
    alter(&mut copy);
    Box::leak(Box::new(copy))
}

fn leak<T>(items: Vec<T>) -> &'static [T] {
    Vec::leak(items)
}

#[track_caller]
fn caught(schema: &'static Schema, what: &str, alter: impl FnOnce(&mut Schema)) {
    let copy = altered(schema, alter);
    let error = call(copy, schema, full(schema)).expect_err(&format!("{}: {what}", schema.name));
    assert!(error.starts_with(&format!("call of `{}`: ", schema.name)), "{what}: {error}");
}

#[test]
fn an_operand_that_is_removed_from_a_schema_or_moved_in_it_is_caught() {
    for schema in SCHEMAS {
        for position in 0..schema.operands.len() {
            caught(schema, &format!("operand {position} removed"), |copy| {
                let mut operands = schema.operands.to_vec();
                operands.remove(position);
                copy.operands = leak(operands);
            });
            for other in 0..position {
                caught(schema, &format!("operands {other} and {position} swapped"), |copy| {
                    let mut operands = schema.operands.to_vec();
                    operands.swap(other, position);
                    copy.operands = leak(operands);
                });
            }
        }
        for (at, group) in schema.groups.iter().enumerate() {
            caught(schema, &format!("group {at} removed"), |copy| {
                let mut groups = schema.groups.to_vec();
                groups.remove(at);
                copy.groups = leak(groups);
            });
            for position in 0..group.operands.len() {
                caught(schema, &format!("operand {position} of group {at} removed"), |copy| {
                    let mut operands = group.operands.to_vec();
                    operands.remove(position);
                    let mut groups = schema.groups.to_vec();
                    groups[at].operands = leak(operands);
                    copy.groups = leak(groups);
                });
                for other in 0..position {
                    caught(schema, &format!("operands {other} and {position} of group {at} swapped"), |copy| {
                        let mut operands = group.operands.to_vec();
                        operands.swap(other, position);
                        let mut groups = schema.groups.to_vec();
                        groups[at].operands = leak(operands);
                        copy.groups = leak(groups);
                    });
                }
            }
        }
        if schema.groups.len() > 1 {
            caught(schema, "groups swapped", |copy| {
                copy.groups = leak(schema.groups.iter().rev().copied().collect());
            });
        }
    }
}

#[test]
fn any_other_change_of_a_schema_is_caught() {
    const NEW: OperandSchema = OperandSchema::required("new", OperandType::Activation, &[], "Nothing.");
    for schema in SCHEMAS {
        for position in 0..schema.operands.len() {
            let edit = |what: &str, edit: &dyn Fn(&mut OperandSchema)| {
                caught(schema, &format!("{what} of operand {position}"), |copy| {
                    let mut operands = schema.operands.to_vec();
                    edit(&mut operands[position]);
                    copy.operands = leak(operands);
                });
            };
            edit("name", &|operand| operand.name = "other");
            edit("type", &|operand| operand.dtype = OperandType::Fixed(DType::Bool));
            edit("rank", &|operand| {
                operand.shape = leak([operand.shape, &[AxisSize::product(&["batch"])]].concat());
            });
        }
        caught(schema, "one more operand", |copy| copy.operands = leak([schema.operands, &[NEW]].concat()));
        for position in 0..schema.attributes.len() {
            caught(schema, "attribute removed", |copy| {
                let mut attributes = schema.attributes.to_vec();
                attributes.remove(position);
                copy.attributes = leak(attributes);
            });
            caught(schema, "attribute renamed", |copy| {
                let mut attributes: Vec<AttributeSchema> = schema.attributes.to_vec();
                attributes[position].name = "other";
                copy.attributes = leak(attributes);
            });
        }
        for position in 0..schema.results.len() {
            let edit = |what: &str, edit: &dyn Fn(&mut Vec<ResultSchema>)| {
                caught(schema, &format!("{what} of result {position}"), |copy| {
                    let mut results = schema.results.to_vec();
                    edit(&mut results);
                    copy.results = leak(results);
                });
            };
            edit("removal", &|results| {
                results.remove(position);
            });
            edit("type", &|results| results[position].dtype = OperandType::Fixed(DType::I32));
            let vector = schema.operands.iter().find(|operand| operand.shape.len() == 1).unwrap().name;
            edit("shape", &|results| results[position].shape = ResultShape::Like(vector));
        }
        // An operand that is given may be optional; one that is left out may not be required.
        if schema.operands.iter().any(|operand| operand.arity == Arity::Optional) {
            let copy = altered(schema, |copy| {
                let required = |operand: &OperandSchema| OperandSchema { arity: Arity::Required, ..*operand };
                copy.operands = leak(schema.operands.iter().map(required).collect());
            });
            let error = call(copy, schema, Variation { optional: false, ..full(schema) }).unwrap_err();
            assert!(error.contains("expected, got no operand"), "{error}");
        }
    }
}
