//! Groups of values: the operands and results of operators and scans.

use crate::Value;

/// One value, or several in an array, vector, tuple or struct: the operands of an [`Operator`](crate::Operator), or
/// the states of a scan. An optional operand that is left out keeps its position.
pub trait ValueList<'g>: Sized {
    /// Appends the values in order, each under its name, `None` for an operand left out.
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>);

    /// The same group with every value replaced.
    #[must_use]
    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self;

    /// The values in order, `None` for an operand left out.
    fn to_slots(&self) -> Vec<Option<Value<'g>>> {
        let mut slots = Vec::new();
        self.slots("", &mut slots);
        slots.into_iter().map(|(_, value)| value).collect()
    }
}

impl<'g> ValueList<'g> for Value<'g> {
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>) {
        out.push((name.to_owned(), Some(*self)));
    }

    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {
        f(self)
    }
}

impl<'g> ValueList<'g> for () {
    fn slots(&self, _: &str, _: &mut Vec<(String, Option<Value<'g>>)>) {}

    fn map(self, _: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {}
}

impl<'g> ValueList<'g> for Option<Value<'g>> {
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>) {
        out.push((name.to_owned(), *self));
    }

    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {
        Option::map(self, f)
    }
}

impl<'g, T: ValueList<'g>, const N: usize> ValueList<'g> for [T; N] {
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>) {
        self.iter().enumerate().for_each(|(i, item)| item.slots(&joined(name, &i.to_string()), out));
    }

    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {
        <[T; N]>::map(self, |item| item.map(f))
    }
}

impl<'g, T: ValueList<'g>> ValueList<'g> for Vec<T> {
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>) {
        self.iter().enumerate().for_each(|(i, item)| item.slots(&joined(name, &i.to_string()), out));
    }

    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {
        self.into_iter().map(|item| item.map(f)).collect()
    }
}

impl<'g, A: ValueList<'g>, B: ValueList<'g>> ValueList<'g> for (A, B) {
    fn slots(&self, name: &str, out: &mut Vec<(String, Option<Value<'g>>)>) {
        self.0.slots(&joined(name, "0"), out);
        self.1.slots(&joined(name, "1"), out);
    }

    fn map(self, f: &mut dyn FnMut(Value<'g>) -> Value<'g>) -> Self {
        (self.0.map(f), self.1.map(f))
    }
}

/// A field's name within a group's: `neighbours_0_state`.
#[doc(hidden)]
#[must_use]
pub fn joined(group: &str, field: &str) -> String {
    if group.is_empty() { field.to_owned() } else { format!("{group}_{field}") }
}

/// Implements [`ValueList`] for a struct `Name<'g>` whose fields are all [`ValueList`], in the order given.
///
/// A value is named after its field and the fields around it: `neighbours_0_state`. A field that follows `..` adds no
/// name of its own: in `values!(StepInputs { ..own, c })`, the field `u` of `own` is named `u`.
#[macro_export]
macro_rules! values {
    ($name:ident { $(..$flat:ident,)* $($field:ident),* $(,)? }) => {
        impl<'g> $crate::ValueList<'g> for $name<'g> {
            fn slots(&self, name: &str, out: &mut Vec<(String, Option<$crate::Value<'g>>)>) {
                $($crate::ValueList::slots(&self.$flat, name, out);)*
                $($crate::ValueList::slots(&self.$field, &$crate::joined(name, stringify!($field)), out);)*
            }

            fn map(self, f: &mut dyn FnMut($crate::Value<'g>) -> $crate::Value<'g>) -> Self {
                Self {
                    $($flat: $crate::ValueList::map(self.$flat, f),)*
                    $($field: $crate::ValueList::map(self.$field, f)),*
                }
            }
        }
    };
}
