//! Every kernel compiles with NVRTC, which needs no GPU; the cache works.
//!
//! `DENSESSM_NVRTC` names the library or its folder. Without it the tests look where the crate does, and are skipped,
//! with a message, where NVRTC is not installed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_cuda::{Architecture, Cache, CacheStatus, Compiler, Error, Nvrtc, Unit};
use densessm_kernels::cuda::{
    Activation,
    units::{self, MambaShape, RetNetShape},
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

const SM_80: Architecture = Architecture::new(8, 0);
const SM_90: Architecture = Architecture::new(9, 0);
const SM_120: Architecture = Architecture::new(12, 0);

fn nvrtc() -> Option<Arc<Nvrtc>> {
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if env::var_os("DENSESSM_NVRTC").is_none() => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The step kernels of whole models keep their weights in flight with bulk copies and their values in the shared memory of
/// one block per multiprocessor: what `sm_90` has.
const ONLY_SM_90: [&str; 2] = ["mamba_step", "retnet_step"];
/// Keeps tiles in the registers of tensor cores, which take halves; in fp32 the operator runs `retention`.
const ONLY_HALVES: &str = "retention_chunks";
/// The kernels of a step: a spill would cost a read of memory for every value.
const STEPS: [&str; 6] = ["selective_step", "retention_step", "mamba_step", "retnet_step", "causal_conv", "dense_norm"];

/// The units of the largest published model, and some of odd sizes.
fn units(activation: Activation, architecture: Architecture) -> Vec<Unit> {
    let mut units = vec![units::causal_conv(activation, 4), units::dense_norm(activation, 1280, 2)];
    for neighbours in [0, 2, 3] {
        units.push(units::selective_scan(activation, 16, neighbours));
        units.push(units::selective_step(activation, 16, neighbours));
    }
    units.push(units::selective_step(activation, 5, 2));
    for (keys, values) in [(384, 1536), (10, 37)] {
        units.push(units::retention_step(activation, keys, values));
    }
    units.push(units::retention(activation, 320, 1280));
    if activation != Activation::F32 {
        units.push(units::retention_chunks(activation, 320, 1280));
        units.push(units::retention_chunks(activation, 384, 1536));
        if architecture == SM_90 {
            units.extend(whole_steps(activation));
        }
    }
    units
}

fn whole_steps(activation: Activation) -> impl Iterator<Item = Unit> {
    let dense =
        MambaShape { hidden: 1024, inner: 2048, rank: 64, taps: 4, gate: 64, neighbours: 2, layers: 50, batch: 1 };
    let mamba = MambaShape { neighbours: 0, layers: 48, ..dense };
    let shapes = [MambaShape { batch: 1, ..mamba }, MambaShape { batch: 6, ..dense }, MambaShape { batch: 8, ..dense }];
    let mamba = shapes.map(|shape| units::mamba_step(activation, &shape));
    let retnet = RetNetShape {
        hidden: 1536,
        inner: 3072,
        query_keys: 768,
        heads: 2,
        key_gate: 192,
        value_gate: 48,
        neighbours: 2,
        layers: 16,
        batch: 1,
    };
    let plain = RetNetShape { neighbours: 0, ..retnet };
    let retnets = [1, 2, 4, 6, 8].map(|batch| RetNetShape { batch, ..retnet }).into_iter().chain([plain]);
    mamba.into_iter().chain(retnets.map(move |shape| units::retnet_step(activation, &shape)))
}

/// The names of the kernels' sources.
fn sources() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let sources = paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_kernel_compiles_and_no_step_kernel_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::disabled());
    for architecture in [SM_80, SM_90, SM_120] {
        for activation in Activation::ALL {
            let units = units(activation, architecture);
            let mut last = 0;
            let compiled = compiler.compile_all(&units, architecture, &mut |done, all, _| {
                assert_eq!(all, units.len());
                assert_eq!(done, last + 1, "progress is reported in order");
                last = done;
            });
            let compiled = compiled.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((last, compiled.len()), (units.len(), units.len()));
            let mut missing = sources();
            for (unit, compiled) in units.iter().zip(&compiled) {
                missing.remove(unit.name());
                assert!(compiled.image.starts_with(b"\x7fELF"), "{}", unit.name());
                assert!(!compiled.resources.is_empty(), "{}: no resources in the log", unit.name());
                for kernel in &compiled.resources {
                    assert!(kernel.registers > 0, "{kernel:?}");
                    let on_stack = kernel.spills() || kernel.stack_bytes > 0;
                    let step = STEPS.contains(&kernel.kernel.as_str());
                    assert!(!(step && on_stack), "{architecture} {unit:?}: {kernel:?}");
                }
            }
            let [mamba, retnet] = ONLY_SM_90;
            let exempt: &[&str] = match activation {
                Activation::F32 => &[mamba, ONLY_HALVES, retnet],
                _ if architecture != SM_90 => &ONLY_SM_90,
                _ => &[],
            };
            let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
            assert_eq!(missing, exempt, "{architecture} {activation:?}: kernels that were not compiled");
        }
    }
}

#[test]
fn a_second_compilation_comes_from_the_cache_and_a_damaged_entry_is_compiled_again() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(Arc::clone(&nvrtc), Cache::at(folder.path()));
    let unit = units::causal_conv(Activation::F16, 4);
    let first = compiler.compile(&unit, SM_90).unwrap();
    assert_eq!(first.cache, CacheStatus::Stored);
    let second = compiler.compile(&unit, SM_90).unwrap();
    assert_eq!(second.cache, CacheStatus::Hit);
    assert_eq!((&first.image, &first.resources), (&second.image, &second.resources));

    // Another architecture, constant or element type is another entry.
    for (unit, architecture) in [
        (unit.clone(), SM_80),
        (units::causal_conv(Activation::F16, 3), SM_90),
        (units::causal_conv(Activation::Bf16, 4), SM_90),
    ] {
        assert_eq!(compiler.compile(&unit, architecture).unwrap().cache, CacheStatus::Stored);
    }

    for path in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let again = compiler.compile(&unit, SM_90).unwrap();
    assert_eq!(again.cache, CacheStatus::Stored);
    assert_eq!(again.image, first.image);
    assert_eq!(compiler.compile(&unit, SM_90).unwrap().cache, CacheStatus::Hit);
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let Some(nvrtc) = nvrtc() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let compiler = Compiler::new(nvrtc, Cache::at(file.path().join("below a file")));
    let compiled = compiler.compile(&units::causal_conv(Activation::F32, 4), SM_90).unwrap();
    assert!(matches!(compiled.cache, CacheStatus::NotStored(_)), "{:?}", compiled.cache);
    assert!(compiled.image.starts_with(b"\x7fELF"));
}

#[test]
fn compilers_at_once_fill_one_cache() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().unwrap();
    let unit = units::selective_step(Activation::F16, 16, 0);
    let images: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let compiler = Compiler::new(Arc::clone(&nvrtc), Cache::at(folder.path()));
                let unit = &unit;
                scope.spawn(move || compiler.compile(unit, SM_90).unwrap().image)
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Runs a test of this program in another process, after commands of a shell. What it prints is dropped: where files must
/// not grow, it could not be written to one.
#[cfg(unix)]
fn in_process(test: &str, cache: &Path, before: &str) -> std::process::Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before} exec \"$0\" --exact \"$1\" --nocapture")]);
    shell.arg(env::current_exe().unwrap()).arg(test).env(CACHE, cache);
    shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The variable with which a test tells a process that it starts where the cache is.
#[cfg(unix)]
const CACHE: &str = "DENSESSM_TEST_CACHE";

#[cfg(unix)]
#[test]
fn processes_at_once_fill_one_cache() {
    let Some(nvrtc) = nvrtc() else { return };
    let unit = units::selective_step(Activation::Bf16, 16, 0);
    if let Some(folder) = env::var_os(CACHE) {
        Compiler::new(nvrtc, Cache::at(folder)).compile(&unit, SM_90).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = || in_process("processes_at_once_fill_one_cache", folder.path(), "");
    for mut process in [start(), start(), start()] {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let compiled = Compiler::new(nvrtc, Cache::at(folder.path())).compile(&unit, SM_90).unwrap();
    assert_eq!(compiled.cache, CacheStatus::Hit);
}

/// No file of the process may grow, which writes report as an error like that of a full disk.
#[cfg(unix)]
#[test]
fn a_full_cache_is_no_error_and_keeps_no_part_of_an_entry() {
    let Some(nvrtc) = nvrtc() else { return };
    if let Some(folder) = env::var_os(CACHE) {
        let compiler = Compiler::new(nvrtc, Cache::at(&folder));
        let compiled = compiler.compile(&units::causal_conv(Activation::F32, 4), SM_90).unwrap();
        assert!(matches!(compiled.cache, CacheStatus::NotStored(_)), "{:?}", compiled.cache);
        assert!(compiled.image.starts_with(b"\x7fELF"));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = "a_full_cache_is_no_error_and_keeps_no_part_of_an_entry";
    let mut process = in_process(test, folder.path(), "trap '' XFSZ; ulimit -f 0;");
    assert!(process.wait().unwrap().success());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_does_not_compile_is_an_error_with_the_log() {
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::disabled());
    // The sizes contradict an assertion in the source.
    let error = compiler.compile(&units::retention_chunks(Activation::F16, 30, 64), SM_90).unwrap_err();
    let Error::Compilation { unit, architecture, log } = &error else { panic!("{error}") };
    assert_eq!((unit.as_str(), architecture.as_str()), ("retention_chunks", "sm_90"));
    assert!(log.contains("sizes of a head"), "{log}");
}

#[test]
fn what_is_exempt_does_not_compile() {
    let Some(nvrtc) = nvrtc() else { return };
    let compiler = Compiler::new(nvrtc, Cache::disabled());
    for unit in whole_steps(Activation::F16) {
        assert!(matches!(compiler.compile(&unit, SM_80), Err(Error::Compilation { .. })), "{unit:?}");
    }
    let unit = units::retention_chunks(Activation::F32, 320, 1280);
    assert!(matches!(compiler.compile(&unit, SM_90), Err(Error::Compilation { .. })), "{unit:?}");
}

#[test]
fn a_missing_nvrtc_names_the_package() {
    let folder = tempfile::tempdir().unwrap();
    let error = Nvrtc::open_at(folder.path()).unwrap_err().to_string();
    assert!(error.contains("nvidia-cuda-nvrtc") && error.contains("DENSESSM_NVRTC"), "{error}");
    let other = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Nvrtc::open_at(other.path()), Err(Error::MissingLibrary { .. })));
}
