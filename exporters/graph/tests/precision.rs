//! Element types: weights and constants in the type they were declared in, the same equations in every float type.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_graph::{DType, Dim, Graph, Lowering, Model, Prepare, Scope, Storage, TensorType, Value};
use densessm_proto::onnx::{ModelProto, tensor_proto::DataType};
use prost::Message;

const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

/// A model with the input `x [batch, 4]` of some type and the output `y`.
fn model(dtype: DType, write: impl for<'g> FnOnce(Scope<'g>, Value<'g>) -> Value<'g>) -> Model {
    let graph = Graph::new("test", 22, Lowering::Inline).unwrap();
    let x = graph.input("x", TensorType::new(dtype, ["batch".into(), Dim::from(4_usize)]));
    graph.output("y", write(graph.root(), x));
    graph.finish().unwrap()
}

fn output(model: &Model) -> String {
    model.outputs().map(|(name, tensor)| format!("{name}: {tensor}")).collect()
}

#[test]
fn the_same_equations_work_in_every_float_type() {
    for dtype in FLOATS {
        let model = model(dtype, |p, x| {
            let w = p.with_weights_in(dtype).weight_t("w", [4, 4]);
            let y = (2.0 * x.softplus() - 1.0) / (x.silu().powf(2.0) + 0.5).sqrt();
            let y = y.matmul(w).min(60.0).max(-60.0) + x.reduce_mean(-1).cos();
            y.greater_or_equal(p.scalar_as(0.1, dtype)).select(y, p.floats_as("v", &[1.0, 2.0, 3.0, 4.0], dtype))
        });
        assert_eq!(output(&model), format!("y: {dtype}[batch, 4]"));
        let initializer = &model.weights().next().unwrap().initializers[0];
        assert_eq!((initializer.dtype, initializer.bytes()), (dtype, 16 * dtype.size()));
        let text = model.to_string();
        for number in ["0.1", "0.5", "1.0", "2.0", "60.0", "-60.0"] {
            assert!(text.contains(&format!("  literal/{number}: {dtype}[] = {number}\n")), "{number} in {text}");
        }
        assert!(text.contains(&format!("literal/v: {dtype}[4] = 1.0, 2.0, 3.0, 4.0\n")), "{text}");
        assert!(text.contains(&format!("weight w: {dtype}[4, 4] Transpose\n")), "{text}");
        let others = FLOATS.iter().filter(|&&other| other != dtype);
        assert!(others.into_iter().all(|other| !text.contains(other.name())), "{text}");
    }
}

#[test]
fn integers_beside_values_take_their_type() {
    for dtype in [DType::I64, DType::I32, DType::I8, DType::U8] {
        let text = model(dtype, |_, x| (100 - (x + 3) * 2) / 5 % 7).to_string();
        for number in [2, 3, 5, 7, 100] {
            assert!(text.contains(&format!("  literal/{number}: {dtype}[] = {number}\n")), "{text}");
        }
    }
}

#[test]
fn values_are_cast_between_any_two_types() {
    let types = [FLOATS.as_slice(), &[DType::I64, DType::I32, DType::I8, DType::U8, DType::Bool]].concat();
    for &from in &types {
        for &to in &types {
            let model = model(from, |_, x| x.cast(to));
            assert_eq!(output(&model), format!("y: {to}[batch, 4]"), "from {from}");
            let casts = model.to_string().matches("Cast(x)").count();
            assert_eq!(casts, usize::from(from != to), "from {from} to {to}");
        }
    }
}

#[test]
fn one_number_in_two_types_is_two_constants() {
    let text = model(DType::F32, |_, x| x + 0.1 + (x.cast(DType::F16) + 0.1).cast(DType::F32) * 0.1).to_string();
    assert!(text.contains("literal/0.1: fp32[] = 0.1\n"), "{text}");
    assert!(text.contains("literal/0.1_1: fp16[] = 0.1\n"), "{text}");
    assert_eq!(text.matches("] = 0.1\n").count(), 2, "{text}");
}

#[test]
fn a_scope_passes_the_type_of_its_weights_on() {
    let model = model(DType::F32, |p, x| {
        let half = p.with_weights_in(DType::BF16);
        let w = half.scope("layers.0", |p| p.scope("mixer", |p| p.weight("w", [4])));
        let v = p.scope("norm", |p| {
            assert_eq!(p.weight_dtype(), DType::F32);
            p.weight("v", [4])
        });
        x * w.cast(DType::F32) * v
    });
    let types: Vec<DType> = model.weights().map(|weight| weight.initializers[0].dtype).collect();
    assert_eq!(types, [DType::BF16, DType::F32]);
}

/// `x Wᵀ` with W `[6, 40]` in blocks of 16: `(values - 128) scales`, without the padding.
fn quantized(x_width: usize) -> Model {
    let graph = Graph::new("quantized", 18, Lowering::Inline).unwrap();
    let x = graph.input("x", TensorType::new(DType::F32, ["batch".into(), Dim::from(x_width)]));
    let [values, scales] = graph.root().scope("linear", |p| {
        p.weight_group(&[("weight", &[6, x_width])], Prepare::AsIs, Storage::Int8Blocks { size: 16 })
    });
    let w = (values.cast(DType::F32) - 128.0) * scales.unsqueeze(-1);
    graph.output("y", x.gemm_t(w.flatten(2).slice(1, 0, Some(x_width as i64))));
    graph.finish().unwrap()
}

#[test]
fn one_tensor_of_the_checkpoint_becomes_several_initializers() {
    let model = quantized(40);
    let text = model.to_string();
    let lines = "  weight linear.weight.values: uint8[6, 3, 16] AsIs of linear.weight
  weight linear.weight.scales: fp32[6, 3] AsIs of linear.weight
";
    assert!(text.contains(lines), "{text}");
    let weight = |index: usize| ((index * 37) % 101) as f32 / 50.0 - 1.0;
    let bytes = model.to_bytes(|part| Some((0..part.elements()).map(weight).collect::<Vec<_>>())).unwrap();
    let graph = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
    let find = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
    let (values, scales) = (find("linear.weight.values"), find("linear.weight.scales"));
    assert_eq!((&values.dims[..], values.data_type), (&[6, 3, 16][..], i32::from(DataType::Uint8)));
    assert_eq!((&scales.dims[..], scales.data_type), (&[6, 3][..], i32::from(DataType::Float)));
    let scales: Vec<f32> = scales.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for row in 0..6 {
        for column in 0..48 {
            let block = row * 3 + column / 16;
            let stored = (f32::from(values.raw_data[block * 16 + column % 16]) - 128.0) * scales[block];
            let exact = if column < 40 { weight(row * 40 + column) } else { 0.0 };
            // Half a step of the block, and the rounding of the decoding itself.
            let tolerance = scales[block] * 0.5 + f32::EPSILON;
            assert!((stored - exact).abs() <= tolerance, "row {row}, column {column}: {exact} as {stored}");
        }
    }
}
