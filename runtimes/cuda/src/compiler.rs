//! Compilation units in, loadable machine code out, through the cache.

use crate::{
    Architecture, Cache, CacheStatus, Error, KernelResources, Nvrtc, Unit,
    cache::{Entry, hash},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// A compiled unit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Compiled {
    /// The machine code, a cubin.
    pub image: Vec<u8>,
    /// What each kernel needs.
    pub resources: Vec<KernelResources>,
    /// What the cache did.
    pub cache: CacheStatus,
}

/// Reports progress of a compilation: the units that are compiled, the number of those to compile, and the name of the
/// unit just compiled. Units that the cache holds do not count.
pub type CompileProgress<'p> = dyn FnMut(usize, usize, &str) + Send + 'p;

/// Compiles kernels for a GPU and keeps them on disk.
#[derive(Clone, Debug)]
pub struct Compiler {
    nvrtc: Arc<Nvrtc>,
    cache: Cache,
}

impl Compiler {
    /// A compiler with this cache.
    pub fn new(nvrtc: Arc<Nvrtc>, cache: Cache) -> Self {
        Self { nvrtc, cache }
    }

    /// Compiles a unit, or takes it from the cache.
    ///
    /// # Errors
    /// When the source does not compile for this architecture.
    pub fn compile(&self, unit: &Unit, architecture: Architecture) -> Result<Compiled, Error> {
        match self.cached(unit, architecture) {
            Some(compiled) => Ok(compiled),
            None => self.compile_anew(unit, architecture),
        }
    }

    fn cached(&self, unit: &Unit, architecture: Architecture) -> Option<Compiled> {
        let Entry { log, image } = self.cache.load(&self.entry_name(unit, architecture))?;
        Some(Compiled { image, resources: KernelResources::from_log(&log), cache: CacheStatus::Hit })
    }

    fn compile_anew(&self, unit: &Unit, architecture: Architecture) -> Result<Compiled, Error> {
        let name = self.entry_name(unit, architecture);
        let (image, log) = self.nvrtc.compile(unit, architecture)?;
        let entry = Entry { log, image };
        let cache = self.cache.store(&name, &entry);
        Ok(Compiled { resources: KernelResources::from_log(&entry.log), image: entry.image, cache })
    }

    /// Compiles several units on as many threads as there are processors, and reports each that is compiled. Those that
    /// the cache holds come from there.
    ///
    /// # Errors
    /// The first unit's that does not compile.
    pub fn compile_all(
        &self,
        units: &[Unit],
        architecture: Architecture,
        progress: &mut CompileProgress<'_>,
    ) -> Result<Vec<Compiled>, Error> {
        let results: Vec<_> = units.iter().map(|unit| self.cached(unit, architecture).map(Ok)).collect();
        let missing: Vec<usize> = (0..units.len()).filter(|&index| results[index].is_none()).collect();
        let next = AtomicUsize::new(0);
        let done = Mutex::new((results, 0, progress));
        let work = || {
            loop {
                let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                let compiled = self.compile_anew(&units[index], architecture);
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                let (results, count, progress) = &mut *done;
                *count += 1;
                progress(*count, missing.len(), units[index].name());
                results[index] = Some(compiled);
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let (results, ..) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.into_iter().flatten().collect()
    }

    fn entry_name(&self, unit: &Unit, architecture: Architecture) -> String {
        let options = unit.options(architecture).join("\n");
        let (major, minor) = self.nvrtc.version();
        let version = format!("{major}.{minor}");
        let headers = unit.headers().iter().flat_map(|(name, text)| [*name, *text]);
        let hash = hash([unit.name(), unit.source(), &options, &version].into_iter().chain(headers));
        format!("{}-{architecture}-{hash}.kernel", unit.name())
    }
}
