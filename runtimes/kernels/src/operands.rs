//! What a kernel is called with, and the checks that every kernel begins with.

use crate::Error;
use std::fmt;

/// Most axes that an operand has.
const MOST_AXES: usize = 4;

/// The sizes of an operand's axes, at most four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    sizes: [usize; MOST_AXES],
    rank: usize,
}

impl Shape {
    /// The shape of these sizes; nothing if they are more than four or their product overflows.
    pub fn new(sizes: &[usize]) -> Option<Self> {
        let mut own = [1; MOST_AXES];
        own.get_mut(..sizes.len())?.copy_from_slice(sizes);
        own.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        Some(Self { sizes: own, rank: sizes.len() })
    }

    /// The sizes.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// Their product.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sizes().fmt(f)
    }
}

/// One operand of a call.
#[derive(Clone, Copy, Debug, Default)]
pub enum Operand<'a> {
    /// Left out.
    #[default]
    Absent,
    /// Numbers of fp32, row-major.
    Floats(Shape, &'a [f32]),
    /// Numbers of int32, row-major.
    Integers(Shape, &'a [i32]),
}

impl Operand<'_> {
    /// Its shape, if it is there.
    pub fn shape(&self) -> Option<Shape> {
        match self {
            Self::Absent => None,
            Self::Floats(shape, _) | Self::Integers(shape, _) => Some(*shape),
        }
    }
}

/// The element type of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// fp32.
    Float32,
    /// int32.
    Int32,
}

/// How often an operand is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Once.
    Required,
    /// Once or not.
    Optional,
    /// Any number of times; only the last slot is.
    Repeated,
}

/// A place for operands in an operator's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name, for errors.
    pub name: &'static str,
    /// Element type.
    pub element: Element,
    /// How often it is there.
    pub arity: Arity,
}

impl Slot {
    pub(crate) const fn required(name: &'static str) -> Self {
        Self { name, element: Element::Float32, arity: Arity::Required }
    }

    pub(crate) const fn optional(name: &'static str) -> Self {
        Self { name, element: Element::Float32, arity: Arity::Optional }
    }

    pub(crate) const fn repeated(name: &'static str) -> Self {
        Self { name, element: Element::Float32, arity: Arity::Repeated }
    }

    pub(crate) const fn lengths(arity: Arity) -> Self {
        Self { name: "lengths", element: Element::Int32, arity }
    }
}

/// The operands of a call beside their names.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a, 'c> {
    pub(crate) slots: &'static [Slot],
    pub(crate) given: &'c [Operand<'a>],
}

impl<'a> Operands<'a, '_> {
    fn name(&self, index: usize) -> &'static str {
        self.slots.get(index).or(self.slots.last()).map_or("operand", |slot| slot.name)
    }

    fn wrong(&self, index: usize, problem: String) -> Error {
        let name = self.name(index);
        let repeated = self.slots.last().is_some_and(|slot| slot.arity == Arity::Repeated);
        Error::new(
            match (index + 1).checked_sub(self.slots.len()) {
                Some(before) if repeated => format!("{name} {}", before + 1),
                _ => name.to_owned(),
            },
            problem,
        )
    }

    fn get(&self, index: usize) -> Operand<'a> {
        self.given.get(index).copied().unwrap_or(Operand::Absent)
    }

    /// The sizes of an operand of N axes.
    pub(crate) fn sizes<const N: usize>(&self, index: usize) -> Result<[usize; N], Error> {
        let shape = match self.get(index) {
            Operand::Absent => return Err(self.wrong(index, format!("expected {N} axes, got no operand"))),
            Operand::Floats(shape, _) | Operand::Integers(shape, _) => shape,
        };
        <[usize; N]>::try_from(shape.sizes())
            .map_err(|_| self.wrong(index, format!("expected {N} axes, got shape {shape:?}")))
    }

    /// An operand of floats that may be left out.
    pub(crate) fn maybe<const N: usize>(&self, index: usize, sizes: [usize; N]) -> Result<Option<&'a [f32]>, Error> {
        match self.get(index) {
            Operand::Absent => Ok(None),
            Operand::Floats(shape, values) if shape.sizes() == sizes && values.len() == shape.elements() => {
                Ok(Some(values))
            }
            Operand::Floats(shape, _) => Err(self.wrong(index, format!("expected shape {sizes:?}, got {shape:?}"))),
            Operand::Integers(..) => Err(self.wrong(index, "expected fp32, got int32".to_owned())),
        }
    }

    /// An operand of floats.
    pub(crate) fn floats<const N: usize>(&self, index: usize, sizes: [usize; N]) -> Result<&'a [f32], Error> {
        self.maybe(index, sizes)?.ok_or_else(|| self.wrong(index, format!("expected shape {sizes:?}, got no operand")))
    }

    /// Lengths of right-padded rows, if there are any; each 0 … time.
    pub(crate) fn lengths(&self, index: usize, batch: usize, time: usize) -> Result<Lengths<'a>, Error> {
        match self.get(index) {
            Operand::Absent => Ok(Lengths { given: None, time }),
            Operand::Integers(shape, values) if shape.sizes() == [batch] && values.len() == batch => {
                match values.iter().position(|&length| !usize::try_from(length).is_ok_and(|length| length <= time)) {
                    None => Ok(Lengths { given: Some(values), time }),
                    Some(row) => {
                        Err(self.wrong(index, format!("row {row}: expected 0 to {time}, got {}", values[row])))
                    }
                }
            }
            Operand::Integers(shape, _) => Err(self.wrong(index, format!("expected shape [{batch}], got {shape:?}"))),
            Operand::Floats(..) => Err(self.wrong(index, "expected int32, got fp32".to_owned())),
        }
    }

    /// How many operands lie from an index on.
    pub(crate) fn from(&self, index: usize) -> usize {
        self.given.len().saturating_sub(index)
    }
}

/// Valid tokens of each row, checked.
#[derive(Clone, Copy)]
pub(crate) struct Lengths<'a> {
    given: Option<&'a [i32]>,
    time: usize,
}

impl Lengths<'_> {
    pub(crate) fn of(&self, row: usize) -> usize {
        self.given.and_then(|given| given.get(row)).map_or(self.time, |&length| length as usize)
    }
}
