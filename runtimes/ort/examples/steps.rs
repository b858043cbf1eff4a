//! Times the steps and the prefill of a bundle on a GPU, with and without CUDA graphs, and says what memory they take:
//!
//! ```text
//! steps BUNDLE BATCH,BATCH,… [PROMPT_TOKENS]
//! ```

use densessm_cuda::{Context, Driver};
use densessm_ort::{OrtRuntime, take_capture_problem};
use densessm_session::{Bundle, Device, LoadOptions, Runtime, TokenBatch};
use std::{error::Error, time::Instant};

const WARM: usize = 10;
const STEPS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (bundle, batches, prompt) = match &arguments[..] {
        [bundle, batches] => (bundle, batches, 512),
        [bundle, batches, prompt] => (bundle, batches, prompt.parse()?),
        _ => return Err("expected BUNDLE BATCH,BATCH,… [PROMPT_TOKENS]".into()),
    };
    let bundle = Bundle::open(bundle.as_ref())?;
    let context = Context::primary(&Driver::open()?, 0)?;
    let used = || context.memory().map(|(free, total)| (total - free) as f64 / 1e6);
    let before = used()?;
    for captured in [true, false] {
        let start = Instant::now();
        let options = LoadOptions::for_bundle(&bundle).with_device(Device::CUDA).with_cuda_graph(captured);
        let mut model = OrtRuntime.load(&bundle, &options)?;
        println!("graphs {captured}: loaded in {:.2} s, {:.0} MB", start.elapsed().as_secs_f64(), used()? - before);
        for batch in batches.split(',') {
            let batch: usize = batch.parse()?;
            let mut states = model.initial_states(batch)?;
            let ids: Vec<i64> = (0..batch * prompt).map(|i| 1 + (i % 97) as i64).collect();
            let lengths = vec![prompt; batch];
            let tokens = TokenBatch::new(&ids, &lengths)?;
            let mut prefills = Vec::new();
            for _ in 0..4 {
                let start = Instant::now();
                model.prefill(&tokens, &mut states)?;
                prefills.push(start.elapsed().as_secs_f64());
            }
            let row = vec![5; batch];
            let mut steps = Vec::new();
            for step in 0..WARM + STEPS {
                let start = Instant::now();
                model.step(&row, &mut states)?;
                if step >= WARM {
                    steps.push(start.elapsed().as_secs_f64());
                }
            }
            let median = |times: &mut Vec<f64>| {
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            };
            let (first, prefill, step) = (prefills[0], median(&mut prefills), median(&mut steps));
            println!(
                "graphs {captured}, batch {batch}: step {:.3} ms, {:.0} tokens/s; prefill of {prompt}: {:.1} ms (first \
                 {:.1}), {:.0} tokens/s; {:.0} MB",
                step * 1e3,
                batch as f64 / step,
                prefill * 1e3,
                first * 1e3,
                (batch * prompt) as f64 / prefill,
                used()? - before,
            );
        }
        if let Some(problem) = take_capture_problem() {
            println!("not captured: {problem}");
        }
    }
    Ok(())
}
