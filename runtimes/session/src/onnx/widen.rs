//! Matrices in half precision, widened to fp32 once for processors.
//!
//! The graphs with fp32 activations cast each matrix `[out, in]` and transpose it in every call. A runtime that would do
//! so once for each graph, or keep the matrix in both types, is given fp32 tensors instead, which its graphs share.

use super::OnnxFile;
use crate::{Bundle, Error};
use densessm_proto::onnx::{
    GraphProto, NodeProto, TensorProto,
    tensor_proto::{DataLocation, DataType},
};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

/// Rows that are transposed at a time.
const ROWS: usize = 16;

/// An fp32 tensor that a graph reads in place of a matrix in half precision.
///
/// Its name says what it holds: two graphs of one bundle that read a tensor of the same name read the same numbers.
#[derive(Clone, Debug)]
pub struct Widened {
    /// Its name in the graph, of which it is no initializer yet.
    pub name: String,
    source: TensorProto,
    /// Sizes of the source.
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl OnnxFile {
    /// Replaces casts of matrices from half precision to fp32, and the transposes of these, by fp32 tensors, and returns
    /// those that the graph now reads. With `tables`, tables of lookups are replaced, too, whose rows are otherwise cast
    /// as they are looked up.
    ///
    /// # Errors
    /// When a matrix has sizes that are no numbers of elements.
    pub fn widen(&mut self, tables: bool) -> Result<Vec<Widened>, Error> {
        let mut widening = Widening::new(&self.graph);
        widening.products(&self.graph);
        if tables {
            widening.tables(&self.graph);
        }
        let widened = widening.apply(&mut self.graph);
        widened.map_err(|problem| self.broken(problem))
    }
}

/// Changes to a graph, by its nodes' indices.
struct Widening {
    /// The initializers in half precision.
    halves: HashSet<String>,
    /// The nodes that read a value, each with the index of the input.
    readers: HashMap<String, Vec<(usize, usize)>>,
    /// Values that are read by other means: as outputs, or in sub-graphs.
    fixed: HashSet<String>,
    removed: HashSet<usize>,
    /// New names for the inputs of nodes.
    inputs: HashMap<(usize, usize), String>,
    /// New names for the results of nodes.
    results: HashMap<usize, String>,
    /// What is read now: the name, that of the source, and whether it is transposed.
    wanted: Vec<(String, String, bool)>,
}

impl Widening {
    fn new(graph: &GraphProto) -> Self {
        let half = |tensor: &&TensorProto| element(tensor).is_some() && tensor.dims.len() == 2;
        let mut readers: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
        let mut fixed: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
        for (index, node) in graph.node.iter().enumerate() {
            for (input, name) in node.input.iter().enumerate() {
                readers.entry(name.clone()).or_default().push((index, input));
            }
            for inner in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
                captured(inner, &mut fixed);
            }
        }
        Self {
            halves: graph.initializer.iter().filter(half).map(|tensor| tensor.name.clone()).collect(),
            readers,
            fixed,
            removed: HashSet::new(),
            inputs: HashMap::new(),
            results: HashMap::new(),
            wanted: Vec::new(),
        }
    }

    /// Casts of matrices, with the transposes that follow.
    fn products(&mut self, graph: &GraphProto) {
        for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| to_fp32(node)) {
            let (Some(source), Some(cast)) = (node.input.first(), node.output.first()) else { continue };
            if !self.halves.contains(source) || self.fixed.contains(cast) {
                continue;
            }
            let readers = self.readers.get(cast).cloned().unwrap_or_default();
            let transposes = |&(reader, _): &(usize, usize)| {
                let node = &graph.node[reader];
                swaps_axes(node) && node.output.iter().all(|name| !self.fixed.contains(name))
            };
            let transposed = !readers.is_empty() && readers.iter().all(transposes);
            let name = format!("{source}/{}", if transposed { "transposed" } else { "widened" });
            let renamed = match transposed {
                true => {
                    self.removed.extend(readers.iter().map(|(reader, _)| *reader));
                    let values = readers.iter().flat_map(|(reader, _)| &graph.node[*reader].output);
                    values.filter_map(|value| self.readers.get(value)).flatten().copied().collect()
                }
                false => readers,
            };
            self.inputs.extend(renamed.into_iter().map(|place| (place, name.clone())));
            self.removed.insert(index);
            self.want(name, source, transposed);
        }
    }

    /// Lookups in a table whose rows are then cast: the lookup's result takes the name of the cast one.
    fn tables(&mut self, graph: &GraphProto) {
        for (index, node) in graph.node.iter().enumerate() {
            let (Some(source), Some(rows)) = (node.input.first(), node.output.first()) else { continue };
            if !is(node, "Gather") || !self.halves.contains(source) || self.fixed.contains(rows) {
                continue;
            }
            let Some(&[(cast, _)]) = self.readers.get(rows).map(Vec::as_slice) else { continue };
            let Some(result) = graph.node[cast].output.first().filter(|_| to_fp32(&graph.node[cast])) else { continue };
            let name = format!("{source}/widened");
            self.removed.insert(cast);
            self.inputs.insert((index, 0), name.clone());
            self.results.insert(index, result.clone());
            self.want(name, source, false);
        }
    }

    fn want(&mut self, name: String, source: &str, transposed: bool) {
        if self.wanted.iter().all(|(known, ..)| *known != name) {
            self.wanted.push((name, source.to_owned(), transposed));
        }
    }

    fn apply(mut self, graph: &mut GraphProto) -> Result<Vec<Widened>, String> {
        for (index, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            if self.removed.contains(&index) {
                continue;
            }
            for (input, name) in node.input.iter_mut().enumerate() {
                if let Some(new) = self.inputs.remove(&(index, input)) {
                    *name = new;
                }
            }
            if let Some(new) = self.results.remove(&index) {
                node.output = vec![new];
            }
            graph.node.push(node);
        }
        let find = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name);
        let widened = self.wanted.into_iter().map(|(name, source, transposed)| {
            let source = find(&source).cloned().ok_or_else(|| format!("`{source}`: expected an initializer"))?;
            let sizes = [0, 1].map(|axis| source.dims.get(axis).and_then(|&size| usize::try_from(size).ok()));
            let [Some(rows), Some(columns)] = sizes else {
                return Err(format!("tensor `{}`: expected sizes of a matrix, got {:?}", source.name, source.dims));
            };
            if rows.checked_mul(columns).and_then(|elements| elements.checked_mul(size_of::<f32>())).is_none() {
                return Err(format!("tensor `{}`: expected a size that fits into memory", source.name));
            }
            Ok(Widened { name, source, rows, columns, transposed })
        });
        let widened = widened.collect::<Result<_, _>>()?;
        let mut read: HashSet<&str> = graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
        read.extend(self.fixed.iter().map(String::as_str));
        graph.initializer.retain(|tensor| read.contains(tensor.name.as_str()) || !self.halves.contains(&tensor.name));
        Ok(widened)
    }
}

/// The type of a tensor in half precision.
fn element(tensor: &TensorProto) -> Option<DataType> {
    let element = DataType::try_from(tensor.data_type).ok()?;
    matches!(element, DataType::Float16 | DataType::Bfloat16).then_some(element)
}

fn is(node: &NodeProto, op: &str) -> bool {
    node.domain.is_empty() && node.op_type == op
}

fn to_fp32(node: &NodeProto) -> bool {
    let to = |node: &NodeProto| node.attribute.iter().find(|attribute| attribute.name == "to").and_then(|to| to.i);
    is(node, "Cast") && to(node) == Some(i64::from(i32::from(DataType::Float)))
}

fn swaps_axes(node: &NodeProto) -> bool {
    is(node, "Transpose") && node.attribute.iter().any(|attribute| attribute.name == "perm" && attribute.ints == [1, 0])
}

/// Adds the names that a sub-graph reads.
fn captured(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.output.iter().map(|output| output.name.clone()));
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        for inner in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            captured(inner, names);
        }
    }
}

impl Widened {
    /// Its sizes.
    pub fn shape(&self) -> [usize; 2] {
        if self.transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }

    /// The number of its elements.
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// The tensor as an initializer that has a type and a shape and refers to the bundle's data, of which it is no part:
    /// for runtimes that are given the numbers by other means.
    pub fn placeholder(&self) -> TensorProto {
        let mut data = self.source.external_data.clone();
        for entry in &mut data {
            match entry.key.as_str() {
                "offset" => entry.value = "0".to_owned(),
                "length" => entry.value = (self.elements() * size_of::<f32>()).to_string(),
                _ => {}
            }
        }
        TensorProto {
            name: self.name.clone(),
            dims: self.shape().map(|size| size as i64).to_vec(),
            data_type: DataType::Float.into(),
            data_location: DataLocation::External.into(),
            external_data: data,
            ..TensorProto::default()
        }
    }

    /// Reads the source from the files of a bundle and widens it.
    ///
    /// # Errors
    /// When the file cannot be read or is too short, or the tensor has no data in one.
    pub fn read(&self, bundle: &Bundle, out: &mut [f32]) -> Result<(), Error> {
        let bytes = self.bytes(bundle)?;
        let (halves, _) = bytes.as_chunks::<2>();
        match element(&self.source) {
            Some(DataType::Bfloat16) => {
                let halves: Vec<bf16> = halves.iter().map(|&bytes| bf16::from_le_bytes(bytes)).collect();
                self.place(out, |range, out| halves[range].convert_to_f32_slice(out));
            }
            _ => {
                let halves: Vec<f16> = halves.iter().map(|&bytes| f16::from_le_bytes(bytes)).collect();
                self.place(out, |range, out| halves[range].convert_to_f32_slice(out));
            }
        }
        Ok(())
    }

    fn bytes(&self, bundle: &Bundle) -> Result<Vec<u8>, Error> {
        let entry =
            |key: &str| self.source.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let broken = |problem: String| Error::Bundle {
            path: bundle.dir().to_owned(),
            problem: format!("tensor `{}`: {problem}", self.source.name),
        };
        let length = 2 * self.elements();
        let Some(file) = entry("location") else {
            return match self.source.raw_data.len() == length {
                true => Ok(self.source.raw_data.clone()),
                false => Err(broken(format!("expected {length} bytes, got {}", self.source.raw_data.len()))),
            };
        };
        let offset = entry("offset").map_or(Ok(0), |offset| offset.parse::<u64>());
        let offset = offset.map_err(|_| broken("expected a number as offset".to_owned()))?;
        let path = bundle.data_path(file)?;
        let io = |error| Error::Io { path: path.clone(), error };
        let mut file = File::open(&path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if offset.checked_add(length as u64).is_none_or(|end| end > size) {
            return Err(broken(format!("expected {length} bytes at {offset} in a file of {size}")));
        }
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Writes the source's rows, which `widen` gives in fp32, to their places.
    fn place(&self, out: &mut [f32], widen: impl Fn(std::ops::Range<usize>, &mut [f32])) {
        let (rows, columns) = (self.rows, self.columns);
        if !self.transposed {
            return widen(0..rows * columns, out);
        }
        let mut some = vec![0.0; ROWS * columns];
        for first in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - first);
            widen(first * columns..(first + count) * columns, &mut some[..count * columns]);
            for column in 0..columns {
                let out = &mut out[column * rows + first..][..count];
                out.iter_mut().enumerate().for_each(|(row, out)| *out = some[row * columns + column]);
            }
        }
    }
}

/// Reads tensors, each into its place, with as many threads as the machine has processors.
///
/// # Errors
/// As [`Widened::read`].
pub fn read_all<'t>(
    bundle: &Bundle,
    tensors: impl IntoIterator<Item = (&'t Widened, &'t mut [f32])>,
) -> Result<(), Error> {
    let queue = Mutex::new(tensors.into_iter().collect::<Vec<_>>().into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).try_for_each(|(tensor, out)| tensor.read(bundle, out));
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others.into_iter().fold(own, |result, thread| {
            result.and(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })
}
