//! The layout of the data file, planned before the first byte is read.

use crate::Error;
use densessm_graph::{ExternalData, Initializer, Model, Weight};
use densessm_proto::manifest::WEIGHTS_FILE;
use std::collections::BTreeMap;

/// Runtimes map a weight into memory if it starts on a page.
const PAGE: u64 = 4096;
/// Smaller weights are copied; they are aligned for vector loads.
const VECTOR: u64 = 64;

/// The data file's layout: each weight of either graph once, in the order of declaration. The initializers of one
/// weight follow one another, in the order in which its tensors yield them.
#[derive(Debug, Default)]
pub(crate) struct WeightLayout {
    weights: Vec<Weight>,
    by_name: BTreeMap<String, usize>,
    places: BTreeMap<String, ExternalData>,
    /// Size of the file in bytes.
    pub(crate) size: u64,
}

impl WeightLayout {
    pub(crate) fn new<'a>(models: impl IntoIterator<Item = &'a Model>) -> Result<Self, Error> {
        let mut layout = Self::default();
        for weight in models.into_iter().flat_map(Model::weights) {
            match layout.by_name.get(&weight.name) {
                Some(&known) if layout.weights[known] == *weight => {}
                Some(_) => return Err(Error::Disagreement { name: weight.name.clone() }),
                None => layout.add(weight)?,
            }
        }
        Ok(layout)
    }

    fn add(&mut self, weight: &Weight) -> Result<(), Error> {
        for initializer in &weight.initializers {
            let too_large = || Error::TooLarge { name: initializer.name.clone() };
            let length = initializer.bytes() as u64;
            let alignment = if length >= PAGE { PAGE } else { VECTOR };
            let offset = self.size.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
            self.size = offset.checked_add(length).ok_or_else(too_large)?;
            let place = ExternalData::new(WEIGHTS_FILE, offset, length);
            if self.places.insert(initializer.name.clone(), place).is_some() {
                return Err(Error::Disagreement { name: initializer.name.clone() });
            }
        }
        self.by_name.insert(weight.name.clone(), self.weights.len());
        self.weights.push(weight.clone());
        Ok(())
    }

    /// The weights in the order of their places.
    pub(crate) fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The place of an initializer of one of the graphs.
    pub(crate) fn place(&self, initializer: &Initializer) -> ExternalData {
        self.places.get(&initializer.name).cloned().unwrap_or_else(|| ExternalData::new(WEIGHTS_FILE, self.size, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use densessm_proto::{Architecture, DenseMamba, GraphKind, Projection};

    #[test]
    fn both_graphs_point_at_every_weight_once_without_overlap() {
        let architecture = Architecture::DenseMamba(DenseMamba {
            vocab_size: 50,
            hidden_size: 24,
            num_hidden_layers: 3,
            intermediate_size: 48,
            state_size: 8,
            conv_kernel: 4,
            time_step_rank: 2,
            use_bias: true,
            use_conv_bias: true,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: false,
            dense_block_layers: 2,
            channel_gate: Some(1),
            state_gate: Some(1),
            dense_projection: Projection::Linear,
        });
        let graph =
            |kind| densessm_models::graph(&architecture, kind, densessm_models::GraphOptions::default()).unwrap();
        let models = [graph(GraphKind::Parallel), graph(GraphKind::Recurrent)];
        let plan = WeightLayout::new(&models).unwrap();
        assert_eq!(plan.weights().len(), models[0].weights().count());
        assert_eq!(models[0].weights().count(), models[1].weights().count());
        let mut end = 0;
        for initializer in plan.weights().iter().flat_map(|weight| &weight.initializers) {
            let place = plan.place(initializer);
            assert!(place.offset >= end && place.offset.is_multiple_of(VECTOR), "{initializer:?} at {place:?}");
            assert_eq!(place.length, 4 * initializer.shape.iter().product::<usize>() as u64);
            end = place.offset + place.length;
        }
        assert_eq!(end, plan.size);
    }
}
