//! The pickle machine: a stack, a memo, and a closed list of opcodes and classes.

use super::{
    object::{Class, Described, Id, Object, Storage},
    opcode as op,
};
use std::collections::{BTreeSet, HashMap};

/// Most objects that a pickle may make, and most that it may memoize. About twenty describe a tensor.
const MAX_OBJECTS: usize = 1 << 20;
/// Most axes of a tensor.
const MAX_AXES: usize = 8;
/// Most bytes of a class's module or name.
const MAX_NAME: usize = 256;

/// Returns the tensors that a pickle describes, with their names.
///
/// The error names the first thing in the pickle that a table of tensors does not need.
pub(super) fn run(pickle: &[u8]) -> Result<Vec<(&str, Described<'_>)>, String> {
    let mut machine =
        Machine { rest: pickle, objects: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    while machine.step()? {}
    machine.table()
}

struct Machine<'a> {
    rest: &'a [u8],
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode. Returns false after the last one.
    fn step(&mut self) -> Result<bool, String> {
        let [opcode] = self.bytes()?;
        match opcode {
            op::STOP => return Ok(false),
            op::PROTO => match self.bytes()? {
                [2..=5] => {}
                [other] => return Err(format!("expected protocol 2 to 5, got {other}")),
            },
            op::FRAME => drop(self.bytes::<8>()?),
            op::MARK => self.marks.push(self.stack.len()),
            op::NONE => self.push(Object::None)?,
            op::NEWTRUE | op::NEWFALSE => self.push(Object::Bool)?,
            op::BININT => {
                let value = i32::from_le_bytes(self.bytes()?);
                self.push(Object::Int(value.into()))?;
            }
            op::BININT1 => {
                let [value] = self.bytes()?;
                self.push(Object::Int(value.into()))?;
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.bytes()?);
                self.push(Object::Int(value.into()))?;
            }
            op::LONG1 => self.long()?,
            op::BINFLOAT => {
                self.bytes::<8>()?;
                self.push(Object::Float)?;
            }
            op::BINUNICODE => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.text(length as usize)?;
            }
            op::SHORT_BINUNICODE => {
                let [length] = self.bytes()?;
                self.text(length.into())?;
            }
            op::EMPTY_TUPLE => self.push(Object::Tuple(Vec::new()))?,
            op::TUPLE => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items))?;
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let count = usize::from(opcode - op::TUPLE1) + 1;
                let items = self.pop_many(count)?;
                self.push(Object::Tuple(items))?;
            }
            op::EMPTY_LIST => self.push(Object::List(Vec::new()))?,
            op::APPEND => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            op::APPENDS => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            op::EMPTY_DICT => self.push(Object::Dict(Vec::new()))?,
            op::SETITEM => {
                let items = self.pop_many(2)?;
                self.set(&items)?;
            }
            op::SETITEMS => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.class(module, name)?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.class(module, name)?;
            }
            op::BINPERSID => self.storage()?,
            op::REDUCE => self.reduce()?,
            // The attributes of an ordered dictionary hold the versions of modules, which are not needed.
            op::BUILD => {
                self.pop()?;
                self.top_is("a dictionary to set attributes of", |object| matches!(object, Object::Dict(_)))?;
            }
            op::BINPUT => {
                let [slot] = self.bytes()?;
                self.remember(slot.into())?;
            }
            op::LONG_BINPUT => {
                let slot = u32::from_le_bytes(self.bytes()?);
                self.remember(slot)?;
            }
            op::MEMOIZE => self.remember(self.memo.len() as u32)?,
            op::BINGET => {
                let [slot] = self.bytes()?;
                self.recall(slot.into())?;
            }
            op::LONG_BINGET => {
                let slot = u32::from_le_bytes(self.bytes()?);
                self.recall(slot)?;
            }
            other => {
                return Err(format!(
                    "opcode {other:#04x} is not one that a table of tensors needs; refusing to run it"
                ));
            }
        }
        Ok(true)
    }

    /// Returns the machine's result, which must be a dictionary of tensors.
    fn table(mut self) -> Result<Vec<(&'a str, Described<'a>)>, String> {
        let top = self.pop()?;
        if !(self.rest.is_empty() && self.stack.is_empty() && self.marks.is_empty()) {
            return Err("expected a dictionary of tensors and nothing else".to_owned());
        }
        let Object::Dict(items) = &self.objects[top] else {
            return Err(format!("expected a dictionary of tensors, got {}", self.objects[top].kind()));
        };
        let mut names = BTreeSet::new();
        items
            .iter()
            .map(|&(key, value)| match (&self.objects[key], &self.objects[value]) {
                (Object::Text(name), _) if !names.insert(*name) => Err(format!("{name}: appears twice")),
                (Object::Text(name), Object::Tensor(tensor)) => Ok((*name, tensor.clone())),
                (Object::Text(name), other) => {
                    Err(format!("{name}: expected a tensor, got {}; save the model's state_dict alone", other.kind()))
                }
                (other, _) => Err(format!("expected tensors by name, got {} as a name", other.kind())),
            })
            .collect()
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or("truncated")?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (slice, rest) = self.rest.split_at_checked(length).ok_or("truncated")?;
        self.rest = rest;
        Ok(slice)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("truncated")?;
        let line = self.slice(end)?;
        self.slice(1)?;
        std::str::from_utf8(line).map_err(|_| "expected UTF-8 in a name".to_owned())
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.slice(length)?).map_err(|_| "expected UTF-8 in a text")?;
        self.push(Object::Text(text))?;
        Ok(())
    }

    /// Pushes an integer of up to 8 bytes: no larger one counts anything that fits into a file.
    fn long(&mut self) -> Result<(), String> {
        let [length] = self.bytes()?;
        let bytes = self.slice(length.into())?;
        if bytes.len() > 8 {
            return Err(format!("expected integers of up to 8 bytes, got one of {}", bytes.len()));
        }
        let sign = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut value = [if sign { 0xff } else { 0 }; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(value)))?;
        Ok(())
    }

    fn push(&mut self, object: Object<'a>) -> Result<(), String> {
        if self.objects.len() == MAX_OBJECTS {
            return Err(format!("expected up to {MAX_OBJECTS} objects, got more"));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        // Objects below an open mark may be used only after it has been closed.
        if self.marks.last().is_some_and(|&mark| self.stack.len() <= mark) {
            return Err("the stack is empty down to its mark".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark is open")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_text(&mut self) -> Result<&'a str, String> {
        let id = self.pop()?;
        match &self.objects[id] {
            Object::Text(text) => Ok(*text),
            other => Err(format!("expected a text, got {}", other.kind())),
        }
    }

    fn top_is(&mut self, what: &str, fits: fn(&Object) -> bool) -> Result<Id, String> {
        let top = self.pop()?;
        self.stack.push(top);
        if fits(&self.objects[top]) {
            Ok(top)
        } else {
            Err(format!("expected {what}, got {}", self.objects[top].kind()))
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let top = self.top_is("a list to append to", |object| matches!(object, Object::List(_)))?;
        if let Object::List(list) = &mut self.objects[top] {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("expected keys with values".to_owned()) };
        let top = self.top_is("a dictionary to set items of", |object| matches!(object, Object::Dict(_)))?;
        if let Object::Dict(dict) = &mut self.objects[top] {
            dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        let top = self.top_is("an object", |_| true)?;
        if self.memo.len() == MAX_OBJECTS {
            return Err(format!("expected up to {MAX_OBJECTS} memoized objects, got more"));
        }
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let id = *self.memo.get(&slot).ok_or_else(|| format!("slot {slot} is empty"))?;
        self.stack.push(id);
        Ok(())
    }

    fn class(&mut self, module: &str, name: &str) -> Result<(), String> {
        if module.len().max(name.len()) > MAX_NAME {
            return Err(format!("expected a class's name of up to {MAX_NAME} bytes, got a longer one"));
        }
        let class = Class::named(module, name).ok_or_else(|| {
            format!("`{module}.{name}` is not a class that a table of tensors needs; refusing to load it")
        })?;
        self.push(Object::Class(class))?;
        Ok(())
    }

    /// Pushes the storage of `('storage', class, key, location, number of elements)`.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let items = self.tuple(id)?;
        let &[tag, class, key, _, elements] = items else {
            return Err(format!("expected a storage's 5 fields, got {}", items.len()));
        };
        match (&self.objects[tag], &self.objects[class], &self.objects[key]) {
            (Object::Text(tag), &Object::Class(Class::Storage(dtype, element_size)), Object::Text(key))
                if *tag == "storage" =>
            {
                let storage = Storage { dtype, element_size, key, elements: self.size(elements)? };
                self.push(Object::Storage(storage))?;
                Ok(())
            }
            _ => Err("expected a storage's class and key".to_owned()),
        }
    }

    /// Pushes what a class's arguments describe.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        let Object::Class(class) = self.objects[class] else {
            return Err(format!("expected a class to apply, got {}", self.objects[class].kind()));
        };
        let items = self.tuple(arguments)?;
        let made = match (class, items) {
            (Class::OrderedDict, []) => Object::Dict(Vec::new()),
            (Class::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let Object::Storage(storage) = &self.objects[storage] else {
                    return Err(format!("expected a tensor's storage, got {}", self.objects[storage].kind()));
                };
                Object::Tensor(Described {
                    storage: *storage,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                })
            }
            (Class::RebuildParameter, &[tensor, ..]) => match &self.objects[tensor] {
                Object::Tensor(tensor) => Object::Tensor(tensor.clone()),
                other => return Err(format!("expected a parameter's tensor, got {}", other.kind())),
            },
            _ => return Err(format!("cannot apply {class:?} to {} arguments", items.len())),
        };
        self.push(made)
    }

    fn tuple(&self, id: Id) -> Result<&[Id], String> {
        match &self.objects[id] {
            Object::Tuple(items) => Ok(items),
            other => Err(format!("expected a tuple, got {}", other.kind())),
        }
    }

    fn size(&self, id: Id) -> Result<usize, String> {
        match self.objects[id] {
            Object::Int(value) => usize::try_from(value).map_err(|_| format!("expected a size, got {value}")),
            ref other => Err(format!("expected a size, got {}", other.kind())),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        let items = self.tuple(id)?;
        if items.len() > MAX_AXES {
            return Err(format!("expected a tensor of up to {MAX_AXES} axes, got {}", items.len()));
        }
        items.iter().map(|&item| self.size(item)).collect()
    }
}
