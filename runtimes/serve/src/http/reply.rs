//! Events as the JSON of OpenAI's two interfaces, whole or in chunks.

use super::tokens::token_text;
use crate::{Event, Failure, TokenLogprobs};
use densessm_generate::{FinishReason, Tokenizer};
use serde_json::{Map, Value, json};

/// What JSON shows for a probability of 0, whose logarithm it cannot express.
const LEAST: f64 = -9999.0;

/// Which of the two interfaces answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Completions,
    Chat,
}

/// What stays the same in every part of an answer.
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) interface: Interface,
    /// Whether log-probabilities are part of the answer.
    pub(super) logprobs: bool,
    /// Choices of each prompt.
    pub(super) choices: usize,
}

/// A prompt that is returned in front of its continuations.
pub(super) struct Echo {
    pub(super) text: String,
    pub(super) first: u32,
}

/// An answer in the making.
pub(super) struct Reply {
    head: Head,
    tokenizer: Tokenizer,
    /// One per prompt, if prompts are returned.
    echo: Vec<Echo>,
    /// Log-probabilities of each prompt's tokens.
    prompts: Vec<Vec<TokenLogprobs>>,
    choices: Vec<Choice>,
    prompt_tokens: usize,
    cached_tokens: usize,
    new_tokens: usize,
}

/// What a choice has gained since it was last taken.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: Vec<Entry>,
    finish: Option<FinishReason>,
    saved: Option<String>,
    begun: bool,
    /// Characters of the tokens so far.
    offset: usize,
}

/// A token, with its log-probability unless it is a prompt's first.
struct Entry {
    token: u32,
    logprobs: Option<TokenLogprobs>,
}

impl Reply {
    pub(super) fn new(head: Head, tokenizer: Tokenizer, prompts: usize, echo: Vec<Echo>) -> Self {
        let choices = (0..prompts * head.choices).map(|_| Choice::default()).collect();
        let prompts = (0..prompts).map(|_| Vec::new()).collect();
        Self { head, tokenizer, echo, prompts, choices, prompt_tokens: 0, cached_tokens: 0, new_tokens: 0 }
    }

    /// Whether every choice has ended.
    pub(super) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Takes an event of a prompt's request and returns the choice that has gained something.
    pub(super) fn take(&mut self, prompt: usize, event: Event) -> Result<Option<usize>, Failure> {
        match event {
            Event::Started(started) => {
                self.prompt_tokens += started.prompt_tokens;
                self.cached_tokens += started.cached_tokens;
                Ok(None)
            }
            Event::Prompt(told) => {
                self.prompts[prompt].extend(told);
                Ok(None)
            }
            Event::Piece(piece) => {
                let (index, choice) = self.begun(prompt, piece.choice);
                choice.text.push_str(&piece.text);
                choice.logprobs.extend(piece.logprobs.map(|own| Entry { token: own.token, logprobs: Some(own) }));
                Ok(Some(index))
            }
            Event::Finished(finish) => {
                self.new_tokens += finish.new_tokens;
                let (index, choice) = self.begun(prompt, finish.choice);
                choice.finish = Some(finish.reason);
                choice.saved = finish.saved;
                Ok(Some(index))
            }
            Event::Failed(failure) => Err(failure),
        }
    }

    /// A choice, with the prompt in front of it if prompts are returned.
    fn begun(&mut self, prompt: usize, choice: usize) -> (usize, &mut Choice) {
        let index = prompt * self.head.choices + choice;
        let Self { choices, echo, prompts, head, .. } = self;
        let choice = &mut choices[index];
        if !choice.begun
            && let Some(echo) = echo.get(prompt)
        {
            choice.begun = true;
            choice.text.push_str(&echo.text);
            if head.logprobs {
                choice.logprobs.push(Entry { token: echo.first, logprobs: None });
                let told = prompts[prompt].iter();
                choice.logprobs.extend(told.map(|own| Entry { token: own.token, logprobs: Some(own.clone()) }));
            }
        }
        (index, choice)
    }

    /// Returns a chunk of a stream with what a choice has gained, unless that is nothing.
    pub(super) fn chunk(&mut self, index: usize) -> Option<Value> {
        let choice = &self.choices[index];
        if choice.text.is_empty() && choice.logprobs.is_empty() && choice.finish.is_none() {
            return None;
        }
        let first = choice.offset == 0 && !std::mem::replace(&mut self.choices[index].begun, true);
        let text = std::mem::take(&mut self.choices[index].text);
        let logprobs = self.logprobs(index);
        let choice = &self.choices[index];
        let finish = choice.finish.map(finish_reason);
        let mut value = match self.head.interface {
            Interface::Completions => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
            Interface::Chat => {
                let delta =
                    if first { json!({"role": "assistant", "content": text}) } else { json!({"content": text}) };
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        with_state(&mut value, choice.saved.as_deref());
        let kind = match self.head.interface {
            Interface::Completions => "text_completion",
            Interface::Chat => "chat.completion.chunk",
        };
        Some(self.envelope(kind, vec![value]))
    }

    /// Returns the last chunk of a stream that asked for the numbers of tokens.
    pub(super) fn usage_chunk(&self) -> Value {
        let kind = match self.head.interface {
            Interface::Completions => "text_completion",
            Interface::Chat => "chat.completion.chunk",
        };
        let mut value = self.envelope(kind, Vec::new());
        value["usage"] = self.usage();
        value
    }

    /// Returns the whole answer.
    pub(super) fn whole(mut self) -> Value {
        let choices = (0..self.choices.len())
            .map(|index| {
                let logprobs = self.logprobs(index);
                let choice = &mut self.choices[index];
                let text = std::mem::take(&mut choice.text);
                let finish = choice.finish.map(finish_reason);
                let mut value = match self.head.interface {
                    Interface::Completions => {
                        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
                    }
                    Interface::Chat => json!({
                        "index": index, "message": {"role": "assistant", "content": text, "refusal": null},
                        "logprobs": logprobs, "finish_reason": finish,
                    }),
                };
                with_state(&mut value, choice.saved.as_deref());
                value
            })
            .collect();
        let kind = match self.head.interface {
            Interface::Completions => "text_completion",
            Interface::Chat => "chat.completion",
        };
        let mut value = self.envelope(kind, choices);
        value["usage"] = self.usage();
        value
    }

    fn envelope(&self, kind: &str, choices: Vec<Value>) -> Value {
        let Head { id, created, model, .. } = &self.head;
        json!({"id": id, "object": kind, "created": created, "model": model, "choices": choices})
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.new_tokens,
            "total_tokens": self.prompt_tokens + self.new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }

    /// The log-probabilities that a choice has gained, in the shape of the interface.
    fn logprobs(&mut self, index: usize) -> Value {
        if !self.head.logprobs {
            return Value::Null;
        }
        let choice = &mut self.choices[index];
        let entries = std::mem::take(&mut choice.logprobs);
        match self.head.interface {
            Interface::Completions => legacy(&self.tokenizer, &entries, &mut choice.offset),
            Interface::Chat => chat(&self.tokenizer, &entries),
        }
    }
}

fn with_state(choice: &mut Value, saved: Option<&str>) {
    if let Some(id) = saved {
        choice["state"] = json!(id);
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        _ => "stop",
    }
}

/// `{tokens, token_logprobs, top_logprobs, text_offset}`, one entry per token.
fn legacy(tokenizer: &Tokenizer, entries: &[Entry], offset: &mut usize) -> Value {
    let (mut tokens, mut own, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Entry { token, logprobs } in entries {
        let text = token_text(tokenizer, *token);
        offsets.push(*offset);
        *offset += text.chars().count();
        own.push(logprobs.as_ref().map(|logprobs| logprobs.logprob.max(LEAST)));
        top.push(logprobs.as_ref().map(|logprobs| {
            let mut alternatives = Map::new();
            for &(token, logprob) in logprobs.top.iter().chain([&(*token, logprobs.logprob)]) {
                // Of tokens with the same text, the most likely one comes first and stays.
                alternatives.entry(token_text(tokenizer, token)).or_insert(json!(logprob.max(LEAST)));
            }
            alternatives
        }));
        tokens.push(text);
    }
    json!({"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets})
}

/// `{content: [{token, logprob, bytes, top_logprobs}]}`.
fn chat(tokenizer: &Tokenizer, entries: &[Entry]) -> Value {
    let describe = |token: u32, logprob: f64| {
        let text = token_text(tokenizer, token);
        json!({"token": text, "logprob": logprob.max(LEAST), "bytes": text.as_bytes()})
    };
    let content: Vec<Value> = entries
        .iter()
        .filter_map(|entry| entry.logprobs.as_ref())
        .map(|own| {
            let mut value = describe(own.token, own.logprob);
            let top: Vec<Value> = own.top.iter().map(|&(token, logprob)| describe(token, logprob)).collect();
            value["top_logprobs"] = json!(top);
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}
