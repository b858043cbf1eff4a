use crate::call::{Given, Lengths, Random, Tensor, call, close};
use densessm_kernels::{Level, Operand, Pool, SingleThreaded};
use densessm_proto::ToleranceClass;

const EPS: f32 = 1e-6;

/// The operands of a call in order, without the lengths.
pub(crate) struct Retention {
    /// Batch, tokens, heads, and sizes of a head's key and value.
    pub(crate) sizes: [usize; 5],
    pub(crate) operands: [Tensor; 9],
    pub(crate) lengths: Lengths,
}

impl Retention {
    pub(crate) fn random(sizes: [usize; 5], lengths: Vec<i32>) -> Self {
        let [batch, time, heads, dk, dv] = sizes;
        let mut random = Random(5);
        let random = &mut random;
        let [q, k] = [(); 2].map(|()| Tensor::random(random, &[batch, time, heads * dk], 1.0));
        let [v, gate] = [(); 2].map(|()| Tensor::random(random, &[batch, time, heads * dv], 1.0));
        let angles = Tensor::random(random, &[batch, time, dk / 2], 3.0);
        let [mut cos, mut sin] = [angles.clone(), angles];
        cos.values.iter_mut().for_each(|x| *x = x.cos());
        sin.values.iter_mut().for_each(|x| *x = x.sin());
        let mut scale = Tensor::random(random, &[batch, time, heads], 0.4);
        scale.values.iter_mut().for_each(|x| *x += 0.6);
        let state = Tensor::random(random, &[batch, heads, dk, dv], 1.0);
        let norm = Tensor::random(random, &[dv], 1.0);
        Self { sizes, operands: [q, k, v, cos, sin, scale, state, gate, norm], lengths: Lengths(lengths) }
    }

    pub(crate) fn given(&self) -> Given {
        Given { integer: Some(("heads", self.sizes[2] as i64)), epsilon: Some(EPS) }
    }

    pub(crate) fn operands(&self, with_lengths: bool) -> Vec<Operand<'_>> {
        let mut operands: Vec<_> = self.operands.iter().map(Tensor::operand).collect();
        operands.extend(with_lengths.then(|| self.lengths.operand()));
        operands
    }

    /// The expected results, by the recurrence.
    fn expected(&self) -> [Vec<f64>; 2] {
        let [batch, time, heads, dk, dv] = self.sizes;
        let [q, k, v, cos, sin, scale, state, gate, norm] = &self.operands;
        let mut o = vec![0.0; batch * time * heads * dv];
        let mut present = Vec::new();
        for (row, head) in (0..batch).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let decay = 1.0 - (-5.0 - head as f64).exp2();
            let mut s: Vec<Vec<f64>> =
                (0..dk).map(|i| (0..dv).map(|j| state.at([row, head, i, j])).collect()).collect();
            for t in 0..self.lengths.0[row] as usize {
                let rotated = |x: &Tensor, i: usize| {
                    let (a, b) = (x.at([row, t, head * dk + (i & !1)]), x.at([row, t, head * dk + (i | 1)]));
                    let (cos, sin) = (cos.at([row, t, i / 2]), sin.at([row, t, i / 2]));
                    if i.is_multiple_of(2) { a * cos - b * sin } else { b * cos + a * sin }
                };
                let (q, k): (Vec<f64>, Vec<f64>) = (0..dk).map(|i| (rotated(q, i), rotated(k, i))).unzip();
                let mut out = vec![0.0; dv];
                for (i, s) in s.iter_mut().enumerate() {
                    for (j, s) in s.iter_mut().enumerate() {
                        *s = decay * *s + k[i] * v.at([row, t, head * dv + j]);
                        out[j] += q[i] * *s;
                    }
                }
                let scale = scale.at([row, t, head]);
                let mean = out.iter().map(|o| (o * scale).powi(2)).sum::<f64>() / dv as f64;
                for (j, out) in out.iter().enumerate() {
                    let place = head * dv + j;
                    let normed = out * scale / (mean + f64::from(EPS)).sqrt() * norm.at([j]);
                    o[(row * time + t) * heads * dv + place] = normed * gate.at([row, t, place]);
                }
            }
            present.extend(s.into_iter().flatten());
        }
        [o, present]
    }

    #[track_caller]
    fn check(&self, name: &str, with_lengths: bool, pool: &dyn Pool) {
        let [o, present] = self.expected();
        for level in Level::all() {
            let got = call(name, &self.given(), level, &self.operands(with_lengths), pool).unwrap();
            close(&format!("o {:?} on {level}", self.sizes), &got[0].values, &o, ToleranceClass::Retention);
            close(&format!("state {:?} on {level}", self.sizes), &got[1].values, &present, ToleranceClass::Retention);
        }
    }
}

/// A pool that claims many threads, so that heads are divided.
struct Many;

impl Pool for Many {
    fn threads(&self) -> usize {
        16
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<(), densessm_kernels::Error> {
        (0..tasks).rev().for_each(task);
        Ok(())
    }
}

#[test]
fn chunks_join_to_the_recurrence() {
    for (sizes, lengths) in [
        ([1, 5, 2, 8, 16], vec![5]),
        ([2, 70, 1, 6, 10], vec![70, 65]),
        ([1, 130, 2, 24, 50], vec![129]),
        ([3, 3, 4, 2, 3], vec![0, 3, 1]),
        ([1, 64, 1, 40, 400], vec![64]),
    ] {
        let retention = Retention::random(sizes, lengths);
        retention.check("Retention", true, &SingleThreaded);
        retention.check("Retention", true, &Many);
    }
}

#[test]
fn a_step_is_the_recurrence() {
    for sizes in [[1, 1, 2, 8, 16], [2, 1, 3, 6, 10], [1, 1, 1, 384, 300], [1, 1, 2, 2, 1]] {
        let retention = Retention::random(sizes, vec![1; sizes[0]]);
        retention.check("RetentionStep", false, &SingleThreaded);
        retention.check("RetentionStep", false, &Many);
    }
}
