//! `densessm doctor`

use crate::{cli, terminal::outln};
use anyhow::Result;
use densessm::{
    Device, Provider, RuntimeInfo,
    runtime::{self, Choice},
};
use densessm_kernels::Level;
use serde_json::{Value, json};

/// Whether a runtime can be used on a device.
struct Row {
    runtime: Choice,
    device: Device,
    availability: Result<RuntimeInfo, densessm_session::Error>,
}

pub(crate) fn run(arguments: &cli::Doctor) -> Result<()> {
    let row = |runtime, provider| {
        let device = Device::first(provider);
        Row { runtime, device, availability: runtime::availability(runtime, device) }
    };
    let rows: Vec<Row> =
        runtime::ALL.into_iter().flat_map(|runtime| Provider::ALL.map(|provider| row(runtime, provider))).collect();
    let kernels = Level::best().to_string();
    if arguments.json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        outln!("{:#}", json!({ "version": env!("CARGO_PKG_VERSION"), "kernels": kernels, "runtimes": rows }));
        return Ok(());
    }
    outln!("densessm {}, kernels for {kernels}", env!("CARGO_PKG_VERSION"));
    for row in &rows {
        let usable = if row.availability.is_ok() { "yes" } else { "no" };
        outln!("{:<5} {:<8} {usable:<3} {}", row.runtime.name(), row.device, row.detail());
    }
    Ok(())
}

impl Row {
    /// The version and origin of the runtime, or why it cannot be used and what to do.
    fn detail(&self) -> String {
        match &self.availability {
            Ok(RuntimeInfo { runtime, version, library: Some(library), .. }) => {
                format!("{runtime} {version} at {}", library.display())
            }
            Ok(RuntimeInfo { runtime, version, .. }) => format!("{runtime} {version}, built in"),
            Err(error) => error.to_string(),
        }
    }

    fn json(&self) -> Value {
        let info = self.availability.as_ref().ok();
        json!({
            "runtime": self.runtime.name(), "device": self.device.to_string(), "usable": info.is_some(),
            "version": info.map(|info| info.version.to_string()),
            "library": info.and_then(|info| info.library.as_ref()), "detail": self.detail(),
        })
    }
}
