//! A call whose operands were checked against the schema.

use crate::{
    Described, Error, Operand, Shape, Signature,
    signature::{OperandCheck, ResultCheck, Sizes},
};
use densessm_proto::{
    DType,
    operators::{Arity, OperandSchema},
};

/// The largest number of groups of a schema.
const MAX_GROUPS: usize = 2;

/// A call whose operands are those that the schema says, in number, element type and shape.
///
/// Operands, groups and dimensions are referred to by their positions in the schema, which
/// [`position!`](densessm_proto::position) finds by name.
#[derive(Clone, Copy, Debug)]
pub struct BoundCall<'c, O> {
    signature: &'c Signature,
    operands: &'c [O],
    sizes: Sizes,
    /// First operand and number of repetitions of each group.
    groups: [(usize, usize); MAX_GROUPS],
}

impl Signature {
    /// Checks a call's operands against the schema.
    ///
    /// # Errors
    /// When an operand is missing, superfluous, of another type or of a shape that does not fit the others.
    pub fn bind<'c, O: Described>(&'c self, operands: &'c [O]) -> Result<BoundCall<'c, O>, Error> {
        let mut sizes = self.sizes;
        for binding in &self.bindings {
            let name = self.schema.operands[binding.operand].name;
            let shape = operands.get(binding.operand).and_then(Described::describe).map(|(_, shape)| shape);
            let wrong = || self.wrong_shape(name.to_owned(), &self.schema.operands[binding.operand], &sizes, shape);
            let shape = shape.filter(|shape| shape.sizes().len() == self.operands[binding.operand].axes.len());
            let size = shape.and_then(|shape| binding.solve(shape.sizes()[binding.axis], &sizes));
            let size = size.ok_or_else(wrong)?;
            let dimension = &self.schema.dimensions[binding.dimension];
            if size < dimension.minimum {
                let (what, least) = (dimension.name, dimension.minimum);
                return Err(Error::new(name, format!("expected {what} of at least {least}, got {size}")));
            }
            sizes[binding.dimension] = size;
        }
        for (position, (check, schema)) in self.operands.iter().zip(self.schema.operands).enumerate() {
            self.check(check, schema, operands.get(position), &sizes, || schema.name.to_owned())?;
        }
        let mut groups = [(0, 0); MAX_GROUPS];
        let mut first = self.operands.len();
        for (position, span) in groups.iter_mut().enumerate().take(self.groups.len()) {
            let repetitions = self.repetitions(position, first, operands.len())?;
            *span = (first, repetitions);
            let (check, schema) = (&self.groups[position], &self.schema.groups[position]);
            for repetition in 0..repetitions {
                for (check, member) in check.operands.iter().zip(schema.operands) {
                    let name = || schema.operand_name(repetition, member);
                    self.check(check, member, operands.get(first), &sizes, name)?;
                    first += 1;
                }
            }
        }
        // Operands left out at the end may or may not be counted.
        if operands.iter().skip(first).any(|operand| operand.describe().is_some()) {
            return Err(Error::new("operands", format!("expected {first}, got {}", operands.len())));
        }
        Ok(BoundCall { signature: self, operands, sizes, groups })
    }

    /// How often a group is repeated whose first operand would be `first`.
    fn repetitions(&self, position: usize, first: usize, given: usize) -> Result<usize, Error> {
        let group = &self.groups[position];
        let members = group.operands.len().max(1);
        let rest = given.saturating_sub(first);
        let name = self.schema.groups[position].name;
        match group.repetitions {
            Some(_) if group.arity == Arity::Optional && rest == 0 => Ok(0),
            Some(repetitions) if rest / members >= repetitions => Ok(repetitions),
            Some(repetitions) => {
                let expected = repetitions.saturating_mul(members);
                Err(Error::new(name, format!("expected {repetitions} of them, {expected} operands, got {rest}")))
            }
            None if rest.is_multiple_of(members) && rest / members >= group.minimum => Ok(rest / members),
            None => {
                let least = group.minimum;
                Err(Error::new(name, format!("expected {least} or more of {members} operands each, got {rest}")))
            }
        }
    }

    #[inline]
    fn check<O: Described>(
        &self,
        check: &OperandCheck,
        schema: &OperandSchema,
        operand: Option<&O>,
        sizes: &Sizes,
        name: impl Fn() -> String,
    ) -> Result<(), Error> {
        let Some((dtype, shape)) = operand.and_then(Described::describe) else {
            return match check.arity {
                Arity::Optional => Ok(()),
                Arity::Required => Err(self.wrong_shape(name(), schema, sizes, None)),
            };
        };
        if dtype != check.dtype {
            return Err(Error::new(name(), format!("expected {}, got {dtype}", check.dtype)));
        }
        let got = shape.sizes();
        let fits = got.len() == check.axes.len()
            && got.iter().zip(&check.axes).all(|(&size, axis)| axis.size(sizes) == Some(size));
        if !fits {
            return Err(self.wrong_shape(name(), schema, sizes, Some(shape)));
        }
        if !operand.is_some_and(Described::is_complete) {
            return Err(Error::new(name(), format!("expected {} elements, got another number", shape.elements())));
        }
        Ok(())
    }

    /// `name: expected shape [batch, time, 8] …`, with the sizes that are known by now.
    #[cold]
    fn wrong_shape(&self, name: String, operand: &OperandSchema, sizes: &Sizes, got: Option<Shape>) -> Error {
        let got = got.map_or_else(|| "no operand".to_owned(), |shape| format!("{shape:?}"));
        let symbols = operand.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let known: Vec<String> = self
            .schema
            .dimensions
            .iter()
            .zip(sizes)
            .filter(|(dimension, size)| {
                **size > 0 && operand.shape.iter().any(|axis| axis.dimensions.contains(&dimension.name))
            })
            .map(|(dimension, size)| format!("{} = {size}", dimension.name))
            .collect();
        let known = if known.is_empty() { String::new() } else { format!(" with {}", known.join(", ")) };
        Error::new(name, format!("expected shape [{symbols}]{known}, got {got}"))
    }
}

impl<'c, O: Described + Copy> BoundCall<'c, O> {
    /// The size of a dimension.
    #[inline]
    pub fn size(&self, dimension: usize) -> usize {
        self.sizes.get(dimension).copied().unwrap_or(0)
    }

    /// An operand; none if it was left out.
    #[inline]
    pub fn operand(&self, position: usize) -> Option<O> {
        self.operands.get(position).copied()
    }

    /// All operands, in order.
    #[inline]
    pub fn operands(&self) -> &'c [O] {
        self.operands
    }

    /// The element type of the activations.
    #[inline]
    pub fn activation_dtype(&self) -> DType {
        self.signature.activation
    }

    /// How often a group is repeated.
    #[inline]
    pub fn repetitions(&self, group: usize) -> usize {
        self.groups.get(group).map_or(0, |(_, repetitions)| *repetitions)
    }

    /// An operand of one repetition of a group.
    #[inline]
    pub fn member(&self, group: usize, repetition: usize, position: usize) -> Option<O> {
        let (first, repetitions) = *self.groups.get(group)?;
        let members = self.signature.groups.get(group)?.operands.len();
        let index = first + repetition * members + position;
        self.operands.get(index).filter(|_| repetition < repetitions && position < members).copied()
    }

    /// The number of results.
    #[inline]
    pub fn results(&self) -> usize {
        let repetitions = self.signature.result_group.as_ref().map_or(0, |(group, _)| self.repetitions(*group));
        self.signature.schema.result_count(repetitions)
    }

    /// The shape of a result.
    pub fn result_shape(&self, result: usize) -> Option<Shape> {
        let shape = |operand: O| operand.describe().map(|(_, shape)| shape);
        match self.signature.results.get(result) {
            Some(ResultCheck::Like(operand)) => shape(self.operand(*operand)?),
            Some(ResultCheck::Axes(axes)) => {
                Shape::new(&axes.iter().map(|axis| axis.size(&self.sizes)).collect::<Option<Vec<_>>>()?)
            }
            None => {
                let (group, like) = self.signature.result_group.as_ref()?;
                let position = result - self.signature.results.len();
                shape(self.member(*group, position.checked_div(like.len())?, *like.get(position % like.len())?)?)
            }
        }
    }

    /// The element type of a result.
    pub fn result_dtype(&self, result: usize) -> Option<DType> {
        self.signature.schema.result_at(result).map(|(result, _)| result.dtype.with(self.signature.activation))
    }
}

impl<'a> BoundCall<'_, Operand<'a>> {
    /// The elements of an fp32 operand; none if it was left out.
    #[inline]
    pub fn optional_f32(&self, position: usize) -> Option<&'a [f32]> {
        floats(self.operand(position))
    }

    /// The elements of a required fp32 operand.
    ///
    /// # Errors
    /// When the schema does not say that it is one.
    #[inline]
    pub fn f32(&self, position: usize) -> Result<&'a [f32], Error> {
        self.optional_f32(position).ok_or_else(|| {
            let name = self.signature.schema.operands.get(position).map_or("operand", |operand| operand.name);
            Error::new(name, "expected fp32, got another type or no operand")
        })
    }

    /// The elements of an fp32 operand of one repetition of a group; empty if the schema does not have it.
    #[inline]
    pub fn member_f32(&self, group: usize, repetition: usize, position: usize) -> &'a [f32] {
        floats(self.member(group, repetition, position)).unwrap_or_default()
    }

    /// The lengths of right-padded rows, if there are any, each from 0 to `time`.
    ///
    /// # Errors
    /// When one is longer, or negative.
    pub(crate) fn lengths(&self, position: usize, time: usize) -> Result<Lengths<'a>, Error> {
        let Some(Operand::I32(_, values)) = self.operand(position) else { return Ok(Lengths { given: None, time }) };
        match values.iter().position(|&length| !usize::try_from(length).is_ok_and(|length| length <= time)) {
            None => Ok(Lengths { given: Some(values), time }),
            Some(row) => {
                let name = self.signature.schema.operands.get(position).map_or("lengths", |operand| operand.name);
                Err(Error::new(name, format!("row {row}: expected 0 to {time}, got {}", values[row])))
            }
        }
    }
}

#[inline]
fn floats(operand: Option<Operand<'_>>) -> Option<&[f32]> {
    match operand {
        Some(Operand::F32(_, values)) => Some(values),
        _ => None,
    }
}

/// Valid tokens of each row, checked.
#[derive(Clone, Copy)]
pub(crate) struct Lengths<'a> {
    given: Option<&'a [i32]>,
    time: usize,
}

impl Lengths<'_> {
    /// Valid tokens of a row.
    pub(crate) fn of(&self, row: usize) -> usize {
        self.given.and_then(|given| given.get(row)).map_or(self.time, |&length| length as usize)
    }
}
