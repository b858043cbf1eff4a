//! A node's attributes, read and checked as its schema says.

use crate::Error;
use densessm_proto::operators::{AttributeKind, AttributeSchema, Schema};

/// Where a node's attributes are read from.
pub trait Attributes {
    /// An integer attribute, if the node has it.
    fn integer(&self, name: &str) -> Option<i64>;
    /// A float attribute, if the node has it.
    fn float(&self, name: &str) -> Option<f32>;
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AttributeValue {
    Int(i64),
    Float(f32),
}

/// The values of all attributes of a schema, each within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeValues {
    schema: &'static Schema,
    values: Vec<AttributeValue>,
}

impl AttributeValues {
    /// Reads the attributes that a schema has.
    ///
    /// # Errors
    /// When one is missing, or out of its range.
    pub fn read(schema: &'static Schema, source: &dyn Attributes) -> Result<Self, Error> {
        let values = schema.attributes.iter().map(|attribute| read(attribute, source)).collect::<Result<_, _>>()?;
        Ok(Self { schema, values })
    }

    /// The schema that the attributes belong to.
    pub fn schema(&self) -> &'static Schema {
        self.schema
    }

    /// The value of an integer attribute, by its position in the schema; none if it is a float.
    pub fn int(&self, position: usize) -> Option<i64> {
        match self.values.get(position) {
            Some(AttributeValue::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// The value of an integer attribute as a size.
    ///
    /// # Errors
    /// When it is no size: negative, or a float.
    pub fn size(&self, position: usize) -> Result<usize, Error> {
        let size = self.int(position).and_then(|value| usize::try_from(value).ok());
        size.ok_or_else(|| self.error(position, "expected a size"))
    }

    /// The value of a float attribute, by its position in the schema.
    ///
    /// # Errors
    /// When it is an integer.
    pub fn float(&self, position: usize) -> Result<f32, Error> {
        match self.values.get(position) {
            Some(AttributeValue::Float(value)) => Ok(*value),
            _ => Err(self.error(position, "expected a float")),
        }
    }

    fn error(&self, position: usize, expected: &str) -> Error {
        let name = self.schema.attributes.get(position).map_or("attribute", |attribute| attribute.name);
        Error::new(name, format!("{expected}, got {:?}", self.values.get(position)))
    }
}

fn read(attribute: &AttributeSchema, source: &dyn Attributes) -> Result<AttributeValue, Error> {
    let AttributeSchema { name, kind, .. } = *attribute;
    let wrong = |got: &dyn std::fmt::Display| Error::new(name, format!("expected {kind}, got {got}"));
    match kind {
        AttributeKind::Int { .. } => match source.integer(name) {
            Some(value) if kind.allows_int(value) => Ok(AttributeValue::Int(value)),
            Some(value) => Err(wrong(&value)),
            None => Err(wrong(&"no attribute")),
        },
        AttributeKind::Float { .. } => match source.float(name) {
            Some(value) if kind.allows_float(value) => Ok(AttributeValue::Float(value)),
            Some(value) => Err(wrong(&value)),
            None => Err(wrong(&"no attribute")),
        },
    }
}
