//! A process removes what a killed one with the same target left behind. The tests kill real processes while they write
//! weights.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_bundle::{Error, ExportOptions, export, init};
use densessm_checkpoint::Checkpoint;
use std::{
    env, fs,
    io::{BufRead, BufReader, stdin},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Tells the child what to write, and where.
const COMMAND: &str = "DENSESSM_TEST_COMMAND";
const TARGET: &str = "DENSESSM_TEST_TARGET";
/// What the child prints while it writes.
const WRITING: &str = "writing weights";

fn checkpoint() -> Checkpoint {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    Checkpoint::open(&goldens.join("densemamba-m1-channel-gate")).unwrap()
}

fn export_to(target: &Path, progress: impl FnMut() -> ControlFlow<()>) -> Result<(), Error> {
    let mut progress = progress;
    export(&checkpoint(), target, &ExportOptions::default(), |_| progress()).map(drop)
}

fn init_to(target: &Path, progress: impl Fn() -> ControlFlow<()>) -> Result<(), Error> {
    init("mamba-tiny".parse().unwrap(), target, 0, false, |_, _| progress()).map(drop)
}

/// Says that it is writing, and waits for as long as its parent lives.
fn wait() -> ControlFlow<()> {
    println!("{WRITING}");
    let mut line = String::new();
    stdin().read_line(&mut line).unwrap();
    ControlFlow::Break(())
}

#[test]
#[ignore = "the process that the other tests start and kill"]
fn child() {
    let target = PathBuf::from(env::var_os(TARGET).expect("the target of a test"));
    let ended = match env::var(COMMAND).as_deref() {
        Ok("export") => export_to(&target, wait),
        Ok("init") => init_to(&target, wait),
        other => panic!("expected a command, got {other:?}"),
    };
    assert!(matches!(ended, Err(Error::Stopped)), "{ended:?}");
}

/// A process that is writing and does not go on.
fn start(command: &str, target: &Path) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(COMMAND, command)
        .env(TARGET, target)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let writing = output.lines().map(Result::unwrap).any(|line| line.ends_with(WRITING));
    assert!(writing, "the process ended early");
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The names in a folder that are not `target`.
fn partial(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| !path.ends_with("target")).collect()
}

#[test]
fn an_export_removes_what_a_killed_one_left_and_nothing_of_a_running_one() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    let killed = start("export", &target);
    let running = start("export", &target);
    assert_eq!(partial(folder.path()).len(), 2);
    kill(killed);
    assert_eq!(partial(folder.path()).len(), 2, "a killed process removes nothing");

    export_to(&target, || ControlFlow::Continue(())).unwrap();
    assert!(target.join("densessm.json").is_file());
    let left = partial(folder.path());
    assert_eq!(left.len(), 1);
    assert!(left[0].join("new/recurrent.onnx").is_file(), "the running process has lost its files");

    kill(running);
    assert!(matches!(export_to(&target, || ControlFlow::Continue(())), Err(Error::Exists { .. })));
    assert!(partial(folder.path()).is_empty());
    assert!(target.join("densessm.json").is_file());
}

#[test]
fn init_removes_what_a_killed_one_left_and_nothing_of_a_running_one() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    let killed = start("init", &target);
    let running = start("init", &target);
    assert_eq!(partial(folder.path()).len(), 2);
    kill(killed);
    let next = start("init", &target);
    let left = partial(folder.path());
    assert_eq!(left.len(), 2);
    for folder in left {
        assert!(folder.join("new/config.json").is_file(), "a running process has lost its files");
    }
    kill(running);
    kill(next);
    drop(export_to(&target, || ControlFlow::Break(())));
    assert!(partial(folder.path()).is_empty());
}
