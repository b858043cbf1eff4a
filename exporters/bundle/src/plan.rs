//! Where each weight will lie in the data file: planned before the first byte is read.

use crate::Error;
use densessm_graph::{ExternalData, Model, Weight};
use densessm_proto::manifest::WEIGHTS_FILE;
use std::collections::BTreeMap;

/// Runtimes map a weight into memory where it starts on a page.
const PAGE: u64 = 4096;
/// Smaller weights are copied; they are aligned for vector loads.
const VECTOR: u64 = 64;

/// The data file's layout: each weight of either graph once, in the order of declaration.
#[derive(Debug)]
pub(crate) struct WeightLayout {
    pub(crate) entries: Vec<(Weight, ExternalData)>,
    by_name: BTreeMap<String, usize>,
    /// Size of the file.
    pub(crate) size: u64,
}

impl WeightLayout {
    pub(crate) fn new<'a>(models: impl IntoIterator<Item = &'a Model>) -> Result<Self, Error> {
        let mut plan = Self { entries: Vec::new(), by_name: BTreeMap::new(), size: 0 };
        for weight in models.into_iter().flat_map(Model::weights) {
            match plan.by_name.get(&weight.name) {
                Some(&known) if plan.entries[known].0 == *weight => {}
                Some(_) => return Err(Error::Disagreement { name: weight.name.clone() }),
                None => plan.add(weight.clone()),
            }
        }
        Ok(plan)
    }

    fn add(&mut self, weight: Weight) {
        let length = weight.bytes() as u64;
        let alignment = if length >= PAGE { PAGE } else { VECTOR };
        let offset = self.size.next_multiple_of(alignment);
        self.size = offset + length;
        self.by_name.insert(weight.name.clone(), self.entries.len());
        self.entries.push((weight, ExternalData { file: WEIGHTS_FILE.to_owned(), offset, length }));
    }

    /// Where a weight of one of the graphs lies.
    pub(crate) fn place(&self, weight: &Weight) -> ExternalData {
        self.entries[self.by_name[&weight.name]].1.clone()
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
        assert_eq!(plan.entries.len(), models[0].weights().count());
        assert_eq!(models[0].weights().count(), models[1].weights().count());
        let mut end = 0;
        for (weight, place) in &plan.entries {
            assert!(place.offset >= end && place.offset % VECTOR == 0, "{weight:?} at {place:?}");
            assert_eq!(place.length, 4 * weight.stored.iter().product::<usize>() as u64);
            end = place.offset + place.length;
        }
        assert_eq!(end, plan.size);
    }
}
