//! What the assembler reports of each kernel.

/// The resources that a kernel needs, as `ptxas -v` reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelResources {
    /// The kernel's name.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack frame, which lies in local memory.
    pub stack_bytes: u32,
    /// Bytes that a thread stores because registers do not suffice.
    pub spill_store_bytes: u32,
    /// Bytes that a thread loads for the same reason.
    pub spill_load_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub shared_bytes: u32,
}

impl KernelResources {
    /// Whether registers suffice.
    pub fn spills(&self) -> bool {
        self.spill_store_bytes + self.spill_load_bytes > 0
    }

    /// Reads the log of a compilation with `--ptxas-options=-v`.
    pub(crate) fn from_log(log: &str) -> Vec<Self> {
        let mut kernels: Vec<Self> = Vec::new();
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
                kernels.push(Self { kernel, ..Self::default() });
                continue;
            }
            let Some(kernel) = kernels.last_mut() else { continue };
            for part in line.split([',', ':']) {
                let part = part.trim().trim_start_matches("Used ");
                let Some((number, what)) = part.split_once(' ') else { continue };
                let Ok(number) = number.parse() else { continue };
                match what {
                    "registers" => kernel.registers = number,
                    "bytes stack frame" => kernel.stack_bytes = number,
                    "bytes spill stores" => kernel.spill_store_bytes = number,
                    "bytes spill loads" => kernel.spill_load_bytes = number,
                    "bytes smem" => kernel.shared_bytes = number,
                    _ => {}
                }
            }
        }
        kernels
    }
}

#[cfg(test)]
mod tests {
    use super::KernelResources;

    #[test]
    fn resources_are_read_from_the_log() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'step' for 'sm_90'
ptxas info    : Function properties for step
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'scan' for 'sm_90'
ptxas info    : Function properties for scan
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
";
        let kernels = KernelResources::from_log(log);
        assert_eq!(kernels.len(), 2);
        assert_eq!(kernels[0].kernel, "step");
        assert_eq!([kernels[0].registers, kernels[0].stack_bytes, kernels[0].shared_bytes], [40, 8, 1024]);
        assert_eq!([kernels[0].spill_store_bytes, kernels[0].spill_load_bytes], [4, 12]);
        assert!(kernels[0].spills() && !kernels[1].spills());
        assert_eq!(kernels[1].registers, 8);
    }
}
