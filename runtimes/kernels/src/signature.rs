//! A schema made ready for the calls of one node.
//!
//! Names are resolved and attributes put in once, when a kernel is made; what a call costs is a comparison of sizes.

use crate::{AttributeValues, Error};
use densessm_proto::{
    DType,
    operators::{Arity, AxisSize, OperandSchema, Repeat, ResultGroupSchema, ResultSchema, ResultShape, Schema},
};

/// The largest number of named dimensions of a schema.
pub(crate) const MAX_DIMENSIONS: usize = 10;
/// The largest number of dimensions in one product.
const MAX_FACTORS: usize = 2;

/// The sizes of a schema's dimensions, by position.
pub(crate) type Sizes = [usize; MAX_DIMENSIONS];

/// A schema made ready for the calls of one node: its attributes and activation type are known.
#[derive(Clone, Debug)]
pub struct Signature {
    pub(crate) schema: &'static Schema,
    pub(crate) activation: DType,
    pub(crate) operands: Vec<OperandCheck>,
    pub(crate) groups: Vec<GroupCheck>,
    pub(crate) bindings: Vec<Binding>,
    /// Sizes of the dimensions that are attributes; the others follow from the operands of a call.
    pub(crate) sizes: Sizes,
    /// The shapes of the results before the variadic tail.
    pub(crate) results: Vec<ResultCheck>,
    /// The variadic tail of the results: the group of operands that it is repeated with, and the shapes of a repetition,
    /// each like that of an operand of the group.
    pub(crate) result_group: Option<(usize, Vec<usize>)>,
}

/// The shape of a result before the variadic tail.
#[derive(Clone, Debug)]
pub(crate) enum ResultCheck {
    /// That of the operand at this position.
    Like(usize),
    /// These sizes.
    Axes(Vec<Axis>),
}

/// What an operand must be.
#[derive(Clone, Debug)]
pub(crate) struct OperandCheck {
    pub(crate) dtype: DType,
    pub(crate) arity: Arity,
    pub(crate) axes: Vec<Axis>,
}

/// A group of the variadic tail.
#[derive(Clone, Debug)]
pub(crate) struct GroupCheck {
    pub(crate) operands: Vec<OperandCheck>,
    pub(crate) arity: Arity,
    /// How often it is repeated; none if as often as there are operands left.
    pub(crate) repetitions: Option<usize>,
    /// Fewest repetitions where their number is not given.
    pub(crate) minimum: usize,
}

/// The size of an axis: `factor · sizes[d₁] · sizes[d₂] + offset`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    factor: usize,
    dimensions: [Option<usize>; MAX_FACTORS],
    offset: isize,
}

/// Where the size of a dimension is read: a required operand's axis, all else in which is known by then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    pub(crate) dimension: usize,
    pub(crate) operand: usize,
    pub(crate) axis: usize,
    /// What the size is multiplied with, as an axis of its own.
    others: Axis,
}

impl Axis {
    /// The size, if it neither overflows nor is negative.
    #[inline]
    pub(crate) fn size(&self, sizes: &Sizes) -> Option<usize> {
        let mut factors = self.dimensions.iter().flatten();
        let product = factors.try_fold(self.factor, |product, &d| product.checked_mul(sizes[d]))?;
        product.checked_add_signed(self.offset)
    }
}

impl Binding {
    /// The dimension's size, if it is a whole number.
    #[inline]
    pub(crate) fn solve(&self, size: usize, sizes: &Sizes) -> Option<usize> {
        let product = size.checked_add_signed(self.others.offset.checked_neg()?)?;
        let others = Axis { offset: 0, ..self.others }.size(sizes).filter(|&others| others > 0)?;
        product.is_multiple_of(others).then(|| product / others)
    }
}

impl Signature {
    /// Makes a schema ready for calls of a node with these attributes, whose activations have a type.
    ///
    /// # Errors
    /// When the schema does not allow the type, or is inconsistent: a shape names a dimension that no required operand
    /// or attribute before it determines, or a result or group an operand or attribute that does not exist.
    pub fn new(attributes: &AttributeValues, activation: DType) -> Result<Self, Error> {
        let schema = attributes.schema();
        let inconsistent = |problem: String| Error::new(schema.name, format!("inconsistent schema: {problem}"));
        if !schema.activations.contains(&activation) {
            let allowed = schema.activations;
            return Err(Error::new(schema.name, format!("expected activations of {allowed:?}, got {activation}")));
        }
        if schema.dimensions.len() > MAX_DIMENSIONS {
            return Err(inconsistent(format!("expected at most {MAX_DIMENSIONS} dimensions")));
        }
        let mut sizes = [0; MAX_DIMENSIONS];
        let mut known = [false; MAX_DIMENSIONS];
        for (position, dimension) in schema.dimensions.iter().enumerate() {
            if let Some(attribute) = schema.attribute(dimension.name) {
                sizes[position] = attributes.size(attribute)?;
                known[position] = true;
            }
        }

        let check = |operand: &OperandSchema| {
            let axes = operand.shape.iter().map(|axis| resolve(schema, axis)).collect::<Option<_>>();
            let axes = axes.ok_or_else(|| inconsistent(format!("shape of `{}`", operand.name)))?;
            Ok::<_, Error>(OperandCheck { dtype: operand.dtype.with(activation), arity: operand.arity, axes })
        };
        let operands = schema.operands.iter().map(check).collect::<Result<Vec<_>, _>>()?;
        let groups = schema
            .groups
            .iter()
            .enumerate()
            .map(|(position, group)| {
                let (repetitions, minimum) = match group.repeat {
                    Repeat::Attribute(name) => {
                        let attribute = schema.attribute(name);
                        let attribute = attribute.ok_or_else(|| inconsistent(format!("no attribute `{name}`")))?;
                        (Some(attributes.size(attribute)?), 0)
                    }
                    Repeat::Rest { minimum } if position + 1 == schema.groups.len() => (None, minimum),
                    Repeat::Rest { .. } => return Err(inconsistent(format!("`{}` is not last", group.name))),
                };
                let operands = group.operands.iter().map(check).collect::<Result<_, _>>()?;
                Ok(GroupCheck { operands, arity: group.arity, repetitions, minimum })
            })
            .collect::<Result<Vec<_>, Error>>()?;

        let mut bindings = Vec::new();
        for (position, operand) in operands.iter().enumerate().filter(|(_, o)| o.arity == Arity::Required) {
            for (axis, size) in operand.axes.iter().enumerate() {
                let unknown = |d: &Option<usize>| d.is_some_and(|d| !known[d]);
                let Some(place) = size.dimensions.iter().position(unknown) else { continue };
                let mut others = *size;
                let Some(dimension) = others.dimensions[place].take() else { continue };
                if others.dimensions.iter().any(unknown) {
                    let name = schema.operands[position].name;
                    return Err(inconsistent(format!("axis {axis} of `{name}` has two unknown dimensions")));
                }
                known[dimension] = true;
                bindings.push(Binding { dimension, operand: position, axis, others });
            }
        }
        if let Some(position) = known[..schema.dimensions.len()].iter().position(|known| !known) {
            return Err(inconsistent(format!("nothing determines `{}`", schema.dimensions[position].name)));
        }
        let results = schema.results.iter().map(|result| {
            let shape = match result.shape {
                ResultShape::Like(like) => {
                    schema.operand(like).filter(|&like| operands[like].arity == Arity::Required).map(ResultCheck::Like)
                }
                ResultShape::Axes(axes) => {
                    axes.iter().map(|axis| resolve(schema, axis)).collect::<Option<_>>().map(ResultCheck::Axes)
                }
            };
            shape.ok_or_else(|| inconsistent(format!("result `{}` has the shape of no operand", result.name)))
        });
        let results = results.collect::<Result<_, _>>()?;
        let result_group = match schema.result_group {
            None => None,
            Some(results) => Some(result_group(schema, &results).ok_or_else(|| {
                inconsistent(format!("results repeated with `{}` have the shape of no operand", results.group))
            })?),
        };
        Ok(Self { schema, activation, operands, groups, bindings, sizes, results, result_group })
    }

    /// The schema.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// For each result before the variadic tail, the position of the operand whose shape it has; none for a result that
    /// has a shape of its own.
    pub fn results_like(&self) -> impl Iterator<Item = Option<usize>> {
        self.results.iter().map(|result| match result {
            ResultCheck::Like(operand) => Some(*operand),
            ResultCheck::Axes(_) => None,
        })
    }
}

/// The group of operands that results are repeated with, and for each of these the operand whose shape it has.
fn result_group(schema: &Schema, results: &ResultGroupSchema) -> Option<(usize, Vec<usize>)> {
    let position = schema.group(results.group)?;
    let group = &schema.groups[position];
    let like = |result: &ResultSchema| match result.shape {
        ResultShape::Like(like) => group.operand(like),
        ResultShape::Axes(_) => None,
    };
    Some((position, results.results.iter().map(like).collect::<Option<_>>()?))
}

/// An axis with positions in the place of names.
fn resolve(schema: &Schema, axis: &AxisSize) -> Option<Axis> {
    let mut dimensions = [None; MAX_FACTORS];
    for (i, name) in axis.dimensions.iter().enumerate() {
        *dimensions.get_mut(i)? = Some(schema.dimension(name)?);
    }
    Some(Axis { factor: axis.factor, dimensions, offset: axis.offset })
}
