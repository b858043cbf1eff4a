//! The CUDA side of densessm: bindings of the driver and of NVRTC, and the compiled kernels of the `ai.densessm` operators.
//!
//! Neither a CUDA toolkit nor a CUDA header is needed to build or to run this crate. The driver (`libcuda.so.1`) and
//! NVRTC (`libnvrtc.so`, from the Python package `nvidia-cuda-nvrtc`) are loaded when they are first used. The kernels'
//! sources are embedded; [`Compiler`] compiles them for the GPU at hand and keeps the results in a [`Cache`] on disk.
//!
//! All unsafe code lies in the modules that call a foreign function: `driver`, `nvrtc` and those that own a driver's
//! handle.
//!
//! ```no_run
//! # fn main() -> Result<(), densessm_cuda::Error> {
//! use densessm_cuda::{Cache, Compiler, Context, Driver, Nvrtc, units};
//!
//! let driver = Driver::open()?;
//! let context = Context::primary(&driver, 0)?;
//! let compiler = Compiler::new(Nvrtc::open()?, Cache::from_environment());
//! let unit = units::causal_conv(densessm_cuda::Activation::F16, 4);
//! let compiled = compiler.compile(&unit, context.info().architecture)?;
//! let module = context.load(&compiled.image)?;
//! let function = module.function("causal_conv")?;
//! # let _ = function;
//! # Ok(())
//! # }
//! ```

mod cache;
mod compiler;
mod context;
mod driver;
mod error;
mod graph;
mod launch;
mod library;
mod memory;
mod nvrtc;
mod resources;
mod stream;
pub mod units;

pub use cache::{Cache, CacheStatus};
pub use compiler::{CompileProgress, Compiled, Compiler};
pub use context::{Architecture, Context, DeviceInfo};
pub use driver::Driver;
pub use error::Error;
pub use graph::{Graph, GraphExecutable};
pub use launch::{Arguments, Function, LaunchShape, Module};
pub use memory::{Buffer, Plain};
pub use nvrtc::Nvrtc;
pub use resources::KernelResources;
pub use stream::{Event, Stream};
pub use units::{Activation, Unit};
