//! What a pickle of tensors can be made of: plain data, a closed list of classes, and descriptions of tensors.
//!
//! Objects lie in one vector and refer to each other by index, and texts stay where they are in the pickle, so that
//! neither sharing nor nesting, however deep, costs more than the pickle's own length.

use crate::DType;

/// An object's place in the machine's vector.
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
    /// What it is, for messages.
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

/// The classes and functions a pickle may name. Nothing is called: each only says what its arguments describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A dictionary.
    OrderedDict,
    /// A tensor, from its storage, offset, sizes and strides.
    RebuildTensor,
    /// A parameter, which is its tensor here.
    RebuildParameter,
    /// A storage of elements of a type.
    Storage(DType),
}

impl Class {
    /// The class of a name, if it is on the list.
    pub(super) fn named(module: &str, name: &str) -> Option<Self> {
        let storage = |name: &'static str, size| Some(Self::Storage(DType::Other(name, size)));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Some(Self::RebuildParameter),
            ("torch", "FloatStorage") => Some(Self::Storage(DType::F32)),
            ("torch", "HalfStorage") => Some(Self::Storage(DType::F16)),
            ("torch", "BFloat16Storage") => Some(Self::Storage(DType::BF16)),
            ("torch", "DoubleStorage") => Some(Self::Storage(DType::F64)),
            ("torch", "LongStorage") => storage("I64", 8),
            ("torch", "IntStorage") => storage("I32", 4),
            ("torch", "ShortStorage") => storage("I16", 2),
            ("torch", "CharStorage") => storage("I8", 1),
            ("torch", "ByteStorage") => storage("U8", 1),
            ("torch", "BoolStorage") => storage("BOOL", 1),
            _ => None,
        }
    }
}

/// A run of elements in the archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) dtype: DType,
    /// Name of its entry under `data/`.
    pub(super) key: &'a str,
    /// Number of its elements, as the pickle says.
    pub(super) elements: usize,
}

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Clone, Debug)]
pub(super) struct Described<'a> {
    pub(super) storage: Storage<'a>,
    /// First element in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements between neighbours along each axis.
    pub(super) strides: Vec<usize>,
}
