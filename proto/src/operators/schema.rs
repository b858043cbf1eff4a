//! The types that a schema is made of.

use crate::DType;
use std::fmt;

/// The signature of a custom operator.
///
/// The positional inputs of a node are [`Schema::operands`] followed by the repetitions of [`Schema::groups`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schema {
    /// Domain that the operator belongs to.
    pub domain: &'static str,
    /// Version of the domain.
    pub version: i64,
    /// Name, which no standard operator has: some runtimes look names up without the domain.
    pub name: &'static str,
    /// What the operator computes, in one sentence.
    pub description: &'static str,
    /// Element types that [`OperandType::Activation`] may stand for; one call uses one of them throughout.
    pub activations: &'static [DType],
    /// The named dimensions that shapes refer to.
    pub dimensions: &'static [DimensionSchema],
    /// Attributes, in order; all are required. A dimension that has an attribute's name has its value.
    pub attributes: &'static [AttributeSchema],
    /// Operands before the variadic tail, in order.
    pub operands: &'static [OperandSchema],
    /// The variadic tail: groups of operands, each repeated.
    pub groups: &'static [GroupSchema],
    /// Results before the variadic tail, in order.
    pub results: &'static [ResultSchema],
    /// The variadic tail: results that are repeated.
    pub result_group: Option<ResultGroupSchema>,
}

impl Schema {
    /// The number of results of a call in which the variadic tail of the results is repeated so often.
    pub fn result_count(&self, repetitions: usize) -> usize {
        self.results.len() + self.result_group.map_or(0, |group| repetitions.saturating_mul(group.results.len()))
    }

    /// A result by its position in a call, and the repetition that it belongs to; none before the variadic tail.
    pub fn result_at(&self, position: usize) -> Option<(&'static ResultSchema, Option<usize>)> {
        if let Some(result) = self.results.get(position) {
            return Some((result, None));
        }
        let (group, position) = (self.result_group?, position - self.results.len());
        let repetition = position.checked_div(group.results.len())?;
        Some((group.results.get(position % group.results.len())?, Some(repetition)))
    }

    /// The full name of a result by its position in a call: `upper_0_present_state` in the variadic tail.
    pub fn result_name(&self, position: usize) -> String {
        match (self.result_at(position), self.result_group) {
            (Some((result, Some(repetition))), Some(group)) => format!("{}_{repetition}_{}", group.group, result.name),
            (Some((result, _)), _) => result.name.to_owned(),
            (None, _) => format!("result {position}"),
        }
    }
}

/// A named dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DimensionSchema {
    /// Name that shapes refer to.
    pub name: &'static str,
    /// Smallest valid size.
    pub minimum: usize,
    /// What the dimension counts, in one sentence.
    pub description: &'static str,
}

/// An attribute of an operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttributeSchema {
    /// Name.
    pub name: &'static str,
    /// Type and range.
    pub kind: AttributeKind,
    /// What the attribute means, in one sentence.
    pub description: &'static str,
}

/// Type and range of an attribute. The set is closed, for every user of a schema handles all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttributeKind {
    /// An integer from `minimum` to `maximum`, both included.
    Int {
        /// Smallest valid value.
        minimum: i64,
        /// Largest valid value.
        maximum: i64,
    },
    /// A finite float of at least `minimum`.
    Float {
        /// Smallest valid value.
        minimum: f32,
    },
}

impl AttributeKind {
    /// Whether an integer is a valid value.
    pub const fn allows_int(self, value: i64) -> bool {
        matches!(self, Self::Int { minimum, maximum } if minimum <= value && value <= maximum)
    }

    /// Whether a float is a valid value.
    pub const fn allows_float(self, value: f32) -> bool {
        matches!(self, Self::Float { minimum } if minimum <= value && value.is_finite())
    }
}

impl fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int { minimum, maximum } => write!(f, "an integer from {minimum} to {maximum}"),
            Self::Float { minimum } => write!(f, "a finite float of at least {minimum}"),
        }
    }
}

/// An operand of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandSchema {
    /// Name.
    pub name: &'static str,
    /// Element type.
    pub dtype: OperandType,
    /// Whether it may be left out.
    pub arity: Arity,
    /// Sizes of its axes, outermost first.
    pub shape: &'static [AxisSize],
    /// What it holds, in one sentence.
    pub description: &'static str,
}

impl OperandSchema {
    /// An operand that is always present.
    pub const fn required(
        name: &'static str,
        dtype: OperandType,
        shape: &'static [AxisSize],
        description: &'static str,
    ) -> Self {
        Self { name, dtype, arity: Arity::Required, shape, description }
    }

    /// An operand that may be left out.
    pub const fn optional(
        name: &'static str,
        dtype: OperandType,
        shape: &'static [AxisSize],
        description: &'static str,
    ) -> Self {
        Self { name, dtype, arity: Arity::Optional, shape, description }
    }
}

/// Element type of an operand or a result. The set is closed, for every user of a schema handles all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandType {
    /// The one activation type of the call, out of [`Schema::activations`]; written `T`.
    Activation,
    /// Always this type.
    Fixed(DType),
}

impl OperandType {
    /// The element type where activations have the type `activation`.
    pub const fn with(self, activation: DType) -> DType {
        match self {
            Self::Activation => activation,
            Self::Fixed(dtype) => dtype,
        }
    }
}

impl fmt::Display for OperandType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation => f.write_str("T"),
            Self::Fixed(dtype) => dtype.fmt(f),
        }
    }
}

/// Whether an operand, or a group of operands, may be left out. The set is closed, for every user of a schema handles
/// all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Always present.
    Required,
    /// May be left out: an operand keeps its position, a group disappears.
    Optional,
}

/// Operands that are repeated together: a part of the variadic tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSchema {
    /// Name.
    pub name: &'static str,
    /// Whether all repetitions may be left out together.
    pub arity: Arity,
    /// How often the group is repeated.
    pub repeat: Repeat,
    /// The operands of one repetition, in order; all are required.
    pub operands: &'static [OperandSchema],
}

impl GroupSchema {
    /// The full name of an operand of one repetition: `neighbours_0_state`, or `projections_0` where the group has one
    /// operand only.
    pub fn operand_name(&self, repetition: usize, operand: &OperandSchema) -> String {
        match self.operands.len() {
            1 => format!("{}_{repetition}", self.name),
            _ => format!("{}_{repetition}_{}", self.name, operand.name),
        }
    }
}

/// How often a group is repeated. The set is closed, for every user of a schema handles all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// As often as the integer attribute of this name says.
    Attribute(&'static str),
    /// As often as there are operands left, and at least `minimum` times; only the last group may be so.
    Rest {
        /// Fewest repetitions.
        minimum: usize,
    },
}

/// A result of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultSchema {
    /// Name.
    pub name: &'static str,
    /// Element type.
    pub dtype: OperandType,
    /// Shape.
    pub shape: ResultShape,
    /// What it holds, in one sentence.
    pub description: &'static str,
}

/// The shape of a result. The set is closed, for every user of a schema handles all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultShape {
    /// That of the required operand of this name; in a group of results, of the operand of the same repetition.
    Like(&'static str),
    /// These sizes, outermost first.
    Axes(&'static [AxisSize]),
}

/// Results that are repeated together: a part of the variadic tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultGroupSchema {
    /// Name of the group of operands with whose every repetition the results are repeated.
    pub group: &'static str,
    /// The results of one repetition, in order.
    pub results: &'static [ResultSchema],
}

/// The size of an axis: `factor · d₁ · d₂ · … + offset`, where the dᵢ are named dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisSize {
    /// What the product of the dimensions is multiplied with.
    pub factor: usize,
    /// Names of the dimensions; without any, the size is a constant.
    pub dimensions: &'static [&'static str],
    /// What is added.
    pub offset: isize,
}

impl AxisSize {
    /// The product of some dimensions; 1 without any.
    pub const fn product(dimensions: &'static [&'static str]) -> Self {
        Self { factor: 1, dimensions, offset: 0 }
    }

    /// The size multiplied with a constant.
    pub const fn times(self, factor: usize) -> Self {
        Self { factor: self.factor * factor, offset: self.offset * factor as isize, ..self }
    }

    /// The size with a constant added.
    pub const fn plus(self, offset: isize) -> Self {
        Self { offset: self.offset + offset, ..self }
    }
}

impl fmt::Display for AxisSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let product = self.dimensions.join("*");
        match (self.factor, product.is_empty()) {
            (factor, true) => return write!(f, "{}", factor as isize + self.offset),
            (1, false) => f.write_str(&product)?,
            (factor, false) => write!(f, "{factor}*{product}")?,
        }
        match self.offset {
            0 => Ok(()),
            offset if offset < 0 => write!(f, " - {}", offset.unsigned_abs()),
            offset => write!(f, " + {offset}"),
        }
    }
}

/// Displays the call's form: `CausalConv(u, weight, state, bias?, lengths?) -> y, present`.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |arity| if arity == Arity::Optional { "?" } else { "" };
        let operands = self.operands.iter().map(|operand| format!("{}{}", operand.name, mark(operand.arity)));
        let groups = self.groups.iter().map(|group| format!("{}{}...", group.name, mark(group.arity)));
        let operands: Vec<String> = operands.chain(groups).collect();
        let results = self.results.iter().map(|result| result.name.to_owned());
        let groups = self.result_group.iter().map(|results| format!("{}_results...", results.group));
        let results: Vec<String> = results.chain(groups).collect();
        write!(f, "{}({}) -> {}", self.name, operands.join(", "), results.join(", "))
    }
}
