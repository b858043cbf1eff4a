//! A GPU as the kernels use it: its context, what was compiled for it, and scratch memory.

use super::scratch::Scratch;
use crate::Error;
use densessm_cuda::{Architecture, Cache, Compiler, Context, Driver, Module, Nvrtc, Stream, Unit};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// The major compute capability of the oldest GPUs that have what the kernels use.
const OLDEST: u32 = 8;

/// A GPU for which kernels are made: one value per GPU and process.
pub struct Device {
    context: Arc<Context>,
    compiler: Compiler,
    modules: Mutex<Modules>,
    /// By the stream's handle: work of one stream runs in order, so that its launches can share memory.
    scratch: Mutex<HashMap<usize, Scratch>>,
}

#[derive(Default)]
struct Modules {
    loaded: HashMap<Unit, Arc<Module>>,
    /// Units that nodes will need, in the order in which they were announced.
    wanted: Vec<Unit>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("context", &self.context).finish_non_exhaustive()
    }
}

type Progress = Arc<dyn Fn(usize, usize, &str) + Send + Sync>;

static PROGRESS: Mutex<Option<Progress>> = Mutex::new(None);

/// Sets what is called after each compilation of a kernel in this process: with the number of kernels that have been
/// compiled, the number of those to compile, and the kernel's name. Kernels that the cache holds do not count. By default
/// nothing is called.
pub fn on_compilation(progress: impl Fn(usize, usize, &str) + Send + Sync + 'static) {
    *PROGRESS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(progress));
}

impl Device {
    /// Returns the GPU with this index; indices are CUDA's and honour `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// When the driver or NVRTC is missing or too old, or there is no such GPU, or it is too old.
    pub fn open(index: usize) -> Result<Arc<Self>, densessm_cuda::Error> {
        static DEVICES: Mutex<BTreeMap<usize, Arc<Device>>> = Mutex::new(BTreeMap::new());
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.get(&index) {
            return Ok(Arc::clone(device));
        }
        let context = Context::primary(&Driver::open()?, index)?;
        let Architecture { major, minor } = context.info().architecture;
        if major < OLDEST {
            return Err(densessm_cuda::Error::UnsupportedDevice { device: context.info().name.clone(), major, minor });
        }
        let compiler = Compiler::new(Nvrtc::open()?, Cache::from_environment());
        let device = Arc::new(Self { context, compiler, modules: Mutex::default(), scratch: Mutex::default() });
        devices.insert(index, Arc::clone(&device));
        Ok(device)
    }

    /// Returns the GPU's primary context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Announces units that calls will need, so that they are compiled together.
    pub fn want(&self, units: impl IntoIterator<Item = Unit>) {
        let mut modules = self.modules();
        for unit in units {
            if !modules.loaded.contains_key(&unit) && !modules.wanted.contains(&unit) {
                modules.wanted.push(unit);
            }
        }
    }

    /// Compiles and loads all units that were announced, on as many threads as there are processors.
    ///
    /// # Errors
    /// When one does not compile or cannot be loaded.
    pub fn compile_wanted(&self) -> Result<(), densessm_cuda::Error> {
        self.modules().compile(&self.compiler, &self.context)
    }

    /// Returns the machine code of a unit, which is compiled now with all that were announced, unless it has been.
    pub(super) fn module(&self, unit: &Unit) -> Result<Arc<Module>, Error> {
        Ok(self.loaded(unit)?)
    }

    /// As [`module`](Self::module), with the driver's and the compiler's own errors.
    pub(super) fn loaded(&self, unit: &Unit) -> Result<Arc<Module>, densessm_cuda::Error> {
        let mut modules = self.modules();
        if !modules.loaded.contains_key(unit) {
            if !modules.wanted.contains(unit) {
                modules.wanted.push(unit.clone());
            }
            modules.compile(&self.compiler, &self.context)?;
        }
        let module = modules.loaded.get(unit).map(Arc::clone);
        module.ok_or_else(|| densessm_cuda::Error::Argument {
            argument: "unit",
            problem: format!("expected `{}` to be compiled, got nothing", unit.name()),
        })
    }

    fn modules(&self) -> std::sync::MutexGuard<'_, Modules> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of multiprocessors.
    pub(super) fn multiprocessors(&self) -> usize {
        self.context.info().multiprocessors as usize
    }

    /// Returns memory of these sizes in bytes, which later launches on the same stream use, too: what a launch writes
    /// there is gone after it.
    pub(super) fn scratch<const N: usize>(&self, stream: &Stream, bytes: [usize; N]) -> Result<[u64; N], Error> {
        self.of_stream(stream, |scratch| scratch.memory(stream, bytes))
    }

    /// Returns counters of a stream that are 0 before and after each launch.
    pub(super) fn counters(&self, stream: &Stream, count: usize) -> Result<u64, Error> {
        self.of_stream(stream, |scratch| scratch.counters(stream, count))
    }

    fn of_stream<R>(
        &self,
        stream: &Stream,
        use_it: impl FnOnce(&mut Scratch) -> Result<R, densessm_cuda::Error>,
    ) -> Result<R, Error> {
        let mut all = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(use_it(all.entry(stream.handle().addr()).or_default())?)
    }

    /// Releases the scratch memory of a stream that is about to be destroyed. All its work must be complete, and no CUDA
    /// graph captured from it may be launched any more.
    pub fn release_stream(&self, stream: &Stream) {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream.handle().addr());
        drop(scratch);
    }
}

impl Modules {
    fn compile(&mut self, compiler: &Compiler, context: &Arc<Context>) -> Result<(), densessm_cuda::Error> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let progress = PROGRESS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut report = |done: usize, all: usize, name: &str| {
            if let Some(progress) = &progress {
                progress(done, all, name);
            }
        };
        // A unit that fails is not tried again with the others of the next node.
        let units = std::mem::take(&mut self.wanted);
        let compiled = compiler.compile_all(&units, context.info().architecture, &mut report)?;
        for (unit, compiled) in units.into_iter().zip(compiled) {
            self.loaded.insert(unit, context.load(&compiled.image)?);
        }
        Ok(())
    }
}
