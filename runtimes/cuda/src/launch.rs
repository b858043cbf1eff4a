//! Loaded machine code, and launches of its kernels.

use crate::{
    Context, DeviceInfo, Error, Stream,
    driver::{Functions, Handle, LaunchAttribute, LaunchConfig},
};
use std::{
    ffi::{CString, c_int, c_void},
    fmt,
    sync::Arc,
};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES` and `CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED`.
const MAX_SHARED: u32 = 8;
const LARGE_CLUSTERS: u32 = 14;
/// Shared memory that a block may have without asking for more.
const PLAIN_SHARED: u32 = 48 << 10;
/// The largest cluster that every GPU with clusters supports.
const PORTABLE_CLUSTER: u32 = 8;
/// The numbers of `CUlaunchAttributeID`.
const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;
const DEPENDENT: u32 = 6;

/// Machine code that is loaded into a context.
pub struct Module {
    context: Arc<Context>,
    handle: Handle,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").finish_non_exhaustive()
    }
}

// SAFETY: the driver's interface is thread-safe, and a module may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    pub(crate) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Arc<Self>, Error> {
        // The driver reads the image's length from its header.
        if !image.starts_with(b"\x7fELF") || image.len() < 64 {
            return Err(Error::argument("image", format!("expected a cubin, got {} other bytes", image.len())));
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: the image is a complete cubin: it comes from the compiler, or from a cache entry whose checksum is
        // right. The function copies it and writes one pointer.
        let load = |f: &Functions| unsafe { (f.cuModuleLoadData)(&raw mut handle, image.as_ptr().cast()) };
        context.call("cuModuleLoadData", load)?;
        Ok(Arc::new(Self { context: Arc::clone(context), handle }))
    }

    /// Looks up a kernel that was declared `extern "C"`.
    ///
    /// # Errors
    /// When the module has none of this name.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Function, Error> {
        let terminated = CString::new(name).map_err(|_| Error::argument("name", "expected no zero byte, got one"))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the name is terminated; the function writes one pointer.
        self.context.call("cuModuleGetFunction", |f| unsafe {
            (f.cuModuleGetFunction)(&raw mut handle, self.handle, terminated.as_ptr())
        })?;
        Ok(Function { module: Arc::clone(self), handle })
    }

    /// Reads constants that the module declares as an `extern "C"` array of `u32`, such as the shape of a launch.
    ///
    /// # Errors
    /// When the module has no array of this name and length.
    pub fn constants<const N: usize>(&self, stream: &Stream, name: &str) -> Result<[u32; N], Error> {
        let terminated = CString::new(name).map_err(|_| Error::argument("name", "expected no zero byte, got one"))?;
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the name is terminated; the function writes an address and a size.
        self.context.call("cuModuleGetGlobal", |f| unsafe {
            (f.cuModuleGetGlobal_v2)(&raw mut address, &raw mut bytes, self.handle, terminated.as_ptr())
        })?;
        let mut values = [0_u32; N];
        if bytes != size_of_val(&values) {
            return Err(Error::argument("name", format!("expected {} bytes, got {bytes}", size_of_val(&values))));
        }
        // SAFETY: the array has as many bytes as are read; the stream is waited for before the buffer can end.
        self.context.call("cuMemcpyDtoHAsync", |f| unsafe {
            (f.cuMemcpyDtoHAsync_v2)(values.as_mut_ptr().cast(), address, bytes, stream.raw())
        })?;
        stream.synchronize()?;
        Ok(values)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: the module was made by `load` and is unloaded once, after all functions of it are gone.
        let _ = self.context.call("cuModuleUnload", |f| unsafe { (f.cuModuleUnload)(handle) });
    }
}

/// The shape of a launch and how it relates to the work before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    cluster: u32,
    cooperative: bool,
    dependent: bool,
}

impl LaunchShape {
    /// A grid of blocks, each with this number of threads.
    pub const fn new(grid: [u32; 3], block: u32) -> Self {
        Self { grid, block, shared_bytes: 0, cluster: 1, cooperative: false, dependent: false }
    }

    /// Gives each block dynamic shared memory.
    #[must_use]
    pub const fn shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Groups blocks that are neighbours on the grid's first axis into clusters.
    #[must_use]
    pub const fn clusters(mut self, blocks: u32) -> Self {
        self.cluster = blocks;
        self
    }

    /// Requires that all blocks are resident at once.
    #[must_use]
    pub const fn cooperative(mut self) -> Self {
        self.cooperative = true;
        self
    }

    /// Lets the kernel start before the work ahead of it in the stream is complete; it has to wait for it itself
    /// (`griddepcontrol.wait`).
    #[must_use]
    pub const fn dependent(mut self) -> Self {
        self.dependent = true;
        self
    }
}

/// The arguments of a kernel, in order.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Every argument begins at a multiple of eight bytes.
    words: Vec<u64>,
    starts: Vec<usize>,
}

impl Arguments {
    /// No arguments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an address on the GPU; 0 stands for an absent operand.
    #[must_use]
    pub fn address(self, address: u64) -> Self {
        self.words(&[address])
    }

    /// Appends an `int`.
    #[must_use]
    pub fn int(self, value: i32) -> Self {
        self.words(&[u64::from(value as u32)])
    }

    /// Appends a `float`.
    #[must_use]
    pub fn float(self, value: f32) -> Self {
        self.words(&[u64::from(value.to_bits())])
    }

    /// Appends a structure of eight-byte members.
    #[must_use]
    pub fn words(mut self, members: &[u64]) -> Self {
        self.starts.push(self.words.len());
        self.words.extend_from_slice(members);
        self
    }
}

/// Refuses a launch that needs more of a resource than the GPU has.
fn require(info: &DeviceInfo, resource: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected <= got {
        return Ok(());
    }
    Err(Error::DeviceTooSmall { device: info.name.clone(), resource, expected, got })
}

/// A kernel of a loaded module.
#[derive(Clone, Debug)]
pub struct Function {
    module: Arc<Module>,
    handle: Handle,
}

// SAFETY: the driver's interface is thread-safe, and a function may be launched from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Allows launches with as much dynamic shared memory and clusters as large as this shape's, and checks that the
    /// GPU can run them.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`] when the GPU has less shared memory, or cannot hold all blocks of a cooperative launch
    /// at once.
    pub fn prepare(&self, shape: &LaunchShape) -> Result<(), Error> {
        let info = self.module.context.info();
        require(info, "bytes of shared memory of a block", shape.shared_bytes as usize, info.shared_bytes)?;
        let set = |attribute: u32, value: u32| {
            // SAFETY: the function is valid while its module is loaded.
            self.module.context.call("cuFuncSetAttribute", |f| unsafe {
                (f.cuFuncSetAttribute)(self.handle, attribute, value as c_int)
            })
        };
        if shape.shared_bytes > PLAIN_SHARED {
            set(MAX_SHARED, shape.shared_bytes)?;
        }
        if shape.cluster > PORTABLE_CLUSTER {
            set(LARGE_CLUSTERS, 1)?;
        }
        if shape.cooperative {
            let supported = usize::from(info.cooperative_launch);
            let resident = (self.blocks_per_multiprocessor(shape)? * info.multiprocessors) as usize * supported;
            let blocks = shape.grid.iter().map(|size| *size as usize).product();
            require(info, "blocks resident at once", blocks, resident)?;
        }
        Ok(())
    }

    /// Returns how many blocks of this shape a multiprocessor holds at once.
    ///
    /// # Errors
    /// When the driver reports one.
    pub fn blocks_per_multiprocessor(&self, shape: &LaunchShape) -> Result<u32, Error> {
        let mut blocks = 0;
        // SAFETY: the function is valid while its module is loaded; one integer is written.
        self.module.context.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |f| unsafe {
            (f.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &raw mut blocks,
                self.handle,
                shape.block as c_int,
                shape.shared_bytes as usize,
            )
        })?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Submits a launch to a stream.
    ///
    /// # Safety
    /// The arguments must be those of the kernel in number, order and type, and every address must point to as many
    /// numbers as the kernel accesses, allocated until the launch is complete.
    ///
    /// # Errors
    /// When the driver refuses the launch; errors of a running kernel appear when the stream is waited for.
    pub unsafe fn launch(&self, stream: &Stream, shape: &LaunchShape, arguments: &Arguments) -> Result<(), Error> {
        let none = LaunchAttribute { id: 0, padding: 0, value: [0; 16] };
        let mut attributes = [none; 3];
        let mut count = 0;
        let mut attribute = |id: u32, value: [u32; 3]| {
            let mut own = LaunchAttribute { id, ..none };
            own.value[..3].copy_from_slice(&value);
            attributes[count] = own;
            count += 1;
        };
        if shape.cluster > 1 {
            attribute(CLUSTER, [shape.cluster, 1, 1]);
        }
        if shape.cooperative {
            attribute(COOPERATIVE, [1, 0, 0]);
        }
        if shape.dependent {
            attribute(DEPENDENT, [1, 0, 0]);
        }
        let config = LaunchConfig {
            grid: shape.grid,
            block: [shape.block, 1, 1],
            shared_bytes: shape.shared_bytes,
            stream: stream.raw(),
            attributes: attributes.as_mut_ptr(),
            attribute_count: count as u32,
        };
        let start = |&start: &usize| arguments.words[start..].as_ptr().cast_mut().cast::<c_void>();
        let mut pointers: Vec<*mut c_void> = arguments.starts.iter().map(start).collect();
        // SAFETY: the configuration and the arguments live until the call returns, and the driver only reads them; the
        // caller vouches for the kernel's parameters and what they point to.
        self.module.context.call("cuLaunchKernelEx", |f| unsafe {
            (f.cuLaunchKernelEx)(&raw const config, self.handle, pointers.as_mut_ptr(), std::ptr::null_mut())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::require;
    use crate::{Architecture, DeviceInfo, Error};

    #[test]
    fn a_launch_that_needs_too_much_is_refused_with_both_figures() {
        let info = DeviceInfo {
            name: "GPU".to_owned(),
            architecture: Architecture::new(12, 0),
            multiprocessors: 100,
            memory: 1 << 30,
            l2_bytes: 1 << 20,
            shared_bytes: 99 << 10,
            cooperative_launch: true,
        };
        assert!(require(&info, "bytes of shared memory of a block", 99 << 10, info.shared_bytes).is_ok());
        let error = require(&info, "bytes of shared memory of a block", 200_000, info.shared_bytes).unwrap_err();
        assert!(matches!(error, Error::DeviceTooSmall { expected: 200_000, got: 101_376, .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("GPU: bytes of shared memory of a block, expected 200000 or more, got 101376")
        );
    }
}
