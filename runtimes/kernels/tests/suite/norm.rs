use crate::call::{Given, Random, Tensor, call, close, silu};
use densessm_kernels::{Level, SingleThreaded};
use densessm_proto::ToleranceClass;

#[test]
fn the_dense_norm_is_that_of_the_formula() {
    for (sizes, neighbours) in [([1, 1, 96], 1), ([2, 3, 50], 2), ([1, 1, 7], 3), ([4, 1, 768], 2)] {
        let [batch, time, width] = sizes;
        let mut random = Random(3);
        let [own, gate] = [(); 2].map(|()| Tensor::random(&mut random, &sizes, 2.0));
        let weight = Tensor::random(&mut random, &[width], 1.0);
        let others: Vec<_> = (0..neighbours).map(|_| Tensor::random(&mut random, &sizes, 2.0)).collect();
        let eps = 1e-6_f32;
        let mut expected = Vec::new();
        for (row, token) in (0..batch).flat_map(|row| (0..time).map(move |token| (row, token))) {
            let x: Vec<f64> = (0..width)
                .map(|i| {
                    let sum: f64 = others.iter().map(|other| other.at([row, token, i])).sum();
                    own.at([row, token, i]) + silu(gate.at([row, token, i])) * sum
                })
                .collect();
            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
            expected.extend((0..width).map(|i| x[i] / (mean + f64::from(eps)).sqrt() * weight.at([i])));
        }
        let mut operands = vec![own.operand(), weight.operand(), gate.operand()];
        operands.extend(others.iter().map(Tensor::operand));
        for level in Level::all() {
            let given = Given { integer: None, epsilon: Some(eps) };
            let got = call("DenseNorm", &given, level, &operands, &SingleThreaded).unwrap();
            close(&format!("{sizes:?} on {level}"), &got[0].values, &expected, ToleranceClass::Norm);
        }
    }
}
