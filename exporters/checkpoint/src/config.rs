//! `config.json`: typed access to its fields, and which family it describes.

use crate::{Error, families};
use densessm_proto::Architecture;
use serde_json::Value;

/// A larger size is a mistake: no model comes near it, and the product of two such sizes still counts bytes without
/// overflow.
pub(crate) const LARGEST: u64 = 1 << 24;
/// A larger number of layers is a mistake. The limit is low because graphs and lists of tensors grow with it.
const MOST_LAYERS: u64 = 1 << 10;

/// The architecture that a configuration describes.
///
/// `shape` gives a tensor's shape, where the weights are known: widths that a configuration leaves out are taken from
/// there, and those that it states are compared.
///
/// # Errors
/// Naming the field that is missing, nonsense, not supported, or contradicted by a tensor.
pub fn parse<'a>(config: &Value, shape: &dyn Fn(&str) -> Option<&'a [usize]>) -> Result<Architecture, Error> {
    if !config.is_object() {
        return Err(Error::config("top level", "expected an object"));
    }
    families::parse(&Fields { config }, shape)
}

/// Typed access to the fields of a configuration.
pub(crate) struct Fields<'c> {
    pub(crate) config: &'c Value,
}

impl Fields<'_> {
    /// Whether the field is there.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.config.get(field).is_some()
    }

    /// The text in a field, if it is there and a text.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.config.get(field).and_then(Value::as_str)
    }

    /// The error of a field that holds something else than `expected`.
    pub(crate) fn wrong(&self, field: &str, expected: &str) -> Error {
        let got = self.config.get(field).map_or("nothing".to_owned(), Value::to_string);
        Error::config(field, format!("expected {expected}, got {got}"))
    }

    /// A whole number from `least` to `most`.
    fn whole(&self, field: &str, least: u64, most: u64) -> Result<usize, Error> {
        match self.config.get(field).and_then(Value::as_u64) {
            Some(number) if (least..=most).contains(&number) => Ok(number as usize),
            _ => Err(self.wrong(field, &format!("a whole number from {least} to {most}"))),
        }
    }

    /// A size of at least 1.
    pub(crate) fn size(&self, field: &str) -> Result<usize, Error> {
        self.whole(field, 1, LARGEST)
    }

    /// A size that may be left out.
    pub(crate) fn size_or(&self, field: &str, default: usize) -> Result<usize, Error> {
        self.config.get(field).map_or(Ok(default), |_| self.size(field))
    }

    /// The number of layers.
    pub(crate) fn layers(&self) -> Result<usize, Error> {
        self.whole("num_hidden_layers", 1, MOST_LAYERS)
    }

    /// A number that may be 0.
    pub(crate) fn count(&self, field: &str) -> Result<usize, Error> {
        self.whole(field, 0, LARGEST)
    }

    /// A number that may be 0 or left out.
    pub(crate) fn count_or(&self, field: &str, default: usize) -> Result<usize, Error> {
        self.config.get(field).map_or(Ok(default), |_| self.count(field))
    }

    /// A flag that may be left out.
    pub(crate) fn flag_or(&self, field: &str, default: bool) -> Result<bool, Error> {
        match self.config.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong(field, "true or false")),
        }
    }

    /// The epsilon of a norm, which may be left out.
    pub(crate) fn epsilon(&self, field: &str, default: f64) -> Result<f64, Error> {
        match self.config.get(field).map(Value::as_f64) {
            None => Ok(default),
            Some(Some(epsilon)) if epsilon as f32 > 0.0 && epsilon < 1.0 => Ok(epsilon),
            Some(_) => Err(self.wrong(field, "a small positive number")),
        }
    }

    /// Checks that the activation, if it is stated, is silu.
    pub(crate) fn require_silu(&self) -> Result<(), Error> {
        match self.config.get("hidden_act").map(Value::as_str) {
            None | Some(Some("silu" | "swish")) => Ok(()),
            Some(_) => Err(self.wrong("hidden_act", "\"silu\"")),
        }
    }

    /// `factor · of`, where the field `factor` may be left out.
    pub(crate) fn multiple_or(&self, factor: &str, default: usize, of: usize) -> Result<usize, Error> {
        let size = self.size_or(factor, default)?.checked_mul(of).filter(|&size| size as u64 <= LARGEST);
        size.ok_or_else(|| self.wrong(factor, "a factor of reasonable size"))
    }
}
