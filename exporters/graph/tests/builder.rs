//! What the builder promises: shapes checked at every operation, the first mistake kept with its line, nothing
//! declared twice or forgotten, one text per graph.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{
    Attribute, DType, Dim, Error, ExternalData, Graph, Model, Operator, Prepare, Scope, TensorType, Value, concat,
};
use densessm_proto::Lowering;

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

/// `y = w ∘ x`, with as many results as asked for.
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
fn a_graph_reads_as_one_line_a_node() {
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
fn a_mistake_is_reported_with_its_node_and_its_line() {
    let graph = graph();
    let x = tokens(&graph);
    let line = line!() + 1;
    let y = graph.root().scope("mixer", |p| x + p.weight("bias", [65]));
    graph.output("y", y.exp());
    let error = graph.finish().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("node `mixer/Add`: cannot broadcast [batch, time, 64] with [65] (emitted at builder.rs:{line})")
    );
}

#[test]
fn only_the_first_mistake_is_reported() {
    let graph = graph();
    let x = tokens(&graph);
    let first = x.matmul(x);
    let _ = first.squeeze(7).slice(1, 0, None) + x.gather(x);
    graph.output("y", x.exp());
    let error = graph.finish().unwrap_err();
    assert_eq!(error.what, "node `MatMul`");
    assert_eq!(error.problem, "cannot multiply fp32[batch, time, 64] by fp32[batch, time, 64]");
}

/// Every mistake here is one that ONNX would find late or never.
#[test]
fn each_kind_of_mistake_is_found_where_it_is_made() {
    type Mistake = fn(&Graph) -> Value<'_>;
    let cases: [(Mistake, &str); 19] = [
        (|g| tokens(g).cast(DType::I64) + tokens_again(g), "expected equal element types, got int64 and fp32"),
        (|g| tokens(g).split::<3>(-1)[0], "cannot split an axis of 64 into 3 equal parts"),
        (|g| tokens(g).split_sizes(-1, [60, 5])[0], "cannot split axis -1"),
        (|g| tokens(g).split::<2>(1)[0], "expected a static size at axis 1"),
        (|g| tokens(g).transpose([0, 2]), "cannot order the axes"),
        (|g| tokens(g).squeeze(0), "expected size 1 at axis 0"),
        (|g| tokens(g).unsqueeze(5), "no place 5 for a new axis"),
        (|g| tokens(g).reduce_sum(3), "no axis 3 in [batch, time, 64]"),
        (|g| tokens(g).reshape(vec!["batch".into(), Dim::from(64_usize)]), "cannot reshape"),
        (|g| tokens(g).unflatten([2, 16]), "expected a last axis of [2, 16]"),
        (|g| tokens(g).slice(2, 0, Some(65)), "cannot take 0..Some(65)"),
        (|g| tokens(g).gather(tokens_again(g)), "expected integer indices"),
        (|g| tokens(g).select(g.root().scalar(0.0), g.root().scalar(1.0)), "expected a condition of truth values"),
        (|g| concat(1, &[tokens(g), tokens_again(g).transpose([1, 0, 2])]), "cannot join"),
        (|g| tokens(g).cast(DType::I64).exp(), "expected floats"),
        (|g| g.root().range("rows"), "no input has an axis of size rows"),
        (|g| tokens(g).matmul(g.root().weight("w", [63, 2])), "cannot multiply"),
        (|g| tokens(g) * g.root().weight_t("w", [2, 64]), "cannot broadcast"),
        (|g| g.root().weight_as("w", [4, 2, 3], Prepare::Taps), "expected a depthwise kernel"),
    ];
    for (mistake, problem) in cases {
        let graph = graph();
        let value = mistake(&graph);
        graph.output("y", value);
        let error = graph.finish().unwrap_err();
        assert!(error.problem.contains(problem), "expected {problem:?}, got {error}");
        assert_eq!(error.file.rsplit('/').next(), Some("builder.rs"), "{error}");
    }
}

fn tokens_again(graph: &Graph) -> Value<'_> {
    graph.input("x2", f32s(["batch".into(), "time".into(), Dim::from(64_usize)]))
}

#[test]
fn nothing_is_declared_twice() {
    type Mistake = fn(&Graph);
    let input: Mistake = |g| {
        let _ = (tokens(g), tokens(g));
    };
    let weight: Mistake = |g| {
        let _ = (g.root().weight("w", [1]), g.root().weight("w", [1]));
    };
    let scope: Mistake = |g| {
        g.root().scope("a.b", |_| ());
        g.root().scope("a", |p| p.scope("b", |_| ()));
    };
    let output: Mistake = |g| {
        g.output("y", tokens(g).exp());
        g.output("y", tokens_again(g).exp());
    };
    let cases = [(input, "input `x`"), (weight, "weight `w`"), (scope, "scope `a.b`"), (output, "output `y`")];
    for (mistake, what) in cases {
        let graph = graph();
        mistake(&graph);
        let error = graph.finish().unwrap_err();
        assert_eq!(error.what, what);
        assert!(error.problem.ends_with("twice"), "{error}");
    }
}

#[test]
fn nothing_is_forgotten() {
    let finish = |write: fn(&Graph)| {
        let graph = graph();
        let x = tokens(&graph);
        write(&graph);
        graph.output("y", x.exp());
        graph.finish().unwrap_err()
    };
    let node = finish(|g| {
        let _ = g.root().scope("state", |_| tokens_again(g).exp());
    });
    assert_eq!((node.what.as_str(), node.problem.as_str()), ("node `state/Exp`", "no output depends on it"));
    let weight = finish(|g| {
        let _ = g.root().weight("w", [2]);
    });
    assert_eq!((weight.what.as_str(), weight.problem.as_str()), ("weight `w`", "is declared and never used"));
    let input = finish(|g| {
        let _ = tokens_again(g);
    });
    assert_eq!((input.what.as_str(), input.problem.as_str()), ("input `x2`", "is declared and never used"));
    let dead_in_scan = finish(|g| {
        let ((), rows) = g.root().scan(1, (), tokens_again(g), |(), row| {
            let _forgotten = row.exp();
            ((), row * 2.0)
        });
        g.output("rows", rows);
    });
    assert_eq!(dead_in_scan.what, "node `Scan/Exp`");
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

#[test]
fn a_scan_whose_state_changes_its_shape_is_a_mistake() {
    let graph = graph();
    let x = tokens(&graph);
    let start = graph.input("state", f32s(["batch".into(), Dim::from(1_usize)]));
    let (end, y) = graph.root().scan(1, start, x, |h, x| (h + x, x.exp()));
    graph.output("y", y);
    graph.output("end", end);
    let error = graph.finish().unwrap_err();
    assert_eq!(error.problem, "expected a state to stay fp32[batch, 1], got fp32[batch, 64]");
}

#[test]
fn a_body_reads_nothing_that_it_was_not_given() {
    struct Leaks;
    impl Operator for Leaks {
        const NAME: &'static str = "Leaks";
        const DOMAIN: &'static str = "test.domain";
        const VERSION: i64 = 1;
        type Inputs<'g> = Value<'g>;
        type Outputs<'g> = Value<'g>;
        fn attributes(&self) -> Vec<(&'static str, Attribute)> {
            Vec::new()
        }
        fn body<'g>(&self, p: Scope<'g>, x: Value<'g>) -> Value<'g> {
            x * p.weight("w", [64])
        }
    }
    let graph = graph();
    let y = graph.root().call(Leaks, tokens(&graph));
    graph.output("y", y);
    let error = graph.finish().unwrap_err();
    assert_eq!(error.problem, "declared in an operator's body; hand it in as an operand");
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
    let place = |_: &densessm_graph::Weight| ExternalData { file: "w.data".into(), offset: 0, length: 0 };
    let shared = two_calls(Lowering::Function, true).unwrap().to_onnx(place);
    assert_eq!((shared.functions.len(), shared.ir_version), (1, 8));
    let two = two_calls(Lowering::Function, false).unwrap().to_onnx(place);
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
    let onnx = model.to_onnx(|_| ExternalData { file: "w.data".into(), offset: 0, length: 0 });
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
    let onnx = model.to_onnx(|_| ExternalData { file: "w.data".into(), offset: 0, length: 0 });
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

#[test]
fn an_operator_set_that_the_forms_do_not_fit_is_refused() {
    let error = Graph::new("test", 17, Lowering::Inline).unwrap_err();
    assert_eq!(error.problem, "expected version 18 to 22 of the operator set, got 17");
}
