//! Faults of the driver, played by a stand-in library that is compiled when the tests run.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_cuda::{Architecture, Buffer, Context, Driver, Error, Stream};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const STAND_IN: &str = include_str!("stand_in/driver.rs");
const BINDINGS: &str = include_str!("../src/driver.rs");

/// Compiles the stand-in with a fault, or with none, and returns the library.
fn stand_in(folder: &Path, fault: Option<&str>) -> PathBuf {
    let (_, table) = BINDINGS.split_once("\nfunctions! {\n").unwrap();
    let (table, _) = table.split_once("\n}\n").unwrap();
    let names = table.lines().filter_map(|line| line.trim().split_once('(')).map(|(name, _)| name);
    let missing = names.filter(|name| !STAND_IN.contains(&format!("fn {name}(")));
    let added = missing.map(|name| {
        format!("#[cfg(not(bare))] #[no_mangle] pub extern \"system\" fn {name}() -> c_uint {{ SUCCESS }}\n")
    });
    let source = folder.join("stand_in.rs");
    fs::write(&source, STAND_IN.to_owned() + &added.collect::<String>()).unwrap();
    // A name of its own for each, as the loader returns a library that it has already loaded.
    let library = folder.join(format!("lib{}.so", fault.unwrap_or("whole")));
    let mut compiler = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    compiler.args(["--crate-type", "cdylib", "--crate-name", "stand_in", "--edition", "2021"]);
    compiler.args(["-A", "warnings"]).args(fault.iter().flat_map(|fault| ["--cfg", fault]));
    let output = compiler.arg("-o").arg(&library).arg(&source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

fn open(fault: Option<&str>) -> Result<Arc<Driver>, Error> {
    let folder = tempfile::tempdir().unwrap();
    Driver::open_at(&stand_in(folder.path(), fault))
}

#[test]
fn a_missing_driver_names_the_package() {
    let error = Driver::open_at(Path::new("/nowhere/libcuda.so.1")).unwrap_err();
    assert!(matches!(error, Error::MissingLibrary { .. }));
    assert!(error.to_string().contains("the NVIDIA driver"), "{error}");
}

#[test]
fn a_driver_that_is_too_old_is_named_with_both_versions() {
    let error = open(Some("old")).unwrap_err();
    assert!(matches!(error, Error::DriverTooOld { expected: (12, 0), got: (11, 8) }), "{error}");
    assert!(error.to_string().contains("update the driver"), "{error}");
}

#[test]
fn a_driver_without_a_function_is_an_error_that_names_it() {
    let error = open(Some("bare")).unwrap_err();
    let Error::MissingFunction { function, .. } = &error else { panic!("{error}") };
    assert_eq!(*function, "cuInit");
    assert!(error.to_string().contains("the NVIDIA driver"), "{error}");
}

#[test]
fn a_driver_without_a_gpu_says_so() {
    let error = open(Some("no_gpu")).unwrap_err();
    assert!(matches!(error, Error::NoDevice { ordinal: 0, count: 0 }), "{error}");
}

#[test]
fn a_whole_driver_describes_its_gpu_and_copies_numbers() {
    let driver = open(None).unwrap();
    assert_eq!((driver.version(), driver.devices()), ((12, 9), 1));
    let error = Context::primary(&driver, 1).unwrap_err();
    assert!(matches!(error, Error::NoDevice { ordinal: 1, count: 1 }), "{error}");
    let context = Context::primary(&driver, 0).unwrap();
    let info = context.info();
    assert_eq!((info.name.as_str(), info.architecture), ("Stand-in", Architecture::new(9, 0)));
    assert_eq!((info.multiprocessors, info.memory, info.shared_bytes), (132, 8 << 30, 227 << 10));
    let stream = Stream::new(&context).unwrap();
    let buffer = Buffer::from_slice(&stream, &[1_u32, 2, 3]).unwrap();
    let mut back = [0; 2];
    buffer.read(&stream, 1, &mut back).unwrap();
    assert_eq!(back, [2, 3]);
    assert!(matches!(buffer.read(&stream, 2, &mut back), Err(Error::Argument { .. })));
}

#[test]
fn memory_that_does_not_suffice_is_an_error_with_what_is_free() {
    let driver = open(None).unwrap();
    let context = Context::primary(&driver, 0).unwrap();
    let error = Buffer::<f32>::new(&context, 1 << 30).unwrap_err();
    let expected = Error::OutOfMemory { requested: 4 << 30, free: 1 << 30, total: 8 << 30 };
    assert_eq!(error.to_string(), expected.to_string());
    assert!(matches!(Buffer::<f32>::new(&context, usize::MAX), Err(Error::Argument { .. })));
}

#[test]
fn a_kernel_that_fails_is_an_error_where_its_stream_is_waited_for() {
    let driver = open(Some("failing")).unwrap();
    let context = Context::primary(&driver, 0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert!(matches!(error, Error::Driver { call: "cuStreamSynchronize", code: 700, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700): as the stand-in was told"), "{text}");
    let image = [b"\x7fELF".to_vec(), vec![0; 64]].concat();
    let error = context.load(&image).unwrap_err();
    assert!(matches!(error, Error::Driver { call: "cuModuleLoadData", code: 209, .. }), "{error}");
    assert!(matches!(context.load(b"no cubin"), Err(Error::Argument { .. })));
}
