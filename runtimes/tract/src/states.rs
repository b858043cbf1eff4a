//! The states of a batch as tract's tensors.

use crate::tensor::{from_host, place, to_host};
use densessm_proto::StateTensor;
use densessm_session::{Error, HostTensor, Snapshot, StateStore};
use std::{any::Any, collections::BTreeMap, sync::Arc};
use tract_onnx::prelude::TValue;

/// One tensor per state, in the order of the layout. Tensors are never written to while held here, so copies share
/// them.
pub(crate) struct TractStates {
    layout: Arc<[StateTensor]>,
    pub(crate) tensors: Vec<TValue>,
}

impl TractStates {
    /// States of fresh sequences: zeros.
    pub(crate) fn zeros(layout: &Arc<[StateTensor]>, batch: usize) -> Result<Self, Error> {
        let zeros = |state: &StateTensor| place(&shape(state, batch), &vec![0_f32; batch * state.elements()]);
        Ok(Self { layout: Arc::clone(layout), tensors: layout.iter().map(zeros).collect::<Result<_, _>>()? })
    }

    /// States from a snapshot that fits the model.
    pub(crate) fn placed(layout: &Arc<[StateTensor]>, snapshot: &Snapshot) -> Result<Self, Error> {
        let tensors = layout.iter().map(|state| match snapshot.tensors().get(&state.past) {
            Some(tensor) => from_host(tensor),
            None => Err(Error::Input { name: state.past.clone(), problem: "missing from the snapshot".to_owned() }),
        });
        Ok(Self { layout: Arc::clone(layout), tensors: tensors.collect::<Result<_, _>>()? })
    }
}

fn shape(state: &StateTensor, batch: usize) -> Vec<usize> {
    std::iter::once(batch).chain(state.shape.iter().copied()).collect()
}

impl StateStore for TractStates {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self { layout: Arc::clone(&self.layout), tensors: self.tensors.clone() }))
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        self.layout
            .iter()
            .zip(&self.tensors)
            .map(|(state, tensor)| Ok((state.past.clone(), to_host(tensor)?)))
            .collect()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
