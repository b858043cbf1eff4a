//! The dense connection of a layer's keys or values with those of the layers below.

use super::in_fp32;
use crate::nn::rms_norm;
use densessm_graph::{Attribute, Operator, Scope, Value, values};
use densessm_proto::operators::{self, Schema};

const SCHEMA: &Schema = &operators::DENSE_NORM;

/// `RMSNorm(own + silu(gate) ∘ Σ neighbours)`: DenseRetNet's dense connection (arXiv 2403.00818, section 3.2).
#[derive(Clone, Copy, Debug)]
pub struct DenseNorm {
    /// Added to the mean square in the norm.
    pub epsilon: f32,
}

/// Operands of [`DenseNorm`]; the result is `[B, T, n]`.
#[derive(Clone, Debug)]
pub struct DenseNormInputs<'g> {
    /// The layer's own vectors `[B, T, n]`.
    pub own: Value<'g>,
    /// Weight of the norm `[n]`.
    pub weight: Value<'g>,
    /// One gate for all neighbours, before silu `[B, T, n]`.
    pub gate: Value<'g>,
    /// The vectors of the layers below `[B, T, n]`, at least one.
    pub neighbours: Vec<Value<'g>>,
}

values!(DenseNormInputs { own, weight, gate, neighbours });

impl Operator for DenseNorm {
    const NAME: &'static str = SCHEMA.name;
    const DOMAIN: &'static str = SCHEMA.domain;
    const VERSION: i64 = SCHEMA.version;
    type Inputs<'g> = DenseNormInputs<'g>;
    type Outputs<'g> = Value<'g>;

    fn schema(&self) -> Option<&'static Schema> {
        Some(SCHEMA)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("epsilon", self.epsilon.into())]
    }

    fn body<'g>(&self, _: Scope<'g>, inputs: DenseNormInputs<'g>) -> Value<'g> {
        let activation = inputs.own.dtype();
        let DenseNormInputs { own, weight, gate, neighbours } = in_fp32(inputs);
        let sum = neighbours.into_iter().reduce(|sum, neighbour| sum + neighbour);
        rms_norm(sum.map_or(own, |sum| own + gate.silu() * sum), weight, self.epsilon).cast(activation)
    }
}
