//! Which public types can be sent to, or shared between, threads: checked by the compiler.

use crate::{
    Bundle, Checkpoint, Device, Error, ExportOptions, GenerateOptions, HostTensor, LoadOptions, Model, Probe,
    RuntimeInfo, Snapshot, States, Tokenizer,
    bench::{Bench, BenchPlan},
    error::{CheckpointError, ExportError, GenerateError, SessionError, Unusable},
    eval::Evaluation,
    parity::{Parity, ParityOptions},
    proto::Manifest,
    report::Report,
    runtime::{Choice, Registry, Runtime},
};

fn send<T: Send + ?Sized>() {}
fn send_and_sync<T: Send + Sync + ?Sized>() {}

#[test]
fn models_and_states_can_move_to_another_thread() {
    send::<Box<dyn Model>>();
    send::<Box<dyn Probe>>();
    send::<States>();
}

#[test]
fn what_describes_a_model_can_be_shared_between_threads() {
    send_and_sync::<Bundle>();
    send_and_sync::<Checkpoint>();
    send_and_sync::<Manifest>();
    send_and_sync::<Snapshot>();
    send_and_sync::<HostTensor>();
    send_and_sync::<Tokenizer>();
    send_and_sync::<&'static dyn Runtime>();
    send_and_sync::<(Registry, Choice, Device, RuntimeInfo)>();
    send_and_sync::<(ExportOptions, LoadOptions, GenerateOptions, BenchPlan, ParityOptions)>();
    send_and_sync::<(Bench, Evaluation, Parity, Report)>();
}

#[test]
fn errors_can_be_returned_from_threads() {
    send_and_sync::<Error>();
    send_and_sync::<(CheckpointError, ExportError, SessionError, GenerateError, Unusable)>();
}
