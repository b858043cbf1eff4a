//! What a graph becomes: its text and its ONNX form. Errors are in `errors.rs`, element types in `precision.rs`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{
    Attribute, DType, Dim, Error, ExternalData, Graph, Lowering, Model, Operator, Prepare, Scope, TensorType, Value,
};
use densessm_proto::onnx::ModelProto;
use prost::Message;

fn graph() -> Graph {
    Graph::new("test", 18, Lowering::Function).unwrap()
}

fn f32s<const N: usize>(shape: [Dim; N]) -> TensorType {
    TensorType { dtype: DType::F32, shape: shape.to_vec() }
}

/// `[batch, time, 64]`
fn tokens(graph: &Graph) -> Value<'_> {
    graph.input("x", f32s(["batch".into(), "time".into(), Dim::from(64_usize)]))
}

fn linear<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
    p.scope(name, |p| x.matmul(p.weight_t("weight", [d_out, x.size(-1)])) + p.weight("bias", [d_out]))
}

/// `y = 2 x (+ shift)` and `exp(y)`.
struct Twice;

impl Operator for Twice {
    const NAME: &'static str = "Twice";
    const DOMAIN: &'static str = "test.domain";
    const VERSION: i64 = 3;
    type Inputs<'g> = (Value<'g>, Option<Value<'g>>);
    type Outputs<'g> = [Value<'g>; 2];

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        vec![("factor", 2.0.into())]
    }

    fn body<'g>(&self, _: Scope<'g>, (x, shift): (Value<'g>, Option<Value<'g>>)) -> [Value<'g>; 2] {
        let twice = x * 2.0;
        let y = shift.map_or(twice, |shift| twice + shift);
        [y, y.exp()]
    }
}

#[test]
fn a_graph_prints_as_one_line_per_node() {
    let graph = graph();
    let x = tokens(&graph);
    let y = graph.root().scope("layers.3", |p| {
        let [v, gate] = linear(p, "to_hidden.0", x, 32).silu().split(-1);
        let a = p.weight_as("A_log", [16, 2], Prepare::NegExp);
        let [y, _] = p.call(Twice, ((v * gate).matmul(a), None));
        y
    });
    graph.output("y", y);
    let model = graph.finish().unwrap();
    assert_eq!(
        model.to_string(),
        "graph test (opset 18)
  weight layers.3.to_hidden.0.weight: fp32[64, 32] Transpose
  weight layers.3.to_hidden.0.bias: fp32[32] AsIs
  weight layers.3.A_log: fp32[16, 2] NegExp
  input x: fp32[batch, time, 64]
  literal/[16, 16]: int64[2] = 16, 16
  layers/3/to_hidden/0/MatMul: fp32[batch, time, 32] = MatMul(x, layers.3.to_hidden.0.weight)
  layers/3/to_hidden/0/Add: fp32[batch, time, 32] = Add(layers/3/to_hidden/0/MatMul, layers.3.to_hidden.0.bias)
  layers/3/Sigmoid: fp32[batch, time, 32] = Sigmoid(layers/3/to_hidden/0/Add)
  layers/3/Mul: fp32[batch, time, 32] = Mul(layers/3/to_hidden/0/Add, layers/3/Sigmoid)
  layers/3/Split.0: fp32[batch, time, 16], layers/3/Split.1: fp32[batch, time, 16] = Split(layers/3/Mul, literal/[16, 16]) axis=-1
  layers/3/Mul_1: fp32[batch, time, 16] = Mul(layers/3/Split.0, layers/3/Split.1)
  layers/3/MatMul: fp32[batch, time, 2] = MatMul(layers/3/Mul_1, layers.3.A_log)
  y: fp32[batch, time, 2], layers/3/Twice.1: fp32[batch, time, 2] = test.domain.Twice(layers/3/MatMul, _) factor=2.0
  output y: fp32[batch, time, 2]
function test.domain.Twice factor=2.0
  input 0: fp32[batch, time, 2]
  input 1: fp32[]
  literal/2.0: fp32[] = 2.0
  Mul: fp32[batch, time, 2] = Mul(0, literal/2.0)
  Exp: fp32[batch, time, 2] = Exp(Mul)
  output Mul: fp32[batch, time, 2]
  output Exp: fp32[batch, time, 2]
"
    );
}

#[test]
fn a_scan_keeps_its_states_and_joins_its_outputs() {
    let graph = graph();
    let x = tokens(&graph);
    let start = graph.input("state", f32s(["batch".into(), Dim::from(64_usize)]));
    let decay = graph.root().weight("decay", [64]);
    let (end, y) = graph.root().scan(1, start, x, |h, x| {
        let h = decay * h + x;
        (h, h.exp())
    });
    graph.output("y", y);
    graph.output("end", end);
    let model = graph.finish().unwrap();
    let types: Vec<String> = model.outputs().map(|(name, tensor)| format!("{name}: {tensor}")).collect();
    assert_eq!(types, ["y: fp32[batch, time, 64]", "end: fp32[batch, 64]"]);
}

fn onnx(model: &Model) -> ModelProto {
    let bytes = model.to_bytes_external(|_| ExternalData::new("w.data", 0, 0));
    ModelProto::decode(bytes.as_slice()).unwrap()
}

fn two_calls(lowering: Lowering, same: bool) -> Result<Model, Error> {
    let graph = Graph::new("test", 18, lowering)?;
    let x = tokens(&graph);
    let [y, _] = graph.root().call(Twice, (x, None));
    let [z, _] = graph.root().call(Twice, (y, if same { None } else { Some(x) }));
    let [z, e] = graph.root().call(Twice, (z, None));
    graph.output("z", z);
    graph.output("e", e);
    graph.finish()
}

#[test]
fn equal_calls_share_a_function_and_unequal_ones_get_an_overload() {
    let shared = onnx(&two_calls(Lowering::Function, true).unwrap());
    assert_eq!((shared.functions.len(), shared.ir_version), (1, 8));
    let two = onnx(&two_calls(Lowering::Function, false).unwrap());
    let overloads: Vec<&str> = two.functions.iter().map(|function| function.overload.as_str()).collect();
    assert_eq!((overloads, two.ir_version), (vec!["", "2"], 10));
    let nodes = two.graph.unwrap().node;
    let called: Vec<&str> = nodes.iter().map(|node| node.overload.as_str()).collect();
    assert_eq!(called, ["", "2", ""]);
    assert_eq!(nodes[0].input, ["x", ""]); // an operand left out keeps its place
    assert_eq!(
        two.opset_import.iter().map(|set| (&*set.domain, set.version)).collect::<Vec<_>>(),
        [("", 18), ("test.domain", 3)]
    );
}

#[test]
fn the_inline_lowering_holds_standard_operators_only() {
    let graph = Graph::new("test", 18, Lowering::Inline).unwrap();
    let x = tokens(&graph);
    let [y, e] = graph.root().scope("layer", |p| p.call(Twice, (x, Some(x))));
    graph.output("y", y);
    graph.output("e", e);
    let model = graph.finish().unwrap();
    let onnx = onnx(&model);
    let nodes = onnx.graph.unwrap().node;
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["layer/Twice/Mul", "layer/Twice/Add", "layer/Twice/Exp"]);
    assert!(onnx.functions.is_empty() && nodes.iter().all(|node| node.domain.is_empty()));
}

#[test]
fn an_operation_that_was_emitted_before_is_not_emitted_again() {
    let graph = graph();
    let x = tokens(&graph);
    let softplus = |p: Scope<'_>| p.scope("a", |_| x.exp()) + p.scope("b", |_| x.exp());
    graph.output("y", graph.root().scope("once", softplus));
    // Two calls of one function share it, and what its body emits is not taken for what the next body emits.
    let [z, e] = graph.root().call(Twice, (x, None));
    let [again, _] = graph.root().call(Twice, (x, None));
    let [other, _] = graph.root().call(Twice, (z, Some(e)));
    graph.output("z", again + other);
    let model = graph.finish().unwrap();
    let onnx = onnx(&model);
    let nodes = onnx.graph.unwrap().node;
    let names: Vec<&str> = nodes.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(names, ["Exp", "Add", "Twice", "Twice", "Add"]);
    let bodies: Vec<usize> = onnx.functions.iter().map(|function| function.node.len()).collect();
    assert_eq!(bodies, [3, 4], "a literal, and two or three operations");
}

#[test]
fn a_shape_is_read_at_run_time_only_where_it_must_be() {
    let graph = graph();
    let x = tokens(&graph);
    let flat = x.reshape(vec![Dim::from("batch") * Dim::from("time"), Dim::from(64_usize)]);
    let back = flat.exp().reshape(vec!["batch".into(), "time".into(), Dim::from(64_usize)]);
    graph.output("y", back);
    let text = graph.finish().unwrap().to_string();
    assert!(text.contains("literal/[-1, 64]: int64[2] = -1, 64"), "{text}");
    assert!(text.contains("Concat: int64[3] = Concat(Shape, Shape_1, literal/[64]) axis=0"), "{text}");
}

/// Returns its operand twice, and a value that it was made with, if any.
struct Returns<'v>(Option<Value<'v>>);

impl Operator for Returns<'static> {
    const NAME: &'static str = "Returns";
    const DOMAIN: &'static str = "test.domain";
    const VERSION: i64 = 1;
    type Inputs<'g> = Value<'g>;
    type Outputs<'g> = [Value<'g>; 2];

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        Vec::new()
    }

    fn body<'g>(&self, _: Scope<'g>, x: Value<'g>) -> [Value<'g>; 2] {
        [x, self.0.map_or(x, |value| value)]
    }
}

#[test]
fn a_functions_results_are_its_own_nodes() {
    let graph = graph();
    let [a, b] = graph.root().call(Returns(None), tokens(&graph));
    graph.output("a", a);
    graph.output("b", b);
    let function = onnx(&graph.finish().unwrap()).functions.remove(0);
    let nodes: Vec<&str> = function.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(
        (nodes, &function.output[..]),
        (vec!["Identity"; 2], &["Identity".to_owned(), "Identity_1".to_owned()][..])
    );

    // A value that the body was not given belongs to another graph or body.
    let other: &'static Graph = Box::leak(Box::new(Graph::new("other", 18, Lowering::Inline).unwrap()));
    let graph = Graph::new("test", 18, Lowering::Function).unwrap();
    let [a, b] = graph.root().call(Returns(Some(tokens(other))), tokens(&graph));
    graph.output("y", a + b);
    assert_eq!(graph.finish().unwrap_err().problem, "returns a value of another graph");
}
