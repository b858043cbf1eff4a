//! Tensors of pseudo-random numbers, and calls by an operator's name.

use densessm_kernels::{Attributes, Error, Level, Operand, Pool, ResultBuffer, Shape, cpu};
use densessm_proto::{Precision, Tolerance, ToleranceClass};

/// A tensor that owns its numbers.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

impl Tensor {
    /// Numbers spread evenly over -scale … scale.
    pub(crate) fn random(random: &mut Random, shape: &[usize], scale: f32) -> Self {
        let values = (0..shape.iter().product()).map(|_| random.next(scale)).collect();
        Self { shape: shape.to_vec(), values }
    }

    pub(crate) fn operand(&self) -> Operand<'_> {
        Operand::F32(Shape::new(&self.shape).unwrap(), &self.values)
    }

    /// The number at an index.
    pub(crate) fn at<const N: usize>(&self, index: [usize; N]) -> f64 {
        assert_eq!(N, self.shape.len());
        let place = index.iter().zip(&self.shape).fold(0, |place, (i, size)| {
            assert!(i < size, "{index:?} in {:?}", self.shape);
            place * size + i
        });
        f64::from(self.values[place])
    }
}

/// A linear congruential generator: the same numbers everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self, scale: f32) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale
    }
}

/// Lengths of rows.
pub(crate) struct Lengths(pub(crate) Vec<i32>);

impl Lengths {
    pub(crate) fn operand(&self) -> Operand<'_> {
        Operand::I32(Shape::new(&[self.0.len()]).unwrap(), &self.0)
    }
}

/// The attributes that the operators have.
pub(crate) struct Given {
    pub(crate) integer: Option<(&'static str, i64)>,
    pub(crate) epsilon: Option<f32>,
}

impl Attributes for Given {
    fn integer(&self, name: &str) -> Option<i64> {
        self.integer.filter(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.epsilon.filter(|_| name == "epsilon")
    }
}

/// Runs an operator into buffers of the shapes that its schema says, filled with NaN, which must not come out.
pub(crate) fn call(
    name: &str,
    given: &Given,
    level: Level,
    operands: &[Operand<'_>],
    pool: &dyn Pool,
) -> Result<Vec<Tensor>, Error> {
    let kernel = cpu::kernel(name).unwrap().prepare(given, &level)?;
    let call = kernel.signature().bind(operands)?;
    let mut results: Vec<Tensor> = (0..kernel.signature().schema().results.len())
        .map(|result| call.result_shape(result).unwrap())
        .map(|shape| Tensor { shape: shape.sizes().to_vec(), values: vec![f32::NAN; shape.elements()] })
        .collect();
    let mut buffers: Vec<ResultBuffer<'_>> =
        results.iter_mut().map(|tensor| ResultBuffer::F32(&mut tensor.values)).collect();
    kernel.compute(&call, &mut buffers, pool)?;
    Ok(results)
}

/// Checks that values agree within the tolerance of an operator in fp32.
#[track_caller]
pub(crate) fn close(what: &str, got: &[f32], expected: &[f64], class: ToleranceClass) {
    let tolerance = Tolerance::of(class, Precision::Fp32);
    tolerance.compare(got, expected).unwrap_or_else(|error| panic!("{what}: {error}"));
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
