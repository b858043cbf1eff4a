//! The trained checkpoints generate the text that PyTorch generates.

use crate::bundles::{RUNTIMES, exported, load, trained};
use densessm::{ExportOptions, GenerationConfig, Prompt, Tokenizer, generate};
use serde_json::Value;

#[test]
fn greedy_text_equals_pytorchs_on_every_runtime() {
    for name in ["densemamba-tiny", "denseretnet-tiny"] {
        let checkpoint = trained(name);
        let expected: Value = serde_json::from_slice(&std::fs::read(checkpoint.join("greedy.json")).unwrap()).unwrap();
        let ids: Vec<u32> =
            expected["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let (prompt, text) = (expected["prompt"].as_str().unwrap(), expected["text"].as_str().unwrap());
        let prompt_tokens = expected["prompt_tokens"].as_u64().unwrap() as usize;

        let exported = exported(&checkpoint, &ExportOptions::default());
        let tokenizer = Tokenizer::open(exported.bundle.dir()).unwrap();
        for runtime in RUNTIMES {
            let mut model = load(&exported.bundle, runtime);
            let config = GenerationConfig::open(exported.bundle.dir()).unwrap();
            let options = config.options().with_max_new_tokens(ids.len() - prompt_tokens);
            let mut generation = generate(&mut *model, &tokenizer, Prompt::text(prompt), options).unwrap();
            let pieces: Vec<_> = generation.by_ref().map(|piece| piece.unwrap()).collect();
            let tokens: Vec<u32> = pieces.iter().filter_map(|piece| piece.token).collect();
            let streamed: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(tokens, ids[prompt_tokens..], "{name} on {}", runtime.name());
            assert_eq!(format!("{prompt}{streamed}"), text, "{name} on {}", runtime.name());
            assert_eq!(generation.statistics().prompt_tokens, prompt_tokens);
        }
    }
}
