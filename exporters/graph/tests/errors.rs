//! Every error the builder can make says what is wrong, and names the file and line of the user's source that made it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{
    Attribute, DType, Dim, Error, Graph, Lowering, Operator, Prepare, Scope, Storage, TensorType, Value,
};

/// What a case does to a graph.
enum Code {
    /// Makes a value, which becomes an output.
    Value(for<'g> fn(&'g Graph) -> Value<'g>),
    /// Writes whatever it wants.
    Statement(fn(&Graph)),
}

/// The line that a case stands on, a part of its error's text, and its code.
type Case = (u32, &'static str, Code);

macro_rules! value {
    ($text:literal, $code:expr) => {
        (line!(), $text, Code::Value($code))
    };
}

macro_rules! statement {
    ($text:literal, $code:expr) => {
        (line!(), $text, Code::Statement($code))
    };
}

/// Checks text, file and line of each case's error, in both lowerings.
fn check(cases: &[Case]) {
    for (line, text, code) in cases {
        for lowering in [Lowering::Function, Lowering::Inline] {
            let graph = Graph::new("test", 18, lowering).unwrap();
            match code {
                Code::Value(code) => graph.output("result", code(&graph)),
                Code::Statement(code) => code(&graph),
            }
            let error = graph.finish().unwrap_err();
            assert!(error.to_string().contains(text), "expected {text:?}, got `{error}`");
            check_place(&error, *line);
        }
    }
}

#[track_caller]
fn check_place(error: &Error, line: u32) {
    assert_eq!((error.file.as_str(), error.line), (file!(), line), "{error}");
    assert!(error.to_string().ends_with(&format!(" (emitted at errors.rs:{line})")), "{error}");
}

fn ignore<T>(_: T) {}

const HUGE: usize = i64::MAX as usize;

/// `[batch, time, 64]` of a type.
fn tokens(dtype: DType) -> TensorType {
    TensorType::new(dtype, ["batch".into(), "time".into(), Dim::from(64_usize)])
}

fn input<'g>(g: &'g Graph, name: &str, dtype: DType) -> Value<'g> {
    g.input(name, tokens(dtype))
}

/// An fp32 input `[batch, time, 64]`.
fn x(g: &Graph) -> Value<'_> {
    input(g, "x", DType::F32)
}

/// Another.
fn x2(g: &Graph) -> Value<'_> {
    input(g, "x2", DType::F32)
}

fn f16(g: &Graph) -> Value<'_> {
    input(g, "f16", DType::F16)
}

fn int(g: &Graph) -> Value<'_> {
    input(g, "int", DType::I64)
}

fn truth(g: &Graph) -> Value<'_> {
    input(g, "truth", DType::Bool)
}

/// An fp32 input `[batch, 64]`.
fn state(g: &Graph) -> Value<'_> {
    g.input("state", TensorType::new(DType::F32, ["batch".into(), Dim::from(64_usize)]))
}

fn vector<'g>(g: &'g Graph, name: &str, size: usize) -> Value<'g> {
    g.input(name, TensorType::new(DType::F32, [size]))
}

#[test]
fn element_types() {
    #[rustfmt::skip]
    let cases = [
        value!("node `Add`: expected equal element types, got fp16 and fp32", |g| f16(g) + x(g)),
        value!("got fp32 and bf16", |g| x(g) - input(g, "b", DType::BF16)),
        value!("got fp32 and fp64", |g| x(g).less(input(g, "d", DType::F64))),
        value!("got fp32 and int64", |g| x(g).greater_or_equal(int(g))),
        value!("got fp32 and fp16", |g| truth(g).select(x(g), f16(g))),
        value!("cannot multiply fp16[batch, time, 64] by fp32[64, 2]", |g| f16(g).matmul(g.root().weight("w", [64, 2]))),
        value!("cannot multiply int64", |g| int(g).matmul(input(g, "i", DType::I64).transpose([0, 2, 1]))),
        value!("by the transpose of fp16", |g| state(g).gemm_t(g.root().floats_as("v", &[1.0], DType::F16))),
        value!("cannot join fp32[batch, time, 64] and fp16[batch, time, 64]", |g| x(g).concat(1, &[f16(g)])),
        value!("expected numbers, got truth values", |g| truth(g) + input(g, "t", DType::Bool)),
        value!("expected numbers, got bool", |g| truth(g).abs()),
        value!("expected numbers of at least 16 bits, got bool", |g| truth(g).reduce_sum(1)),
        value!("expected numbers of at least 16 bits, got int8", |g| input(g, "i", DType::I8).reduce_mean(1)),
        value!("node `Cos`: bf16[batch, time, 64] needs version 22 of the operator set, got 18", |g| input(g, "b", DType::BF16).cos()),
        value!("cast it to fp32", |g| input(g, "b", DType::BF16).sin()),
        value!("cast it to fp32", |g| input(g, "b", DType::BF16).tanh()),
        value!("expected signed numbers, got bool", |g| -truth(g)),
        value!("expected signed numbers, got uint8", |g| -input(g, "u", DType::U8)),
        value!("node `Exp`: expected floats, got int64", |g| int(g).exp()),
        value!("node `Sigmoid`: expected floats, got int64", |g| int(g).silu()),
        value!("node `Relu`: expected floats, got int32", |g| input(g, "i", DType::I32).softplus()),
        value!("expected a condition of truth values, got fp32", |g| x(g).select(f16(g), x2(g))),
        value!("expected integer indices, got fp16", |g| x(g).gather(f16(g))),
        value!("expected integer indices, got fp16", |g| x(g).gather_per_row(f16(g))),
    ];
    check(&cases);
}

#[test]
fn numbers_beside_values() {
    #[rustfmt::skip]
    let cases = [
        value!("expected a floating-point type for the number 0.5, got int64", |g| int(g) * 0.5),
        value!("expected a floating-point type for the number 0.5, got int64", |g| 0.5 / int(g)),
        value!("expected a floating-point type for the number 2.0, got bool", |g| truth(g).powf(2.0)),
        value!("the number 100000.0 is too large for fp16", |g| f16(g) + 1e5),
        value!("the number 100000.0 is too large for fp16", |g| f16(g).min(1e5)),
        value!("the number 100000.0 is too large for fp16", |g| f16(g).max(1e5)),
        value!("constant `literal/1e-8`: the number 1e-8 becomes 0 in fp16", |g| 1e-8 + f16(g)),
        value!("the number 100000.0 is too large for fp16", |g| g.root().scalar_as(1e5, DType::F16)),
        value!("constant `literal/v`: the number 70000.0", |g| g.root().floats_as("v", &[1.0, 7e4], DType::F16)),
        value!("for the number 1.0, got int8", |g| g.root().scalar_as(1.0, DType::I8)),
        value!("with the number 3, got fp16; write 3.0", |g| g.root().integer_as(3, DType::F16)),
        value!("expected integers with the number 3, got fp32; write 3.0", |g| x(g) + 3),
        value!("expected integers with the number 3, got fp32; write 3.0", |g| 3 - x(g)),
        value!("expected an integer type for the number 3, got bool", |g| truth(g) * 3),
        value!("the number 300 does not fit int8", |g| input(g, "i", DType::I8) + 300),
        value!("the number -1 does not fit uint8", |g| g.root().integer_as(-1, DType::U8)),
        value!("expected a divisor other than 0", |g| int(g) / 0),
        value!("expected a divisor other than 0", |g| int(g) % 0),
        value!("expected integers with the number 2, got fp32", |g| x(g) % 2),
    ];
    check(&cases);
}

#[test]
fn shapes() {
    #[rustfmt::skip]
    let cases = [
        value!("node `Mul`: cannot broadcast [batch, time, 64] with [batch, 64]", |g| x(g) * state(g)),
        value!("cannot broadcast", |g| x(g).less(state(g))),
        value!("cannot broadcast", |g| truth(g).select(x(g), state(g))),
        value!("cannot multiply fp32[batch, time, 64] by fp32[batch, 64]", |g| x(g).matmul(state(g))),
        value!("by the transpose of fp32[batch, 64]", |g| x(g).gemm_t(state(g))),
        value!("cannot split an axis of 64 into 3 equal parts", |g| x(g).split::<3>(-1)[0]),
        statement!("cannot split an axis of 64 into 0 equal parts", |g| ignore(x(g).split::<0>(-1))),
        statement!("expected at least one part to split into", |g| ignore(x(g).split_into(-1, &[]))),
        value!("cannot split axis -1 of fp32[batch, time, 64] into [60, 5]", |g| x(g).split_sizes(-1, [60, 5])[0]),
        value!("no axis 5 in [batch, time, 64]", |g| x(g).split_sizes(5, [60, 4])[0]),
        value!("cannot split", |g| x(g).split_sizes(-1, [usize::MAX, 65])[0]),
        value!("expected a static size at axis 1", |g| x(g).split::<2>(1)[0]),
        value!("cannot order the axes", |g| x(g).transpose([0, 2])),
        value!("cannot order the axes", |g| x(g).transpose([0, 1, usize::MAX])),
        value!("expected size 1 at axis 0", |g| x(g).squeeze(0)),
        value!("no axis -9223372036854775808", |g| x(g).squeeze(isize::MIN)),
        value!("cannot insert an axis at 5", |g| x(g).unsqueeze(5)),
        value!("cannot insert an axis at -9223372036854775808", |g| x(g).unsqueeze(isize::MIN)),
        value!("no axis 3 in [batch, time, 64]", |g| x(g).reduce_sum(3)),
        value!("no axis -4 in [batch, time, 64]", |g| x(g).reduce_mean(-4)),
        value!("value `x`: no axis 7 in [batch, time, 64]", |g| g.root().range(x(g).dim(7))),
        value!("value `x`: expected a static size at axis 0", |g| g.root().range(x(g).size(0))),
        value!("cannot reshape fp32[batch, time, 64] to [batch]", |g| x(g).reshape(vec!["batch".into()])),
        value!("cannot reshape", |g| x(g).reshape(vec!["batch".into(), "time".into(), Dim::from(-64_i64)])),
        value!("cannot reshape", |g| x(g).reshape(vec![Dim::from(HUGE), Dim::from(HUGE)])),
        value!("cannot reshape fp32[0] to [5, 0]", |g| vector(g, "e", 0).reshape(vec![5_usize.into(), 0_usize.into()])),
        value!("no input has an axis of size 2·batch", |g| x(g).reshape(["batch", "time"].map(|d| Dim::from(d) * 2_usize).into_iter().chain([16_usize.into()]).collect())),
        value!("expected a last axis of [2, 16]", |g| x(g).unflatten([2, 16])),
        value!("expected a last axis of", |g| x(g).unflatten([HUGE, 2])),
        value!("expected at least 4 axes", |g| x(g).flatten(4)),
        value!("cannot take 0..65 of axis 2", |g| x(g).slice(2, 0, Some(65))),
        value!("cannot take 70.. of axis 2", |g| x(g).slice(2, 70, None)),
        value!("cannot take -70..-65 of axis 2", |g| x(g).slice(2, -70, Some(-65))),
        value!("cannot take 5..3 of axis 1", |g| x(g).slice(1, 5, Some(3))),
        value!("cannot take", |g| x(g).slice(1, i64::MAX, Some(i64::MIN))),
        value!("cannot join", |g| x(g).concat(1, &[x2(g).transpose([1, 0, 2])])),
        value!("no axis 3", |g| x(g).concat(3, &[])),
        value!("a size exceeds 64 bits in fp32[overflow]", |g| vector(g, "a", HUGE).concat(0, &[vector(g, "b", HUGE)])),
        value!("size rows: no input has an axis of size rows to take it from", |g| g.root().range("rows")),
        value!("expected a table, got fp32[]", |g| g.root().scalar(1.0).gather(int(g))),
        value!("cannot select int64[batch, time, 64] from fp32[batch, time, 64]", |g| x(g).gather_per_row(int(g))),
    ];
    check(&cases);
}

#[test]
fn declarations() {
    const BLOCKS: Storage = Storage::Int8Blocks { size: 128 };
    const ODD: Storage = Storage::Int8Blocks { size: 24 };
    const AS_IS: Prepare = Prepare::AsIs;
    #[rustfmt::skip]
    let cases = [
        statement!("input `n`: declared twice", |g| ignore(["n", "n"].map(|name| g.input(name, tokens(DType::F32))))),
        statement!("input ``: expected a name", |g| ignore(g.input("", tokens(DType::F32)))),
        statement!("input `n`: a size of -3 in fp32[-3]", |g| ignore(g.input("n", TensorType::new(DType::F32, [-3_i64])))),
        statement!("a size exceeds 64 bits", |g| ignore(g.input("n", TensorType::new(DType::F32, [usize::MAX])))),
        statement!("output ``: expected a name", |g| g.output("", x(g))),
        statement!("output `y`: declared twice", |g| ["y", "y"].iter().for_each(|name| g.output(name, g.root().scalar(1.0)))),
        statement!("scope ``: expected a name", |g| g.root().scope("", |_| ())),
        statement!("scope `a.b`: opened twice", |g| ["a.b", "a.b"].iter().for_each(|name| g.root().scope(name, |_| ()))),
        statement!("weight `w`: declared twice", |g| ignore(["w", "w"].map(|name| g.root().weight(name, [1])))),
        statement!("weight `b`: declared twice", |g| ignore(g.root().weights_t(&[("b", [2, 3]), ("b", [2, 3])]))),
        value!("weight `w`: expected a depthwise kernel", |g| g.root().weight_as("w", [4, 2, 3], Prepare::Taps)),
        value!("expected a matrix to transpose, got [4]", |g| g.root().weight_as("w", [4], Prepare::Transpose)),
        value!("expected matrices of one width", |g| g.root().weights_t(&[("a", [2, 3]), ("b", [2, 4])])),
        value!("have too many rows", |g| g.root().weights_t(&[("a", [usize::MAX, 3]), ("b", [2, 3])])),
        value!("expected the name of a tensor", |g| g.root().weights_t(&[])),
        value!("expected the name of a tensor", |g| g.root().weight("", [2])),
        value!("larger than memory can be", |g| g.root().weight("w", [usize::MAX, 2])),
        value!("larger than memory can be", |g| g.root().weight_t("w", [1 << 40, 1 << 40])),
        value!("to store it in, got int64", |g| g.root().with_weights_in(DType::I64).weight("w", [2])),
        statement!("is stored as 2 initializers, not 1", |g| ignore(g.root().weight_group::<1>(&[("w", &[64])], AS_IS, BLOCKS))),
        statement!("a power of two from 16 on, got 24", |g| ignore(g.root().weight_group::<2>(&[("w", &[64])], AS_IS, ODD))),
        statement!("got a scalar", |g| ignore(g.root().weight_group::<2>(&[("w", &[])], AS_IS, BLOCKS))),
        statement!("larger than memory", |g| ignore(g.root().weight_group::<2>(&[("w", &[1 << 58, 1])], AS_IS, BLOCKS))),
    ];
    check(&cases);
}

#[test]
fn scans() {
    #[rustfmt::skip]
    let cases = [
        statement!("scan: expected a state to stay fp32[batch, 64], got fp16[batch, 64]", |g| ignore(g.root().scan(1, state(g), x(g), |h, _| (h.cast(DType::F16), ())))),
        statement!("expected a state to stay fp32[batch, 64], got fp32[batch]", |g| ignore(g.root().scan(1, state(g), x(g), |h, _| (h.slice(1, 0, Some(1)).squeeze(1), ())))),
        statement!("expected 1 states after each iteration, got 0", |g| ignore(g.root().scan(1, vec![state(g)], x(g), |_, _| (vec![], ())))),
        statement!("expected at least one input to iterate over", |g| ignore(g.root().scan(1, state(g), (), |h, ()| (h, ())))),
        statement!("scan: no axis 3 in fp32[batch, time, 64]", |g| ignore(g.root().scan(3, (), x(g), |(), x| ((), x)))),
        statement!("cannot cut fp32[batch, 64] into time slices along axis 1", |g| ignore(g.root().scan(1, (), (x(g), state(g)), |(), (x, _)| ((), x)))),
        statement!("node `Scan`: cannot join slices fp32[] along axis 1", |g| ignore(g.root().scan(1, (), x(g), |(), _| ((), g.root().scalar(1.0))))),
        statement!("output `y`: declared in the body of an operator or a scan", |g| ignore(g.root().scan(1, (), x(g), |(), x| { g.output("y", x); ((), x) }))),
        statement!("node `Scan/Add`: cannot broadcast", |g| ignore(g.root().scan(1, (), x(g), |(), x| ((), x + g.root().weight("w", [3]))))),
    ];
    check(&cases);
}

/// Computes `exp` of its operand, after whatever the case does.
struct Wrong(fn(Scope<'_>, Value<'_>));

impl Operator for Wrong {
    const NAME: &'static str = "Wrong";
    const DOMAIN: &'static str = "test.domain";
    const VERSION: i64 = 1;
    type Inputs<'g> = Value<'g>;
    type Outputs<'g> = Value<'g>;

    fn attributes(&self) -> Vec<(&'static str, Attribute)> {
        Vec::new()
    }

    fn body<'g>(&self, p: Scope<'g>, x: Value<'g>) -> Value<'g> {
        (self.0)(p, x);
        x.exp()
    }
}

#[test]
fn operators() {
    #[rustfmt::skip]
    let cases = [
        statement!("Add`: cannot broadcast", |g| ignore(g.root().call(Wrong(|p, x| ignore(x + p.floats("v", &[1.0, 2.0]))), x(g)))),
        statement!("Exp`: expected floats, got int64", |g| ignore(g.root().call(Wrong(|p, _| ignore(p.integer(1).exp())), x(g)))),
        statement!("no input has an axis of size rows", |g| ignore(g.root().call(Wrong(|p, _| ignore(p.range("rows"))), x(g)))),
        statement!("cannot order the axes", |g| ignore(g.root().call(Wrong(|_, x| ignore(x.transpose([0, 1]))), x(g)))),
        statement!("expected a state to stay", |g| ignore(g.root().call(Wrong(|p, x| ignore(p.scan(1, x, x, |h, _| (h.exp().cast(DType::F16), ())))), x(g)))),
    ];
    check(&cases);
    // A weight in a body, and a node that nothing in it needs, are errors of the function lowering only.
    #[rustfmt::skip]
    let (line, call): (u32, fn(&Graph)) = (line!(), |g| ignore(g.root().call(Wrong(|p, _| ignore(p.weight("w", [1]))), x(g))));
    let graph = Graph::new("test", 18, Lowering::Function).unwrap();
    call(&graph);
    let error = graph.finish().unwrap_err();
    assert_eq!(error.problem, "declared in an operator's body; pass it in as an operand");
    check_place(&error, line);
}

#[test]
fn values_of_other_graphs_and_bodies() {
    let other = Graph::new("other", 18, Lowering::Inline).unwrap();
    let foreign = x(&other);
    let errors = |write: &dyn Fn(&Graph)| {
        let graph = Graph::new("test", 18, Lowering::Inline).unwrap();
        write(&graph);
        graph.finish().unwrap_err()
    };
    type Write<'a> = &'a dyn Fn(&Graph);
    #[rustfmt::skip]
    let cases: [(u32, &str, Write<'_>); 6] = [
        (line!(), "node `Add`: reads a value of another graph", &|g| ignore(x(g) + foreign)),
        (line!(), "output `y`: is a value of another graph", &|g| g.output("y", foreign)),
        (line!(), "node `Scan`: reads a value of another graph", &|g| ignore(g.root().scan(1, (), foreign, |(), x| ((), x.exp())))),
        (line!(), "body: returns a value of another graph", &|g| ignore(g.root().scan(1, (), x(g), |(), _| ((), foreign)))),
        (line!(), "node `Add`: reads `Scan/Exp`, which belongs to another body", &|g| { let mut e = x(g); let _ = g.root().scan(1, (), x2(g), |(), x| { e = x.exp(); ((), e) }); let _ = e + 1.0; }),
        (line!(), "node `Identity`: reads `Scan/Exp`, which belongs to another body", &|g| { let mut e = x(g); let _ = g.root().scan(1, (), x2(g), |(), x| { e = x.exp(); ((), e) }); g.output("y", e); }),
    ];
    for (line, text, write) in cases {
        let error = errors(write);
        assert!(error.to_string().starts_with(text), "expected {text:?}, got `{error}`");
        check_place(&error, line);
    }
}

#[test]
fn what_finish_finds() {
    #[rustfmt::skip]
    let cases = [
        statement!("node `m/Exp`: no output depends on it", |g| { let x = x(g); let _ = g.root().scope("m", |_| x.exp()); g.output("y", x.abs()); }),
        statement!("node `Scan/Exp`: no output depends on it", |g| g.output("y", g.root().scan(1, (), x(g), |(), x| { let _ = x.exp(); ((), x * 2.0) }).1)),
        statement!("weight `w`: is declared and never used", |g| { let _ = g.root().weight("w", [2]); g.output("y", x(g).exp()); }),
        statement!("weight `w.scales`: is declared and never used", |g| { let [v, _] = g.root().weight_group(&[("w", &[64])], Prepare::AsIs, Storage::Int8Blocks { size: 16 }); g.output("y", v.cast(DType::F32)); }),
        statement!("input `unused`: is declared and never used", |g| { let _ = g.input("unused", tokens(DType::F32)); g.output("y", x(g).exp()); }),
        statement!("value `x`: is the name of two values", |g| { let x = x(g); let y = x.exp(); g.output("x", y); }),
        statement!("value `w`: is the name of two values", |g| g.output("w", x(g) * g.root().weight("w", [64]))),
        statement!("value `Exp`: is the name of two values", |g| { let x = x(g); let e = x.exp(); g.output("Exp", e.abs()); g.output("e", e.log()); }),
        statement!("value `w.scales`: is the name of two values", |g| g.output("y", g.root().weight("w.scales", [4]) * { let [v, s] = g.root().weight_group(&[("w", &[64])], Prepare::AsIs, Storage::Int8Blocks { size: 16 }); v.cast(DType::F32).reduce_sum(-1).squeeze(-1) * s })),
    ];
    check(&cases);

    let graph = Graph::new("empty", 18, Lowering::Inline).unwrap();
    let (line, error) = (line!(), graph.finish().unwrap_err());
    assert_eq!((error.what.as_str(), error.problem.as_str()), ("graph `empty`", "has no output"));
    check_place(&error, line);

    for opset in [17, 23, i64::MIN] {
        let (line, error) = (line!(), Graph::new("test", opset, Lowering::Inline).unwrap_err());
        assert_eq!(error.problem, format!("expected version 18 to 22 of the operator set, got {opset}"));
        check_place(&error, line);
    }
}

#[test]
fn a_dead_node_in_an_operators_body() {
    #[rustfmt::skip]
    let (line, call): (u32, fn(&Graph)) = (line!(), |g| g.output("y", g.root().call(Wrong(|_, x| ignore(x.abs())), x(g))));
    let graph = Graph::new("test", 18, Lowering::Function).unwrap();
    call(&graph);
    let error = graph.finish().unwrap_err();
    assert_eq!((error.what.as_str(), error.problem.as_str()), ("node `Abs`", "no output depends on it"));
    check_place(&error, line);
}

#[test]
fn a_helper_with_track_caller_shows_its_callers_line() {
    #[track_caller]
    fn helper<'g>(x: Value<'g>, y: Value<'g>) -> Value<'g> {
        x.matmul(y).silu()
    }
    let graph = Graph::new("test", 18, Lowering::Inline).unwrap();
    let (line, _) = (line!(), helper(x(&graph), x2(&graph)));
    check_place(&graph.finish().unwrap_err(), line);
}

#[test]
fn only_the_first_error_is_reported_and_what_follows_from_it_is_skipped() {
    let graph = Graph::new("test", 18, Lowering::Function).unwrap();
    let x = x(&graph);
    let first = x.matmul(x);
    assert_eq!((first.shape(), first.dim(5), first.size(-1)), (vec![], Dim::from(1_usize), 1));
    let [a, b] = first.split(-1);
    let (h, y) = graph.root().scan(1, a, b, |h, x| (h * x + 0.5, x.squeeze(7)));
    let z =
        graph.root().call(Wrong(|p, x| ignore(p.range(x.dim(0)))), h).slice(1, 0, None).unflatten([2, 2]).flatten(9);
    graph.output("y", (z / y).reshape(vec![]).concat(3, &[x.gather(x)]) % 3);
    let error = graph.finish().unwrap_err();
    assert_eq!(error.what, "node `MatMul`");
    assert_eq!(error.problem, "cannot multiply fp32[batch, time, 64] by fp32[batch, time, 64]");
}
