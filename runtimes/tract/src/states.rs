//! The states of a batch as tract's tensors.

use crate::tensor::{floats, from_host, place, to_host};
use densessm_proto::StateTensor;
use densessm_session::{Error, HostTensor, Snapshot, StateStore, StatesError};
use std::{collections::BTreeMap, sync::Arc};
use tract_onnx::prelude::TValue;

/// One tensor per state, in the order of the layout.
///
/// tract allocates the states anew in every call, and a tensor that is kept here is never written to. So copies of all
/// rows share the tensors, and a batch whose rows change is put together in new ones.
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

/// Some rows of a store, in the order given.
type Rows<'a> = (&'a TractStates, &'a [usize]);

impl TractStates {
    /// Puts a batch together from rows of stores that have this one's layout.
    fn gather(&self, parts: &[Rows<'_>]) -> Result<Vec<TValue>, Error> {
        let batch = parts.iter().map(|(_, rows)| rows.len()).sum();
        let tensor = |(index, state): (usize, &StateTensor)| {
            let size = state.elements();
            let mut values = Vec::with_capacity(batch * size);
            for (store, rows) in parts {
                let from = floats(&store.tensors[index])?;
                for &row in *rows {
                    let batch = from.len() / size.max(1);
                    let numbers = from.get(row * size..(row + 1) * size);
                    values.extend_from_slice(numbers.ok_or(StatesError::Row { row, batch })?);
                }
            }
            place(&shape(state, batch), &values)
        };
        self.layout.iter().enumerate().map(tensor).collect()
    }

    fn batch(&self) -> usize {
        self.tensors.first().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(0)
    }
}

impl StateStore for TractStates {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self { layout: Arc::clone(&self.layout), tensors: self.tensors.clone() }))
    }

    fn select(&self, rows: &[usize]) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self { layout: Arc::clone(&self.layout), tensors: self.gather(&[(self, rows)])? }))
    }

    fn join(&mut self, other: &dyn StateStore, rows: &[usize]) -> Result<(), Error> {
        let other: &Self = other.downcast_ref()?;
        if self.layout != other.layout {
            return Err(StatesError::OtherModel.into());
        }
        let own: Vec<usize> = (0..self.batch()).collect();
        self.tensors = self.gather(&[(self, &own), (other, rows)])?;
        Ok(())
    }

    fn swap_remove(&mut self, row: usize) -> Result<(), Error> {
        let mut rows: Vec<usize> = (0..self.batch()).collect();
        if row >= rows.len() {
            return Err(StatesError::Row { row, batch: rows.len() }.into());
        }
        rows.swap_remove(row);
        self.tensors = self.gather(&[(self, &rows)])?;
        Ok(())
    }

    fn reserve(&mut self, _additional: usize) -> Result<(), Error> {
        Ok(())
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        self.layout
            .iter()
            .zip(&self.tensors)
            .map(|(state, tensor)| Ok((state.past.clone(), to_host(tensor)?)))
            .collect()
    }
}
