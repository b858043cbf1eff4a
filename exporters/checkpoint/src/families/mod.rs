//! The model families: a file each for how a checkpoint of the family is recognised, read and named.

mod dense_mamba;
mod dense_retnet;
mod falcon_mamba;
mod mamba;

use crate::{Error, config::Fields};
use densessm_proto::Architecture;

/// The shape of a tensor, if the checkpoint has it.
pub(crate) type Shapes<'s, 'a> = &'s dyn Fn(&str) -> Option<&'a [usize]>;

/// How sure it is that a configuration is one of a family: the greater, the surer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Recognition {
    /// Nothing speaks for the family.
    No,
    /// Some of the family's own fields are there: as one of the family it lacks others.
    InPart,
    /// `model_type` names the family.
    ByType,
    /// All of the family's own fields are there. They are surer than `model_type`, which published checkpoints leave at
    /// the name of the code that they were derived from.
    ByFields,
}

/// One family.
struct Family {
    /// How a configuration of it is recognised, in words.
    known_by: &'static str,
    recognise: fn(&Fields<'_>) -> Recognition,
    parse: fn(&Fields<'_>, Shapes<'_, '_>) -> Result<Architecture, Error>,
    /// Names of tensors that older files have, with the current ones.
    renamed: &'static [(&'static str, &'static str)],
}

const FAMILIES: [Family; 3] = [dense_mamba::FAMILY, falcon_mamba::FAMILY, dense_retnet::FAMILY];

/// The architecture that a configuration describes.
pub(crate) fn parse(fields: &Fields<'_>, shape: Shapes<'_, '_>) -> Result<Architecture, Error> {
    let recognised = FAMILIES.iter().map(|family| ((family.recognise)(fields), family));
    match recognised.max_by_key(|(recognition, _)| *recognition) {
        Some((recognition, family)) if recognition > Recognition::No => (family.parse)(fields, shape),
        _ => {
            let known_by = FAMILIES.map(|family| family.known_by).join(", or ");
            Err(fields.wrong("model_type", &known_by))
        }
    }
}

/// The current name of a tensor, if this is an older one.
pub(crate) fn current_name(name: &str) -> Option<&'static str> {
    let mut renamed = FAMILIES.iter().flat_map(|family| family.renamed);
    renamed.find(|(old, _)| *old == name).map(|(_, new)| *new)
}

/// Whether the family's own code writes this tensor and never reads it.
pub(crate) fn ignorable(architecture: &Architecture, name: &str) -> bool {
    match architecture {
        Architecture::DenseMamba(m) => dense_mamba::ignorable(m, name),
        Architecture::DenseRetNet(m) => dense_retnet::ignorable(m, name),
        Architecture::FalconMamba(_) => false,
    }
}

/// The layer of a tensor's name and what follows the module in it.
fn in_layer<'a>(name: &'a str, layers: &str, module: &str) -> Option<(usize, &'a str)> {
    let (layer, tensor) = name.strip_prefix(layers)?.split_once(module)?;
    Some((number(layer)?, tensor))
}

/// A number as it is written in a tensor's name: no sign, no leading zero.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}
