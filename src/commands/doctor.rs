//! `densessm doctor`

use super::runtimes::Availability;
use crate::{cli, terminal::outln};
use anyhow::Result;
use densessm::{Device, Provider, runtime};
use densessm_kernels::Level;
use serde_json::{Value, json};

pub(crate) fn run(arguments: &cli::Doctor) -> Result<()> {
    let on_each = |runtime| Provider::ALL.map(|provider| Availability::of(runtime, Device::first(provider)));
    let rows: Vec<Availability> = runtime::ALL.into_iter().flat_map(on_each).collect();
    let kernels = Level::best().to_string();
    if arguments.json {
        let rows: Vec<Value> = rows.iter().map(to_json).collect();
        outln!("{:#}", json!({ "version": env!("CARGO_PKG_VERSION"), "kernels": kernels, "runtimes": rows }));
        return Ok(());
    }
    outln!("densessm {}, kernels for {kernels}", env!("CARGO_PKG_VERSION"));
    for row in &rows {
        let usable = if row.info.is_ok() { "yes" } else { "no" };
        outln!("{:<5} {:<8} {usable:<3} {row}", row.runtime.name(), row.device);
    }
    Ok(())
}

fn to_json(row: &Availability) -> Value {
    let info = row.info.as_ref().ok();
    json!({
        "runtime": row.runtime.name(), "device": row.device.to_string(), "usable": info.is_some(),
        "version": info.map(|info| info.version.to_string()),
        "library": info.and_then(|info| info.library.as_ref()), "detail": row.to_string(),
    })
}
