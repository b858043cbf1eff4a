//! What a pickle of tensors can be made of: plain data, a closed list of classes, and descriptions of tensors.
//!
//! Objects are kept in one vector and refer to each other by index, and texts are slices of the pickle, so that
//! neither sharing nor nesting, however deep, takes more memory than is proportional to the pickle's length.

use crate::StoredDType;
use densessm_proto::DType;

/// The index of an object in the machine's vector.
pub(super) type Id = usize;

#[derive(Clone, Debug)]
pub(super) enum Object<'a> {
    None,
    Bool,
    Int(i64),
    Float,
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Class(Class),
    Storage(Storage<'a>),
    Tensor(Described<'a>),
}

impl Object<'_> {
    /// Names the kind of object, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) => "an integer",
            Self::Float => "a float",
            Self::Text(_) => "a text",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Class(_) => "a class",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The classes and functions that a pickle may name. None is called: each says what its arguments describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A dictionary.
    OrderedDict,
    /// A tensor, from its storage, offset, sizes and strides.
    RebuildTensor,
    /// A parameter, of which only the tensor matters.
    RebuildParameter,
    /// A storage of elements of a type and of a size in bytes.
    Storage(StoredDType, usize),
}

impl Class {
    /// Returns the class of a name, if it is on the list.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let storage = |dtype: DType| Some(Self::Storage(dtype.into(), dtype.size()));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "DoubleStorage") => storage(DType::F64),
            ("torch", "FloatStorage") => storage(DType::F32),
            ("torch", "HalfStorage") => storage(DType::F16),
            ("torch", "BFloat16Storage") => storage(DType::BF16),
            ("torch", "LongStorage") => storage(DType::I64),
            ("torch", "IntStorage") => storage(DType::I32),
            ("torch", "ShortStorage") => Some(Self::Storage(StoredDType::Unsupported("I16"), 2)),
            ("torch", "CharStorage") => storage(DType::I8),
            ("torch", "ByteStorage") => storage(DType::U8),
            ("torch", "BoolStorage") => storage(DType::Bool),
            _ => None,
        }
    }
}

/// A range of elements in the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) dtype: StoredDType,
    /// Bytes of an element.
    pub(super) element_size: usize,
    /// Name of its entry under `data/`.
    pub(super) key: &'a str,
    /// Number of its elements, according to the pickle.
    pub(super) elements: usize,
}

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Clone, Debug)]
pub(super) struct Described<'a> {
    pub(super) storage: Storage<'a>,
    /// First element in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Distance in elements between neighbours along each axis.
    pub(super) strides: Vec<usize>,
}
