//! The bundle's weights, once in memory for all sessions.
//!
//! The data file is mapped, and the sessions receive tensors that point into the mapping. The first session that uses a
//! product's weight packs it into a container from which the next one takes it. Meanwhile the pages of the file are
//! released periodically, so that not much more than the packed weights is in memory at any time; what is still read
//! from the file later (an embedding's rows) is paged in again.
//!
//! Matrices in half precision are widened to fp32 instead, once. They are not packed: a packed copy of each would be in
//! memory beside it, as there is no file to read it from again.

use crate::{
    error::failed,
    graph::{CONTRIB, FUSED_PRODUCT},
};
use densessm_proto::{
    GraphKind,
    onnx::{GraphProto, TensorProto, tensor_proto::DataLocation, tensor_proto::DataType},
};
use densessm_session::{
    Bundle, Error,
    onnx::{OnnxFile, Widened, read_all},
};
use memmap2::{Mmap, UncheckedAdvice};
use ort::{
    AsPointer,
    memory::MemoryInfo,
    session::builder::{PrepackedWeights, SessionBuilder},
    sys,
};
use prost::Message;
use std::{
    collections::{BTreeMap, HashSet},
    ffi::CString,
    fs::File,
    ptr::{self, NonNull},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// Where widened matrices begin: at a cache line.
const ALIGNMENT: usize = 64;
/// How often pages are released while sessions load: at most what is read of the files in this time is in memory beside
/// the packed weights.
const BETWEEN_RELEASES: Duration = Duration::from_millis(50);

/// Weights that sessions share. They must outlive the sessions; see [`Weights::lend`].
pub(crate) struct Weights {
    /// The shared tensors by name.
    tensors: BTreeMap<CString, Value>,
    packed: PrepackedWeights,
    /// Graphs that read widened matrices instead of those in the file.
    models: BTreeMap<GraphKind, Vec<u8>>,
    /// The widened matrices; dropped after the tensors, which point into them.
    widened: Vec<Aligned>,
    /// The mapped files by name; dropped after the tensors, which point into them.
    files: BTreeMap<String, Mmap>,
}

/// Numbers that begin at a multiple of [`ALIGNMENT`] bytes.
struct Aligned {
    numbers: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn zeros(length: usize) -> Self {
        let numbers = vec![0.0; length + ALIGNMENT / size_of::<f32>()];
        let start = numbers.as_ptr().align_offset(ALIGNMENT).min(numbers.len() - length);
        Self { numbers, start, length }
    }

    fn numbers(&mut self) -> &mut [f32] {
        &mut self.numbers[self.start..][..self.length]
    }
}

/// A tensor of ONNX Runtime that points into memory which something else owns.
pub(crate) struct Value(pub(crate) NonNull<sys::OrtValue>);

// SAFETY: ONNX Runtime's values may be read and released by any thread; these are never written.
unsafe impl Send for Value {}
// SAFETY: the values are only read, by any number of threads at once.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the value was made by ONNX Runtime and is released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

impl Weights {
    /// Maps the weights of some of a bundle's graphs, and widens those in half precision that are cast.
    pub(crate) fn open(bundle: &Bundle, graphs: &[GraphKind]) -> Result<Self, Error> {
        let mut weights = Self {
            tensors: BTreeMap::new(),
            packed: PrepackedWeights::new(),
            models: BTreeMap::new(),
            widened: Vec::new(),
            files: BTreeMap::new(),
        };
        let mut matrices: BTreeMap<String, Widened> = BTreeMap::new();
        for &kind in graphs {
            let mut file = OnnxFile::of_bundle(bundle, kind)?;
            let widened = file.widen(false)?;
            let factors = factors(&file.graph);
            let outside = |tensor: &&TensorProto| tensor.data_location == i32::from(DataLocation::External);
            let shared = |tensor: &&TensorProto| factors.contains(tensor.name.as_str());
            for tensor in file.graph.initializer.iter().filter(outside).filter(shared) {
                let wrong = |problem: &str| file.broken(format!("tensor `{}`: {problem}", tensor.name));
                let name = CString::new(tensor.name.as_str()).map_err(|_| wrong("its name contains a zero byte"))?;
                if !weights.tensors.contains_key(&name) {
                    let value = weights.mapped(bundle, tensor)?;
                    let value = value.map_err(|problem| wrong(&problem))?;
                    weights.tensors.insert(name, value);
                }
            }
            if !widened.is_empty() {
                file.graph.initializer.extend(widened.iter().map(Widened::placeholder));
                weights.models.insert(kind, file.into_model().encode_to_vec());
                matrices.extend(widened.into_iter().map(|matrix| (matrix.name.clone(), matrix)));
            }
        }
        weights.widen(bundle, matrices)?;
        Ok(weights)
    }

    /// Widens matrices, and makes a tensor of each.
    fn widen(&mut self, bundle: &Bundle, matrices: BTreeMap<String, Widened>) -> Result<(), Error> {
        self.widened = matrices.values().map(|matrix| Aligned::zeros(matrix.elements())).collect();
        read_all(bundle, matrices.values().zip(self.widened.iter_mut().map(Aligned::numbers)))?;
        for (matrix, place) in matrices.values().zip(&mut self.widened) {
            let sizes = matrix.shape().map(|size| size as i64);
            let wrong = |problem: String| Error::Bundle {
                path: bundle.dir().to_owned(),
                problem: format!("tensor `{}`: {problem}", matrix.name),
            };
            let name =
                CString::new(matrix.name.as_str()).map_err(|_| wrong("its name contains a zero byte".to_owned()))?;
            let numbers = place.numbers();
            // SAFETY: the numbers are of the type and as many as the shape needs, are not written any more, and are dropped
            // after the value.
            let value = unsafe { value(numbers.as_ptr().cast(), size_of_val(numbers), &sizes, Element::FLOAT) };
            self.tensors.insert(name, value.map_err(wrong)?);
        }
        Ok(())
    }

    /// Returns the graph to load in place of the bundle's file, if it reads widened matrices.
    pub(crate) fn model(&self, kind: GraphKind) -> Option<&[u8]> {
        self.models.get(&kind).map(Vec::as_slice)
    }

    /// Makes a tensor that points to its place in the mapped file. The inner error is a message about the tensor.
    fn mapped(&mut self, bundle: &Bundle, tensor: &TensorProto) -> Result<Result<Value, String>, Error> {
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let number = |key: &str| entry(key).and_then(|value| value.parse::<usize>().ok());
        let Some(file) = entry("location") else { return Ok(Err("its data names no file".to_owned())) };
        let (element, size) = match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float) => (Element::FLOAT, 4),
            Ok(DataType::Float16) => (Element::FLOAT16, 2),
            Ok(DataType::Bfloat16) => (Element::BFLOAT16, 2),
            _ => return Ok(Err("expected fp32, fp16 or bf16".to_owned())),
        };
        let sizes: Vec<i64> = tensor.dims.clone();
        let elements =
            sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?));
        let bytes = elements.and_then(|elements| elements.checked_mul(size));
        let (Some(offset), Some(bytes)) = (number("offset").or(Some(0)), bytes) else {
            return Ok(Err("expected numbers as offset and sizes".to_owned()));
        };
        if !offset.is_multiple_of(size) {
            return Ok(Err(format!("expected an offset that is a multiple of {size}, got {offset}")));
        }
        if !self.files.contains_key(file) {
            let path = bundle.data_path(file)?;
            let io = |error| Error::Io { path: path.clone(), error };
            let opened = File::open(&path).map_err(io)?;
            // SAFETY: a bundle's files are written once and then renamed into place; they do not change while in use.
            let map = unsafe { Mmap::map(&opened) }.map_err(io)?;
            self.files.insert(file.clone(), map);
        }
        let map = &self.files[file];
        let Some(place) = offset.checked_add(bytes).and_then(|end| map.get(offset..end)) else {
            return Ok(Err(format!("expected {bytes} bytes at {offset} in {file}, which has {}", map.len())));
        };
        // SAFETY: `place` is within the mapping, aligned and of the size that the shape needs; the mapping is dropped
        // after the value.
        Ok(unsafe { value(place.as_ptr(), bytes, &sizes, element) })
    }

    /// Adds the weights to a session that is being built, which then reads them without copying.
    ///
    /// # Safety
    /// ONNX Runtime keeps the pointers of the tensors. These weights must therefore outlive every session built from the
    /// returned builder, and everything that keeps such a session alive: IO bindings hold a reference to their session.
    pub(crate) unsafe fn lend(&self, builder: SessionBuilder) -> Result<SessionBuilder, Error> {
        let mut builder = builder;
        for (name, value) in &self.tensors {
            // SAFETY: builder, name and value are alive during the call, and the value during the session's life, as the
            // caller guarantees.
            unsafe {
                let added = (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), value.0.as_ptr());
                ort::Error::result_from_status(added).map_err(failed("sharing weights"))?;
            }
        }
        builder.with_prepacked_weights(&self.packed).map_err(|error| failed("sharing weights")(error.into()))
    }

    /// Calls `load`, which loads sessions, and meanwhile releases the pages of the files that it reads.
    pub(crate) fn load_releasing_pages<R>(&self, load: impl FnOnce() -> R) -> R {
        let (done, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while ended.recv_timeout(BETWEEN_RELEASES) == Err(RecvTimeoutError::Timeout) {
                    self.release_pages();
                }
                self.release_pages();
            });
            let loaded = load();
            drop(done);
            loaded
        })
    }

    fn release_pages(&self) {
        for map in self.files.values() {
            // SAFETY: the mapping is of a file and is never written to, so that its pages can be read from there again.
            // An error is ignored: the pages then stay in memory, which is correct.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }
}

/// Makes a tensor that points to numbers in memory.
///
/// # Safety
/// The memory must hold as many bytes, numbers of the element type in the shape, and must outlive the value unchanged.
unsafe fn value(place: *const u8, bytes: usize, sizes: &[i64], element: Element) -> Result<Value, String> {
    let mut value = ptr::null_mut();
    // SAFETY: the caller's obligation. On success the call writes the value, and else returns an error.
    let made = unsafe {
        ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
            MemoryInfo::default().ptr(),
            place.cast_mut().cast(),
            bytes,
            sizes.as_ptr(),
            sizes.len(),
            element.0,
            &mut value,
        ))
    };
    match made.map(|()| NonNull::new(value)) {
        Ok(Some(value)) => Ok(Value(value)),
        Ok(None) => Err("ONNX Runtime returned no value".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// An element type of ONNX Runtime.
#[derive(Clone, Copy)]
struct Element(sys::ONNXTensorElementDataType);

impl Element {
    const FLOAT: Self = Self(sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    const FLOAT16: Self = Self(sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
    const BFLOAT16: Self = Self(sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
}

/// Returns the weights that are read only as the second factor of products or as the table of lookups.
///
/// Hidden constraint: ONNX Runtime's optimizer may transpose a weight that a Transpose reads and keep its name; a shared
/// tensor would then replace it, not transposed. It does not do so with the weights returned here.
pub(crate) fn factors(graph: &GraphProto) -> HashSet<&str> {
    let (mut factors, mut others) = (HashSet::new(), HashSet::new());
    for node in &graph.node {
        let place = match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "MatMul" | "Gemm") | (CONTRIB, FUSED_PRODUCT) => Some(1),
            ("", "Gather") => Some(0),
            _ => None,
        };
        for (index, name) in node.input.iter().enumerate() {
            if place == Some(index) {
                factors.insert(name.as_str())
            } else {
                others.insert(name.as_str())
            };
        }
        // A sub-graph reads values of the outer graph by name.
        for inner in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            others.extend(inner.node.iter().flat_map(|node| node.input.iter().map(String::as_str)));
        }
    }
    factors.retain(|name| !others.contains(name));
    factors
}
