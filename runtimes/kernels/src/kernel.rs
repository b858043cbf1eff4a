//! The list of operators, as a runtime registers them.

use crate::{
    Error, Level, Operand, Pool, Slot, causal_conv::CausalConv, dense_norm::DenseNorm, retention::Retention,
    retention_step::RetentionStep, selective_scan::SelectiveScan, selective_step::SelectiveStep,
};
use densessm_proto::operators;

/// A kernel made for one node of a graph.
pub trait Kernel: Send + Sync {
    /// Computes the results into buffers of the sizes that the operator's definition says, whatever they held before.
    ///
    /// # Errors
    /// When an operand is missing, of another type or of a shape that does not fit the others, a buffer has another
    /// size, or the pool cannot run.
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
    /// For each result the operand whose shape it has; all are fp32.
    pub results: &'static [usize],
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
        results: &[0, 2],
        make: |_, level| Ok(Box::new(CausalConv { level })),
    },
    Definition {
        name: operators::SELECTIVE_SCAN,
        operands: SelectiveScan::OPERANDS,
        results: &[0, 5],
        make: |attributes, level| Ok(Box::new(SelectiveScan { neighbours: neighbours(attributes)?, level })),
    },
    Definition {
        name: operators::SELECTIVE_STEP,
        operands: SelectiveStep::OPERANDS,
        results: &[0, 5],
        make: |attributes, level| Ok(Box::new(SelectiveStep { neighbours: neighbours(attributes)?, level })),
    },
    Definition {
        name: operators::RETENTION,
        operands: Retention::OPERANDS,
        results: &[2, 6],
        make: |attributes, level| {
            Ok(Box::new(Retention { heads: heads(attributes)?, eps: epsilon(attributes)?, level }))
        },
    },
    Definition {
        name: operators::RETENTION_STEP,
        operands: RetentionStep::OPERANDS,
        results: &[2, 6],
        make: |attributes, level| {
            Ok(Box::new(RetentionStep { heads: heads(attributes)?, eps: epsilon(attributes)?, level }))
        },
    },
    Definition {
        name: operators::DENSE_NORM,
        operands: DenseNorm::OPERANDS,
        results: &[0],
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

/// The results' buffers, if they are as many and as large as they must be.
pub(crate) fn buffers<'r, const N: usize>(
    results: &'r mut [&mut [f32]],
    sizes: [usize; N],
) -> Result<[&'r mut [f32]; N], Error> {
    let got = results.len();
    let results: &mut [&mut [f32]; N] =
        results.try_into().map_err(|_| Error::new("results", format!("expected {N} buffers, got {got}")))?;
    for (i, (buffer, size)) in results.iter().zip(sizes).enumerate() {
        if buffer.len() != size {
            return Err(Error::new(format!("result {i}"), format!("expected {size} numbers, got {}", buffer.len())));
        }
    }
    Ok(results.each_mut().map(|buffer| &mut buffer[..]))
}
