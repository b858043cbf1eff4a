//! Calls of every operator, made from its schema: one graph of one call.

use densessm_graph::{Attribute, DType, Dim, Error, Graph, Model, Operator, Scope, TensorType, ValueList};
use densessm_models::operators::{
    CausalConv, ConvInputs, DenseNorm, DenseNormInputs, Recurrence, Retention, RetentionInputs, RetentionStep,
    RetentionStepInputs, ScanInputs, SelectiveScan, SelectiveStep, StepInputs,
};
use densessm_proto::{
    Lowering,
    operators::{AxisSize, OperandSchema, Schema},
};

pub(crate) const HEADS: usize = 2;
const EPSILON: f32 = 1e-5;

/// What a call has besides what the schema requires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variation {
    /// Whether optional operands and groups are present.
    pub(crate) optional: bool,
    pub(crate) neighbours: usize,
    pub(crate) activation: DType,
    pub(crate) lowering: Lowering,
}

/// The sizes of dimensions by name.
pub(crate) type Sizes<'s> = &'s dyn Fn(&str) -> Dim;

/// The size of an axis.
pub(crate) fn axis_size(axis: &AxisSize, sizes: Sizes<'_>) -> Dim {
    let product = axis.dimensions.iter().fold(Dim::from(axis.factor), |product, name| product * sizes(name));
    product + axis.offset as i64
}

/// The type that an operand must have.
pub(crate) fn operand_type(operand: &OperandSchema, activation: DType, sizes: Sizes<'_>) -> TensorType {
    TensorType::new(operand.dtype.with(activation), operand.shape.iter().map(|axis| axis_size(axis, sizes)))
}

/// The names and schemas of the operands of a call, those that are left out included.
pub(crate) fn operands(schema: &'static Schema, variation: Variation) -> Vec<(String, &'static OperandSchema)> {
    let fixed = schema.operands.iter().map(|operand| (operand.name.to_owned(), operand));
    let groups = schema.groups.iter().flat_map(move |group| {
        let one = move |i| group.operands.iter().map(move |operand| (group.operand_name(i, operand), operand));
        (0..variation.neighbours).flat_map(one)
    });
    fixed.chain(groups).collect()
}

/// The graph of one call: its inputs are the operands, by name, of the types given; its outputs are `result_0`, ….
/// The call is checked against `schema`, which may be an altered copy of the operator's.
pub(crate) fn graph(
    schema: &'static Schema,
    variation: Variation,
    types: &dyn Fn(&str) -> TensorType,
) -> Result<Model, Error> {
    let graph = Graph::new("call", 18, variation.lowering)?;
    let x = graph.root().scalar(0.0); // replaced by inputs
    let optional = variation.optional.then_some(x);
    let count = variation.neighbours;
    let own = Recurrence { u: x, delta: x, delta_bias: x, a: x, b: x, state: x };
    let projections = vec![x; if variation.optional { count } else { 0 }];
    match schema.name {
        "CausalConv" => {
            let inputs = ConvInputs { u: x, weight: x, state: x, bias: optional, lengths: optional };
            call(&graph, CausalConv, schema, inputs, types);
        }
        "DenseNorm" => {
            let inputs = DenseNormInputs { own: x, weight: x, gate: x, neighbours: vec![x; count] };
            call(&graph, DenseNorm { epsilon: EPSILON }, schema, inputs, types);
        }
        "Retention" => {
            let (q, k, v, cos, sin, scale, state, gate, norm, lengths) = (x, x, x, x, x, x, x, x, x, x);
            let inputs = RetentionInputs { q, k, v, cos, sin, scale, state, gate, norm, lengths };
            call(&graph, Retention { heads: HEADS, epsilon: EPSILON }, schema, inputs, types);
        }
        "RetentionStep" => {
            let (q, k, v, cos, sin, scale, state, gate, norm) = (x, x, x, x, x, x, x, x, x);
            let inputs = RetentionStepInputs { q, k, v, cos, sin, scale, state, gate, norm };
            call(&graph, RetentionStep { heads: HEADS, epsilon: EPSILON }, schema, inputs, types);
        }
        "SelectiveScan" => {
            let (channel_gate, state_gate, neighbours) = (optional, optional, vec![own; count]);
            let (c, skip, z, lengths) = (x, x, x, x);
            let inputs = ScanInputs { own, c, skip, z, lengths, channel_gate, state_gate, neighbours, projections };
            call(&graph, SelectiveScan { neighbours: count }, schema, inputs, types);
        }
        "SelectiveStep" => {
            let (channel_gate, state_gate, neighbours) = (optional, optional, vec![x; count]);
            let inputs = StepInputs { own, c: x, skip: x, z: x, channel_gate, state_gate, neighbours, projections };
            call(&graph, SelectiveStep { neighbours: count }, schema, inputs, types);
        }
        other => panic!("no operator {other}"),
    }
    graph.finish()
}

fn call<'g, O: Operator>(
    graph: &'g Graph,
    operator: O,
    schema: &'static Schema,
    placeholders: O::Inputs<'g>,
    types: &dyn Fn(&str) -> TensorType,
) {
    let mut slots = Vec::new();
    placeholders.slots("", &mut slots);
    let mut names = slots.into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name);
    let inputs = placeholders.map(&mut |_| {
        let name = names.next().unwrap();
        graph.input(&name, types(&name))
    });
    let results = graph.root().call(With { operator, schema }, inputs);
    for (i, result) in results.to_slots().into_iter().flatten().enumerate() {
        graph.output(&format!("result_{i}"), result);
    }
}

/// An operator that is checked against a given schema.
struct With<O> {
    operator: O,
    schema: &'static Schema,
}

impl<O: Operator> Operator for With<O> {
    const NAME: &'static str = O::NAME;
    const DOMAIN: &'static str = O::DOMAIN;
    const VERSION: i64 = O::VERSION;
    type Inputs<'g> = O::Inputs<'g>;
    type Outputs<'g> = O::Outputs<'g>;

    fn schema(&self) -> Option<&'static Schema> {
        let own = self.operator.schema().expect("the operator has a schema");
        assert_eq!(own.name, self.schema.name);
        Some(self.schema)
    }

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        self.operator.attributes()
    }

    fn body<'g>(&self, p: Scope<'g>, inputs: O::Inputs<'g>) -> O::Outputs<'g> {
        self.operator.body(p, inputs)
    }
}
