//! Checks and times every CUDA kernel on the GPU of this machine: `cuda [filter]`.
//!
//! Each kernel runs on fresh random data, into outputs filled with NaN, and is compared with its formulas in f64 on the
//! CPU. Times are medians, measured with events. Results are printed, and written as JSON to the folder in `OUT`.

mod gpu;
mod mamba;
mod mamba_model;
mod operators;
mod retention;
mod retnet;

use gpu::Gpu;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut gpu = Gpu::open(seed)?;
    let wanted = |name: &str| name.contains(&filter) || filter.is_empty();
    gpu.bandwidth()?;
    type Check = fn(&mut Gpu) -> Result<(), Box<dyn std::error::Error>>;
    let checks: [(&str, Check); 9] = [
        ("causal_conv", operators::causal_conv),
        ("selective_scan", operators::selective_scan),
        ("selective_step", operators::selective_step),
        ("dense_norm", operators::dense_norm),
        ("retention_step", retention::step),
        ("retention_recurrent", retention::recurrent),
        ("retention_chunks", retention::chunks),
        ("mamba_step", mamba::check),
        ("retnet_step", retnet::check),
    ];
    for (name, check) in checks {
        if wanted(name)
            && let Err(error) = check(&mut gpu)
        {
            gpu.failed(name, &error.to_string());
        }
    }
    gpu.finish()
}
