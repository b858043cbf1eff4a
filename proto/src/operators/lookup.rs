//! Positions by name, for constants.

use super::{GroupSchema, Schema};

/// Defines a constant lookup in a list of named items.
macro_rules! lookup {
    ($(#[$doc:meta])* $method:ident in $list:ident) => {
        $(#[$doc])*
        pub const fn $method(&self, name: &str) -> Option<usize> {
            let mut position = 0;
            while position < self.$list.len() {
                if same(self.$list[position].name, name) {
                    return Some(position);
                }
                position += 1;
            }
            None
        }
    };
}

impl Schema {
    lookup! {
        /// Position of an operand before the variadic tail.
        operand in operands
    }
    lookup! {
        /// Position of a group among the groups.
        group in groups
    }
    lookup! {
        /// Position of a named dimension.
        dimension in dimensions
    }
    lookup! {
        /// Position of an attribute.
        attribute in attributes
    }
    lookup! {
        /// Position of a result.
        result in results
    }
}

impl GroupSchema {
    lookup! {
        /// Position of an operand within one repetition.
        operand in operands
    }
}

const fn same(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut i = 0;
    while i < left.len() {
        if left[i] != right[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The position that a lookup in a constant has found.
///
/// # Panics
/// Where it has found none. Call it in constants only, where that is an error of compilation; [`position!`] does.
///
/// [`position!`]: crate::position
pub const fn require(position: Option<usize>) -> usize {
    match position {
        Some(position) => position,
        None => panic!("the schema has nothing of this name"),
    }
}

/// The position of something in a constant [`Schema`], by its name, as a constant.
///
/// The second argument is the lookup: `operand`, `group`, `dimension`, `attribute` or `result` of a schema, or `operand`
/// of a [`GroupSchema`].
///
/// ```
/// use densessm_proto::{operators::{Schema, CAUSAL_CONV}, position};
/// const SCHEMA: &Schema = &CAUSAL_CONV;
/// assert_eq!(position!(SCHEMA, operand "weight"), 1);
/// ```
///
/// A name that the schema does not have does not compile:
///
/// ```compile_fail
/// use densessm_proto::{operators::{Schema, CAUSAL_CONV}, position};
/// const SCHEMA: &Schema = &CAUSAL_CONV;
/// assert_eq!(position!(SCHEMA, operand "wieght"), 1);
/// ```
#[macro_export]
macro_rules! position {
    ($schema:expr, $lookup:ident $name:literal) => {
        const { $crate::operators::require($schema.$lookup($name)) }
    };
}
