//! The tokenizer of the two trained checkpoints, and what is wrong with broken ones.

use crate::fake::{checkpoint, tokenizer};
use densessm_generate::{GenerationConfig, Sampling, TextPosition, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// A folder with the checkpoint's tokenizer, changed.
fn folder(change: impl FnOnce(&mut Value), config: Option<Value>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tokenizer = serde_json::from_slice(&std::fs::read(checkpoint().join("tokenizer.json")).unwrap()).unwrap();
    change(&mut tokenizer);
    write(folder.path(), "tokenizer.json", &tokenizer);
    if let Some(config) = config {
        write(folder.path(), "tokenizer_config.json", &config);
    }
    folder
}

fn write(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

fn first_tokens(change: impl FnOnce(&mut Value), config: Option<Value>) -> Vec<u32> {
    Tokenizer::open(folder(change, config)).unwrap().beginning().to_vec()
}

fn error_of(folder: &Path) -> String {
    Tokenizer::open(folder).unwrap_err().to_string()
}

#[test]
fn the_golden_prompt_has_the_golden_tokens_and_the_golden_text_decodes() {
    let tests = checkpoint().parent().unwrap().to_owned();
    for name in ["densemamba-tiny", "denseretnet-tiny"] {
        let tokenizer = Tokenizer::open(tests.join(name)).unwrap();
        let golden: Value =
            serde_json::from_slice(&std::fs::read(tests.join(name).join("greedy.json")).unwrap()).unwrap();
        let tokens: Vec<u32> = serde_json::from_value(golden["token_ids"].clone()).unwrap();
        let prompt = tokenizer.encode(golden["prompt"].as_str().unwrap(), TextPosition::Start).unwrap();
        assert_eq!(prompt, tokens[..golden["prompt_tokens"].as_u64().unwrap() as usize]);
        assert_eq!(prompt, [1, 596, 725, 267, 13]);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), golden["text"].as_str().unwrap());
    }
}

#[test]
fn texts_one_after_the_other_decode_to_their_concatenation() {
    let tokenizer = tokenizer();
    for (first, second) in
        [("KING", "DOM"), ("a king", " is"), ("€", "é\n"), ("end.\n", "  Two"), (" ", " "), ("x", "\u{2581}y")]
    {
        let tokens = [
            tokenizer.encode(first, TextPosition::Start).unwrap(),
            tokenizer.encode(second, TextPosition::After).unwrap(),
        ];
        let expected = format!("{first}{second}").replace('\u{2581}', " ");
        assert_eq!(tokenizer.decode(&tokens.concat()).unwrap(), expected);
    }
}

#[test]
fn the_beginning_is_as_the_configuration_says_and_else_as_the_post_processor_does() {
    let keep = |_: &mut Value| {};
    let without = |tokenizer: &mut Value| tokenizer["post_processor"] = Value::Null;
    let bos = |add: bool| Some(json!({"add_bos_token": add, "bos_token": {"content": "<s>", "special": true}}));
    let llama = || Some(json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}));
    assert_eq!(first_tokens(keep, None), [1]);
    assert_eq!(first_tokens(without, None), [0_u32; 0]);
    assert_eq!(first_tokens(keep, bos(false)), [0_u32; 0]);
    assert_eq!(first_tokens(without, bos(false)), [0_u32; 0]);
    assert_eq!(first_tokens(keep, bos(true)), [1]);
    assert_eq!(first_tokens(without, bos(true)), [1]);
    assert_eq!(first_tokens(without, llama()), [1]);
}

#[test]
fn an_end_of_sequence_token_of_the_post_processor_is_not_part_of_a_prompt() {
    let closing = |tokenizer: &mut Value| {
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        tokenizer["post_processor"]["single"].as_array_mut().unwrap().push(end);
        tokenizer["post_processor"]["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    };
    let tokenizer = Tokenizer::open(folder(closing, None)).unwrap();
    assert_eq!(tokenizer.encode("KING RICHARD:\n", TextPosition::Start).unwrap(), [1, 596, 725, 267, 13]);
}

#[test]
fn truncation_that_the_file_asks_for_is_not_done() {
    let truncating = |tokenizer: &mut Value| {
        tokenizer["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    };
    let tokenizer = Tokenizer::open(folder(truncating, None)).unwrap();
    assert_eq!(tokenizer.encode("KING RICHARD:\n", TextPosition::Start).unwrap().len(), 5);
}

#[test]
fn a_missing_or_broken_tokenizer_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = error_of(empty.path());
    assert!(error.contains("tokenizer.json: ") && error.contains("beside the graphs"), "{error}");

    for content in [&b"{"[..], b"[]", b"\xff", b"{\"version\": \"1.0\"}", b""] {
        std::fs::write(empty.path().join("tokenizer.json"), content).unwrap();
        let error = error_of(empty.path());
        assert!(error.contains("tokenizer.json: expected a tokenizer"), "{error}");
    }
    let whole = std::fs::read(checkpoint().join("tokenizer.json")).unwrap();
    for cut in (0..whole.len()).step_by(997) {
        std::fs::write(empty.path().join("tokenizer.json"), &whole[..cut]).unwrap();
        assert!(error_of(empty.path()).contains("tokenizer.json: "));
    }
}

#[test]
fn a_broken_configuration_of_the_tokenizer_is_named() {
    let error = error_of(folder(|_| {}, Some(json!({"add_bos_token": "yes"}))).path());
    assert!(error.contains("tokenizer_config.json: "), "{error}");
    let without = |tokenizer: &mut Value| tokenizer["post_processor"] = Value::Null;
    let error = error_of(folder(without, Some(json!({"add_bos_token": true, "bos_token": "<bos>"}))).path());
    assert!(error.ends_with("add_bos_token: expected a bos_token of the vocabulary, got `<bos>`"), "{error}");
}

#[test]
fn a_decoder_that_cannot_be_streamed_is_refused_by_name() {
    for (decoder, name) in [
        (json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}), "CTC"),
        (json!({"type": "BPEDecoder", "suffix": "</w>"}), "BPEDecoder"),
        (json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "ByteFallback"}]}), "ByteFallback"),
        (
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            "Strip",
        ),
    ] {
        let error = error_of(folder(|tokenizer| tokenizer["decoder"] = decoder, None).path());
        assert!(error.contains("tokenizer.json: decoder: ") && error.contains(&format!("got {name}")), "{error}");
    }
}

#[test]
fn generation_config_gives_the_ends_and_its_sampling_only_when_asked() {
    let config = GenerationConfig::open(checkpoint()).unwrap();
    assert_eq!((config.eos.as_slice(), config.bos), ([2].as_slice(), Some(1)));
    assert_eq!(config.sampling, Sampling::new(0.8).with_top_k(40));
    assert_eq!(config.options().sampling, Sampling::GREEDY);
    assert_eq!(config.options().eos, [2]);

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(GenerationConfig::open(folder.path()).unwrap(), GenerationConfig::default());
    write(
        folder.path(),
        "config.json",
        &json!({"eos_token_id": 7, "temperature": "of no concern here", "hidden_size": 1}),
    );
    assert_eq!(GenerationConfig::open(folder.path()).unwrap().eos, [7]);
    write(folder.path(), "generation_config.json", &json!({"eos_token_id": [2, 5], "temperature": 0.3}));
    let config = GenerationConfig::open(folder.path()).unwrap();
    assert_eq!((config.eos.as_slice(), config.sampling), ([2, 5].as_slice(), Sampling::GREEDY));
    for broken in
        [json!({"eos_token_id": -1}), json!({"eos_token_id": "</s>"}), json!({"do_sample": true, "temperature": -2})]
    {
        write(folder.path(), "generation_config.json", &broken);
        let error = GenerationConfig::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: "), "{error}");
    }
}

#[test]
fn whatever_is_wrong_inside_a_tokenizer_it_is_an_error_or_works_and_never_a_panic() {
    let whole: Value = serde_json::from_slice(&std::fs::read(checkpoint().join("tokenizer.json")).unwrap()).unwrap();
    let mut places = Vec::new();
    collect_places(&whole, &mut String::new(), &mut places);
    assert!(places.len() > 60);
    for place in places {
        for wrong in [Value::Null, json!(-1), json!(3), json!(""), json!("▁"), json!([]), json!({})] {
            let folder = folder(|tokenizer| *tokenizer.pointer_mut(&place).unwrap() = wrong, None);
            if let Ok(tokenizer) = Tokenizer::open(folder.path())
                && let Ok(tokens) = tokenizer.encode("€ king\n", TextPosition::After)
                && let Ok(text) = tokenizer.decode(&tokens)
            {
                let mut stream = tokenizer.stream(TextPosition::Start);
                for token in tokens {
                    stream.push(token).unwrap();
                }
                stream.finish();
                assert_eq!(stream.text(), text, "{place}");
            }
        }
    }
}

/// Pointers to every part of a tokenizer but the single words of its vocabulary.
fn collect_places(value: &Value, at: &mut String, places: &mut Vec<String>) {
    places.push(at.clone());
    let mut descend = |name: &str, value: &Value| {
        let length = at.len();
        at.push('/');
        at.push_str(name);
        collect_places(value, at, places);
        at.truncate(length);
    };
    match value {
        Value::Object(fields) if fields.len() < 100 => fields.iter().for_each(|(name, value)| descend(name, value)),
        Value::Array(items) if items.len() < 100 => {
            items.iter().enumerate().for_each(|(i, value)| descend(&i.to_string(), value));
        }
        _ => {}
    }
}
