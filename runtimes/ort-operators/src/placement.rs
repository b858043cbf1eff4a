//! Where ONNX Runtime has placed the nodes of a session.

use std::sync::{Mutex, PoisonError};

/// The nodes for which a session has made kernels, by the device that they run on.
///
/// ONNX Runtime makes every kernel while it loads a session. A node that appears in neither list runs as the function
/// of standard operators that its model contains.
#[derive(Debug, Default)]
pub struct Placement {
    cpu: Mutex<Vec<String>>,
    cuda: Mutex<Vec<String>>,
}

impl Placement {
    /// Returns the names of the nodes whose kernels run on the CPU.
    pub fn cpu(&self) -> Vec<String> {
        self.cpu.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the names of the nodes whose kernels run on a GPU.
    pub fn cuda(&self) -> Vec<String> {
        self.cuda.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add(&self, provider: Option<&str>, node: String) {
        let list = if provider.is_some() { &self.cuda } else { &self.cpu };
        list.lock().unwrap_or_else(PoisonError::into_inner).push(node);
    }
}
