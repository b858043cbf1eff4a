use crate::call::{Given, Lengths, Random, Tensor, call, close, silu};
use densessm_kernels::{Level, Operand, SingleThreaded};
use densessm_proto::ToleranceClass;

const NONE: Given = Given { integer: None, epsilon: None };

#[test]
fn the_convolution_is_that_of_the_formula() {
    // [batch, time, channels, taps], bias, lengths
    for (sizes, bias, lengths) in [
        ([1, 1, 64, 4], true, None),
        ([2, 1, 130, 4], true, None),
        ([1, 5, 7, 2], false, Some(vec![3])),
        ([3, 9, 70, 4], true, Some(vec![9, 1, 4])),
        ([2, 3, 33, 12], true, Some(vec![0, 3])),
        ([1, 300, 64, 4], true, None),
        ([2, 50, 77, 4], true, Some(vec![50, 23])),
        ([2, 40, 150, 3], false, Some(vec![3, 17])),
        ([1, 45, 9, 20], true, None),
    ] {
        let [batch, time, channels, taps] = sizes;
        let mut random = Random(7);
        let u = Tensor::random(&mut random, &[batch, time, channels], 2.0);
        let weight = Tensor::random(&mut random, &[taps, channels], 1.0);
        let state = Tensor::random(&mut random, &[batch, channels, taps - 1], 2.0);
        let bias = bias.then(|| Tensor::random(&mut random, &[channels], 1.0));
        let lengths = lengths.map(Lengths);
        let operands = [
            u.operand(),
            weight.operand(),
            state.operand(),
            bias.as_ref().map_or(Operand::Absent, Tensor::operand),
            lengths.as_ref().map_or(Operand::Absent, Lengths::operand),
        ];

        let input = |row: usize, index: usize, channel: usize| match index.checked_sub(taps - 1) {
            None => state.at([row, channel, index]),
            Some(token) => u.at([row, token, channel]),
        };
        let (mut y, mut present) = (Vec::new(), Vec::new());
        for row in 0..batch {
            let length = lengths.as_ref().map_or(time, |lengths| lengths.0[row] as usize);
            for token in 0..time {
                for channel in 0..channels {
                    let bias = bias.as_ref().map_or(0.0, |bias| bias.at([channel]));
                    let sum = (0..taps).map(|k| weight.at([k, channel]) * input(row, token + k, channel)).sum::<f64>();
                    y.push(if token < length { silu(bias + sum) } else { 0.0 });
                }
            }
            for channel in 0..channels {
                present.extend((0..taps - 1).map(|k| input(row, length + k, channel)));
            }
        }
        for level in Level::all() {
            let got = call("CausalConv", &NONE, level, &operands, &SingleThreaded).unwrap();
            close(&format!("y {sizes:?} on {level}"), &got[0].values, &y, ToleranceClass::Convolution);
            // The state holds inputs as they were.
            let state: Vec<f64> = got[1].values.iter().copied().map(f64::from).collect();
            assert_eq!(state, present, "state {sizes:?} on {level}");
        }
    }
}
