//! What a kernel is called with, and where its results go.

use crate::Error;
use densessm_proto::DType;
use std::fmt;

/// The largest number of axes that an operand has.
const MAX_AXES: usize = 4;

/// The sizes of a tensor's axes, at most four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    sizes: [usize; MAX_AXES],
    rank: usize,
}

impl Shape {
    /// The shape of these sizes; none if there are more than four or their product overflows.
    pub fn new(sizes: &[usize]) -> Option<Self> {
        let mut own = [1; MAX_AXES];
        own.get_mut(..sizes.len())?.copy_from_slice(sizes);
        own.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        Some(Self { sizes: own, rank: sizes.len() })
    }

    /// The sizes, outermost first.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.sizes.iter().product()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sizes().fmt(f)
    }
}

/// Anything that a schema can be checked against: an operand of kernels for some device.
pub trait Described {
    /// Element type and shape; none if the operand was left out.
    fn describe(&self) -> Option<(DType, Shape)>;

    /// Whether the memory behind the operand holds as many elements as its shape says.
    fn is_complete(&self) -> bool;
}

/// An operand of the CPU kernels: row-major elements in host memory.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Operand<'a> {
    /// The operand was left out.
    #[default]
    Absent,
    /// Elements of type fp32.
    F32(Shape, &'a [f32]),
    /// Elements of type int32.
    I32(Shape, &'a [i32]),
}

impl Operand<'_> {
    /// Element type, if the operand is present.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Self::Absent => None,
            Self::F32(..) => Some(DType::F32),
            Self::I32(..) => Some(DType::I32),
        }
    }

    /// Shape, if the operand is present.
    pub fn shape(&self) -> Option<Shape> {
        match self {
            Self::Absent => None,
            Self::F32(shape, _) | Self::I32(shape, _) => Some(*shape),
        }
    }
}

impl Described for Operand<'_> {
    #[inline]
    fn describe(&self) -> Option<(DType, Shape)> {
        self.dtype().zip(self.shape())
    }

    #[inline]
    fn is_complete(&self) -> bool {
        match self {
            Self::Absent => true,
            Self::F32(shape, values) => values.len() == shape.elements(),
            Self::I32(shape, values) => values.len() == shape.elements(),
        }
    }
}

/// The buffer that a result is written to, row-major, in host memory.
#[derive(Debug)]
#[non_exhaustive]
pub enum ResultBuffer<'a> {
    /// Elements of type fp32.
    F32(&'a mut [f32]),
}

impl ResultBuffer<'_> {
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
        }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
        }
    }
}

/// The slices of results that are all of type fp32.
///
/// # Errors
/// When there are not exactly N.
pub(crate) fn f32_results<'r, const N: usize>(
    results: &'r mut [ResultBuffer<'_>],
) -> Result<[&'r mut [f32]; N], Error> {
    let got = results.len();
    let results: &mut [ResultBuffer<'_>; N] =
        results.try_into().map_err(|_| Error::new("results", format!("expected {N} buffers, got {got}")))?;
    Ok(results.each_mut().map(|buffer| match buffer {
        ResultBuffer::F32(values) => &mut values[..],
    }))
}
