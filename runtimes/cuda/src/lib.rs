//! The CUDA side of densessm: bindings of the driver and of NVRTC, and a cache of compiled kernels.
//!
//! Neither a CUDA toolkit nor a CUDA header is needed to build or to run this crate. The driver (`libcuda.so.1`) and
//! NVRTC (`libnvrtc.so`, from the Python package `nvidia-cuda-nvrtc`) are loaded when they are first used. A
//! [`Compiler`] compiles sources for the GPU at hand and keeps the results in a [`Cache`] on disk. The kernels
//! themselves are in `densessm-kernels`.
//!
//! All unsafe code lies in the modules that call a foreign function: `driver`, `nvrtc` and those that own a driver's
//! handle.
//!
//! ```no_run
//! # fn main() -> Result<(), densessm_cuda::Error> {
//! use densessm_cuda::{Cache, Compiler, Context, Driver, Nvrtc, Unit};
//!
//! let driver = Driver::open()?;
//! let context = Context::primary(&driver, 0)?;
//! let compiler = Compiler::new(Nvrtc::open()?, Cache::from_environment());
//! let source = "extern \"C\" __global__ void scale(float *x) { x[threadIdx.x] *= FACTOR; }";
//! let unit = Unit::new("scale", source, &[], vec!["-DFACTOR=2".to_owned()]);
//! let compiled = compiler.compile(&unit, context.info().architecture)?;
//! let module = context.load(&compiled.image)?;
//! let function = module.function("scale")?;
//! # let _ = function;
//! # Ok(())
//! # }
//! ```

mod bandwidth;
mod cache;
mod compiler;
mod context;
mod driver;
mod elf;
mod error;
mod graph;
pub mod installed;
mod launch;
mod library;
mod memory;
mod nvrtc;
mod resources;
mod stream;
mod unit;

pub use bandwidth::{read_bandwidth, read_unit};
pub use cache::{Cache, CacheStatus};
pub use compiler::{CompileProgress, Compiled, Compiler};
pub use context::{Architecture, Context, DeviceInfo};
pub use driver::Driver;
pub use elf::needed_libraries;
pub use error::Error;
pub use graph::{Graph, GraphExecutable, HostWork};
pub use launch::{Arguments, Function, LaunchShape, Module};
pub use memory::{Buffer, PinnedBuffer, Plain};
pub use nvrtc::Nvrtc;
pub use resources::KernelResources;
pub use stream::{Event, Stream};
pub use unit::{Headers, Unit};
