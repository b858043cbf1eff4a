//! The bundle's weights in a GPU's memory, once for all sessions.
//!
//! ONNX Runtime copies the weights of each session to the GPU. Those that are large are copied here instead, and given to
//! both sessions as tensors of the GPU, which they read in place. ONNX Runtime takes such a tensor only for a node that
//! it runs on the same GPU; for any other it reads the file itself.

use crate::{
    error::failed,
    gpu::{self, Gpu},
    graph,
    weights::{Value, factors},
};
use densessm_cuda::Buffer;
use densessm_proto::{
    GraphKind,
    onnx::{TensorProto, tensor_proto::DataLocation, tensor_proto::DataType},
};
use densessm_session::{Bundle, Device, Error};
use memmap2::Mmap;
use ort::{
    AsPointer,
    memory::MemoryInfo,
    session::builder::SessionBuilder,
    sys::{self, ONNXTensorElementDataType as Element},
};
use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    ptr::{self, NonNull},
};

/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;
/// Tensors of fewer bytes are left to ONNX Runtime.
const SMALLEST: usize = 1 << 16;

/// Weights in a GPU's memory. They must outlive the sessions; see [`GpuWeights::lend`].
pub(crate) struct GpuWeights {
    tensors: BTreeMap<CString, Value>,
    /// Dropped after the tensors, which point into it.
    _memory: Buffer<u8>,
}

/// A tensor of the data file.
struct Place {
    element: Element,
    sizes: Vec<i64>,
    file: String,
    offset: usize,
    bytes: usize,
}

impl GpuWeights {
    /// Copies the weights of some of a bundle's graphs to the GPU.
    ///
    /// # Errors
    /// When a file cannot be read, a tensor is not in its file, or the GPU's memory does not suffice.
    pub(crate) fn upload(
        bundle: &Bundle,
        graphs: &[GraphKind],
        device: Device,
        gpu: &Gpu,
        info: &MemoryInfo<'_>,
    ) -> Result<Self, Error> {
        let mut places = BTreeMap::new();
        for &kind in graphs {
            let (file, _) = graph::read(bundle, graph::entry(bundle, kind, device)?, device)?;
            let factors = factors(&file.graph);
            let outside = |tensor: &&TensorProto| tensor.data_location == i32::from(DataLocation::External);
            let shared = |tensor: &&TensorProto| factors.contains(tensor.name.as_str());
            for tensor in file.graph.initializer.iter().filter(outside).filter(shared) {
                let wrong = |problem: &str| file.broken(format!("tensor `{}`: {problem}", tensor.name));
                let name = CString::new(tensor.name.as_str()).map_err(|_| wrong("its name contains a zero byte"))?;
                let place = place(tensor).ok_or_else(|| wrong("expected numbers as offset and sizes"))?;
                if place.bytes >= SMALLEST {
                    places.insert(name, place);
                }
            }
        }
        let total = places.values().map(|place: &Place| place.bytes.next_multiple_of(ALIGNMENT)).sum();
        let stream = gpu.stream();
        let memory = Buffer::new(stream.context(), total).map_err(gpu::failed("allocating weights"))?;
        let mut files: BTreeMap<String, Mmap> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        let mut address = memory.address();
        for (name, place) in places {
            let path = bundle.data_path(&place.file)?;
            if !files.contains_key(&place.file) {
                let io = |error| Error::Io { path: path.clone(), error };
                let opened = File::open(&path).map_err(io)?;
                // SAFETY: a bundle's files are written once and then renamed into place; they do not change while in use.
                files.insert(place.file.clone(), unsafe { Mmap::map(&opened) }.map_err(io)?);
            }
            let map = &files[&place.file];
            let values = place.offset.checked_add(place.bytes).and_then(|end| map.get(place.offset..end));
            let values = values.ok_or_else(|| Error::Bundle {
                path: path.clone(),
                problem: format!("expected {} bytes at {}, got a file of {}", place.bytes, place.offset, map.len()),
            })?;
            // SAFETY: the address is within the allocation, which is large enough for the values; both live until the
            // stream has been waited for below.
            unsafe { stream.upload(address, values) }.map_err(gpu::failed("copying weights"))?;
            let value = value(address, &place, info).map_err(failed("sharing weights"))?;
            tensors.insert(name, value);
            address += place.bytes.next_multiple_of(ALIGNMENT) as u64;
        }
        stream.synchronize().map_err(gpu::failed("copying weights"))?;
        Ok(Self { tensors, _memory: memory })
    }

    /// Adds the weights to a session that is being built, which then reads them in place.
    ///
    /// # Safety
    /// As for [`Weights::lend`](crate::weights::Weights::lend).
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
        Ok(builder)
    }
}

/// Where a tensor is in its file; none if the graph does not say it in numbers.
fn place(tensor: &TensorProto) -> Option<Place> {
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    let (element, size) = match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float => (Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4),
        DataType::Float16 => (Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2),
        DataType::Bfloat16 => (Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2),
        _ => return None,
    };
    let sizes = tensor.dims.iter().map(|&size| usize::try_from(size).ok());
    let elements = sizes.into_iter().try_fold(1_usize, |product, size| product.checked_mul(size?))?;
    let offset = entry("offset").map_or(Some(0), |offset| offset.parse().ok())?;
    let file = entry("location")?.clone();
    Some(Place { element, sizes: tensor.dims.clone(), file, offset, bytes: elements.checked_mul(size)? })
}

/// Makes a tensor that points to its place in the GPU's memory.
fn value(address: u64, place: &Place, info: &MemoryInfo<'_>) -> ort::Result<Value> {
    let mut value = ptr::null_mut();
    // SAFETY: the memory at the address has the size that the shape needs and is freed after the value. On success the
    // call writes the value, and else returns an error.
    unsafe {
        ort::Error::result_from_status((ort::api().CreateTensorWithDataAsOrtValue)(
            info.ptr(),
            ptr::without_provenance_mut(address as usize),
            place.bytes,
            place.sizes.as_ptr(),
            place.sizes.len(),
            place.element,
            &mut value,
        ))
    }?;
    let value: Option<NonNull<sys::OrtValue>> = NonNull::new(value);
    value.map(Value).ok_or_else(|| ort::Error::new("ONNX Runtime returned no value"))
}
