//! Text streamed token by token equals the tokens decoded at once, for every type of decoder that is accepted.

use crate::fake::{VOCABULARY, checkpoint, tokenizer};
use densessm_generate::{TextPosition, TextStream, Tokenizer};
use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use serde_json::{Value, json};

/// The checkpoint's tokenizer with another decoder.
fn with_decoder(decoder: Value) -> Tokenizer {
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(checkpoint().join("tokenizer.json")).unwrap()).unwrap();
    tokenizer["decoder"] = decoder;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

/// A byte-level tokenizer: each character of the alphabet is a token, and a few are longer.
fn byte_level(decoder: Value) -> Tokenizer {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut vocabulary = serde_json::Map::new();
    let mut next = 0x100;
    for byte in 0..=0xFF_u32 {
        let character = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocabulary.insert(char::from_u32(character).unwrap().to_string(), json!(byte));
    }
    for token in ["Ġking", "âĤ", "¬a", "Ãĺ", "a€b", "<0xE2>"] {
        vocabulary.insert(token.to_owned(), json!(vocabulary.len()));
    }
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

fn below(generator: &mut ChaCha8Rng, limit: usize) -> usize {
    (generator.next_u64() % limit as u64) as usize
}

/// Tokens of a LLaMA vocabulary: words, special and unknown ones, single bytes, and characters in bytes, complete or not.
fn sequence(generator: &mut ChaCha8Rng) -> Vec<u32> {
    let mut tokens = Vec::new();
    for _ in 0..below(generator, 12) {
        match below(generator, 8) {
            0 => tokens.push(below(generator, 3) as u32),
            1 => tokens.push(3 + below(generator, 256) as u32),
            2 => tokens.push(13),
            3 => tokens.push((VOCABULARY + below(generator, 9)) as u32),
            4 | 5 => {
                let text = ["€", "é", "😀", " ", "\u{FFFD}", "a"][below(generator, 6)];
                let keep = 1 + below(generator, text.len());
                tokens.extend(text.bytes().take(keep).map(|byte| 3 + u32::from(byte)));
            }
            _ => tokens.push((259 + below(generator, VOCABULARY - 259)) as u32),
        }
    }
    tokens
}

/// Streams, taking settled text as it comes, and checks that what was taken never has to be taken back.
fn streamed(mut stream: TextStream, tokens: &[u32]) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for &token in tokens {
        let changed = stream.push(token).unwrap();
        assert_eq!(stream.text()[..changed], last[..changed], "text before the reported change changed");
        text.push_str(&stream.take(stream.settled()));
        last = stream.text().to_owned();
    }
    let changed = stream.finish();
    assert_eq!(stream.text()[..changed], last[..changed]);
    assert_eq!(stream.settled(), stream.text().len());
    text.push_str(stream.text());
    text
}

fn check(tokenizer: &Tokenizer, tokens: &[u32]) {
    assert_eq!(
        streamed(tokenizer.stream(TextPosition::Start), tokens),
        tokenizer.decode(tokens).unwrap(),
        "{tokens:?}"
    );
}

#[test]
fn random_tokens_of_the_checkpoint_stream_to_their_decoding() {
    let tokenizer = tokenizer();
    let mut generator = ChaCha8Rng::from_seed([1; 32]);
    for _ in 0..20_000 {
        check(&tokenizer, &sequence(&mut generator));
    }
}

#[test]
fn every_accepted_decoder_streams_to_its_decoding() {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let mut generator = ChaCha8Rng::from_seed([2; 32]);
    for decoder in [
        Value::Null,
        metaspace("always"),
        metaspace("never"),
        replace.clone(),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
        json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        json!({"type": "Sequence", "decoders": [metaspace("first"), {"type": "ByteFallback"}, {"type": "Fuse"}]}),
        json!({"type": "Sequence", "decoders": [replace, strip, {"type": "ByteFallback"}]}),
        json!({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 3, "stop": 0}]}),
    ] {
        let tokenizer = with_decoder(decoder);
        for _ in 0..1500 {
            check(&tokenizer, &sequence(&mut generator));
        }
    }
}

#[test]
fn byte_level_tokens_stream_to_their_decoding() {
    let level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let mut generator = ChaCha8Rng::from_seed([3; 32]);
    for decoder in [level.clone(), json!({"type": "Sequence", "decoders": [level, {"type": "Fuse"}]})] {
        let tokenizer = byte_level(decoder);
        let text = "€ 😀 king é\n";
        let tokens = tokenizer.encode(text, TextPosition::Start).unwrap();
        assert_eq!(streamed(tokenizer.stream(TextPosition::Start), &tokens), text);
        for _ in 0..10_000 {
            let mut tokens: Vec<u32> =
                (0..below(&mut generator, 9)).map(|_| below(&mut generator, 263) as u32).collect();
            let character = ["€", "😀", "é"][below(&mut generator, 3)].as_bytes();
            let at = below(&mut generator, tokens.len() + 1);
            let keep = below(&mut generator, character.len() + 1);
            tokens.splice(at..at, character[..keep].iter().map(|&byte| u32::from(byte)));
            check(&tokenizer, &tokens);
        }
    }
}

#[test]
fn a_character_spelt_in_bytes_is_shown_when_its_run_ends_and_never_in_pieces() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream(TextPosition::After);
    let king = tokenizer.encode("king", TextPosition::After).unwrap()[0];
    for byte in [0xE2, 0x82] {
        stream.push(3 + byte).unwrap();
        assert_eq!((stream.text(), stream.settled()), ("", 0));
    }
    stream.push(3 + 0xAC).unwrap();
    assert_eq!((stream.text(), stream.settled()), ("€", 0));
    stream.push(king).unwrap();
    assert_eq!(stream.settled(), stream.text().len());
    assert!(stream.text().starts_with('€'));
}

#[test]
fn an_incomplete_character_at_the_end_is_one_replacement_character_per_byte_as_when_decoded_whole() {
    let tokenizer = tokenizer();
    let tokens = [1, 596, 3 + 0xE2, 3 + 0x82];
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "KING\u{FFFD}\u{FFFD}");
    assert_eq!(streamed(tokenizer.stream(TextPosition::Start), &tokens), "KING\u{FFFD}\u{FFFD}");
}

#[test]
fn text_after_other_text_keeps_its_leading_space() {
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode(" king", TextPosition::After).unwrap();
    assert_eq!(streamed(tokenizer.stream(TextPosition::After), &tokens), " king");
}
