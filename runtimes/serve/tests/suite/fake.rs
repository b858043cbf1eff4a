//! A model whose scores are a function of all the tokens that a row consumed, so that a token that is lost, doubled or
//! swapped changes every score after it.

use densessm_generate::{GenerateOptions, Prompt, Sampling, Tokenizer, generate};
use densessm_proto::{
    Architecture, DenseMamba, FileEntry, GraphKind, LogitsMode, Lowering, Manifest, Precision, Projection,
    manifest::{FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE},
};
use densessm_serve::{Scheduler, SchedulerOptions};
use densessm_session::{
    Bundle, Device, Error, HostTensor, Logits, Model, RuntimeId, RuntimeInfo, Snapshot, StateStore, States, TokenBatch,
    Values, Version, signature,
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

pub(crate) const VOCABULARY: usize = 1024;
/// Tokens of one owner: see [`Speech::Owned`].
pub(crate) const OWNED: u32 = 32;
/// What the manifest says that a state takes.
pub(crate) const STATE_BYTES: u64 = 1000;
const HISTORY: &str = "history";

/// A call of the model: the graph, and the tokens that each row was fed.
pub(crate) type Call = (GraphKind, Vec<Vec<i64>>);

pub(crate) fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints").join(name)
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::open(checkpoint("densemamba-tiny")).unwrap()
}

/// What the model generates.
#[derive(Clone, Copy)]
pub(crate) enum Speech {
    /// Pseudo-random scores, determined by the whole history.
    Noise,
    /// Tokens of one owner only: those from `OWNED * k` up for a sequence that began with one of them. The model panics
    /// when a row holds tokens of two owners.
    Owned,
    /// No numbers, once the history has this length.
    NaN(usize),
}

pub(crate) struct FakeModel {
    bundle: Bundle,
    _folder: tempfile::TempDir,
    info: RuntimeInfo,
    speech: Speech,
    pub(crate) calls: Arc<Mutex<Vec<Call>>>,
    /// The call that fails, counted from 0.
    pub(crate) fails_at: Option<usize>,
    /// How long each call takes.
    pub(crate) delay: Duration,
    logits: Vec<f32>,
}

/// All tokens that each row has consumed.
#[derive(Clone)]
struct History(Vec<Vec<i64>>);

impl StateStore for History {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn select(&self, rows: &[usize]) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(Self(rows.iter().map(|&row| self.0[row].clone()).collect())))
    }

    fn join(&mut self, other: &dyn StateStore, rows: &[usize]) -> Result<(), Error> {
        let other: &Self = other.downcast_ref()?;
        self.0.extend(rows.iter().map(|&row| other.0[row].clone()));
        Ok(())
    }

    fn swap_remove(&mut self, row: usize) -> Result<(), Error> {
        self.0.swap_remove(row);
        Ok(())
    }

    fn reserve(&mut self, _: usize) -> Result<(), Error> {
        Ok(())
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        let values = self.0.concat();
        let shape = vec![self.0.len(), values.len() / self.0.len()];
        Ok(BTreeMap::from([(HISTORY.to_owned(), HostTensor { shape, values: Values::Int64(values) })]))
    }
}

impl FakeModel {
    pub(crate) fn new(graphs: &[GraphKind], logits: LogitsMode, speech: Speech) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = graphs.iter().map(|kind| kind.file()).chain([WEIGHTS_FILE]);
        let file = |name: &str| {
            std::fs::write(folder.path().join(name), b"").unwrap();
            FileEntry { name: name.to_owned(), size: 0, sha256: "0123456789abcdef".repeat(4) }
        };
        let architecture = Architecture::DenseMamba(DenseMamba {
            vocab_size: VOCABULARY,
            hidden_size: 1,
            num_hidden_layers: 1,
            intermediate_size: 1,
            state_size: STATE_BYTES as usize / 4,
            conv_kernel: 1,
            time_step_rank: 1,
            use_bias: false,
            use_conv_bias: false,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            dense_block_layers: 0,
            channel_gate: None,
            state_gate: None,
            dense_projection: Projection::Identity,
        });
        let graphs = graphs.iter().map(|&kind| signature(&architecture, kind, logits)).collect();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            tool_version: "0".to_owned(),
            architecture,
            precision: Precision::Fp32,
            opset: 18,
            lowering: Lowering::Inline,
            logits,
            graphs,
            state_bytes_per_sequence: STATE_BYTES,
            files: names.map(file).collect(),
        };
        std::fs::write(folder.path().join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        Self {
            bundle: Bundle::open(folder.path()).unwrap(),
            _folder: folder,
            info: RuntimeInfo::new(RuntimeId::Other("fake"), Version::new(0, 0, 0), Device::CPU),
            speech,
            calls: Arc::default(),
            fails_at: None,
            delay: Duration::ZERO,
            logits: Vec::new(),
        }
    }

    pub(crate) fn both(speech: Speech) -> Self {
        Self::new(&[GraphKind::Parallel, GraphKind::Recurrent], LogitsMode::Last, speech)
    }

    pub(crate) fn serve(self, options: SchedulerOptions) -> Scheduler {
        Scheduler::start(Box::new(self), tokenizer(), options).unwrap()
    }

    fn states(&self, rows: Vec<Vec<i64>>, lengths: Vec<i64>) -> States {
        States::new(&self.bundle, Box::new(History(rows)), lengths)
    }

    fn call(&mut self, graph: GraphKind, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        assert!(self.bundle.manifest().graph(graph).is_some(), "a graph the bundle does not hold was called");
        std::thread::sleep(self.delay);
        let width = tokens.len() / states.batch();
        let call = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((graph, tokens.chunks(width).map(<[i64]>::to_vec).collect()));
            calls.len() - 1
        };
        if self.fails_at == Some(call) {
            return Err(Error::Runtime { what: "fake".to_owned(), problem: "failed on purpose".to_owned() });
        }
        let all = graph == GraphKind::Parallel && self.bundle.manifest().logits == LogitsMode::All;
        let History(rows) = states.store(&self.bundle)?;
        self.logits.clear();
        for (row, tokens) in rows.iter_mut().zip(tokens.chunks(width)) {
            for (at, &token) in tokens.iter().enumerate() {
                row.push(token);
                if all || at + 1 == width {
                    self.logits.extend(self.speech.scores(row));
                }
            }
        }
        states.advance(vec![width; tokens.len() / width]);
        let positions = if all { width } else { 1 };
        Ok(Logits { positions, vocabulary: VOCABULARY, values: &self.logits })
    }
}

impl Speech {
    /// The scores after a history.
    pub(crate) fn scores(self, history: &[i64]) -> Vec<f32> {
        let seed = history.iter().fold(17_u64, |hash, &token| mix(hash ^ token as u64));
        match self {
            Self::NaN(length) if history.len() >= length => vec![f32::NAN; VOCABULARY],
            Self::Noise | Self::NaN(_) => (0..VOCABULARY as u32)
                .map(|token| (mix(seed ^ u64::from(token) << 32) >> 44) as f32 / (1 << 17) as f32)
                .collect(),
            Self::Owned => {
                let owner = history[0] as u32 / OWNED;
                let foreign = history.iter().find(|&&token| token as u32 / OWNED != owner);
                assert_eq!(foreign, None, "a sequence of {owner} contains another's token");
                let token = owner * OWNED + (seed >> 33) as u32 % OWNED;
                (0..VOCABULARY as u32).map(|other| if other == token { 1.0 } else { 0.0 }).collect()
            }
        }
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    x ^ (x >> 29)
}

/// Pseudo-random numbers, the same in every run.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Options that draw: no two histories have the same text.
pub(crate) fn sampled(new_tokens: usize, seed: u64) -> GenerateOptions {
    GenerateOptions::default().with_max_new_tokens(new_tokens).with_sampling(Sampling::new(1.0).with_seed(seed))
}

/// The text and the tokens that a model generates when nothing runs beside it.
pub(crate) fn alone(speech: Speech, prompt: &[u32], options: &GenerateOptions) -> (String, Vec<u32>) {
    let mut model = FakeModel::both(speech);
    let pieces = generate(&mut model, &tokenizer(), Prompt::tokens(prompt), options.clone()).unwrap();
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in pieces {
        let piece = piece.unwrap();
        text.push_str(&piece.text);
        tokens.extend(piece.token);
    }
    (text, tokens)
}

impl Model for FakeModel {
    fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    fn initial_states(&mut self, batch: usize) -> Result<States, Error> {
        Ok(self.states(vec![Vec::new(); batch], vec![0; batch]))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<States, Error> {
        match snapshot.tensors().get(HISTORY).map(|history| &history.values) {
            Some(Values::Int64(tokens)) => Ok(self.states(vec![tokens.clone()], snapshot.lengths().to_vec())),
            _ => Err(Error::Input { name: HISTORY.to_owned(), problem: "missing".to_owned() }),
        }
    }

    fn prefill(&mut self, tokens: &TokenBatch<'_>, states: &mut States) -> Result<Logits<'_>, Error> {
        assert!(tokens.lengths().iter().all(|&length| length == tokens.width()));
        self.call(GraphKind::Parallel, tokens.ids(), states)
    }

    fn step(&mut self, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        assert_eq!(tokens.len(), states.batch());
        self.call(GraphKind::Recurrent, tokens, states)
    }

    fn run(&mut self, kind: GraphKind, _: BTreeMap<String, HostTensor>) -> Result<BTreeMap<String, HostTensor>, Error> {
        Err(Error::NotLoaded { graph: kind })
    }
}
