//! The command line: its commands, options and help texts.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use densessm::{
    Device, Preset,
    proto::{self, ShapeProfile, SizeRange},
    runtime,
};
use std::path::PathBuf;

/// Exports DenseMamba and DenseRetNet checkpoints to ONNX graphs, runs them, and checks that they compute the same.
///
/// Exit codes: 0 success, 1 a check failed, 2 an error.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Export a checkpoint to a bundle: a prefill graph and a step graph that share one file of weights.
    Export(Export),
    /// Generate text with a bundle and print it token by token.
    Generate(Generate),
    /// Serve a bundle over HTTP, in the shape of OpenAI's interface, to many clients at once.
    #[cfg(feature = "serve")]
    Serve(crate::commands::serve::Serve),
    /// Run one graph of a bundle on tensors from a safetensors file.
    Run(Run),
    /// Measure the speed of a bundle and compare it with the limits of the machine.
    Bench(Bench),
    /// Compare a bundle with its checkpoint, in every execution mode.
    Parity(Parity),
    /// Evaluate a bundle on a text: perplexity and bits per byte.
    Eval(Eval),
    /// Show the contents of a bundle or an ONNX file and the cost of a token.
    Inspect(Inspect),
    /// Create a checkpoint with random weights, for benchmarks and tests.
    Init(Init),
    /// List the runtimes, GPUs and libraries of this machine: what can be used, and what is missing for the rest.
    Doctor(Doctor),
    /// Print a completion script for a shell.
    Completions(Completions),
    /// Write manual pages, one for each command.
    Man(Man),
}

#[derive(Args)]
pub(crate) struct Export {
    /// Checkpoint: a folder with config.json and weights (safetensors or pytorch_model.bin).
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Bundle to create: a folder that does not exist yet.
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) out: PathBuf,
    /// Graphs to write.
    #[arg(long, value_enum, default_value_t = Mode::Both)]
    pub(crate) mode: Mode,
    /// Number format of the weight matrices. With fp16 and bf16, the bundle also contains graphs that compute in this
    /// format, for GPUs; processors widen the weights when they load them and compute in fp32.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    pub(crate) precision: Precision,
    /// Logits that the parallel graph returns: of the last token of each row, or of every token.
    #[arg(long, value_enum, default_value_t = LogitsMode::Last)]
    pub(crate) logits: LogitsMode,
    /// Form of the custom operators: functions that a runtime may replace with kernels, or standard operators only.
    /// By default `function`, or what --target needs.
    #[arg(long, value_enum)]
    pub(crate) lowering: Option<Lowering>,
    /// Runtime outside this project that the bundle is meant for. Adds a README.md that describes its deployment.
    #[arg(long, value_enum)]
    pub(crate) target: Option<Target>,
    /// Version of the ONNX operator set, 18 to 22.
    #[arg(long, value_name = "N", default_value_t = 18)]
    pub(crate) opset: i64,
    /// Replace an existing bundle.
    #[arg(long)]
    pub(crate) force: bool,
    /// Compare the finished bundle with the checkpoint on a short prompt, as `parity` does; exit with code 1 if they
    /// differ.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Generate {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) prompt: PromptSource,
    /// Maximum number of tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_new_tokens: usize,
    /// Sampling temperature: above 1 flattens and below 1 sharpens the distribution; 0 takes the most likely token.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K most likely tokens; 0 is no limit.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Sample from the smallest set of most likely tokens whose probabilities add up to P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Seed of the sampler; the same seed gives the same text.
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Stop when this text is generated, and do not print it; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// File to save the states and pending tokens to, so that a later call can continue.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_state: Option<PathBuf>,
    /// File with states to continue from, written by --save-state.
    #[arg(long, value_name = "FILE")]
    pub(crate) load_state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
    /// Print text, tokens and timings as JSON at the end instead of the text as it is generated.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct PromptSource {
    /// Prompt.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// File that contains the prompt.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Run {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Graph to run.
    #[arg(long, value_enum)]
    pub(crate) graph: Graph,
    /// Safetensors file with the inputs by name; absent states are zeros.
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// Safetensors file to write the outputs to, by name.
    #[arg(long, value_name = "FILE")]
    pub(crate) outputs: PathBuf,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
}

#[derive(Args)]
pub(crate) struct Bench {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Prompt lengths to measure, in tokens.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128,512", value_parser = count(1 << 30))]
    pub(crate) prompt_tokens: Vec<usize>,
    /// Number of tokens to decode after each prompt.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count(1 << 30))]
    pub(crate) new_tokens: usize,
    /// Batch sizes to measure, in sequences.
    #[arg(long, value_name = "B,…", value_delimiter = ',', default_value = "1", value_parser = count(1 << 16))]
    pub(crate) batch: Vec<usize>,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
    /// File to save the report to; its extension selects the format: .json, .md or .html.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Parity {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Checkpoint that the bundle was exported from.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Runtimes to compare on.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Runtime::Auto])]
    pub(crate) runtimes: Vec<Runtime>,
    /// Device to run on: cpu, cuda[:N] or tensorrt[:N], where N is the index of the GPU. There is no fallback to
    /// another device.
    #[arg(long, default_value_t = Device::CPU)]
    pub(crate) device: Device,
    /// Number of threads within one operator; the runtime's default if absent.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) gpu: GpuArgs,
    /// A text whose beginning is the prompt; pseudo-random tokens by default.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Number of tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 65)]
    pub(crate) prompt_tokens: usize,
    /// Number of tokens to generate greedily after the prompt.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) new_tokens: usize,
    /// Number of steps of an additional long run; 0 for none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) drift: usize,
    /// Save the report as .json, .md or .html, with the error of every layer: this loads every graph once more.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Eval {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Text file.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Number of tokens of a window; each window starts from states of zeros.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) window: usize,
    /// Number of tokens from the beginning of one window to that of the next, by default the window's length. Every
    /// token is scored once, after the first window with at least window - stride tokens of context.
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Number of windows in a batch.
    #[arg(long, value_name = "B", default_value_t = 8)]
    pub(crate) batch: usize,
    /// Limit the text to N tokens.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Exit with code 1 if the perplexity is above this.
    #[arg(long, value_name = "PPL")]
    pub(crate) threshold: Option<f64>,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
    /// File to save the report to; its extension selects the format: .json, .md or .html.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Inspect {
    /// Bundle, or .onnx file.
    pub(crate) path: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Init {
    /// Family and size of the model.
    #[arg(long)]
    pub(crate) preset: Preset,
    /// Checkpoint to create: a folder that does not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of the weights; the same seed gives the same weights.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Replace an existing checkpoint.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Doctor {
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Completions {
    /// Shell whose script to print.
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Args)]
pub(crate) struct Man {
    /// Folder to write the pages to; it is created if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// The runtime and device that a command runs on.
#[derive(Args)]
pub(crate) struct RuntimeArgs {
    /// Runtime to use; `auto` takes ONNX Runtime if it can be used on the device, otherwise tract, and prints which.
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub(crate) runtime: Runtime,
    /// Device to run on: cpu, cuda[:N] or tensorrt[:N], where N is the index of the GPU. There is no fallback to
    /// another device.
    #[arg(long, default_value_t = Device::CPU)]
    pub(crate) device: Device,
    /// Number of threads within one operator; the runtime's default if absent.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
    #[command(flatten)]
    pub(crate) gpu: GpuArgs,
}

/// How a command uses a GPU; without effect on the CPU.
#[derive(Args, Clone, Copy)]
pub(crate) struct GpuArgs {
    /// Launch the kernels of each step one by one instead of as a captured CUDA graph. The results are the same.
    #[arg(long)]
    pub(crate) no_cuda_graph: bool,
    /// Allow nodes of this project's operators to run without its kernels for the GPU: on the CPU, or as functions of
    /// standard operators. Without this option, such a node is an error.
    #[arg(long)]
    pub(crate) allow_operator_fallback: bool,
    /// On TensorRT: the smallest, the optimal and the largest number of sequences in a batch. Engines are built for these
    /// sizes when a bundle is first loaded with them.
    #[arg(long, value_name = "MIN,OPT,MAX", default_value_t = ShapeProfile::default().batch)]
    pub(crate) batch_profile: SizeRange,
    /// On TensorRT: the smallest, the optimal and the largest number of tokens in a call of the parallel graph.
    #[arg(long, value_name = "MIN,OPT,MAX", default_value_t = ShapeProfile::default().prompt)]
    pub(crate) prompt_profile: SizeRange,
}

impl GpuArgs {
    pub(crate) fn shape_profile(&self) -> ShapeProfile {
        ShapeProfile::new(self.batch_profile, self.prompt_profile)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Only the prefill graph.
    Parallel,
    /// Only the step graph.
    Recurrent,
    /// Both graphs.
    Both,
}

impl Mode {
    pub(crate) fn graphs(self) -> Vec<proto::GraphKind> {
        match self {
            Self::Parallel => vec![proto::GraphKind::Parallel],
            Self::Recurrent => vec![proto::GraphKind::Recurrent],
            Self::Both => vec![proto::GraphKind::Parallel, proto::GraphKind::Recurrent],
        }
    }
}

/// Declares the command-line values for the variants of a type of the library.
macro_rules! value_enum {
    ($name:ident => $of:ty { $($(#[$doc:meta])* $variant:ident => $value:expr),+ $(,)? }) => {
        #[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
        pub(crate) enum $name {
            $($(#[$doc])* $variant),+
        }

        impl From<$name> for $of {
            fn from(word: $name) -> Self {
                match word {
                    $($name::$variant => $value),+
                }
            }
        }
    };
}

value_enum!(Precision => proto::Precision {
    /// 32-bit floating-point numbers.
    Fp32 => proto::Precision::Fp32,
    /// 16-bit IEEE floating-point numbers.
    Fp16 => proto::Precision::Fp16,
    /// 16-bit floating-point numbers with the range of 32-bit ones (bfloat16).
    Bf16 => proto::Precision::Bf16,
});

value_enum!(LogitsMode => proto::LogitsMode {
    /// Of the last valid token of each row.
    Last => proto::LogitsMode::Last,
    /// Of every token.
    All => proto::LogitsMode::All,
});

value_enum!(Lowering => proto::Lowering {
    /// Custom operators, each with a function of standard operators that runs where there is no kernel.
    Function => proto::Lowering::Function,
    /// Standard operators only.
    Inline => proto::Lowering::Inline,
});

value_enum!(Target => densessm::Target {
    /// TensorRT, by itself or as a provider of ONNX Runtime: implies --lowering inline.
    Tensorrt => densessm::Target::TensorRt,
});

value_enum!(Graph => proto::GraphKind {
    /// The prefill graph.
    Parallel => proto::GraphKind::Parallel,
    /// The step graph.
    Recurrent => proto::GraphKind::Recurrent,
});

value_enum!(Runtime => runtime::Choice {
    /// ONNX Runtime if it can be used on the device, otherwise tract.
    Auto => runtime::Choice::Auto,
    /// ONNX Runtime.
    Ort => runtime::Choice::Ort,
    /// tract, which is compiled in.
    Tract => runtime::Choice::Tract,
});

/// Parses a number from 1 to a limit beyond which memory would be exhausted at once.
fn count(most: u64) -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=most)
}
