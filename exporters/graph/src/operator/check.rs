//! Whether a call of an operator is what the operator's schema says.

use crate::{Attribute, DType, Dim, TensorType, tensor_type::Shape};
use densessm_proto::operators::{Arity, AxisSize, OperandSchema, OperandType, Repeat, ResultShape, Schema};
use std::collections::HashMap;

/// An operand of a call: its name in the [`ValueList`](crate::ValueList), and its type unless it is left out.
pub(super) type Slot = (String, Option<TensorType>);

/// The sizes of a schema's dimensions.
type Sizes = HashMap<&'static str, Dim>;

/// Checks the attributes and operands of a call: names, order, presence, element types and shapes. Returns the types
/// that the results must have.
pub(super) fn call(
    schema: &'static Schema,
    attributes: &[(&'static str, Attribute)],
    slots: &[Slot],
) -> Result<Vec<TensorType>, String> {
    let mut sizes = check_attributes(schema, attributes)?;
    let expected = expand(schema, attributes, slots.len())?;
    for position in 0..expected.len().max(slots.len()) {
        match (expected.get(position), slots.get(position)) {
            (Some((name, _)), Some((got, _))) if name == got => {}
            (Some((name, _)), Some((got, _))) => {
                return Err(format!("operand {position}: expected `{name}`, got `{got}`"));
            }
            (Some((name, _)), None) => return Err(format!("operand `{name}`: expected, got no such operand")),
            (None, got) => {
                let got = got.map_or("", |(name, _)| name);
                return Err(format!("operand `{got}`: expected {} operands, got one more", expected.len()));
            }
        }
    }
    let mut activation = None;
    for ((name, operand), (_, tensor)) in expected.iter().zip(slots) {
        let wrong = |problem: String| format!("operand `{name}`: {problem}");
        match tensor {
            Some(tensor) => {
                check_dtype(schema, operand, tensor.dtype, &mut activation).map_err(wrong)?;
                check_shape(schema, operand, &tensor.shape, &mut sizes).map_err(wrong)?;
            }
            None if operand.arity == Arity::Optional => {}
            None => return Err(wrong("expected, got no operand".to_owned())),
        }
    }
    let activation = activation.unwrap_or(DType::F32);
    let repetitions = repetitions_of_results(schema, &expected);
    (0..schema.result_count(repetitions))
        .map(|position| {
            let name = schema.result_name(position);
            let (result, repetition) =
                schema.result_at(position).ok_or_else(|| format!("result `{name}`: not in the schema"))?;
            let shape = match result.shape {
                ResultShape::Like(like) => {
                    let full = full_name(schema, like, repetition);
                    let like = slots.iter().find(|(name, _)| Some(name) == full.as_ref());
                    let like = like.and_then(|(_, tensor)| tensor.as_ref());
                    let none = || format!("result `{name}`: no operand `{}`", full.as_deref().unwrap_or_default());
                    like.ok_or_else(none)?.shape.clone()
                }
                ResultShape::Axes(axes) => {
                    let axes = axes.iter().map(|axis| known_axis(axis, &sizes)).collect::<Option<_>>();
                    axes.ok_or_else(|| format!("result `{name}`: its shape names an unknown dimension"))?
                }
            };
            Ok(TensorType { dtype: result.dtype.with(activation), shape })
        })
        .collect()
}

/// How often the variadic tail of the results is repeated in a call with these operands.
fn repetitions_of_results(schema: &Schema, operands: &[(String, &'static OperandSchema)]) -> usize {
    let group = schema.result_group.and_then(|results| schema.groups.get(schema.group(results.group)?));
    let Some((group, first)) = group.and_then(|group| Some((group, group.operands.first()?))) else { return 0 };
    (0..operands.len())
        .take_while(|&repetition| operands.iter().any(|(name, _)| *name == group.operand_name(repetition, first)))
        .count()
}

/// The full name of the operand whose shape a result has.
fn full_name(schema: &Schema, like: &str, repetition: Option<usize>) -> Option<String> {
    let Some(repetition) = repetition else { return Some(like.to_owned()) };
    let group = schema.groups.get(schema.group(schema.result_group?.group)?)?;
    Some(group.operand_name(repetition, group.operands.get(group.operand(like)?)?))
}

/// The size of an axis all of whose dimensions are known.
fn known_axis(axis: &AxisSize, sizes: &Sizes) -> Option<Dim> {
    let factors = axis.dimensions.iter().map(|name| sizes.get(name).cloned());
    let product = factors.into_iter().try_fold(Dim::from(axis.factor), |product, size| Some(product * size?))?;
    Some(product + axis.offset as i64)
}

/// Checks the types of a call's results.
pub(super) fn results(schema: &Schema, expected: &[TensorType], got: &[TensorType]) -> Result<(), String> {
    if expected.len() != got.len() {
        return Err(format!("expected {} results, got {}", expected.len(), got.len()));
    }
    match expected.iter().zip(got).enumerate().find(|(_, (expected, got))| expected != got) {
        Some((position, (expected, got))) => {
            Err(format!("result `{}`: expected {expected}, got {got}", schema.result_name(position)))
        }
        None => Ok(()),
    }
}

/// Checks names, order, types and ranges of attributes. Returns the sizes of the dimensions that are attributes.
fn check_attributes(schema: &Schema, given: &[(&'static str, Attribute)]) -> Result<Sizes, String> {
    let names = |list: &mut dyn Iterator<Item = &'static str>| list.collect::<Vec<_>>().join(", ");
    let (expected, got) = (
        names(&mut schema.attributes.iter().map(|attribute| attribute.name)),
        names(&mut given.iter().map(|(name, _)| *name)),
    );
    if expected != got {
        return Err(format!("attributes: expected [{expected}], got [{got}]"));
    }
    let mut sizes = Sizes::new();
    for (attribute, (name, value)) in schema.attributes.iter().zip(given) {
        let valid = match value {
            Attribute::Int(value) => attribute.kind.allows_int(*value),
            Attribute::Float(value) => attribute.kind.allows_float(*value),
            Attribute::Ints(_) | Attribute::Floats(_) => false,
        };
        if !valid {
            return Err(format!("attribute `{name}`: expected {}, got {value}", attribute.kind));
        }
        if let (Attribute::Int(value), Some(_)) = (value, schema.dimension(name)) {
            sizes.insert(name, Dim::from(*value));
        }
    }
    Ok(sizes)
}

/// The names and schemas of all operands of a call that has `count` of them.
fn expand(
    schema: &'static Schema,
    attributes: &[(&'static str, Attribute)],
    count: usize,
) -> Result<Vec<(String, &'static OperandSchema)>, String> {
    let mut expected: Vec<_> = schema.operands.iter().map(|operand| (operand.name.to_owned(), operand)).collect();
    for group in schema.groups {
        let rest = count.saturating_sub(expected.len());
        let repetitions = match group.repeat {
            _ if group.arity == Arity::Optional && rest == 0 => 0,
            Repeat::Attribute(name) => match attributes.iter().find(|(given, _)| *given == name) {
                Some((_, Attribute::Int(repetitions))) => usize::try_from(*repetitions).unwrap_or(0),
                _ => return Err(format!("operands `{}`: expected an attribute `{name}`", group.name)),
            },
            Repeat::Rest { minimum } => (rest / group.operands.len().max(1)).max(minimum),
        };
        for repetition in 0..repetitions {
            let operands = group.operands.iter();
            expected.extend(operands.map(|operand| (group.operand_name(repetition, operand), operand)));
        }
    }
    Ok(expected)
}

fn check_dtype(
    schema: &Schema,
    operand: &OperandSchema,
    got: DType,
    activation: &mut Option<DType>,
) -> Result<(), String> {
    let expected = match (operand.dtype, *activation) {
        (OperandType::Activation, None) => {
            if !schema.activations.contains(&got) {
                let allowed: Vec<&str> = schema.activations.iter().map(|dtype| dtype.name()).collect();
                return Err(format!("expected {}, got {got}", allowed.join(" or ")));
            }
            *activation = Some(got);
            got
        }
        (dtype, activation) => dtype.with(activation.unwrap_or(got)),
    };
    if got == expected { Ok(()) } else { Err(format!("expected {expected}, got {got}")) }
}

fn check_shape(schema: &Schema, operand: &OperandSchema, got: &[Dim], sizes: &mut Sizes) -> Result<(), String> {
    let fits = got.len() == operand.shape.len()
        && operand.shape.iter().zip(got).all(|(axis, size)| check_axis(schema, axis, size, sizes));
    if fits {
        return Ok(());
    }
    let symbols: Vec<String> = operand.shape.iter().map(ToString::to_string).collect();
    let known = schema.dimensions.iter().filter_map(|dimension| {
        let size = sizes.get(dimension.name)?;
        let used = operand.shape.iter().any(|axis| axis.dimensions.contains(&dimension.name));
        used.then(|| format!("{} = {size}", dimension.name))
    });
    let known: Vec<String> = known.collect();
    let known = if known.is_empty() { String::new() } else { format!(" with {}", known.join(", ")) };
    Err(format!("expected shape [{}]{known}, got {}", symbols.join(", "), Shape(got)))
}

/// Whether an axis has the size that the schema says. A dimension that is not known yet gets its size from it.
fn check_axis(schema: &Schema, axis: &AxisSize, size: &Dim, sizes: &mut Sizes) -> bool {
    let product = size.clone() - axis.offset as i64;
    let mut known = Dim::from(axis.factor);
    let mut unknown = None;
    for name in axis.dimensions {
        match sizes.get(name) {
            Some(size) => known = known * size.clone(),
            None if unknown.is_none() => unknown = Some(*name),
            None => return false,
        }
    }
    let Some(name) = unknown else { return product == known };
    let solved = match (product.known(), known.known()) {
        (_, Some(1)) => product,
        (Some(product), Some(known)) if known > 0 && product.is_multiple_of(known) => Dim::from(product / known),
        _ => return false,
    };
    let minimum = schema.dimensions.iter().find(|dimension| dimension.name == name).map_or(0, |d| d.minimum);
    let enough = solved.known().is_none_or(|size| size >= minimum);
    sizes.insert(name, solved);
    enough
}
