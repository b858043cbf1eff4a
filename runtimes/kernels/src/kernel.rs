//! The list of operators, as a runtime registers them.

use crate::{
    Error, Level, Operand, Pool, Shape, Slot, causal_conv::CausalConv, dense_norm::DenseNorm, retention::Retention,
    retention_step::RetentionStep, selective_scan::SelectiveScan, selective_step::SelectiveStep,
};
use densessm_proto::operators;

/// A kernel made for one node of a graph.
pub trait Kernel: Send + Sync {
    /// The shapes of the results, as many as the operator's definition says.
    ///
    /// # Errors
    /// When an operand is missing, of another type or of a shape that does not fit the others.
    fn shapes(&self, operands: &[Operand<'_>]) -> Result<[Shape; 2], Error>;

    /// Computes the results into buffers of those shapes, whatever they held before.
    ///
    /// # Errors
    /// As [`Kernel::shapes`], or when a buffer has another size, or the pool cannot run.
    fn run(&self, operands: &[Operand<'_>], results: &mut [&mut [f32]], pool: &dyn Pool) -> Result<(), Error>;
}

/// Where a node's attributes are read from.
pub trait Attributes {
    /// An integer, if it is there.
    fn integer(&self, name: &str) -> Option<i64>;
    /// A float, if it is there.
    fn float(&self, name: &str) -> Option<f32>;
}

/// Makes a kernel of a node's attributes.
type Make = fn(&dyn Attributes, Level) -> Result<Box<dyn Kernel>, Error>;

/// An operator as a runtime has to know it.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name in the domain `ai.densessm`.
    pub name: &'static str,
    /// Its operands in order.
    pub operands: &'static [Slot],
    /// Number of results, all fp32: one or two.
    pub results: usize,
    make: Make,
}

impl Definition {
    /// A kernel for a node with these attributes.
    ///
    /// # Errors
    /// When an attribute is missing or out of range.
    pub fn kernel(&self, attributes: &dyn Attributes, level: Level) -> Result<Box<dyn Kernel>, Error> {
        (self.make)(attributes, level)
    }
}

/// All operators.
pub const OPERATORS: [Definition; 6] = [
    Definition {
        name: operators::CAUSAL_CONV,
        operands: CausalConv::OPERANDS,
        results: 2,
        make: |_, level| Ok(Box::new(CausalConv { level })),
    },
    Definition {
        name: operators::SELECTIVE_SCAN,
        operands: SelectiveScan::OPERANDS,
        results: 2,
        make: |attributes, level| Ok(Box::new(SelectiveScan { neighbours: neighbours(attributes)?, level })),
    },
    Definition {
        name: operators::SELECTIVE_STEP,
        operands: SelectiveStep::OPERANDS,
        results: 2,
        make: |attributes, level| Ok(Box::new(SelectiveStep { neighbours: neighbours(attributes)?, level })),
    },
    Definition {
        name: operators::RETENTION,
        operands: Retention::OPERANDS,
        results: 2,
        make: |attributes, level| {
            Ok(Box::new(Retention { heads: heads(attributes)?, eps: epsilon(attributes)?, level }))
        },
    },
    Definition {
        name: operators::RETENTION_STEP,
        operands: RetentionStep::OPERANDS,
        results: 2,
        make: |attributes, level| {
            Ok(Box::new(RetentionStep { heads: heads(attributes)?, eps: epsilon(attributes)?, level }))
        },
    },
    Definition {
        name: operators::DENSE_NORM,
        operands: DenseNorm::OPERANDS,
        results: 1,
        make: |attributes, level| Ok(Box::new(DenseNorm { eps: epsilon(attributes)?, level })),
    },
];

/// A count, `least` or more and small enough to be one.
fn count(attributes: &dyn Attributes, name: &str, least: i64) -> Result<usize, Error> {
    match attributes.integer(name) {
        Some(value) if (least..1 << 20).contains(&value) => Ok(value as usize),
        Some(value) => Err(Error::new(name, format!("expected {least} or more, got {value}"))),
        None => Err(Error::new(name, "expected an integer, got no attribute")),
    }
}

fn heads(attributes: &dyn Attributes) -> Result<usize, Error> {
    count(attributes, "heads", 1)
}

fn neighbours(attributes: &dyn Attributes) -> Result<usize, Error> {
    count(attributes, "neighbours", 0)
}

fn epsilon(attributes: &dyn Attributes) -> Result<f32, Error> {
    match attributes.float("epsilon") {
        Some(value) if value >= 0.0 && value.is_finite() => Ok(value),
        Some(value) => Err(Error::new("epsilon", format!("expected a positive number, got {value}"))),
        None => Err(Error::new("epsilon", "expected a number, got no attribute")),
    }
}

/// The results' buffers, whose sizes are checked.
pub(crate) fn buffers<'r>(results: &'r mut [&mut [f32]], shapes: [Shape; 2]) -> Result<[&'r mut [f32]; 2], Error> {
    let got = results.len();
    let [first, second] = results else {
        return Err(Error::new("results", format!("expected 2 buffers, got {got}")));
    };
    for (name, shape, buffer) in [("first result", shapes[0], &*first), ("second result", shapes[1], &*second)] {
        if buffer.len() != shape.elements() {
            return Err(Error::new(name, format!("expected shape {shape:?}, got {} numbers", buffer.len())));
        }
    }
    Ok([first, second])
}
