//! A model whose scores are a function of all the tokens that it consumed, so that a token that is lost, doubled or
//! swapped changes every score after it; and a bundle whose manifest lists the given graphs.

use densessm_generate::Tokenizer;
use densessm_proto::{
    Architecture, DenseMamba, FileEntry, GraphKind, Lowering, Manifest, Precision, Projection,
    manifest::{FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE},
};
use densessm_session::{
    Bundle, Device, Error, HostTensor, Logits, Model, RuntimeId, RuntimeInfo, Snapshot, StateStore, States, TokenBatch,
    Values, Version, signature,
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool, atomic::AtomicUsize, atomic::Ordering},
};

pub(crate) const VOCABULARY: usize = 1024;
const HISTORY: &str = "history";
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(crate) fn checkpoint() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints/densemamba-tiny")
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::open(checkpoint()).unwrap()
}

/// What the fake model generates.
#[derive(Clone)]
pub(crate) enum Speech {
    /// Pseudo-random scores, determined by the whole history.
    Noise,
    /// After `start` tokens of prompt these, one after the other; then the last one again and again.
    Script { start: usize, tokens: Vec<u32> },
    /// No numbers.
    NaN,
}

pub(crate) struct FakeModel {
    bundle: Bundle,
    info: RuntimeInfo,
    pub(crate) speech: Speech,
    /// Graph and number of tokens of each call.
    pub(crate) calls: Vec<(GraphKind, usize)>,
    /// The call that fails, counted from 0.
    pub(crate) fails_at: Option<usize>,
    /// Sets a flag during the call with this number.
    pub(crate) cancels_at: Option<(usize, Arc<AtomicBool>)>,
    /// How often states were copied to the host.
    pub(crate) snapshots: Arc<AtomicUsize>,
    logits: Vec<f32>,
}

/// All tokens that each row has consumed.
#[derive(Clone)]
struct History {
    rows: Vec<Vec<i64>>,
    snapshots: Arc<AtomicUsize>,
}

impl StateStore for History {
    fn fork(&self) -> Result<Box<dyn StateStore>, Error> {
        Ok(Box::new(self.clone()))
    }

    fn select(&self, rows: &[usize]) -> Result<Box<dyn StateStore>, Error> {
        let rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
        Ok(Box::new(Self { rows, snapshots: Arc::clone(&self.snapshots) }))
    }

    fn join(&mut self, other: &dyn StateStore, rows: &[usize]) -> Result<(), Error> {
        let other: &Self = other.downcast_ref()?;
        self.rows.extend(rows.iter().map(|&row| other.rows[row].clone()));
        Ok(())
    }

    fn swap_remove(&mut self, row: usize) -> Result<(), Error> {
        self.rows.swap_remove(row);
        Ok(())
    }

    fn reserve(&mut self, additional: usize) -> Result<(), Error> {
        self.rows.reserve(additional);
        Ok(())
    }

    fn tensors(&self) -> Result<BTreeMap<String, HostTensor>, Error> {
        self.snapshots.fetch_add(1, Ordering::Relaxed);
        let values = self.rows.concat();
        let shape = vec![self.rows.len(), values.len() / self.rows.len()];
        Ok(BTreeMap::from([(HISTORY.to_owned(), HostTensor { shape, values: Values::Int64(values) })]))
    }
}

impl FakeModel {
    pub(crate) fn new(graphs: &[GraphKind], speech: Speech) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names = graphs.iter().map(|kind| kind.file()).chain([WEIGHTS_FILE]);
        let file = |name: &str| {
            std::fs::write(folder.path().join(name), b"").unwrap();
            FileEntry { name: name.to_owned(), size: 0, sha256: SHA256_OF_NOTHING.to_owned() }
        };
        let architecture = Architecture::DenseMamba(DenseMamba {
            vocab_size: VOCABULARY,
            hidden_size: 1,
            num_hidden_layers: 1,
            intermediate_size: 1,
            state_size: 1,
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
        let graphs =
            graphs.iter().map(|&kind| signature(&architecture, kind, densessm_proto::LogitsMode::Last)).collect();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            tool_version: "0".to_owned(),
            architecture,
            precision: Precision::Fp32,
            opset: 18,
            lowering: Lowering::Inline,
            logits: densessm_proto::LogitsMode::Last,
            graphs,
            state_bytes_per_sequence: 4,
            files: names.map(file).collect(),
        };
        std::fs::write(folder.path().join(MANIFEST_FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        Self {
            bundle: Bundle::open(folder.path()).unwrap(),
            info: RuntimeInfo::new(RuntimeId::Other("fake"), Version::new(0, 0, 0), Device::CPU),
            speech,
            calls: Vec::new(),
            fails_at: None,
            cancels_at: None,
            snapshots: Arc::default(),
            logits: Vec::new(),
        }
    }

    fn states(&self, rows: Vec<Vec<i64>>, lengths: Vec<i64>) -> States {
        let history = History { rows, snapshots: Arc::clone(&self.snapshots) };
        States::new(&self.bundle, Box::new(history), lengths)
    }

    pub(crate) fn both(speech: Speech) -> Self {
        Self::new(&[GraphKind::Parallel, GraphKind::Recurrent], speech)
    }

    /// Feeds each row as many tokens.
    fn call(&mut self, graph: GraphKind, tokens: &[i64], states: &mut States) -> Result<Logits<'_>, Error> {
        assert!(self.bundle.manifest().graph(graph).is_some(), "a graph the bundle does not hold was called");
        let width = tokens.len() / states.batch();
        self.calls.push((graph, tokens.len()));
        let call = self.calls.len() - 1;
        if let Some((at, flag)) = &self.cancels_at
            && *at == call
        {
            flag.store(true, Ordering::Relaxed);
        }
        if self.fails_at == Some(call) {
            return Err(Error::Runtime { what: "fake".to_owned(), problem: "failed on purpose".to_owned() });
        }
        let History { rows, .. } = states.store(&self.bundle)?;
        self.logits.clear();
        for (row, tokens) in rows.iter_mut().zip(tokens.chunks(width)) {
            row.extend_from_slice(tokens);
            self.logits.extend(self.speech.scores(row));
        }
        states.advance(vec![width; tokens.len() / width]);
        Ok(Logits { positions: 1, vocabulary: VOCABULARY, values: &self.logits })
    }
}

impl Speech {
    fn scores(&self, history: &[i64]) -> Vec<f32> {
        match self {
            Self::Noise => {
                let seed = history.iter().fold(17_u64, |hash, &token| mix(hash ^ token as u64));
                (0..VOCABULARY as u64).map(|token| (mix(seed ^ token << 32) >> 44) as f32 / (1 << 17) as f32).collect()
            }
            Self::Script { start, tokens } => {
                let at = (history.len() - start).min(tokens.len() - 1);
                (0..VOCABULARY as u32).map(|token| if token == tokens[at] { 1.0 } else { 0.0 }).collect()
            }
            Self::NaN => vec![f32::NAN; VOCABULARY],
        }
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    x ^ (x >> 29)
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
