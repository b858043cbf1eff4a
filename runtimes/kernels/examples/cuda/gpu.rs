//! The GPU, random data, comparisons and times.

use densessm_cuda::{
    Arguments, Buffer, Cache, Compiler, Context, Driver, Event, Function, Graph, LaunchShape, Module, Nvrtc, Plain,
    Stream, Unit,
};
use densessm_kernels::cuda::Activation;
use half::{bf16, f16};
use std::{error::Error, fmt::Write as _, sync::Arc, time::Instant};

/// Random numbers of a tensor before they repeat themselves.
const PERIOD: usize = 1_048_573;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

pub(crate) struct Gpu {
    pub(crate) stream: Stream,
    pub(crate) context: Arc<Context>,
    compiler: Compiler,
    state: u64,
    bandwidth: f64,
    json: String,
    failures: Vec<String>,
}

/// Numbers on the CPU, as the GPU has them.
pub(crate) struct Tensor {
    pub(crate) host: Vec<f32>,
    pub(crate) device: Buffer<u8>,
    pub(crate) activation: Activation,
}

impl Tensor {
    pub(crate) fn address(&self) -> u64 {
        self.device.address()
    }
}

pub(crate) fn encode(activation: Activation, values: &[f32]) -> Vec<u8> {
    match activation {
        Activation::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Activation::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

pub(crate) fn decode(activation: Activation, bytes: &[u8]) -> Vec<f32> {
    match activation {
        Activation::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Activation::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// `‖got − expected‖ / ‖expected‖`; NaN where a number is none.
pub(crate) fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    if got.len() != expected.len() {
        return f64::NAN;
    }
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
    let norm: f64 = expected.iter().map(|e| e * e).sum();
    if norm == 0.0 { difference } else { (difference / norm).sqrt() }
}

impl Gpu {
    pub(crate) fn open(seed: u64) -> Outcome<Self> {
        let start = Instant::now();
        let driver = Driver::open()?;
        let context = Context::primary(&driver, 0)?;
        let nvrtc = Nvrtc::open()?;
        let info = context.info();
        println!(
            "{}, {}, {} multiprocessors, driver for CUDA {:?}",
            info.name,
            info.architecture,
            info.multiprocessors,
            driver.version()
        );
        println!(
            "NVRTC {:?} at {}; opened in {:.0} ms",
            nvrtc.version(),
            nvrtc.path().display(),
            start.elapsed().as_secs_f64() * 1e3
        );
        let compiler = Compiler::new(nvrtc, Cache::from_environment());
        let stream = Stream::new(&context)?;
        let json = format!("{{\"gpu\": \"{}\"", info.name);
        Ok(Self { stream, context, compiler, state: seed, bandwidth: f64::NAN, json, failures: Vec::new() })
    }

    pub(crate) fn finish(mut self) -> Outcome {
        self.json.push_str("}\n");
        if let Some(folder) = std::env::var_os("OUT") {
            std::fs::write(std::path::Path::new(&folder).join("kernels.json"), &self.json)?;
        }
        if self.failures.is_empty() {
            println!("all checks passed");
            return Ok(());
        }
        Err(format!("{} checks failed: {}", self.failures.len(), self.failures.join("; ")).into())
    }

    /// Uniform in -1 … 1.
    pub(crate) fn random(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn tensor(
        &mut self,
        activation: Activation,
        len: usize,
        number: impl Fn(f32) -> f32,
    ) -> Outcome<Tensor> {
        // Long tensors repeat themselves with a period that no size is a multiple of.
        let values: Vec<f32> = (0..len.min(PERIOD)).map(|_| number(self.random())).collect();
        let bytes = encode(activation, &values);
        let host = decode(activation, &bytes).into_iter().cycle().take(len).collect();
        let repeated: Vec<u8>;
        let all = if len > PERIOD {
            repeated = bytes.repeat(len.div_ceil(PERIOD));
            &repeated[..len * activation.bytes()]
        } else {
            &bytes[..]
        };
        Ok(Tensor { host, device: Buffer::from_slice(&self.stream, all)?, activation })
    }

    /// An output, filled with NaN.
    pub(crate) fn output(&self, activation: Activation, len: usize) -> Outcome<Tensor> {
        let device = Buffer::new(&self.context, len * activation.bytes())?;
        device.fill_bytes(&self.stream, 0xff)?;
        Ok(Tensor { host: vec![f32::NAN; len], device, activation })
    }

    pub(crate) fn integers(&self, values: &[i32]) -> Outcome<Buffer<i32>> {
        Ok(Buffer::from_slice(&self.stream, values)?)
    }

    pub(crate) fn zeros<T: Plain>(&self, len: usize) -> Outcome<Buffer<T>> {
        let buffer = Buffer::new(&self.context, len)?;
        buffer.fill_bytes(&self.stream, 0)?;
        Ok(buffer)
    }

    pub(crate) fn read(&self, tensor: &Tensor) -> Outcome<Vec<f32>> {
        let mut bytes = vec![0; tensor.device.len()];
        tensor.device.read(&self.stream, 0, &mut bytes)?;
        Ok(decode(tensor.activation, &bytes))
    }

    pub(crate) fn module(&self, unit: &Unit) -> Outcome<Arc<Module>> {
        let start = Instant::now();
        let compiled = self.compiler.compile(unit, self.context.info().architecture)?;
        let time = start.elapsed().as_secs_f64() * 1e3;
        for kernel in &compiled.resources {
            println!(
                "  {} {:?}: {} registers, {} bytes spilled, {} bytes of stack; {time:.0} ms, {:?}",
                kernel.kernel,
                unit.options(self.context.info().architecture).split_off(5),
                kernel.registers,
                kernel.spill_store_bytes,
                kernel.stack_bytes,
                compiled.cache,
            );
        }
        Ok(self.context.load(&compiled.image)?)
    }

    /// Compiles what is used later, on all processors.
    pub(crate) fn compile(&self, units: &[Unit]) -> Outcome {
        let start = Instant::now();
        self.compiler.compile_all(units, self.context.info().architecture, &mut |_, _, _| {})?;
        println!("{} units compiled in {:.1} s", units.len(), start.elapsed().as_secs_f64());
        Ok(())
    }

    pub(crate) fn launch(&self, function: &Function, shape: LaunchShape, arguments: &[u64]) -> Outcome {
        function.prepare(&shape)?;
        // SAFETY: every kernel here takes one structure of eight-byte members, whose addresses are those of buffers that
        // the caller keeps.
        Ok(unsafe { function.launch(&self.stream, &shape, &Arguments::new().words(arguments)) }?)
    }

    /// The median time in milliseconds of some launches.
    pub(crate) fn time(&self, mut launch: impl FnMut() -> Outcome) -> Outcome<f64> {
        for _ in 0..3 {
            launch()?;
        }
        let mut times = Vec::new();
        let (before, after) = (Event::new(&self.context)?, Event::new(&self.context)?);
        for _ in 0..25 {
            before.record(&self.stream)?;
            launch()?;
            after.record(&self.stream)?;
            times.push(f64::from(after.milliseconds_since(&before)?));
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// As [`time`](Self::time), in a captured graph.
    pub(crate) fn time_graph(&self, launch: impl FnOnce() -> Outcome) -> Outcome<f64> {
        let mut problem = None;
        let graph = Graph::capture(&self.stream, || {
            problem = launch().err();
            Ok::<_, densessm_cuda::Error>(())
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        let graph = graph.instantiate()?;
        // SAFETY: the caller keeps the buffers.
        self.time(|| Ok(unsafe { graph.launch(&self.stream) }?))
    }

    pub(crate) fn bandwidth(&mut self) -> Outcome {
        let bytes = 1 << 30;
        let (from, to) = (self.zeros::<u8>(bytes)?, self.zeros::<u8>(bytes)?);
        let time = self.time(|| Ok(to.copy_from(&self.stream, &from)?))?;
        self.bandwidth = 2.0 * bytes as f64 / time / 1e6;
        println!("copy: {:.0} GB/s", self.bandwidth);
        let _ = write!(self.json, ", \"copy GB/s\": {:.1}", self.bandwidth);
        Ok(())
    }

    pub(crate) fn report_error(&mut self, name: &str, error: f64, tolerance: f64) {
        // A NaN is no smaller than the tolerance.
        let passed = error < tolerance;
        println!(
            "{name}: relative error {error:.2e}, tolerance {tolerance:.0e}: {}",
            if passed { "ok" } else { "FAILED" }
        );
        let _ = write!(self.json, ", \"{name} error\": \"{error:e}\"");
        if !passed {
            self.failures.push(format!("{name}: {error:.2e}"));
        }
    }

    pub(crate) fn report_time(&mut self, name: &str, milliseconds: f64, bytes: f64) {
        let rate = bytes / milliseconds / 1e6;
        let fraction = 100.0 * rate / self.bandwidth;
        println!("{name}: {:.1} us, {rate:.0} GB/s, {fraction:.0} % of a copy", milliseconds * 1e3);
        let _ = write!(self.json, ", \"{name} us\": {:.2}", milliseconds * 1e3);
    }

    pub(crate) fn failed(&mut self, name: &str, problem: &str) {
        println!("{name}: FAILED: {problem}");
        self.failures.push(format!("{name}: {problem}"));
    }
}

/// What rounding to the activations' type may cost.
pub(crate) fn tolerance(activation: Activation) -> f64 {
    match activation {
        Activation::F16 => 2e-3,
        Activation::Bf16 => 1.5e-2,
        _ => 3e-6,
    }
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
