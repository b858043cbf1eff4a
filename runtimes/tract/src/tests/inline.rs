//! Functions by their bodies.

use super::build::*;
use crate::inline::{InlineError, inline};
use densessm_proto::onnx::{
    FunctionProto, GraphProto, ModelProto, NodeProto, attribute_proto::AttributeType, tensor_proto::DataType,
};
use std::collections::HashSet;

/// A model of these calls, its values being untyped.
fn calls(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    model(graph(vec![value("x", DataType::Float, &["n"])], vec![], vec![], nodes), functions)
}

fn inlined(mut model: ModelProto) -> Result<GraphProto, InlineError> {
    inline(&mut model, |_, _| false)?;
    assert!(model.functions.is_empty());
    Ok(model.graph.unwrap())
}

/// `Op(inputs) -> outputs`, one line per node, sub-graphs after their node.
fn lines(graph: &GraphProto) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &graph.node {
        lines.push(format!("{}({}) -> {}", node.op_type, node.input.join(", "), node.output.join(", ")));
        for body in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            let names: Vec<&str> = body.input.iter().map(|input| input.name.as_str()).collect();
            lines.push(format!("  ({})", names.join(", ")));
            lines.extend(self::lines(body).iter().map(|line| format!("  {line}")));
            let names: Vec<&str> = body.output.iter().map(|output| output.name.as_str()).collect();
            lines.push(format!("  -> {}", names.join(", ")));
        }
    }
    lines
}

fn twice() -> FunctionProto {
    function("Twice", &["a"], &["b"], vec![node("Neg", &["a"], &["t"]), node("Sub", &["a", "t"], &["b"])])
}

#[test]
fn a_call_becomes_its_body_under_names_of_its_own() {
    let nodes = vec![call("Twice", &["x"], &["y"]), call("Twice", &["y"], &["z"])];
    let graph = inlined(calls(nodes, vec![twice()])).unwrap();
    assert_eq!(
        lines(&graph),
        ["Neg(x) -> make_y/t", "Sub(x, make_y/t) -> y", "Neg(y) -> make_z/t", "Sub(y, make_z/t) -> z"]
    );
    let names: HashSet<&str> = graph.node.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names.len(), 4, "node names are unique");
}

#[test]
fn a_name_that_is_taken_is_not_taken_again() {
    let nodes = vec![node("Abs", &["x"], &["make_y/t"]), call("Twice", &["x"], &["y"])];
    let graph = inlined(calls(nodes, vec![twice()])).unwrap();
    assert_eq!(lines(&graph)[1..], ["Neg(x) -> make_y/t.2", "Sub(x, make_y/t.2) -> y"]);
}

#[test]
fn functions_call_functions() {
    let four = function("Four", &["a"], &["b"], vec![call("Twice", &["a"], &["m"]), call("Twice", &["m"], &["b"])]);
    let graph = inlined(calls(vec![call("Four", &["x"], &["y"])], vec![four, twice()])).unwrap();
    let ops: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(ops, ["Neg", "Sub", "Neg", "Sub"]);
    assert_eq!(graph.node[1].output, graph.node[2].input, "the middle value has one name");
    assert_eq!(graph.node[3].output, ["y"]);
}

#[test]
fn an_operand_left_out_stays_left_out_inside() {
    let clip = function("Bound", &["a", "low", "high"], &["b"], vec![node("Clip", &["a", "low", "high"], &["b"])]);
    let nodes = vec![call("Bound", &["x"], &["y"]), call("Bound", &["x", "", "x"], &["z"])];
    let graph = inlined(calls(nodes, vec![clip])).unwrap();
    assert_eq!(lines(&graph), ["Clip(x) -> y", "Clip(x, , x) -> z"]);
}

#[test]
fn a_result_that_is_an_operand_or_comes_twice_is_handed_over() {
    let same = function("Same", &["a"], &["b", "a", "b"], vec![node("Neg", &["a"], &["b"])]);
    let graph = inlined(calls(vec![call("Same", &["x"], &["y", "z", "w"])], vec![same])).unwrap();
    assert_eq!(lines(&graph), ["Neg(x) -> y", "Identity(x) -> z", "Identity(y) -> w"]);
}

#[test]
fn a_result_that_nobody_takes_needs_no_name_of_the_callers() {
    let two = function("Two", &["a"], &["b", "c"], vec![node("Neg", &["a"], &["b"]), node("Abs", &["a"], &["c"])]);
    let nodes = vec![call("Two", &["x"], &["", "z"]), call("Two", &["x"], &["w"])];
    let graph = inlined(calls(nodes, vec![two])).unwrap();
    assert_eq!(lines(&graph)[1], "Abs(x) -> z");
    assert_eq!(lines(&graph)[2], "Neg(x) -> w");
    assert!(graph.node.iter().all(|node| !node.output[0].is_empty()));
}

#[test]
fn attributes_come_from_the_call_or_the_default_or_not_at_all() {
    let leaky = |name: &str| {
        let alpha = supplied("alpha", AttributeType::Float, "slope");
        function(name, &["a"], &["b"], vec![with(node("LeakyRelu", &["a"], &["b"]), [alpha])])
    };
    let defaulted = FunctionProto { attribute_proto: vec![float("slope", 0.25)], ..leaky("Defaulted") };
    let nodes = vec![
        with(call("Leaky", &["x"], &["p"]), [float("slope", 0.5)]),
        call("Leaky", &["x"], &["q"]),
        call("Defaulted", &["x"], &["r"]),
        with(call("Defaulted", &["x"], &["s"]), [float("slope", 0.75)]),
    ];
    let graph = inlined(calls(nodes, vec![leaky("Leaky"), defaulted])).unwrap();
    let alphas: Vec<_> = graph.node.iter().map(|node| node.attribute.first().and_then(|alpha| alpha.f)).collect();
    assert_eq!(alphas, [Some(0.5), None, Some(0.25), Some(0.75)]);
    assert!(
        graph.node.iter().flat_map(|node| &node.attribute).all(|a| a.name == "alpha" && a.ref_attr_name.is_empty())
    );
}

/// A function whose body scans: `outer` is captured, `inner` lives inside.
fn scanning(inner: Vec<NodeProto>) -> FunctionProto {
    let untyped = |name: &str| value(name, DataType::Float, &["d"]);
    let body = graph(vec![untyped("h"), untyped("e")], vec![untyped("n"), untyped("o")], vec![], inner);
    let scan = with(node("Scan", &["s", "xs"], &["last", "all"]), [int("num_scan_inputs", 1), sub_graph("body", body)]);
    function("Step", &["s", "xs"], &["last", "all"], vec![node("Neg", &["s"], &["outer"]), scan])
}

#[test]
fn sub_graphs_are_renamed_with_what_they_capture() {
    let inner = vec![node("Mul", &["h", "outer"], &["n"]), node("Add", &["n", "e"], &["o"])];
    let nodes = vec![call("Step", &["x", "x"], &["p", "q"]), call("Step", &["p", "q"], &["r", "s"])];
    let graph = inlined(calls(nodes, vec![scanning(inner)])).unwrap();
    assert_eq!(
        lines(&graph)[..6],
        [
            "Neg(x) -> make_p/outer",
            "Scan(x, x) -> p, q",
            "  (make_p/h, make_p/e)",
            "  Mul(make_p/h, make_p/outer) -> make_p/n",
            "  Add(make_p/n, make_p/e) -> make_p/o",
            "  -> make_p/n, make_p/o",
        ]
    );
    assert_eq!(lines(&graph)[9], "  Mul(make_r/h, make_r/outer) -> make_r/n");
}

#[test]
fn calls_inside_sub_graphs_are_replaced_too() {
    let inner = vec![call("Twice", &["h"], &["n"]), node("Add", &["n", "e"], &["o"])];
    let graph = inlined(calls(vec![call("Step", &["x", "x"], &["p", "q"])], vec![scanning(inner), twice()])).unwrap();
    let body = graph.node[1].attribute.iter().find_map(|attribute| attribute.g.as_ref()).unwrap();
    let ops: Vec<&str> = body.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(ops, ["Neg", "Sub", "Add"]);
    assert_eq!(body.node[1].output[0], body.output[0].name);
}

#[test]
fn overloads_of_one_name_are_different_functions() {
    let other = FunctionProto {
        overload: "2".to_owned(),
        ..function("Twice", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])])
    };
    let second = NodeProto { overload: "2".to_owned(), ..call("Twice", &["x"], &["z"]) };
    let graph = inlined(calls(vec![call("Twice", &["x"], &["y"]), second], vec![other, twice()])).unwrap();
    assert_eq!(lines(&graph)[2], "Abs(x) -> z");
}

#[test]
fn a_standard_operator_of_the_same_name_is_no_call() {
    let neg = function("Neg", &["a"], &["b"], vec![node("Abs", &["a"], &["b"])]);
    let graph = inlined(calls(vec![node("Neg", &["x"], &["y"])], vec![neg])).unwrap();
    assert_eq!(lines(&graph), ["Neg(x) -> y"]);
}

#[test]
fn what_cannot_be_replaced_is_refused_by_name() {
    let wide = || vec![call("Twice", &["x", "x"], &["y"])];
    let tall = || vec![call("Twice", &["x"], &["y", "z"])];
    let ping = function("Ping", &["a"], &["b"], vec![call("Pong", &["a"], &["b"])]);
    let pong = function("Pong", &["a"], &["b"], vec![call("Ping", &["a"], &["b"])]);
    let stray = function("Stray", &["a"], &["b"], vec![node("Add", &["a", "ghost"], &["b"])]);
    let empty = function("Empty", &["a"], &["b"], vec![]);
    let old = FunctionProto { opset_import: vec![operator_set("ai.onnx", 17)], ..twice() };
    let takes_int = supplied("alpha", AttributeType::Int, "slope");
    let typed = function("Typed", &["a"], &["b"], vec![with(node("LeakyRelu", &["a"], &["b"]), [takes_int])]);
    let one = |name: &str| vec![call(name, &["x"], &["y"])];
    for (model, word) in [
        (calls(wide(), vec![twice()]), "test::Twice`, expected at most 1, got 2"),
        (calls(tall(), vec![twice()]), "outputs of function `test::Twice`"),
        (calls(one("Ping"), vec![ping, pong]), "function `test::Ping`: calls itself"),
        (calls(one("Stray"), vec![stray]), "reads `ghost`"),
        (calls(one("Empty"), vec![empty]), "reads `b`"),
        (calls(one("Twice"), vec![twice(), twice()]), "function `test::Twice`: defined twice"),
        (calls(one("Twice"), vec![old]), "expected 18 as in the model, got 17"),
        (calls(vec![with(call("Typed", &["x"], &["y"]), [float("slope", 0.5)])], vec![typed]), "attribute `slope`"),
    ] {
        let error = inlined(model).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn bodies_that_multiply_or_nest_without_end_are_refused() {
    let level = |i: usize, calls: usize| {
        let name = format!("F{i}");
        let next = format!("F{}", i + 1);
        let nodes = (0..calls).map(|j| call(&next, &["a"], &[&format!("t{j}")])).collect::<Vec<_>>();
        let last = node("Neg", &["a"], &["b"]);
        function(&name, &["a"], &["b"], nodes.into_iter().chain([last]).collect())
    };
    let multiplying = (0..12).map(|i| level(i, 8)).chain([level(12, 0)]).collect();
    let nesting = (0..100).map(|i| level(i, 1)).chain([level(100, 0)]).collect();
    for functions in [multiplying, nesting] {
        let error = inlined(calls(vec![call("F0", &["x"], &["y"])], functions)).unwrap_err();
        assert!(matches!(error, InlineError::TooLarge { .. }), "{error}");
    }
}
