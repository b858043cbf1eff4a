//! Text from tokens as they come, equal at the end to the decoding of all of them at once.
//!
//! Text is *settled* or *open*. Open is the text of a run of byte tokens that is not over: a later byte that is not
//! UTF-8 makes the whole run replacement characters, as it does when everything is decoded at once. Only settled
//! text may be shown; open text may be searched (a stop string in it ends the run).

use crate::{
    Error, Tokenizer,
    decoder::{Bytes, fallback_byte, level_bytes},
};

/// Decodes tokens to text one by one. The work per token does not grow with the text.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    first: bool,
    trim: usize,
    /// The open run (byte fallback), or the bytes of a character not yet complete (byte level).
    bytes: Vec<u8>,
    /// How many bytes of the open run are already in `text`.
    decoded: usize,
    broken: bool,
    text: String,
    settled: usize,
}

impl TextStream {
    pub(crate) fn new(tokenizer: &Tokenizer, after_text: bool) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            first: !after_text,
            trim: if after_text { 0 } else { tokenizer.spelling().trim.1 },
            bytes: Vec::new(),
            decoded: 0,
            broken: false,
            text: String::new(),
            settled: 0,
        }
    }

    /// Adds a token, and returns the byte offset from which [`TextStream::text`] may have changed. Special tokens and
    /// ids that the tokenizer does not know have no text.
    ///
    /// # Errors
    /// When the tokenizer cannot spell the token.
    pub fn push(&mut self, token: u32) -> Result<usize, Error> {
        let Some(token) = self.tokenizer.visible(token) else { return Ok(self.text.len()) };
        let spelling = self.tokenizer.spelling();
        let token = spelling.spell(token, std::mem::take(&mut self.first))?;
        Ok(match &spelling.bytes {
            Bytes::None => self.append(&token),
            Bytes::Fallback => match fallback_byte(&token) {
                Some(byte) => self.extend_run(byte),
                None => {
                    let from = self.close_run();
                    self.append(&token);
                    from
                }
            },
            Bytes::Level(alphabet) => {
                self.bytes.extend(level_bytes(alphabet, &token));
                self.append_characters()
            }
        })
    }

    /// Ends an open run, and returns the byte offset from which the text may have changed. A character that is not
    /// complete becomes replacement characters. Tokens that follow begin a new run.
    pub fn finish(&mut self) -> usize {
        match self.tokenizer.spelling().bytes {
            Bytes::None => self.text.len(),
            Bytes::Fallback => self.close_run(),
            Bytes::Level(_) => {
                let rest = std::mem::take(&mut self.bytes);
                self.append(&String::from_utf8_lossy(&rest))
            }
        }
    }

    /// Returns the text that was not taken yet: the settled part, then the open one as it would be if nothing followed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns how many bytes of [`TextStream::text`] no later token can change.
    pub fn settled(&self) -> usize {
        self.settled
    }

    /// Removes the first `bytes` bytes of the text and returns them.
    ///
    /// # Panics
    /// When `bytes` is not a character boundary of the text.
    pub fn take(&mut self, bytes: usize) -> String {
        self.settled = self.settled.saturating_sub(bytes);
        self.text.drain(..bytes).collect()
    }

    fn append(&mut self, text: &str) -> usize {
        let from = self.text.len();
        self.append_open(text);
        self.settled = self.text.len();
        from
    }

    fn append_open(&mut self, mut text: &str) {
        while self.trim > 0 && !text.is_empty() {
            match text.strip_prefix(self.tokenizer.spelling().trim.0) {
                Some(rest) => (text, self.trim) = (rest, self.trim - 1),
                None => self.trim = 0,
            }
        }
        self.text.push_str(text);
    }

    fn extend_run(&mut self, byte: u8) -> usize {
        if self.bytes.is_empty() {
            (self.decoded, self.broken) = (0, false);
        }
        self.bytes.push(byte);
        let from = self.text.len();
        if self.broken {
            return from;
        }
        let fresh = self.bytes[self.decoded..].to_vec();
        match std::str::from_utf8(&fresh) {
            Ok(text) => {
                self.append_open(text);
                self.decoded = self.bytes.len();
                from
            }
            Err(error) if error.error_len().is_none() => from,
            Err(_) => {
                self.broken = true;
                self.withdraw_run()
            }
        }
    }

    fn close_run(&mut self) -> usize {
        let from = self.text.len();
        let run = std::mem::take(&mut self.bytes).len();
        if run == 0 || (!self.broken && self.decoded == run) {
            self.settled = from;
            return from;
        }
        self.withdraw_run();
        self.append(&"\u{FFFD}".repeat(run))
    }

    fn withdraw_run(&mut self) -> usize {
        self.text.truncate(self.settled);
        self.settled
    }

    fn append_characters(&mut self) -> usize {
        let from = self.text.len();
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let Some(bad) = error.error_len() else {
                let (whole, partial) = rest.split_at(error.valid_up_to());
                self.bytes = partial.to_vec();
                rest = whole;
                break;
            };
            let (seen, after) = rest.split_at(error.valid_up_to() + bad);
            self.append(&String::from_utf8_lossy(seen));
            rest = after;
        }
        self.append(&String::from_utf8_lossy(rest));
        from
    }
}
