//! `densessm doctor`

use crate::cli;
use crate::terminal::outln;
use anyhow::Result;
use densessm::{Device, runtime};
use densessm_kernels::Level;
use densessm_session::Availability;
use serde_json::json;

const DEVICES: [Device; 3] = [Device::Cpu, Device::Cuda, Device::TensorRt];

pub(crate) fn run(arguments: &cli::Doctor) -> Result<()> {
    let rows: Vec<_> = runtime::ALL
        .into_iter()
        .flat_map(|choice| DEVICES.map(|device| (choice, device, choice.availability(device))))
        .collect();
    let kernels = Level::best().to_string();
    if arguments.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(choice, device, availability)| {
                let (usable, detail) = parts(availability);
                json!({ "runtime": choice.name(), "device": device.to_string(), "usable": usable, "detail": detail })
            })
            .collect();
        outln!("{:#}", json!({ "version": env!("CARGO_PKG_VERSION"), "kernels": kernels, "runtimes": rows }));
        return Ok(());
    }
    outln!("densessm {}, kernels for {kernels}", env!("CARGO_PKG_VERSION"));
    for (choice, device, availability) in &rows {
        let (usable, detail) = parts(availability);
        outln!("{:<5} {:<8} {:<3} {detail}", choice.name(), device.to_string(), if usable { "yes" } else { "no" });
    }
    Ok(())
}

fn parts(availability: &Availability) -> (bool, &str) {
    match availability {
        Availability::Usable(detail) => (true, detail),
        Availability::Unusable(detail) => (false, detail),
    }
}
