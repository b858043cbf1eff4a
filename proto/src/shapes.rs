//! The sizes for which a runtime that compiles graphs, TensorRT, builds its engines.

use crate::manifest::{Dimension, TensorEntry};
use crate::states::SEQUENCE;
use std::{fmt, str::FromStr};

/// The smallest and the largest value of a size that an engine accepts, and the one that it is optimised for.
///
/// The text form is `MIN,OPT,MAX`, with 1 ≤ MIN ≤ OPT ≤ MAX.
///
/// ```
/// use densessm_proto::SizeRange;
///
/// let batch: SizeRange = "1,6,64".parse()?;
/// assert_eq!((batch.min(), batch.opt(), batch.max()), (1, 6, 64));
/// assert!(batch.contains(64) && !batch.contains(65));
/// assert!("6,1,64".parse::<SizeRange>().is_err());
/// # Ok::<(), densessm_proto::ParseSizeRangeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SizeRange {
    min: u32,
    opt: u32,
    max: u32,
}

impl SizeRange {
    /// Returns the range; none unless 1 ≤ `min` ≤ `opt` ≤ `max` and `max` fits into the 31 bits that TensorRT gives it.
    pub const fn new(min: u32, opt: u32, max: u32) -> Option<Self> {
        match 1 <= min && min <= opt && opt <= max && max <= i32::MAX as u32 {
            true => Some(Self { min, opt, max }),
            false => None,
        }
    }

    /// Returns the smallest size.
    pub const fn min(self) -> u32 {
        self.min
    }

    /// Returns the size that the engine is optimised for.
    pub const fn opt(self) -> u32 {
        self.opt
    }

    /// Returns the largest size.
    pub const fn max(self) -> u32 {
        self.max
    }

    /// Returns whether an engine for this range accepts a size.
    pub const fn contains(self, size: usize) -> bool {
        self.min as usize <= size && size <= self.max as usize
    }
}

impl fmt::Display for SizeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.min, self.opt, self.max)
    }
}

/// The text is not a [`SizeRange`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseSizeRangeError(String);

impl fmt::Display for ParseSizeRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, got `{}`", self.0)
    }
}

impl std::error::Error for ParseSizeRangeError {}

impl FromStr for SizeRange {
    type Err = ParseSizeRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseSizeRangeError(text.to_owned());
        let sizes: Vec<u32> =
            text.split(',').map(|size| size.trim().parse().map_err(|_| invalid())).collect::<Result<_, _>>()?;
        match sizes[..] {
            [min, opt, max] => Self::new(min, opt, max).ok_or_else(invalid),
            _ => Err(invalid()),
        }
    }
}

/// The sizes of the two symbolic dimensions of a bundle's graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ShapeProfile {
    /// Number of sequences in a call.
    pub batch: SizeRange,
    /// Number of tokens of each sequence in a call of the parallel graph.
    pub prompt: SizeRange,
}

impl Default for ShapeProfile {
    /// One to 64 sequences, optimised for one, and 1 to 512 tokens, optimised for 512.
    fn default() -> Self {
        Self { batch: SizeRange { min: 1, opt: 1, max: 64 }, prompt: SizeRange { min: 1, opt: 512, max: 512 } }
    }
}

impl ShapeProfile {
    /// Makes a profile of the ranges of its two sizes.
    pub const fn new(batch: SizeRange, prompt: SizeRange) -> Self {
        Self { batch, prompt }
    }

    /// Returns the smallest, the optimal and the largest shapes of a graph's inputs, each as
    /// `name:1x512,name:1x320x16`, which both ONNX Runtime's provider options and `trtexec` take. Inputs without symbolic
    /// dimensions are left out.
    pub fn shapes(&self, inputs: &[TensorEntry]) -> [String; 3] {
        [SizeRange::min, SizeRange::opt, SizeRange::max].map(|bound| {
            let size = |dimension: &Dimension| match dimension {
                Dimension::Size(size) => size.to_string(),
                Dimension::Symbol(symbol) if symbol == SEQUENCE => bound(self.prompt).to_string(),
                Dimension::Symbol(_) => bound(self.batch).to_string(),
            };
            let dynamic = inputs.iter().filter(|input| input.shape.iter().any(is_symbol));
            let shapes = dynamic.map(|input| {
                let sizes: Vec<String> = input.shape.iter().map(size).collect();
                format!("{}:{}", input.name, sizes.join("x"))
            });
            shapes.collect::<Vec<_>>().join(",")
        })
    }
}

fn is_symbol(dimension: &Dimension) -> bool {
    matches!(dimension, Dimension::Symbol(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, states::BATCH};

    #[test]
    fn a_range_is_three_sizes_in_order() {
        for wrong in ["", "1,2", "1,2,3,4", "0,1,2", "2,1,3", "1,3,2", "1,x,3", "1,2,-3", "1,2,4294967295"] {
            let error = wrong.parse::<SizeRange>().unwrap_err().to_string();
            assert!(error.contains("MIN,OPT,MAX") && error.ends_with(&format!("got `{wrong}`")), "{error}");
        }
        let range: SizeRange = "1, 6,64".parse().unwrap();
        assert_eq!(range.to_string(), "1,6,64");
    }

    #[test]
    fn shapes_name_every_input_with_a_symbolic_size() {
        let symbol = |name: &str| Dimension::Symbol(name.to_owned());
        let entry = |name: &str, shape| TensorEntry { name: name.to_owned(), dtype: DType::F32, shape };
        let inputs = [
            entry("ids", vec![symbol(BATCH), symbol(SEQUENCE)]),
            entry("fixed", vec![Dimension::Size(3)]),
            entry("state", vec![symbol(BATCH), Dimension::Size(320), Dimension::Size(16)]),
        ];
        let [batch, prompt] = ["1,6,64", "2,512,2048"].map(|range| range.parse().unwrap());
        let expected = ["ids:1x2,state:1x320x16", "ids:6x512,state:6x320x16", "ids:64x2048,state:64x320x16"];
        assert_eq!(ShapeProfile::new(batch, prompt).shapes(&inputs), expected);
    }
}
