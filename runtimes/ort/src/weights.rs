//! The bundle's weights, once in memory for all sessions.
//!
//! The data file is mapped, and the sessions are handed tensors that lie in the mapping. A product's weight is packed
//! by the first session that has it, into a container that the next one looks into. Meanwhile the pages of the file are
//! given back again and again, so that never much more than the packed weights is in memory; what is still read from
//! the file later (an embedding's rows) comes again.

use crate::session::failed;
use densessm_proto::{
    GraphKind,
    onnx::{GraphProto, ModelProto, TensorProto, tensor_proto::DataLocation, tensor_proto::DataType},
};
use densessm_session::{Bundle, Error};
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
    fs::{self, File},
    ptr::{self, NonNull},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// What is read of the files in this time is the most that is in memory beside the packed weights.
const BETWEEN_RELEASES: Duration = Duration::from_millis(50);

/// Weights that sessions share. They outlive the sessions: whoever keeps a session keeps these.
pub(crate) struct Weights {
    /// By name.
    tensors: BTreeMap<CString, Value>,
    packed: PrepackedWeights,
    /// Where the tensors lie; dropped after them.
    files: BTreeMap<String, Mmap>,
}

/// A tensor of ONNX Runtime's that lies in a mapping.
struct Value(NonNull<sys::OrtValue>);

// SAFETY: ONNX Runtime's values may be read and released by any thread; these are never written.
unsafe impl Send for Value {}
// SAFETY: as above.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: the value was made by `Weights::open` and is released once.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

impl Weights {
    /// Maps the weights of some of a bundle's graphs.
    pub(crate) fn open(bundle: &Bundle, graphs: &[GraphKind]) -> Result<Self, Error> {
        let mut weights = Self { tensors: BTreeMap::new(), packed: PrepackedWeights::new(), files: BTreeMap::new() };
        for &kind in graphs {
            let path = bundle.graph_path(kind)?;
            let bytes = fs::read(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
            let broken = |problem: String| Error::Bundle { path: path.clone(), problem };
            let model = ModelProto::decode(&*bytes).map_err(|error| broken(format!("not an ONNX model: {error}")))?;
            let Some(graph) = &model.graph else { return Err(broken("the model holds no graph".to_owned())) };
            let factors = factors(graph);
            let outside = |tensor: &&TensorProto| tensor.data_location == i32::from(DataLocation::External);
            let shared = |tensor: &&TensorProto| factors.contains(tensor.name.as_str());
            for tensor in graph.initializer.iter().filter(outside).filter(shared) {
                let wrong = |problem: &str| broken(format!("tensor `{}`: {problem}", tensor.name));
                let name = CString::new(tensor.name.as_str()).map_err(|_| wrong("its name holds a zero"))?;
                if !weights.tensors.contains_key(&name) {
                    let value = weights.value(bundle, tensor)?;
                    let value = value.map_err(|problem| wrong(&problem))?;
                    weights.tensors.insert(name, value);
                }
            }
        }
        Ok(weights)
    }

    /// A tensor as it lies in its file; in words what is wrong with it.
    fn value(&mut self, bundle: &Bundle, tensor: &TensorProto) -> Result<Result<Value, String>, Error> {
        let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let number = |key: &str| entry(key).and_then(|value| value.parse::<usize>().ok());
        let Some(file) = entry("location") else { return Ok(Err("it names no file".to_owned())) };
        let sizes: Vec<i64> = tensor.dims.clone();
        let elements =
            sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?));
        let bytes = elements.and_then(|elements| elements.checked_mul(size_of::<f32>()));
        let (Some(offset), Some(bytes)) = (number("offset").or(Some(0)), bytes) else {
            return Ok(Err("its place or its size is no number".to_owned()));
        };
        if tensor.data_type != i32::from(DataType::Float) || !offset.is_multiple_of(align_of::<f32>()) {
            return Ok(Err("expected aligned fp32".to_owned()));
        }
        if !self.files.contains_key(file) {
            let path = bundle.data_path(file)?;
            let io = |error| Error::Io { path: path.clone(), error };
            let opened = File::open(&path).map_err(io)?;
            // SAFETY: a bundle is written once and renamed into place; it is not changed while it is in use.
            let map = unsafe { Mmap::map(&opened) }.map_err(io)?;
            self.files.insert(file.clone(), map);
        }
        let map = &self.files[file];
        let Some(place) = offset.checked_add(bytes).and_then(|end| map.get(offset..end)) else {
            return Ok(Err(format!("expected {bytes} bytes at {offset} in {file}, which has {}", map.len())));
        };
        let mut value = ptr::null_mut();
        // SAFETY: the memory is that of the mapping, which outlives the value; a value is written or an error returned.
        let made = unsafe {
            ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
                MemoryInfo::default().ptr(),
                place.as_ptr().cast_mut().cast(),
                bytes,
                sizes.as_ptr(),
                sizes.len(),
                sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                &mut value,
            ))
        };
        Ok(match made.map(|()| NonNull::new(value)) {
            Ok(Some(value)) => Ok(Value(value)),
            Ok(None) => Err("ONNX Runtime made no value of it".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Hands the weights to a session that is being built.
    pub(crate) fn lend(&self, builder: SessionBuilder) -> Result<SessionBuilder, Error> {
        let mut builder = builder;
        for (name, value) in &self.tensors {
            // SAFETY: builder, name and value are alive; the value outlives the session, as this struct's owner vouches.
            unsafe {
                let added = (ort::api().AddInitializer)(builder.ptr_mut(), name.as_ptr(), value.0.as_ptr());
                ort::Error::result_from_status(added).map_err(failed("sharing weights"))?;
            }
        }
        builder.with_prepacked_weights(&self.packed).map_err(|error| failed("sharing weights")(error.into()))
    }

    /// Loads sessions, giving back the pages of the files as they are read.
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
            // SAFETY: the mapping is of a file and is never written: its pages are read from there again.
            // What cannot be given back is only memory that stays in use.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }
}

/// The weights that are only multiplied with, or looked up in.
///
/// Hidden constraint: ONNX Runtime's optimiser may turn the axes of a weight that meets a Transpose, under the weight's
/// own name; one that was handed in would then take its place, unturned. It does not so with these.
fn factors(graph: &GraphProto) -> HashSet<&str> {
    let (mut factors, mut others) = (HashSet::new(), HashSet::new());
    for node in &graph.node {
        let place = match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "MatMul" | "Gemm") => Some(1),
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
        // A sub-graph reads values of the outer one by name.
        for inner in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            others.extend(inner.node.iter().flat_map(|node| node.input.iter().map(String::as_str)));
        }
    }
    factors.retain(|name| !others.contains(name));
    factors
}
