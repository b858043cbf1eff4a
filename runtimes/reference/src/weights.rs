//! A checkpoint's tensors, held as fp32 and widened where they are used.

use crate::{Error, Real};
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayD, ArrayView2, Axis, Ix1, Ix2, s};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Rows of a matrix that are widened at a time.
const ROWS: usize = 256;

/// A type in half precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfType {
    /// IEEE half precision.
    Fp16,
    /// The upper half of an fp32 number.
    Bf16,
}

/// Tensors by name.
#[derive(Clone, Debug, Default)]
pub struct Tensors(BTreeMap<String, ArrayD<f32>>);

impl Tensors {
    /// Tensors that somebody else has read.
    ///
    /// # Errors
    /// When the numbers of a tensor are not as many as its shape says.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        for (name, shape, values) in tensors {
            let array = ArrayD::from_shape_vec(shape, values).map_err(|error| Error::new(&name, error.to_string()))?;
            all.insert(name, array);
        }
        Ok(Self(all))
    }

    /// Reads `model.safetensors`, or the files that `model.safetensors.index.json` names, in F32, F16, BF16 or F64.
    ///
    /// # Errors
    /// Naming the file or the tensor that cannot be read.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let index = folder.join("model.safetensors.index.json");
        let files: BTreeSet<String> = match fs::read(&index) {
            Err(_) => ["model.safetensors".to_owned()].into(),
            Ok(bytes) => {
                let wrong = |problem: String| Error::new(index.display().to_string(), problem);
                let json: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
                let map = json["weight_map"].as_object().ok_or_else(|| wrong("expected a weight_map".to_owned()))?;
                map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect()
            }
        };
        let mut all = Vec::new();
        for file in files {
            let path = folder.join(&file);
            let wrong = |problem: String| Error::new(path.display().to_string(), problem);
            let bytes = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
            let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
            for (name, view) in tensors.iter() {
                let bytes = view.data();
                let values = match view.dtype() {
                    Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                    Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
                    Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
                    Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
                    // A buffer of another type; a weight of one is found missing.
                    _ => continue,
                };
                all.push((name.to_owned(), view.shape().to_vec(), values));
            }
        }
        Self::new(all)
    }

    /// The same tensors, some of them rounded.
    pub(crate) fn rounded(&self, to: HalfType, stores: impl Fn(&str, &[usize]) -> bool) -> Self {
        let round = |value: f32| match to {
            HalfType::Fp16 => f16::from_f32(value).to_f32(),
            HalfType::Bf16 => bf16::from_f32(value).to_f32(),
        };
        let tensors = self.0.iter().map(|(name, tensor)| {
            let rounded = if stores(name, tensor.shape()) { tensor.mapv(round) } else { tensor.clone() };
            (name.clone(), rounded)
        });
        Self(tensors.collect())
    }

    /// The shape of a tensor, if it is there.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.get(name).map(ArrayD::shape)
    }

    /// Whether a tensor is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Checks a tensor's shape.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<(), Error> {
        match self.shape(name) {
            Some(got) if got == shape => Ok(()),
            Some(got) => Err(Error::new(name, format!("expected shape {shape:?}, got {got:?}"))),
            None => Err(Error::new(name, format!("expected shape {shape:?}, got no tensor"))),
        }
    }

    /// A tensor whose shape has been checked, widened.
    pub(crate) fn all<F: Real>(&self, name: &str) -> ArrayD<F> {
        self.0.get(name).map_or_else(|| ArrayD::zeros(vec![0]), |tensor| tensor.mapv(|x| F::of(f64::from(x))))
    }

    /// A vector.
    pub(crate) fn vector<F: Real>(&self, name: &str) -> Array1<F> {
        let tensor = self.all(name);
        tensor.into_dimensionality::<Ix1>().unwrap_or_else(|_| Array1::zeros(0))
    }

    fn matrix(&self, name: &str) -> ArrayView2<'_, f32> {
        let view = self.0.get(name).and_then(|tensor| tensor.view().into_dimensionality::<Ix2>().ok());
        view.unwrap_or_else(|| ArrayView2::from_shape((0, 0), &[]).unwrap_or_else(|_| unreachable!("no numbers")))
    }

    /// Rows of a table: `[tokens] -> [tokens, width]`.
    pub(crate) fn rows<F: Real>(&self, name: &str, rows: &[i64]) -> Array2<F> {
        let rows: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
        self.matrix(name).select(Axis(0), &rows).mapv(|x| F::of(f64::from(x)))
    }

    /// `x Wᵀ`: `[tokens, d_in] -> [tokens, d_out]`.
    pub(crate) fn linear<F: Real>(&self, name: &str, x: &Array2<F>) -> Array2<F> {
        let weight = self.matrix(name);
        let mut y = Array2::zeros((x.nrows(), weight.nrows()));
        for (block, rows) in weight.axis_chunks_iter(Axis(0), ROWS).enumerate() {
            let product = x.dot(&rows.mapv(|x| F::of(f64::from(x))).t());
            let first = block * ROWS;
            y.slice_mut(s![.., first..first + rows.nrows()]).assign(&product);
        }
        y
    }
}
