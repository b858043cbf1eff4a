//! The kernel that measures the bandwidth compiles with NVRTC, which needs no GPU.
//!
//! Skipped, with a message, where NVRTC is not installed, unless `DENSESSM_NVRTC` names it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_cuda::{Architecture, Cache, Compiler, Nvrtc, read_unit};
use std::env;

#[test]
fn the_kernel_that_reads_compiles_for_every_architecture_without_spills() {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(error) if env::var_os("DENSESSM_NVRTC").is_none() => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let compiler = Compiler::new(nvrtc, Cache::disabled());
    for architecture in [Architecture::new(8, 0), Architecture::new(9, 0), Architecture::new(12, 0)] {
        let compiled = compiler.compile(&read_unit(), architecture).unwrap();
        let [kernel] = &compiled.resources[..] else { panic!("{:?}", compiled.resources) };
        assert!(kernel.kernel == "read" && !kernel.spills() && kernel.stack_bytes == 0, "{kernel:?}");
        // As many blocks as are launched fit at once: their 1024 threads share 65536 registers.
        assert!(kernel.registers <= 64, "{kernel:?}");
    }
}
