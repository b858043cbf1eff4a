//! `config.json`, as far as the equations need it.

use crate::Error;
use serde_json::Value;

/// A field that is a count of one or more.
pub(crate) fn count(config: &Value, name: &str) -> Result<usize, Error> {
    match config.get(name).and_then(Value::as_u64) {
        Some(value) if value > 0 => Ok(value as usize),
        _ => Err(Error::new(
            format!("config.json: {name}"),
            format!("expected a positive integer, got {}", config[name]),
        )),
    }
}

/// A count that may be left out, or zero.
pub(crate) fn count_or(config: &Value, name: &str, default: usize) -> usize {
    config.get(name).and_then(Value::as_u64).map_or(default, |value| value as usize)
}

/// A number that may be left out.
pub(crate) fn number_or(config: &Value, name: &str, default: f64) -> f64 {
    config.get(name).and_then(Value::as_f64).unwrap_or(default)
}

/// A flag that may be left out.
pub(crate) fn flag_or(config: &Value, name: &str, default: bool) -> bool {
    config.get(name).and_then(Value::as_bool).unwrap_or(default)
}
