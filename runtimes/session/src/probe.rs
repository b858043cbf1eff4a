//! Access to the values inside a graph.

use crate::{Error, HostTensor};
use std::collections::BTreeMap;

/// A graph that returns values from between its nodes; made by [`Runtime::probe`](crate::Runtime::probe).
pub trait Probe: Send {
    /// Runs the graph on tensors by name; absent ones are completed as [`Model::run`](crate::Model::run) does. Returns
    /// its outputs and the probed values by name.
    ///
    /// # Errors
    /// When an input is wrong, or the runtime fails.
    fn run(&mut self, inputs: BTreeMap<String, HostTensor>) -> Result<BTreeMap<String, HostTensor>, Error>;
}
