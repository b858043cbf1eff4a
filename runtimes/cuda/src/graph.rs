//! Graphs of captured work, which are launched as a whole.

use crate::{
    Context, Error, Stream,
    driver::{Copy3d, Handle},
};
use std::{fmt, mem::MaybeUninit, sync::Arc};

/// `CU_STREAM_CAPTURE_MODE_RELAXED`: calls of other threads do not disturb the capture, and what is captured may allocate
/// memory.
const RELAXED: u32 = 2;
/// `CU_GRAPH_NODE_TYPE_MEMCPY`.
const COPY: u32 = 1;
/// `CU_GRAPH_NODE_TYPE_HOST`.
const CALLBACK: u32 = 3;
/// `CU_MEMORYTYPE_HOST`.
const HOST_MEMORY: u32 = 1;

/// Work that was captured from a stream.
pub struct Graph {
    context: Arc<Context>,
    handle: Handle,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

// SAFETY: a graph is used by one thread at a time, as all its methods need the value; it is bound to no thread.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `submit` submits to the stream, without running it.
    ///
    /// # Errors
    /// Those of `submit`, and when it does what cannot be captured.
    pub fn capture<E: From<Error>>(stream: &Stream, submit: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        let context = stream.context();
        // SAFETY: the stream lives as long as the value.
        context.call("cuStreamBeginCapture", |f| unsafe { (f.cuStreamBeginCapture_v2)(stream.raw(), RELAXED) })?;
        let submitted = submit();
        let mut handle = std::ptr::null_mut();
        // A capture that was begun must be ended whatever happened.
        // SAFETY: the function writes one pointer.
        let ended =
            context.call("cuStreamEndCapture", |f| unsafe { (f.cuStreamEndCapture)(stream.raw(), &raw mut handle) });
        let graph = Self { context: Arc::clone(context), handle };
        submitted?;
        ended?;
        Ok(graph)
    }

    /// Returns what of the graph depends on memory or functions of the host, whose life ends before that of the graph
    /// unless somebody sees to it.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn host_work(&self) -> Result<HostWork, Error> {
        let mut count = 0;
        // SAFETY: without an array, the function writes the number of nodes.
        self.context.call("cuGraphGetNodes", |f| unsafe {
            (f.cuGraphGetNodes)(self.handle, std::ptr::null_mut(), &raw mut count)
        })?;
        let mut nodes: Vec<Handle> = vec![std::ptr::null_mut(); count];
        // SAFETY: the array has as many elements as the count says.
        self.context.call("cuGraphGetNodes", |f| unsafe {
            (f.cuGraphGetNodes)(self.handle, nodes.as_mut_ptr(), &raw mut count)
        })?;
        let mut work = HostWork::default();
        for &node in nodes.iter().take(count) {
            let mut kind = 0;
            // SAFETY: the node is the graph's; the function writes one integer.
            self.context.call("cuGraphNodeGetType", |f| unsafe { (f.cuGraphNodeGetType)(node, &raw mut kind) })?;
            match kind {
                CALLBACK => work.callbacks += 1,
                COPY if self.copies_host_memory(node)? => work.copies += 1,
                _ => {}
            }
        }
        Ok(work)
    }

    fn copies_host_memory(&self, node: Handle) -> Result<bool, Error> {
        let mut copy = MaybeUninit::<Copy3d>::zeroed();
        // SAFETY: the node is a copy; the function writes its parameters.
        self.context.call("cuGraphMemcpyNodeGetParams", |f| unsafe {
            (f.cuGraphMemcpyNodeGetParams)(node, copy.as_mut_ptr())
        })?;
        // SAFETY: all fields are integers and pointers, for which zeros are values, too.
        let copy = unsafe { copy.assume_init() };
        Ok(copy.source.memory == HOST_MEMORY || copy.target.memory == HOST_MEMORY)
    }

    /// Prepares the graph for launches.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn instantiate(&self) -> Result<GraphExecutable, Error> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the graph is valid; the function writes one pointer.
        self.context.call("cuGraphInstantiate", |f| unsafe {
            (f.cuGraphInstantiateWithFlags)(&raw mut handle, self.handle, 0)
        })?;
        Ok(GraphExecutable { context: Arc::clone(&self.context), handle })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            let handle = self.handle;
            // SAFETY: the graph was made by `capture` and is destroyed once.
            let _ = self.context.call("cuGraphDestroy", |f| unsafe { (f.cuGraphDestroy)(handle) });
        }
    }
}

/// What of a graph depends on memory or functions of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostWork {
    /// Number of copies from or to memory of the host.
    pub copies: usize,
    /// Number of calls of functions of the host.
    pub callbacks: usize,
}

/// A graph that is ready to be launched.
pub struct GraphExecutable {
    context: Arc<Context>,
    handle: Handle,
}

impl fmt::Debug for GraphExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphExecutable").finish_non_exhaustive()
    }
}

// SAFETY: as for `Graph`.
unsafe impl Send for GraphExecutable {}

impl GraphExecutable {
    /// Submits the graph to a stream.
    ///
    /// # Safety
    /// Every buffer that the captured work uses must still be allocated until the work is complete.
    ///
    /// # Errors
    /// When the driver reports one.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), Error> {
        // SAFETY: graph and stream live as long as the values; the caller vouches for the buffers.
        self.context.call("cuGraphLaunch", |f| unsafe { (f.cuGraphLaunch)(self.handle, stream.raw()) })
    }
}

impl Drop for GraphExecutable {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: it was made by `instantiate` and is destroyed once.
        let _ = self.context.call("cuGraphExecDestroy", |f| unsafe { (f.cuGraphExecDestroy)(handle) });
    }
}
