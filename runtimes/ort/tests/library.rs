//! Finding ONNX Runtime. Each case runs this program again in an environment of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

use densessm_ort::{OrtRuntime, library};
use densessm_session::{Device, Runtime, RuntimeId, Unusable, UnusableReason, Version};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Names the file to which the program, run again, writes what it found.
const ANSWER: &str = "DENSESSM_TEST_ANSWER";

#[test]
#[ignore = "the other tests run it, in environments of their own"]
fn answer() {
    let found = library().map_err(|error| error.to_string());
    let availability = OrtRuntime.availability(Device::CPU);
    let usable = availability.map_or_else(|unusable| unusable.to_string(), |info| info.to_string());
    let found = found.map_or_else(|error| error, |path| path.display().to_string());
    fs::write(std::env::var_os(ANSWER).unwrap(), format!("{found}\n{usable}")).unwrap();
}

/// What `library` and `availability` say where only those variables are set.
fn ask(folder: &Path, variables: &[(&str, &Path)]) -> [String; 2] {
    let answer = folder.join("answer");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "answer", "--ignored"]).env_clear().current_dir(folder).env(ANSWER, &answer);
    let output = command.env("PATH", folder.join("no-programs")).envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = fs::read_to_string(answer).unwrap();
    let (found, usable) = text.split_once('\n').unwrap();
    [found.to_owned(), usable.to_owned()]
}

fn write(path: PathBuf, content: &str) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// A program that answers as a Python does whose `onnxruntime` lies in `package`.
fn python(path: PathBuf, package: &Path) -> PathBuf {
    let path = write(path, &format!("#!/bin/sh\necho '{}'\n", package.display()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_variable_that_names_no_library_is_an_error_whatever_else_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let packages = folder.path().join("packages");
    write(packages.join("libonnxruntime.so"), "");
    let [found, usable] = ask(folder.path(), &[("ORT_DYLIB_PATH", &nowhere), ("LD_LIBRARY_PATH", &packages)]);
    let missing = format!("ONNX Runtime: ORT_DYLIB_PATH: no file at {}; ", nowhere.display());
    assert!(found.starts_with(&missing), "{found}");
    assert_eq!(usable, found);
}

#[test]
fn a_file_that_is_no_library_is_unusable_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = write(folder.path().join("libonnxruntime.so"), "not a library");
    let [found, usable] = ask(folder.path(), &[("ORT_DYLIB_PATH", &text)]);
    assert_eq!(found, text.display().to_string());
    assert!(usable.starts_with(&format!("ONNX Runtime: {found}: ")), "{usable}");
}

#[test]
fn every_reason_states_what_to_do() {
    let path = PathBuf::from("/opt/libonnxruntime.so");
    let (old, oldest) = (Version::new(1, 21, 1), Version::new(1, 22, 0));
    let library_not_found =
        UnusableReason::LibraryNotFound { variable: "ORT_DYLIB_PATH", install: "pip install onnxruntime" };
    for (reason, word) in [
        (UnusableReason::NotCompiled, "cargo feature"),
        (UnusableReason::CpuOnly, "--runtime ort"),
        (library_not_found, "`pip install onnxruntime`"),
        (UnusableReason::NoSuchFile { variable: "ORT_DYLIB_PATH", path: path.clone() }, "unset the variable"),
        (UnusableReason::BrokenLibrary { path: path.clone(), problem: "truncated".to_owned() }, "ORT_DYLIB_PATH"),
        (
            UnusableReason::TooOld { path: path.clone(), found: old, oldest },
            "expected version 1.22 or newer, got 1.21.1",
        ),
        (UnusableReason::NoProvider { library: path, version: oldest }, "onnxruntime-gpu"),
        (UnusableReason::DeviceFailed { problem: "no driver".to_owned() }, "densessm doctor"),
    ] {
        let text = Unusable::new(RuntimeId::Ort, Device::cuda(1), reason).to_string();
        assert!(text.starts_with("ONNX Runtime on cuda:1: ") && text.contains("; ") && text.contains(word), "{text}");
    }
}

#[test]
fn the_active_environment_goes_before_the_path_and_the_loader() {
    let folder = tempfile::tempdir().unwrap();
    let [environment, path, system] = ["environment", "path", "system"].map(|name| folder.path().join(name));
    let packages = ["of_environment", "of_path"].map(|name| folder.path().join(name));
    let active = python(environment.join("bin/python3"), &packages[0]);
    let plain = python(path.join("python3"), &packages[1]);
    let libraries = [
        write(packages[0].join("capi/libonnxruntime.so.1.30.0"), ""),
        write(packages[1].join("capi/libonnxruntime.so.1.31.0"), ""),
        write(system.join("libonnxruntime.so.1.32.0"), ""),
    ];
    let variables: [(&str, &Path); 3] = [("VIRTUAL_ENV", &environment), ("PATH", &path), ("LD_LIBRARY_PATH", &system)];
    assert_eq!(ask(folder.path(), &variables)[0], libraries[0].display().to_string());
    fs::remove_file(active).unwrap();
    assert_eq!(ask(folder.path(), &variables)[0], libraries[1].display().to_string());
    fs::remove_file(plain).unwrap();
    assert_eq!(ask(folder.path(), &variables)[0], libraries[2].display().to_string());
}

#[test]
fn the_newest_version_is_taken_and_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.22.1.dwp", "libonnxruntime_providers_cuda.so"] {
        write(folder.path().join(name), "");
    }
    let newest = write(folder.path().join("libonnxruntime.so.1.22.0"), "");
    let found = || ask(folder.path(), &[("LD_LIBRARY_PATH", folder.path())])[0].clone();
    assert_eq!(found(), newest.display().to_string());
    let plain = write(folder.path().join("libonnxruntime.so"), "");
    assert_eq!(found(), plain.display().to_string());
}

#[test]
fn nothing_is_loaded_from_the_working_directory() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("onnxruntime/__init__.py"), "");
    let planted = write(folder.path().join("onnxruntime/capi/libonnxruntime.so"), "");
    write(folder.path().join("libonnxruntime.so"), "");
    let path = std::env::var_os("PATH").unwrap();
    let [found, _] = ask(folder.path(), &[("PATH", Path::new(&path)), ("LD_LIBRARY_PATH", Path::new(".:"))]);
    assert_ne!(found, planted.display().to_string());
    assert!(!found.starts_with("libonnxruntime") && !found.starts_with('.'), "{found}");
}
