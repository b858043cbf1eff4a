//! A bundle on disk. Once opened, its manifest is known to be sound and its files to exist in the sizes that it states.

use crate::{Error, signature};
use densessm_proto::{
    Architecture, GraphEntry, GraphKind, Manifest, StateTensor,
    manifest::{FORMAT_VERSION, MANIFEST_FILE, WEIGHTS_FILE},
    states,
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

/// A folder made by `densessm export`.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens a bundle and checks that its files are there. Contents are not read; [`Bundle::verify`] does that.
    ///
    /// # Errors
    /// When the manifest is missing, broken, of another format or at odds with itself, or a file is missing or of another
    /// size.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(MANIFEST_FILE);
        let problem = |problem: String| Error::Bundle { path: path.clone(), problem };
        let text = fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if dir.is_dir() => {
                problem("not found; expected a bundle made by `densessm export`".to_owned())
            }
            _ => Error::Io { path: path.clone(), error },
        })?;
        let manifest = manifest(&text).map_err(problem)?;
        signature::check(&manifest).map_err(problem)?;
        let bundle = Self { dir: dir.to_owned(), manifest };
        bundle.check_files()?;
        Ok(bundle)
    }

    fn check_files(&self) -> Result<(), Error> {
        let manifest = self.dir.join(MANIFEST_FILE);
        for entry in &self.manifest.files {
            let path = self.file(&entry.name)?;
            let size = fs::metadata(&path).map_err(|error| Error::Io { path: path.clone(), error })?.len();
            if size != entry.size {
                return Err(Error::Bundle { path, problem: format!("expected {} bytes, got {size}", entry.size) });
            }
        }
        let listed = |name: &str| self.manifest.files.iter().any(|entry| entry.name == name);
        let graphs = self.manifest.graphs.iter().map(|graph| graph.file.as_str());
        match graphs.chain([WEIGHTS_FILE]).find(|name| !listed(name)) {
            Some(name) => {
                Err(Error::Bundle { path: manifest, problem: format!("files: expected `{name}` among them") })
            }
            None => Ok(()),
        }
    }

    /// The path of a file that the manifest names: beside the manifest and nowhere else.
    fn file(&self, name: &str) -> Result<PathBuf, Error> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(only)), None) if only == name && !name.contains('\\') => Ok(self.dir.join(name)),
            _ => Err(Error::Bundle {
                path: self.dir.join(MANIFEST_FILE),
                problem: format!("files: expected plain file names, got `{name}`"),
            }),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The model's dimensions.
    pub fn architecture(&self) -> &Architecture {
        &self.manifest.architecture
    }

    /// The states a sequence carries, in the order in which the graphs list them.
    pub fn states(&self) -> Vec<StateTensor> {
        states::layout(self.architecture())
    }

    /// The file of a graph with fp32 activations.
    ///
    /// # Errors
    /// When the bundle does not hold that graph.
    pub fn graph_path(&self, kind: GraphKind) -> Result<PathBuf, Error> {
        match self.manifest.graph(kind) {
            Some(graph) => self.file(&graph.file),
            None => {
                let held = [GraphKind::Parallel, GraphKind::Recurrent].into_iter();
                let held: Vec<&str> =
                    held.filter(|&kind| self.manifest.graph(kind).is_some()).map(GraphKind::name).collect();
                Err(Error::Bundle {
                    path: self.dir.clone(),
                    problem: format!("expected a {kind} graph, got {}; export with --mode both", held.join(" and ")),
                })
            }
        }
    }

    /// The file of a graph that the manifest lists.
    ///
    /// # Errors
    /// When its name is not a plain file name.
    pub fn entry_path(&self, entry: &GraphEntry) -> Result<PathBuf, Error> {
        self.file(&entry.file)
    }

    /// The path of a file of weights that a graph names.
    ///
    /// # Errors
    /// When it lies elsewhere than beside the manifest, or its name does not end in `.data`.
    pub fn data_path(&self, name: &str) -> Result<PathBuf, Error> {
        match self.file(name) {
            Ok(path) if name.ends_with(".data") => Ok(path),
            _ => Err(Error::Bundle {
                path: self.dir.clone(),
                problem: format!("expected weights in a file beside the graphs that ends in .data, got `{name}`"),
            }),
        }
    }

    /// The SHA-256 of the weights, which identifies the model.
    pub fn fingerprint(&self) -> String {
        self.weights_digest().to_owned()
    }

    pub(crate) fn weights_digest(&self) -> &str {
        let weights = self.manifest.files.iter().find(|entry| entry.name == WEIGHTS_FILE);
        weights.map_or("", |entry| &entry.sha256)
    }

    /// Reads every file and compares it with the manifest.
    ///
    /// # Errors
    /// When a file cannot be read or is not what was exported.
    pub fn verify(&self) -> Result<(), Error> {
        for entry in &self.manifest.files {
            let path = self.file(&entry.name)?;
            let sha256 = digest(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
            if sha256 != entry.sha256 {
                let problem = format!("expected SHA-256 {}, got {sha256}; export it again", entry.sha256);
                return Err(Error::Bundle { path, problem });
            }
        }
        Ok(())
    }
}

/// Reads a manifest of any format that this version knows.
fn manifest(text: &[u8]) -> Result<Manifest, String> {
    let json: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match json.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if (1..=u64::from(FORMAT_VERSION)).contains(&version) => {
            serde_json::from_value(json).map_err(|error| error.to_string())
        }
        Some(version) if version > u64::from(FORMAT_VERSION) => {
            let tool = json.get("tool_version").and_then(serde_json::Value::as_str).unwrap_or("a newer version");
            Err(format!(
                "format_version: expected at most {FORMAT_VERSION}, got {version}; the bundle was written by densessm \
                 {tool}: use that version, or export the checkpoint again with this one"
            ))
        }
        version => {
            let got = version.map_or("none".to_owned(), |version| version.to_string());
            Err(format!("format_version: expected 1 to {FORMAT_VERSION}, got {got}; export the checkpoint again"))
        }
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&piece[..read]),
        }
    }
}
