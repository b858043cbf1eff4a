//! Building blocks that all families share.
//!
//! A scope's weight type is that of matrices. Products are computed in the type of their operand x: a matrix stored in
//! another one is cast to it.

use densessm_graph::{DType, Prepare, Scope, Storage, Value};

/// A weight that no product multiplies with: fp32 in every precision.
pub(crate) fn vector<'g, const N: usize>(p: Scope<'g>, name: &str, shape: [usize; N]) -> Value<'g> {
    vector_as(p, name, shape, Prepare::AsIs)
}

/// As [`vector`], prepared at export.
pub(crate) fn vector_as<'g, const N: usize>(
    p: Scope<'g>,
    name: &str,
    shape: [usize; N],
    prepare: Prepare,
) -> Value<'g> {
    p.with_weights_in(DType::F32).weight_as(name, shape, prepare)
}

/// `x Wᵀ` with matrices `[outᵢ, in]` stacked by rows: `[.., in] -> [.., Σ outᵢ]`.
///
/// In fp32 they are stored as they are multiplied with, `[in, Σ outᵢ]`, in half precision as the checkpoint has them.
pub(crate) fn times<'g>(p: Scope<'g>, x: Value<'g>, matrices: &[(&str, [usize; 2])]) -> Value<'g> {
    if p.weight_dtype() == DType::F32 {
        return x.matmul(p.weights_t(matrices));
    }
    times_transposed(x, matrix(p, matrices))
}

/// Matrices `[outᵢ, in]` stacked by rows, in the checkpoint's layout: `[Σ outᵢ, in]`.
pub(crate) fn matrix<'g>(p: Scope<'g>, matrices: &[(&str, [usize; 2])]) -> Value<'g> {
    let parts: Vec<(&str, &[usize])> = matrices.iter().map(|(name, shape)| (*name, shape.as_slice())).collect();
    let [weight] = p.weight_group(&parts, Prepare::AsIs, Storage::Float(p.weight_dtype()));
    weight
}

/// `x Wᵀ` with a matrix in half precision: `[.., in], [out, in] -> [.., out]`.
pub(crate) fn times_transposed<'g>(x: Value<'g>, weight: Value<'g>) -> Value<'g> {
    x.matmul(weight.cast(x.dtype()).transpose([1, 0]))
}

/// `y = x Wᵀ`: `[.., d_in] -> [.., d_out]`.
pub(crate) fn linear<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
    p.scope(name, |p| times(p, x, &[("weight", [d_out, x.size(-1)])]))
}

/// `y = x Wᵀ + b`: `[.., d_in] -> [.., d_out]`. The bias is added in fp32.
pub(crate) fn linear_bias<'g>(p: Scope<'g>, name: &str, x: Value<'g>, d_out: usize) -> Value<'g> {
    p.scope(name, |p| {
        let product = times(p, x, &[("weight", [d_out, x.size(-1)])]);
        (product.cast(DType::F32) + vector(p, "bias", [d_out])).cast(x.dtype())
    })
}

/// Matrices that are multiplied with one operand, each with the parts that its rows are divided into.
type Matrices<'a> = [(&'a str, Vec<usize>)];

/// `x W₁ᵀ, x W₂ᵀ, …` in one product: `[.., d_in]` to all parts of all matrices, in order.
pub(crate) fn joined<'g>(p: Scope<'g>, x: Value<'g>, matrices: &Matrices<'_>) -> Vec<Value<'g>> {
    split_last(product(p, x, matrices), &parts(matrices))
}

/// As [`joined`], through silu.
pub(crate) fn joined_silu<'g>(p: Scope<'g>, x: Value<'g>, matrices: &Matrices<'_>) -> Vec<Value<'g>> {
    split_last(product(p, x, matrices).silu(), &parts(matrices))
}

fn product<'g>(p: Scope<'g>, x: Value<'g>, matrices: &Matrices<'_>) -> Value<'g> {
    let names: Vec<String> = matrices.iter().map(|(name, _)| format!("{name}.weight")).collect();
    let shapes = matrices.iter().map(|(_, parts)| [parts.iter().sum(), x.size(-1)]);
    times(p, x, &names.iter().map(String::as_str).zip(shapes).collect::<Vec<_>>())
}

fn parts(matrices: &Matrices<'_>) -> Vec<usize> {
    matrices.iter().flat_map(|(_, parts)| parts.iter().copied()).collect()
}

/// Splits the last axis into parts: `[.., Σ sizes]` to `[.., size]` each, in order.
///
/// Hidden constraint: ONNX Runtime's CUDA provider copies the sizes of a Split from host memory at every run, so that it
/// cannot be captured into a CUDA graph, unless the parts are equal or three parts of the last axis.
fn split_last<'g>(x: Value<'g>, sizes: &[usize]) -> Vec<Value<'g>> {
    match *sizes {
        [_, _, _] => x.split_into(-1, sizes),
        _ if sizes.windows(2).all(|pair| pair[0] == pair[1]) => x.split_into(-1, sizes),
        [first, _] => vec![x.slice(-1, 0, Some(first as i64)), x.slice(-1, first as i64, None)],
        [first, second, ref others @ ..] => {
            let [first, second, rest] = x.split_sizes(-1, [first, second, others.iter().sum()]);
            [first, second].into_iter().chain(split_last(rest, others)).collect()
        }
        [] | [_] => x.split_into(-1, sizes),
    }
}

/// `y = w ∘ x / sqrt(mean(x²) + eps)` over the last axis: `[.., n] -> [.., n]`.
pub(crate) fn rms_norm<'g>(x: Value<'g>, weight: Value<'g>, eps: f32) -> Value<'g> {
    x / (x.powf(2.0).reduce_mean(-1) + eps).sqrt() * weight
}

/// A module that is an RMSNorm, computed in fp32 and returned in the operand's type: `[.., n] -> [.., n]`.
pub(crate) fn norm<'g>(p: Scope<'g>, name: &str, x: Value<'g>, eps: f64) -> Value<'g> {
    p.scope(name, |p| rms_norm(x.cast(DType::F32), vector(p, "weight", [x.size(-1)]), eps as f32).cast(x.dtype()))
}
