//! `densessm doctor`

mod gpu;

use super::runtimes::Availability;
use crate::{cli, terminal::outln};
use anyhow::Result;
use densessm::{Device, Provider, runtime};
use densessm_kernels::Level;
use serde_json::{Value, json};
use std::path::PathBuf;

pub(crate) fn run(arguments: &cli::Doctor) -> Result<()> {
    let on_each = |runtime| Provider::ALL.map(|provider| Availability::of(runtime, Device::first(provider)));
    let rows: Vec<Availability> = runtime::ALL.into_iter().flat_map(on_each).collect();
    let kernels = Level::best().to_string();
    let findings = gpu::findings(onnx_runtime().as_deref());
    if arguments.json {
        let rows: Vec<Value> = rows.iter().map(to_json).collect();
        let findings: Vec<Value> = findings.iter().map(gpu::Finding::to_json).collect();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"), "kernels": kernels, "runtimes": rows, "gpu": findings,
            "tensorrt": gpu::TENSORRT_NOTE,
        });
        outln!("{report:#}");
        return Ok(());
    }
    outln!("densessm {}, kernels for {kernels}", env!("CARGO_PKG_VERSION"));
    outln!("\nruntimes");
    for row in &rows {
        outln!("{:<5} {:<8} {:<3} {row}", row.runtime.name(), row.device, yes(row.info.is_ok()));
    }
    outln!("\nwhat GPUs need");
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in &findings {
        outln!("{:<width$} {:<3} {}", finding.name, yes(finding.found), finding.detail);
    }
    outln!("\ntensorrt: {}", gpu::TENSORRT_NOTE);
    Ok(())
}

fn yes(usable: bool) -> &'static str {
    if usable { "yes" } else { "no" }
}

/// The path of ONNX Runtime's library, if it is found.
fn onnx_runtime() -> Option<PathBuf> {
    #[cfg(feature = "ort")]
    return densessm_ort::library().ok();
    #[cfg(not(feature = "ort"))]
    None
}

fn to_json(row: &Availability) -> Value {
    let info = row.info.as_ref().ok();
    json!({
        "runtime": row.runtime.name(), "device": row.device.to_string(), "usable": info.is_some(),
        "version": info.map(|info| info.version.to_string()),
        "library": info.and_then(|info| info.library.as_ref()), "detail": row.to_string(),
    })
}
