//! How a tokenizer spells its tokens, as rules that can be applied to one token after the other.
//!
//! The list of decoder types is closed. For each of them it is known exactly, with bounded look-back, what a token adds
//! to the text. Any other type is refused by name, since it would be streamed almost right.

use crate::Error;
use tokenizers::{Decoder, DecoderWrapper};

/// The parts of the decoder of a `tokenizer.json`.
#[derive(Debug)]
pub(crate) struct Spelling {
    /// Applied to each token by itself; the first token of a text may be treated in another way.
    each: Vec<DecoderWrapper>,
    /// How tokens represent single bytes.
    pub(crate) bytes: Bytes,
    /// Removed from the start of the whole text: which character, at most how many.
    pub(crate) trim: (char, usize),
    /// Whether tokens are joined by a space.
    joined: bool,
}

/// How tokens represent single bytes.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// They do not.
    None,
    /// `<0xE2>` is a byte. A run of such tokens is text if all of it is UTF-8; otherwise each is one replacement character.
    Fallback,
    /// Each character is a byte, in the alphabet of byte-level BPE; the table is indexed by code point.
    Level(Vec<Option<u8>>),
}

impl Spelling {
    /// Reads the parts of a decoder.
    ///
    /// # Errors
    /// When its type is not on the list; the text says which part.
    pub(crate) fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, String> {
        let mut spelling = Self { each: Vec::new(), bytes: Bytes::None, trim: (' ', 0), joined: decoder.is_none() };
        let parts = match decoder {
            None => &[],
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(single) => std::slice::from_ref(single),
        };
        let mut fused = false;
        for part in parts {
            let bytes_open = !fused && matches!(spelling.bytes, Bytes::None);
            match part {
                DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_)
                    if bytes_open =>
                {
                    spelling.each.push(part.clone());
                }
                DecoderWrapper::Strip(strip) if bytes_open && strip.stop == 0 => spelling.each.push(part.clone()),
                // Replacement characters always end what is trimmed, so a run of bytes need not be trimmed again when it
                // becomes them.
                DecoderWrapper::Strip(strip)
                    if fused
                        && strip.stop == 0
                        && spelling.trim.1 == 0
                        && strip.content != char::REPLACEMENT_CHARACTER =>
                {
                    spelling.trim = (strip.content, strip.start);
                }
                DecoderWrapper::ByteFallback(_) if bytes_open => spelling.bytes = Bytes::Fallback,
                DecoderWrapper::ByteLevel(_) if bytes_open => {
                    spelling.bytes = Bytes::Level(byte_level_alphabet());
                    fused = true;
                }
                DecoderWrapper::Fuse(_) => fused = true,
                other => return Err(unsupported(other)),
            }
        }
        Ok(spelling)
    }

    /// The spelling of one token; `first` if no token comes before it.
    pub(crate) fn spell(&self, token: String, first: bool) -> Result<String, Error> {
        let mut text = token;
        for decoder in &self.each {
            let chain = if first { vec![text] } else { vec![String::new(), text] };
            let spelled = decoder.decode_chain(chain).map_err(|error| Error::Tokenizer(error.to_string()))?;
            text = spelled.into_iter().next_back().unwrap_or_default();
        }
        if self.joined && !first {
            text.insert(0, ' ');
        }
        Ok(text)
    }
}

fn unsupported(decoder: &DecoderWrapper) -> String {
    let name = match decoder {
        DecoderWrapper::BPE(_) => "BPEDecoder",
        DecoderWrapper::ByteLevel(_) => "ByteLevel",
        DecoderWrapper::WordPiece(_) => "WordPiece",
        DecoderWrapper::Metaspace(_) => "Metaspace",
        DecoderWrapper::CTC(_) => "CTC",
        DecoderWrapper::Sequence(_) => "a nested Sequence",
        DecoderWrapper::Replace(_) => "Replace",
        DecoderWrapper::Fuse(_) => "Fuse",
        DecoderWrapper::Strip(_) => "Strip",
        DecoderWrapper::ByteFallback(_) => "ByteFallback",
    };
    format!(
        "decoder: expected Replace, Metaspace, WordPiece or Strip, then ByteFallback or ByteLevel, then Fuse and Strip \
         (from the start), got {name} where it cannot be streamed"
    )
}

/// The byte that a token written as `<0xE2>` represents.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Printable Latin-1 characters represent their own byte; the others follow, in order, from U+0100.
fn byte_level_alphabet() -> Vec<Option<u8>> {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    let own = (0..=u8::MAX).map(|byte| itself(byte).then_some(byte));
    own.chain((0..=u8::MAX).filter(|&byte| !itself(byte)).map(Some)).collect()
}

/// The bytes of a byte-level token; a token with any character outside the alphabet represents its own UTF-8.
pub(crate) fn level_bytes(alphabet: &[Option<u8>], token: &str) -> Vec<u8> {
    token
        .chars()
        .map(|character| alphabet.get(character as usize).copied().flatten())
        .collect::<Option<_>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}
