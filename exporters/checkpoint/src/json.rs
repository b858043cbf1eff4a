//! JSON files of limited size, and objects whose repeated names are not lost.

use crate::{Error, file};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use std::{fmt, io::Read, marker::PhantomData, path::Path};

/// Largest size in bytes of a configuration or a shard index.
const MAX_SIZE: u64 = 16 << 20;

/// Reads a JSON file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let mut text = Vec::new();
    file::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut text).map_err(Error::io(path))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::file(path, format!("expected up to {MAX_SIZE} bytes, got more")));
    }
    serde_json::from_slice(&text).map_err(|error| Error::file(path, error.to_string()))
}

/// The members of a JSON object in the order of the file. Maps would keep only the last of several with one name.
pub(crate) struct Members<T>(pub(crate) Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for MembersVisitor<T> {
            type Value = Members<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}
