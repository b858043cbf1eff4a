use crate::call::{Given, Lengths, Random, Tensor, call, close, silu, softplus};
use densessm_kernels::{Level, Operand, SingleThreaded};
use densessm_proto::ToleranceClass;

/// A recurrence's operands, in order.
pub(crate) struct Recurrence(pub(crate) [Tensor; 6]);

impl Recurrence {
    fn random(random: &mut Random, [batch, time, channels, states]: [usize; 4]) -> Self {
        let mut a = Tensor::random(random, &[channels, states], 1.0);
        a.values.iter_mut().for_each(|a| *a = -(*a * 1.5).exp());
        Self([
            Tensor::random(random, &[batch, time, channels], 1.0),
            Tensor::random(random, &[batch, time, channels], 3.0),
            Tensor::random(random, &[channels], 1.0),
            a,
            Tensor::random(random, &[batch, time, states], 1.0),
            Tensor::random(random, &[batch, channels, states], 1.0),
        ])
    }

    /// The states after each token, `[time][channel][state]`, for a row.
    fn states(&self, row: usize, length: usize) -> Vec<Vec<Vec<f64>>> {
        let [u, delta, bias, a, b, state] = &self.0;
        let [channels, states] = [a.shape[0], a.shape[1]];
        let mut h: Vec<Vec<f64>> =
            (0..channels).map(|d| (0..states).map(|n| state.at([row, d, n])).collect()).collect();
        (0..length)
            .map(|t| {
                for (d, h) in h.iter_mut().enumerate() {
                    let delta = softplus(delta.at([row, t, d]) + bias.at([d]));
                    for (n, h) in h.iter_mut().enumerate() {
                        *h = (delta * a.at([d, n])).exp() * *h + delta * u.at([row, t, d]) * b.at([row, t, n]);
                    }
                }
                h.clone()
            })
            .collect()
    }
}

/// A whole call, of which some operands may be left out.
pub(crate) struct Scan {
    pub(crate) sizes: [usize; 4],
    pub(crate) own: Recurrence,
    pub(crate) c: Tensor,
    pub(crate) skip: Tensor,
    pub(crate) z: Tensor,
    pub(crate) lengths: Lengths,
    pub(crate) gates: [Option<Tensor>; 2],
    pub(crate) neighbours: Vec<(Recurrence, Option<Tensor>)>,
}

impl Scan {
    pub(crate) fn random(
        sizes: [usize; 4],
        lengths: Vec<i32>,
        gates: [bool; 2],
        neighbours: usize,
        linear: bool,
    ) -> Self {
        let [batch, time, channels, states] = sizes;
        let mut random = Random(11);
        let random = &mut random;
        let widths = [channels, states];
        Self {
            sizes,
            own: Recurrence::random(random, sizes),
            c: Tensor::random(random, &[batch, time, states], 1.0),
            skip: Tensor::random(random, &[channels], 1.0),
            z: Tensor::random(random, &[batch, time, channels], 3.0),
            lengths: Lengths(lengths),
            gates: [0, 1].map(|i| gates[i].then(|| Tensor::random(random, &[batch, time, widths[i]], 2.0))),
            neighbours: (0..neighbours)
                .map(|_| {
                    let projection = linear.then(|| Tensor::random(random, &[states, states], 0.5));
                    (Recurrence::random(random, sizes), projection)
                })
                .collect(),
        }
    }

    pub(crate) fn given(&self) -> Given {
        Given { integer: Some(("neighbours", self.neighbours.len() as i64)), epsilon: None }
    }

    fn maybe(tensor: &Option<Tensor>) -> Operand<'_> {
        tensor.as_ref().map_or(Operand::Absent, Tensor::operand)
    }

    pub(crate) fn operands(&self) -> Vec<Operand<'_>> {
        let mut operands: Vec<_> = self.own.0.iter().map(Tensor::operand).collect();
        operands.extend([self.c.operand(), self.skip.operand(), self.z.operand(), self.lengths.operand()]);
        operands.extend(self.gates.iter().map(Self::maybe));
        operands.extend(self.neighbours.iter().flat_map(|(recurrence, _)| &recurrence.0).map(Tensor::operand));
        operands.extend(self.neighbours.iter().flat_map(|(_, projection)| projection).map(Tensor::operand));
        operands
    }

    /// The expected `y` and final states, as in the paper, where the neighbours' states themselves are gated and
    /// projected.
    pub(crate) fn expected(&self) -> [Vec<f64>; 2] {
        let [batch, time, channels, states] = self.sizes;
        let (mut y, mut present) = (Vec::new(), Vec::new());
        for row in 0..batch {
            let length = self.lengths.0[row] as usize;
            let own = self.own.states(row, length);
            let neighbours: Vec<_> = self.neighbours.iter().map(|(n, p)| (n.states(row, length), p)).collect();
            for t in 0..time {
                for d in 0..channels {
                    if t >= length {
                        y.push(0.0);
                        continue;
                    }
                    let gate = |n: usize| {
                        let of =
                            |i: usize, index| self.gates[i].as_ref().map_or(1.0, |gate| silu(gate.at([row, t, index])));
                        of(0, d) * of(1, n)
                    };
                    let fused = |n: usize| {
                        let projected = neighbours.iter().map(|(h, p)| match p {
                            None => h[t][d][n],
                            Some(p) => (0..states).map(|j| h[t][d][j] * p.at([n, j])).sum(),
                        });
                        own[t][d][n] + gate(n) * projected.sum::<f64>()
                    };
                    let read: f64 = (0..states).map(|n| fused(n) * self.c.at([row, t, n])).sum();
                    let u = self.own.0[0].at([row, t, d]);
                    y.push((read + self.skip.at([d]) * u) * silu(self.z.at([row, t, d])));
                }
            }
            for d in 0..channels {
                let last = own.last().map(|h| h[d].clone());
                present.extend(last.unwrap_or_else(|| (0..states).map(|n| self.own.0[5].at([row, d, n])).collect()));
            }
        }
        [y, present]
    }
}

#[test]
fn the_scan_is_that_of_the_formula() {
    for (sizes, lengths, gates, neighbours, linear) in [
        ([1, 5, 64, 16], vec![5], [false, false], 0, false),
        ([2, 7, 65, 16], vec![7, 3], [true, true], 2, false),
        ([1, 40, 6, 4], vec![40], [true, false], 1, false),
        ([3, 4, 20, 5], vec![0, 4, 1], [false, true], 3, true),
        ([1, 3, 130, 33], vec![3], [false, false], 2, true),
        ([1, 130, 16, 16], vec![129], [false, false], 2, false),
    ] {
        let scan = Scan::random(sizes, lengths, gates, neighbours, linear);
        let [y, present] = scan.expected();
        for level in Level::all() {
            let got = call("SelectiveScan", &scan.given(), level, &scan.operands(), &SingleThreaded).unwrap();
            close(&format!("y {sizes:?} on {level}"), &got[0].values, &y, ToleranceClass::Scan);
            close(&format!("state {sizes:?} on {level}"), &got[1].values, &present, ToleranceClass::Scan);
        }
    }
}

#[test]
fn a_step_is_a_scan_of_one_token() {
    for (sizes, gates, neighbours, linear) in [
        ([1, 1, 64, 16], [false, false], 0, false),
        ([2, 1, 100, 16], [true, true], 2, false),
        ([1, 1, 7, 5], [true, false], 3, true),
        ([1, 1, 2048, 16], [false, true], 1, false),
        ([3, 1, 66, 40], [true, true], 2, true),
    ] {
        let scan = Scan::random(sizes, vec![1; sizes[0]], gates, neighbours, linear);
        let [y, present] = scan.expected();
        // A neighbour is given by its state after the token.
        let states: Vec<Tensor> = scan
            .neighbours
            .iter()
            .map(|(neighbour, _)| {
                let rows = (0..sizes[0]).flat_map(|row| neighbour.states(row, 1).remove(0).concat());
                Tensor { shape: vec![sizes[0], sizes[2], sizes[3]], values: rows.map(|h| h as f32).collect() }
            })
            .collect();
        let all = scan.operands();
        let mut operands = [&all[..9], &all[10..12]].concat();
        operands.extend(states.iter().map(Tensor::operand));
        operands.extend(scan.neighbours.iter().flat_map(|(_, projection)| projection).map(Tensor::operand));
        for level in Level::all() {
            let got = call("SelectiveStep", &scan.given(), level, &operands, &SingleThreaded).unwrap();
            close(&format!("y {sizes:?} on {level}"), &got[0].values, &y, ToleranceClass::Scan);
            close(&format!("state {sizes:?} on {level}"), &got[1].values, &present, ToleranceClass::Scan);
        }
    }
}
