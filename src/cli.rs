//! The command line: what can be said, and nothing of what it does.

use clap::{Args, Parser, Subcommand, ValueEnum};
use densessm::{Device, Preset, proto, runtime};
use std::path::PathBuf;

/// DenseMamba and DenseRetNet checkpoints out of PyTorch and into production, as ONNX graphs.
///
/// Exit codes: 0 done, 1 a check failed, 2 an error.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Export a checkpoint to a bundle: a prefill graph and a step graph over one file of weights.
    Export(Export),
    /// Generate text from a bundle, streamed as it is made.
    Generate(Generate),
    /// Run one graph of a bundle on the tensors of a safetensors file.
    Run(Run),
    /// Measure how fast a bundle runs here, beside what the machine allows.
    Bench(Bench),
    /// Compare a bundle with its checkpoint, in every execution mode.
    Parity(Parity),
    /// Evaluate a bundle on a text: perplexity and bits per byte.
    Eval(Eval),
    /// Show what a bundle or an ONNX file holds, and what a token costs.
    Inspect(Inspect),
    /// Make a checkpoint with random weights, for benchmarks and tests.
    Init(Init),
    /// Say which runtimes and devices can be used here, and why the others cannot.
    Doctor(Doctor),
}

#[derive(Args)]
pub(crate) struct Export {
    /// The checkpoint: a folder with config.json and weights (safetensors or pytorch_model.bin).
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The bundle to make: a folder that does not exist yet.
    #[arg(long, value_name = "BUNDLE")]
    pub(crate) out: PathBuf,
    /// Which graphs to write.
    #[arg(long, value_enum, default_value_t = Mode::Both)]
    pub(crate) mode: Mode,
    /// How to store the weights.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    pub(crate) precision: Precision,
    /// Which logits the parallel graph returns: each row's last token's, or all.
    #[arg(long, value_enum, default_value_t = LogitsMode::Last)]
    pub(crate) logits: LogitsMode,
    /// How to write the custom operators: as functions that runtimes may replace, or as standard operators only.
    #[arg(long, value_enum, default_value_t = Lowering::Function)]
    pub(crate) lowering: Lowering,
    /// Version of ONNX's operator set, 18 to 22.
    #[arg(long, value_name = "N", default_value_t = 18)]
    pub(crate) opset: i64,
    /// Replace a bundle that is there already.
    #[arg(long)]
    pub(crate) force: bool,
    /// Compare the bundle with the checkpoint once it is written, as `parity` does, on a short prompt; exit code 1 if
    /// they do not agree.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Generate {
    /// The bundle.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    #[command(flatten)]
    pub(crate) prompt: PromptSource,
    /// End after so many tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_new_tokens: usize,
    /// Flatten (above 1) or sharpen (below 1) the distribution; 0 takes the argmax token.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Choose among the K argmax tokens; 0 is all.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Choose among the argmax tokens that together have probability P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Seed of the draw: the same seed gives the same text.
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// End at this text, which is not printed; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Save the states and what is pending, to go on from later.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_state: Option<PathBuf>,
    /// Go on from states saved earlier.
    #[arg(long, value_name = "FILE")]
    pub(crate) load_state: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
    /// Report text, tokens and timings as JSON instead of streaming the text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct PromptSource {
    /// The prompt.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A file that holds the prompt.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Run {
    /// The bundle.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// The graph to run.
    #[arg(long, value_enum)]
    pub(crate) graph: Graph,
    /// The inputs by name; states that are absent are zeros.
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: PathBuf,
    /// Where to write the outputs by name.
    #[arg(long, value_name = "FILE")]
    pub(crate) outputs: PathBuf,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
}

#[derive(Args)]
pub(crate) struct Bench {
    /// The bundle.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Lengths of the prompts to read, in tokens.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "128,512", value_parser = count(1 << 30))]
    pub(crate) prompt_tokens: Vec<usize>,
    /// Tokens to decode after each prompt.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count(1 << 30))]
    pub(crate) new_tokens: usize,
    /// Numbers of sequences to run side by side.
    #[arg(long, value_name = "B,…", value_delimiter = ',', default_value = "1", value_parser = count(1 << 16))]
    pub(crate) batch: Vec<usize>,
    #[command(flatten)]
    pub(crate) on: RuntimeArgs,
    /// Save the report, in the form that the name asks for: .json, .md or .html.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Parity {
    /// The bundle.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// The checkpoint it was made of.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The runtimes to compare on.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Runtime::Auto])]
    pub(crate) runtimes: Vec<Runtime>,
    /// The device; there is no fallback to another one.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    pub(crate) device: DeviceName,
    /// Threads within one operator; the runtime's own choice if absent.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
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
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Eval {
    /// The bundle.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// The text.
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
    /// Save the report, in the form that the name asks for: .json, .md or .html.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Inspect {
    /// A bundle or an .onnx file.
    pub(crate) path: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Init {
    /// The model's family and size.
    #[arg(long, value_parser = preset)]
    pub(crate) preset: Preset,
    /// The checkpoint to make: a folder that does not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seed of the weights: the same seed gives the same weights.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Replace a checkpoint that is there already.
    #[arg(long)]
    pub(crate) force: bool,
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Doctor {
    /// Report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where to run.
#[derive(Args)]
pub(crate) struct RuntimeArgs {
    /// The runtime; `auto` takes ONNX Runtime if one is found, else tract, and says which.
    #[arg(long, value_enum, default_value_t = Runtime::Auto)]
    pub(crate) runtime: Runtime,
    /// The device; there is no fallback to another one.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    pub(crate) device: DeviceName,
    /// Threads within one operator; the runtime's own choice if absent.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) threads: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The prefill graph.
    Parallel,
    /// The step graph.
    Recurrent,
    /// Both.
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

/// A command-line word for each variant of a type of the library.
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
    /// 32-bit floats.
    Fp32 => proto::Precision::Fp32,
});

value_enum!(LogitsMode => proto::LogitsMode {
    /// Each row's last valid token's.
    Last => proto::LogitsMode::Last,
    /// Every token's.
    All => proto::LogitsMode::All,
});

value_enum!(Lowering => proto::Lowering {
    /// Custom operators with functions of standard operators behind them.
    Function => proto::Lowering::Function,
    /// Standard operators only.
    Inline => proto::Lowering::Inline,
});

value_enum!(Graph => proto::GraphKind {
    /// Prefill.
    Parallel => proto::GraphKind::Parallel,
    /// Stepping.
    Recurrent => proto::GraphKind::Recurrent,
});

value_enum!(Runtime => runtime::Choice {
    /// ONNX Runtime if one is found, else tract.
    Auto => runtime::Choice::Auto,
    /// ONNX Runtime.
    Ort => runtime::Choice::Ort,
    /// tract, pure Rust.
    Tract => runtime::Choice::Tract,
});

value_enum!(DeviceName => Device {
    /// The processor.
    Cpu => Device::Cpu,
    /// An NVIDIA card through CUDA.
    Cuda => Device::Cuda,
    /// An NVIDIA card through TensorRT.
    Tensorrt => Device::TensorRt,
});

/// A number from 1 up to one whose work can still be asked for without running out of memory at once.
fn count(most: u64) -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=most)
}

fn preset(name: &str) -> Result<Preset, String> {
    Preset::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
        let names = Preset::ALL.map(Preset::name).join(", ");
        format!("expected one of {names}")
    })
}
