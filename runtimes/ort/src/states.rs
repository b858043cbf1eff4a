//! States in ONNX Runtime's memory: two sets of blocks, of which one is current.
//!
//! A call reads the current set and writes the other one, which is then the current one. So a token costs no copy, and
//! a call that fails has not touched the states that it read. A block has memory for more rows than are in use: joining
//! a sequence copies its own rows only, and removing one copies at most one row.

use crate::{
    binding::Binding,
    memory::{Block, Memory},
    step::Step,
};
use densessm_proto::StateTensor;
use densessm_session::{Error, HostTensor, StateStore, StatesError, Values};
use std::{collections::BTreeMap, ops::Range, slice, sync::Arc};

/// For how many sizes of the batch the bindings of a step are kept.
const BOUND_SIZES: usize = 8;

/// The states of a batch of sequences.
pub(crate) struct OrtStates {
    layout: Arc<Vec<StateTensor>>,
    memory: Arc<Memory>,
    batch: usize,
    /// Bindings of steps, the most recently used last. They hold addresses in the sets.
    steps: Vec<Step>,
    sets: [Vec<Block>; 2],
    current: usize,
}

impl OrtStates {
    /// States of fresh sequences: zeros.
    pub(crate) fn zeros(layout: Arc<Vec<StateTensor>>, memory: Arc<Memory>, batch: usize) -> Result<Self, Error> {
        let mut states = Self::allocate(layout, memory, batch)?;
        states.memory.copy(|copier| states.sets[0].iter_mut().try_for_each(|block| copier.zero(block, batch)))?;
        states.batch = batch;
        Ok(states)
    }

    /// States of these numbers, which have been checked against the layout.
    pub(crate) fn from_host(
        layout: Arc<Vec<StateTensor>>,
        memory: Arc<Memory>,
        batch: usize,
        tensors: &BTreeMap<String, HostTensor>,
    ) -> Result<Self, Error> {
        let mut states = Self::allocate(layout, memory, batch)?;
        states.memory.copy(|copier| {
            states.layout.iter().zip(&mut states.sets[0]).try_for_each(|(state, block)| {
                match tensors.get(&state.past).map(|tensor| &tensor.values) {
                    Some(Values::Float32(values)) => copier.write(block, batch, values),
                    _ => Err(Error::Input { name: state.past.clone(), problem: "expected fp32 numbers".to_owned() }),
                }
            })
        })?;
        states.batch = batch;
        Ok(states)
    }

    /// Memory without sequences.
    fn allocate(layout: Arc<Vec<StateTensor>>, memory: Arc<Memory>, capacity: usize) -> Result<Self, Error> {
        let sets = [blocks(&layout, &memory, capacity)?, blocks(&layout, &memory, capacity)?];
        Ok(Self { layout, memory, batch: 0, steps: Vec::new(), sets, current: 0 })
    }

    /// The number of sequences.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Which of the two sets holds the states now.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// Makes the other set the current one, once a call has written it.
    pub(crate) fn swap(&mut self) {
        self.current = 1 - self.current;
    }

    /// Binds the states' inputs to one set and their outputs to the other.
    pub(crate) fn bind(&self, binding: &mut Binding, from: usize) -> ort::Result<()> {
        for ((state, past), present) in self.layout.iter().zip(&self.sets[from]).zip(&self.sets[1 - from]) {
            binding.input_rows(&state.past, past, self.batch)?;
            binding.output_rows(&state.present, present, self.batch)?;
        }
        Ok(())
    }

    /// Takes the bindings of a step at the present size of the batch, if they are kept.
    pub(crate) fn take_step(&mut self, logits: &Arc<Block>) -> Option<Step> {
        self.steps.retain(|step| Arc::ptr_eq(&step.logits, logits));
        let kept = self.steps.iter().position(|step| step.batch == self.batch)?;
        Some(self.steps.remove(kept))
    }

    /// Keeps the bindings of a step. The least recently used ones are dropped when there are too many.
    pub(crate) fn keep_step(&mut self, step: Step) {
        if self.steps.len() == BOUND_SIZES {
            self.steps.remove(0);
        }
        self.steps.push(step);
    }

    /// Moves to blocks of another capacity, which must be enough for the present rows.
    fn reallocate(&mut self, capacity: usize) -> Result<(), Error> {
        let mut moved = Self::allocate(Arc::clone(&self.layout), Arc::clone(&self.memory), capacity)?;
        moved.append(self, slice::from_ref(&(0..self.batch)))?;
        *self = moved;
        Ok(())
    }

    /// Copies rows of other states after the present ones. There must be memory for them.
    fn append(&mut self, other: &Self, ranges: &[Range<usize>]) -> Result<(), Error> {
        let (batch, current) = (self.batch, self.current);
        let blocks = other.sets[other.current].iter().zip(&mut self.sets[current]);
        self.memory.copy(|copier| {
            for (from, to) in blocks {
                let mut at = batch;
                for range in ranges {
                    copier.rows(from, range.clone(), to, at)?;
                    at += range.len();
                }
            }
            Ok(())
        })?;
        self.batch += ranges.iter().map(Range::len).sum::<usize>();
        Ok(())
    }
}

impl StateStore for OrtStates {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        let mut copy = Self::allocate(Arc::clone(&self.layout), Arc::clone(&self.memory), self.batch)?;
        copy.append(self, slice::from_ref(&(0..self.batch)))?;
        Ok(Box::new(copy))
    }

    fn select(&self, rows: &[usize]) -> Result<Box<dyn StateStore>, Error> {
        let mut copy = Self::allocate(Arc::clone(&self.layout), Arc::clone(&self.memory), rows.len())?;
        copy.append(self, &ranges(rows))?;
        Ok(Box::new(copy))
    }

    fn join(&mut self, other: &dyn StateStore, rows: &[usize]) -> Result<(), Error> {
        let other: &Self = other.downcast_ref()?;
        if self.layout != other.layout {
            return Err(StatesError::OtherModel.into());
        }
        let (expected, got) = (self.memory.to_string(), other.memory.to_string());
        if expected != got {
            return Err(StatesError::OtherDevice { expected, got }.into());
        }
        let (needed, capacity) = (self.batch + rows.len(), self.capacity());
        if needed > capacity {
            // By half as much again, so that joining one after the other copies each row a few times only.
            self.reallocate(needed.max(capacity + capacity / 2))?;
        }
        self.append(other, &ranges(rows))
    }

    fn swap_remove(&mut self, row: usize) -> Result<(), Error> {
        let Some(last) = self.batch.checked_sub(1) else { return Err(StatesError::Row { row, batch: 0 }.into()) };
        let set = &mut self.sets[self.current];
        if row != last {
            self.memory.copy(|copier| set.iter_mut().try_for_each(|block| copier.row_within(block, last, row)))?;
        }
        self.batch = last;
        Ok(())
    }

    fn reserve(&mut self, additional: usize) -> Result<(), Error> {
        let needed = self.batch + additional;
        if needed > self.capacity() { self.reallocate(needed) } else { Ok(()) }
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        let set = &self.sets[self.current];
        self.memory.copy(|copier| {
            let host = |(state, block): (&StateTensor, &Block)| {
                let shape = [self.batch].iter().chain(&state.shape).copied().collect();
                let values = Values::Float32(copier.read(block, self.batch)?);
                Ok((state.past.clone(), HostTensor { shape, values }))
            };
            self.layout.iter().zip(set).map(host).collect()
        })
    }
}

impl OrtStates {
    fn capacity(&self) -> usize {
        self.sets[0].first().map_or(usize::MAX, Block::capacity)
    }
}

fn blocks(layout: &[StateTensor], memory: &Memory, capacity: usize) -> Result<Vec<Block>, Error> {
    memory.blocks(capacity, layout.iter().map(|state| &state.shape[..]))
}

/// Row numbers as runs of consecutive ones, each of which is one copy.
fn ranges(rows: &[usize]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for &row in rows {
        match ranges.last_mut() {
            Some(range) if range.end == row => range.end += 1,
            _ => ranges.push(row..row + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::ranges;

    #[test]
    fn consecutive_rows_are_one_copy() {
        assert_eq!(ranges(&[2, 3, 4, 0, 1, 1]), [2..5, 0..2, 1..2]);
        assert_eq!(ranges(&[]), []);
    }
}
