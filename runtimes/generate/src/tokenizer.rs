//! The tokenizer of a bundle: text to token ids and back.
//!
//! A text is encoded for its position in a sequence. At the start it gets what the model was trained to see there (the
//! beginning-of-sequence token, the leading space of LLaMA's vocabulary); after other tokens it gets neither, so that
//! the decoded whole is the texts one after the other.

use crate::{Error, TextStream, decoder::Spelling};
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, normalizers, pre_tokenizers};

/// File name of the tokenizer in a bundle.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// The position of a text in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPosition {
    /// At its start: with the beginning-of-sequence token, if the model has one, and the tokenizer's leading space.
    Start,
    /// After other tokens: neither of the two.
    After,
}

/// The tokenizer of a bundle. Clones share it: they cost nothing, so that each sequence can have one.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: tokenizers::Tokenizer,
    /// The same without the leading space; built when it is first needed.
    after: OnceLock<tokenizers::Tokenizer>,
    beginning: Vec<u32>,
    spelling: Spelling,
    path: PathBuf,
}

/// The part of `tokenizer_config.json` that decides on the beginning-of-sequence token.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    add_bos_token: Option<bool>,
    bos_token: Option<NamedToken>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Plain(String),
    Described { content: String },
}

impl NamedToken {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Described { content } => content,
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` where present, from a bundle or a checkpoint.
    ///
    /// Whether a sequence begins with the beginning-of-sequence token: as `add_bos_token` of the latter says; without
    /// it, yes for the LLaMA classes if they name the token; else as the former's post-processor does.
    /// Truncation and padding that the file asks for are not done.
    ///
    /// # Errors
    /// When a file is missing or damaged, its decoder cannot be streamed, or it lacks the token that it says to add.
    pub fn open(bundle: impl AsRef<Path>) -> Result<Self, Error> {
        let path = bundle.as_ref().join(TOKENIZER_FILE);
        let broken = |problem: String| Error::File { path: path.clone(), problem };
        let bytes = std::fs::read(&path).map_err(|error| {
            broken(format!("{error}; text needs the tokenizer of the checkpoint beside the graphs"))
        })?;
        let (inner, template) = parse(&bytes)
            .map_err(|problem| broken(format!("expected a tokenizer in the format of `tokenizers`, got {problem}")))?;
        let spelling = Spelling::of(inner.get_decoder()).map_err(broken)?;
        let config_path = bundle.as_ref().join(TOKENIZER_CONFIG_FILE);
        let config = read_json::<TokenizerConfig>(&config_path)?.unwrap_or_default();
        let beginning = beginning(&inner, template, &config, &config_path)?;
        Ok(Self(Arc::new(Shared { inner, after: OnceLock::new(), beginning, spelling, path })))
    }

    /// Returns the file it was read from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the tokens that every sequence begins with: the beginning-of-sequence token, or none.
    pub fn beginning(&self) -> &[u32] {
        &self.0.beginning
    }

    /// Returns the tokens of a text. No end-of-sequence token is added, whatever the post-processor does.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode(&self, text: &str, position: TextPosition) -> Result<Vec<u32>, Error> {
        let (tokenizer, beginning) = self.at(position);
        let encoding = tokenizer.encode_fast(text, false).map_err(|error| Error::Tokenizer(error.to_string()))?;
        Ok([beginning, encoding.get_ids()].concat())
    }

    /// Returns the tokens of a text as [`Tokenizer::encode`] does, each with its end in bytes of the text. The ends
    /// never decrease; tokens that stand for no text, such as the beginning-of-sequence token, end where the one before
    /// them does.
    ///
    /// # Errors
    /// When the tokenizer fails on the text.
    pub fn encode_with_ends(&self, text: &str, position: TextPosition) -> Result<Vec<(u32, usize)>, Error> {
        let (tokenizer, beginning) = self.at(position);
        let encoding = tokenizer.encode(text, false).map_err(|error| Error::Tokenizer(error.to_string()))?;
        let mut reached = 0;
        let own = encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(&id, &(_, end))| {
            reached = end.max(reached);
            (id, reached)
        });
        Ok(beginning.iter().map(|&id| (id, 0)).chain(own).collect())
    }

    /// The tokenizer for a position, and the tokens that come before its own.
    fn at(&self, position: TextPosition) -> (&tokenizers::Tokenizer, &[u32]) {
        match position {
            TextPosition::Start => (&self.0.inner, self.0.beginning.as_slice()),
            TextPosition::After => (self.0.after.get_or_init(|| without_leading_space(&self.0.inner)), &[]),
        }
    }

    /// Returns the text of all tokens of a sequence at once. Special tokens are left out.
    ///
    /// # Errors
    /// When the tokenizer fails on the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.0.inner.decode(tokens, true).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// Returns the id of a token by its spelling in the vocabulary, special tokens included.
    pub fn token(&self, spelling: &str) -> Option<u32> {
        self.0.inner.token_to_id(spelling)
    }

    /// Returns a stream that decodes tokens to text as they come, at that position of a sequence.
    pub fn stream(&self, position: TextPosition) -> TextStream {
        TextStream::new(self, position == TextPosition::After)
    }

    pub(crate) fn spelling(&self) -> &Spelling {
        &self.0.spelling
    }

    /// A token as it stands in the vocabulary, unless it is special or unknown.
    pub(crate) fn visible(&self, token: u32) -> Option<String> {
        let token = self.0.inner.id_to_token(token)?;
        (!self.0.inner.get_added_vocabulary().is_special_token(&token)).then_some(token)
    }
}

/// A JSON file, if it is there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let broken = |problem: String| Error::File { path: path.to_owned(), problem };
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| broken(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(broken(error.to_string())),
    }
}

/// The tokenizer, and the tokens with which its post-processor begins a sequence.
fn parse(bytes: &[u8]) -> Result<(tokenizers::Tokenizer, Vec<u32>), String> {
    let parse = || {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| error.to_string())?;
        let sample = tokenizer.encode_fast("a", true).map_err(|error| error.to_string())?;
        let added = sample.get_special_tokens_mask().iter().take_while(|&&special| special == 1).count();
        Ok((tokenizer, sample.get_ids()[..added].to_vec()))
    };
    // `tokenizers` panics on merges without the subword prefix and on templates with tokens they do not define.
    std::panic::catch_unwind(parse).unwrap_or_else(|_| Err("a file that contradicts itself".to_owned()))
}

fn beginning(
    inner: &tokenizers::Tokenizer,
    template: Vec<u32>,
    config: &TokenizerConfig,
    path: &Path,
) -> Result<Vec<u32>, Error> {
    let named = config.bos_token.as_ref().map(NamedToken::content);
    let llama = config.tokenizer_class.as_deref().is_some_and(|class| class.starts_with("Llama")) && named.is_some();
    match config.add_bos_token.or(llama.then_some(true)) {
        None => Ok(template),
        Some(false) => Ok(Vec::new()),
        Some(true) if !template.is_empty() => Ok(template),
        Some(true) => {
            let id = named.and_then(|token| inner.token_to_id(token)).ok_or_else(|| Error::File {
                path: path.to_owned(),
                problem: format!(
                    "add_bos_token: expected a bos_token of the vocabulary, got {}",
                    named.map_or("none".to_owned(), |token| format!("`{token}`"))
                ),
            })?;
            Ok(vec![id])
        }
    }
}

fn without_leading_space(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Tokenizer {
    let mut tokenizer = tokenizer.clone();
    let normalizer = tokenizer.get_normalizer().cloned().and_then(unprefixed_normalizer);
    let pre_tokenizer = tokenizer.get_pre_tokenizer().cloned().map(unprefixed_pre_tokenizer);
    tokenizer.with_normalizer(normalizer).with_pre_tokenizer(pre_tokenizer);
    tokenizer
}

fn unprefixed_normalizer(normalizer: NormalizerWrapper) -> Option<NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Prepend(_) => None,
        NormalizerWrapper::Sequence(parts) => {
            let parts = parts.into_iter().filter_map(unprefixed_normalizer).collect();
            Some(NormalizerWrapper::Sequence(normalizers::Sequence::new(parts)))
        }
        other => Some(other),
    }
}

fn unprefixed_pre_tokenizer(pre_tokenizer: PreTokenizerWrapper) -> PreTokenizerWrapper {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(mut metaspace) => {
            metaspace.set_prepend_scheme(pre_tokenizers::metaspace::PrependScheme::Never);
            PreTokenizerWrapper::Metaspace(metaspace)
        }
        PreTokenizerWrapper::ByteLevel(mut byte_level) => {
            byte_level.add_prefix_space = false;
            PreTokenizerWrapper::ByteLevel(byte_level)
        }
        PreTokenizerWrapper::Sequence(parts) => {
            let parts = parts.into_iter().map(unprefixed_pre_tokenizer).collect();
            PreTokenizerWrapper::Sequence(pre_tokenizers::sequence::Sequence::new(parts))
        }
        other => other,
    }
}
