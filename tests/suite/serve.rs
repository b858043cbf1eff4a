//! `densessm serve` through a socket on loopback.

use crate::bundles::{Exported, exported, trained};
use densessm::{
    Device, ExportOptions, GenerateOptions, GenerationConfig, Prompt, Sampling, SavedSequence, Snapshot, TextPosition,
    Tokenizer, eval, generate,
    proto::{
        LogitsMode, Precision,
        tolerance::{Tolerance, ToleranceClass},
    },
    runtime,
    serve::{CacheOptions, HttpOptions, HttpServer, Log, Scheduler, SchedulerOptions},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::ControlFlow,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

const PROMPT: &str = "KING RICHARD:\n";
const KEY: &str = "a key";

/// A server on a port of its own.
struct Server {
    exported: Exported,
    address: SocketAddr,
    scheduler: Scheduler,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Setup {
    export: ExportOptions,
    scheduler: SchedulerOptions,
    http: HttpOptions,
    template: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        let http = HttpOptions::new("tiny").with_address(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self { export: ExportOptions::default(), scheduler: SchedulerOptions::default(), http, template: None }
    }
}

impl Server {
    fn start(setup: Setup) -> Self {
        let exported = exported(&trained("densemamba-tiny"), &setup.export);
        let dir = exported.bundle.dir();
        if let Some(template) = setup.template {
            std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
        }
        let model = runtime::load(&exported.bundle, runtime::Choice::Tract, Device::CPU).unwrap();
        let tokenizer = Tokenizer::open(dir).unwrap();
        let scheduler = Scheduler::start(model, tokenizer, setup.scheduler).unwrap();
        let server = HttpServer::bind(scheduler.clone(), setup.http, Log::default()).unwrap();
        let (address, stop) = (server.address().unwrap(), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop);
        let thread = Some(std::thread::spawn(move || server.run(flag).unwrap()));
        Self { exported, address, scheduler, stop, thread }
    }

    fn plain() -> Self {
        Self::start(Setup::default())
    }

    /// Sends a request and returns the status and the whole body.
    fn send(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut reader = self.open(method, path, headers, body);
        let (status, _) = head(&mut reader);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        (status, rest)
    }

    /// Sends a request and leaves the answer to be read. HTTP/1.0 has neither chunks nor connections that are kept.
    fn open(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> BufReader<TcpStream> {
        self.open_with("HTTP/1.0", method, path, headers, body)
    }

    fn open_with(&self, version: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let length = body.len();
        let head = format!("{method} {path} {version}\r\nHost: test\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body by its length may close before it has all of it.
        let _ = stream.write_all(body);
        BufReader::new(stream)
    }

    fn get(&self, path: &str) -> (u16, Value) {
        parsed(self.send("GET", path, "", &[]))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        parsed(self.send("POST", path, "", body.to_string().as_bytes()))
    }

    /// Posts to `/v1/completions`, which has to succeed.
    fn complete(&self, body: &Value) -> Value {
        let (status, answer) = self.post("/v1/completions", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The events of a stream, without the last one, which has to be `[DONE]`.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, answer) = self.send("POST", path, "", body.to_string().as_bytes());
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(status, 200, "{answer}");
        let mut events: Vec<&str> =
            answer.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{answer}");
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The text that the model generates when nothing runs beside it.
    fn alone(&self, prompt: &str, options: GenerateOptions) -> String {
        let bundle = &self.exported.bundle;
        let mut model = runtime::load(bundle, runtime::Choice::Tract, Device::CPU).unwrap();
        let mut generation = generate(&mut *model, self.scheduler.tokenizer(), Prompt::text(prompt), options).unwrap();
        generation.read_to_end().unwrap().0
    }

    fn options(&self, new_tokens: usize) -> GenerateOptions {
        GenerationConfig::open(self.exported.bundle.dir()).unwrap().options().with_max_new_tokens(new_tokens)
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        self.scheduler.tokenizer().encode(text, TextPosition::Start).unwrap()
    }

    fn wait_until_idle(&self) {
        let begin = Instant::now();
        while self.scheduler.metrics().running() + self.scheduler.metrics().waiting() > 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "a slot is still taken");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server failed");
        }
    }
}

/// The status and the headers, in lower case.
fn head(reader: &mut impl BufRead) -> (u16, String) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
    let mut headers = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            return (status, headers);
        }
        headers.push_str(&line.to_lowercase());
    }
}

fn parsed((status, body): (u16, Vec<u8>)) -> (u16, Value) {
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&body))))
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

fn sampled(seed: u64) -> Sampling {
    Sampling::new(0.9).with_top_p(0.95).with_top_k(40).with_seed(seed)
}

#[test]
fn a_completion_is_the_text_of_generate_whole_and_streamed() {
    let server = Server::plain();
    let greedy = server.alone(PROMPT, server.options(30));
    let body = json!({"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "temperature": 0});
    let answer = server.complete(&body);
    assert_eq!(text(&answer), greedy);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let prompt_tokens = server.tokens(PROMPT).len();
    assert_eq!(answer["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(answer["usage"]["completion_tokens"], 30);
    assert_eq!(answer["usage"]["total_tokens"], prompt_tokens + 30);
    // The second time, the prompt is known but for its last token.
    let again = server.complete(&body);
    assert_eq!(text(&again), greedy);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], prompt_tokens - 1);
    assert_ne!(again["id"], answer["id"]);

    let mut body = body;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.stream("/v1/completions", &body);
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!((&usage["usage"]["completion_tokens"], &usage["choices"]), (&json!(30), &json!([])));
    assert_eq!(chunks.iter().map(text).collect::<String>(), greedy);
    assert!(chunks.len() > 10, "only {} chunks", chunks.len());
    let finished: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert!(finished[..finished.len() - 1].iter().all(|reason| reason.is_null()));
    assert_eq!(finished[finished.len() - 1], "length");
}

#[test]
fn sampling_parameters_stop_strings_and_choices_are_those_of_generate() {
    let server = Server::plain();
    let options = |seed| server.options(20).with_sampling(sampled(seed));
    let body = json!({
        "prompt": PROMPT, "max_tokens": 20, "temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 7, "n": 3,
    });
    let answer = server.complete(&body);
    for index in 0..3 {
        let choice = &answer["choices"][index as usize];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], server.alone(PROMPT, options(7 + index)));
    }
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let mut texts = [String::new(), String::new(), String::new()];
    for chunk in server.stream("/v1/completions", &streamed) {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(texts, [7, 8, 9].map(|seed| server.alone(PROMPT, options(seed))));
    for stop in [json!(", and Gr"), json!(["never", ", and Gr"])] {
        let body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 30, "stop": stop});
        let answer = server.complete(&body);
        assert_eq!(text(&answer), "Then, Buckingham");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[test]
fn sixteen_concurrent_clients_get_the_text_that_each_gets_alone() {
    let server = Server::plain();
    let prompt = |index: usize| format!("{PROMPT}{}", "Now is the winter of our discontent, ".repeat(index % 5));
    let options = |index: usize| server.options(5 + 3 * index).with_sampling(sampled(index as u64));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|index| {
                let (server, prompt) = (&server, prompt(index));
                scope.spawn(move || {
                    let body = json!({
                        "prompt": prompt, "max_tokens": 5 + 3 * index, "temperature": 0.9, "top_p": 0.95, "top_k": 40,
                        "seed": index, "stream": index % 2 == 0,
                    });
                    match index % 2 {
                        0 => server.stream("/v1/completions", &body).iter().map(text).collect::<String>(),
                        _ => text(&server.complete(&body)).to_owned(),
                    }
                })
            })
            .collect();
        for (index, client) in clients.into_iter().enumerate() {
            assert_eq!(client.join().unwrap(), server.alone(&prompt(index), options(index)), "client {index}");
        }
    });
}

#[test]
fn a_client_that_vanishes_frees_its_slots() {
    let setup = Setup {
        scheduler: SchedulerOptions::default().with_slots(2).with_limits(1000, 100_000_000),
        http: Setup::default().http.with_request_time(None),
        ..Setup::default()
    };
    let server = Server::start(setup);
    for stream in [true, false] {
        let body = json!({"prompt": PROMPT, "max_tokens": 100_000_000, "n": 2, "stream": stream}).to_string();
        // As clients that keep their connections do.
        let open = || server.open_with("HTTP/1.1", "POST", "/v1/completions", "", body.as_bytes());
        let (mut running, waiting) = (open(), open());
        let begin = Instant::now();
        while server.scheduler.metrics().running() < 2 || server.scheduler.metrics().waiting() < 1 {
            assert!(begin.elapsed() < Duration::from_secs(60), "the requests did not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        if stream {
            // Whichever of the two runs.
            running.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = running.read(&mut [0; 500]);
        }
        drop((running, waiting));
        server.wait_until_idle();
    }
    let (_, metrics) = server.send("GET", "/metrics", "", &[]);
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("densessm_requests_total{outcome=\"cancelled\"} 4\n"), "{metrics}");
    let both = server.complete(&json!({"prompt": PROMPT, "max_tokens": 2, "n": 2}));
    assert_eq!(both["choices"].as_array().unwrap().len(), 2);
}

/// The fields of a request of lm-evaluation-harness for log-likelihoods.
fn loglikelihood(prompts: &Value) -> Value {
    json!({
        "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
        "echo": true,
    })
}

#[test]
fn echoed_log_probabilities_sum_up_to_what_eval_measures() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/text/shakespeare-heldout.txt");
    let whole = std::fs::read_to_string(path).unwrap();
    for logits in [LogitsMode::Last, LogitsMode::All] {
        let mut export = ExportOptions::default();
        export.logits = logits;
        let server = Server::start(Setup { export, ..Setup::default() });
        let ids = &server.tokens(&whole)[..200];
        let prompts = [&ids[..90], &ids[90..91], &ids[100..200]];
        let answer = server.complete(&loglikelihood(&json!(prompts)));
        let mut model = runtime::load(&server.exported.bundle, runtime::Choice::Tract, Device::CPU).unwrap();
        for (index, prompt) in prompts.iter().enumerate() {
            let choice = &answer["choices"][index];
            assert_eq!(choice["index"], index);
            let logprobs = &choice["logprobs"];
            let list = |name: &str| logprobs[name].as_array().unwrap().clone();
            let own = list("token_logprobs");
            assert_eq!((own.len(), &own[0]), (prompt.len() + 1, &Value::Null));
            for name in ["tokens", "top_logprobs", "text_offset"] {
                assert_eq!(list(name).len(), prompt.len() + 1);
            }
            let sum: f64 = own[1..prompt.len()].iter().map(|value| value.as_f64().unwrap()).sum();
            if prompt.len() > 1 {
                // A text of these tokens, in one window.
                let text = eval::TokenizedText::from_tokens(prompt.iter().map(|&token| i64::from(token)).collect());
                let options = eval::EvalOptions::new(prompt.len());
                let outcome =
                    eval::measure(&mut *model, &text, &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
                let expected = -outcome.nats_per_token * outcome.tokens as f64;
                let allowed = Tolerance::of(ToleranceClass::Logits, Precision::Fp32).bound(expected.abs());
                assert!((sum - expected).abs() <= allowed, "{sum}, {expected}");
            }
            // What follows the prompt is greedy: its own log-probability is the largest, as a number.
            let last = prompt.len();
            let top = list("top_logprobs")[last].as_object().unwrap().clone();
            let largest = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(own[last].as_f64().unwrap().to_bits(), largest.to_bits());
        }
        // Neighbouring requests do not matter to the bit where one row is read alone.
        if logits == LogitsMode::All {
            let single = server.complete(&loglikelihood(&json!(prompts[0])));
            let own =
                |answer: &Value| answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..90].to_vec();
            assert_eq!(own(&single), own(&answer));
        }
    }
}

#[test]
fn echo_returns_the_prompt_and_offsets_count_its_characters() {
    let server = Server::plain();
    let body = json!({"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "echo": true, "logprobs": 3});
    let answer = server.complete(&body);
    let expected = format!("{PROMPT}{}", server.alone(PROMPT, server.options(5)));
    assert_eq!(text(&answer), expected);
    let logprobs = &answer["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    let mut offset = 0;
    for (token, got) in tokens.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        assert_eq!(got, offset);
        offset += token.chars().count();
    }
    assert_eq!(tokens.concat().trim_start(), expected);
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let chunks = server.stream("/v1/completions", &streamed);
    assert_eq!(chunks.iter().map(text).collect::<String>(), expected);
    let joined: Vec<Value> = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array().unwrap().clone())
        .collect();
    assert_eq!(json!(joined), logprobs["text_offset"]);
    // Without log-probabilities, and of tokens instead of a text.
    let answer = server.complete(&json!({"prompt": server.tokens(PROMPT), "max_tokens": 0, "echo": true}));
    assert_eq!((text(&answer).trim_start(), &answer["usage"]["completion_tokens"]), (PROMPT, &json!(0)));
}

const TEMPLATE: &str = "{% for message in messages %}{{ message.role.upper() + ':\\n' + message.content.strip() + \
                        '\\n\\n' }}{% endfor %}{{ 'KING RICHARD:\\n' }}";

#[test]
fn a_chat_is_the_completion_of_its_template() {
    let setup = Setup { template: Some(TEMPLATE), ..Setup::default() };
    let server = Server::start(setup);
    let parts = json!([{"type": "text", "text": " Good "}, {"type": "text", "text": "morrow. "}]);
    let mut body = json!({
        "model": "tiny", "messages": [{"role": "juliet", "content": parts}], "temperature": 0,
        "max_completion_tokens": 20, "logprobs": true, "top_logprobs": 2,
    });
    let prompt = "JULIET:\nGood morrow.\n\nKING RICHARD:\n";
    let expected = server.alone(prompt, server.options(20));
    let (status, answer) = server.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], expected);
    assert_eq!((&answer["object"], &choice["message"]["role"]), (&json!("chat.completion"), &json!("assistant")));
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 20);
    for entry in content {
        assert_eq!(entry["top_logprobs"][0]["logprob"], entry["logprob"]);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(entry["bytes"], json!(entry["token"].as_str().unwrap().as_bytes()));
    }
    body["stream"] = json!(true);
    let chunks = server.stream("/v1/chat/completions", &body);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0]["delta"]["role"].is_null()));
    let streamed: String =
        chunks.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!((streamed, &chunks[0]["object"]), (expected, &json!("chat.completion.chunk")));
    let (status, answer) = Server::plain().post("/v1/chat/completions", &json!({"messages": []}));
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("messages")));
}

#[test]
fn malformed_and_excessive_requests_are_errors_in_the_shape_of_openai() {
    let scheduler = SchedulerOptions::default().with_limits(20, 30).with_slots(4).with_queue(3);
    let http = Setup::default().http.with_body(2000, Duration::from_millis(300));
    let server = Server::start(Setup { scheduler, http, ..Setup::default() });
    let long = "word ".repeat(100);
    for (body, status, param) in [
        (json!({"prompt": "a", "functions": []}), 400, Some("functions")),
        (json!({"prompt": "a", "best_of": 2}), 400, Some("best_of")),
        (json!({"prompt": "a", "suffix": "x"}), 400, Some("suffix")),
        (json!({"prompt": "a", "presence_penalty": 0.5}), 400, Some("presence_penalty")),
        (json!({"prompt": "a", "frequency_penalty": -1}), 400, Some("frequency_penalty")),
        (json!({"prompt": "a", "logit_bias": {"1": 5}}), 400, Some("logit_bias")),
        (json!({"prompt": "a", "max_tokens": 31}), 400, Some("max_tokens")),
        (json!({"prompt": "a", "n": 0}), 400, Some("n")),
        (json!({"prompt": "a", "n": 5}), 400, Some("n")),
        (json!({"prompt": "a", "logprobs": 21}), 400, Some("logprobs")),
        (json!({"prompt": "a", "top_k": -2}), 400, Some("top_k")),
        (json!({"prompt": long}), 400, Some("prompt")),
        (json!({"prompt": [1, 4_000_000]}), 400, Some("prompt")),
        (json!({"prompt": []}), 400, None),
        (json!({"prompt": [[]]}), 400, None),
        (json!({"prompt": ["a", "b", "c", "d"]}), 400, Some("prompt")),
        (json!({"prompt": [-1]}), 400, None),
        (json!({"prompt": {"text": "a"}}), 400, None),
        (json!({"max_tokens": 3}), 400, Some("prompt")),
        (json!({"prompt": "a", "temperature": -1}), 400, None),
        (json!({"prompt": "a", "top_p": 0}), 400, None),
        (json!({"prompt": "a", "stop": ""}), 400, None),
        (json!({"prompt": "a", "stop": 7}), 400, None),
        (json!({"prompt": "a", "stream_options": {"x": 1}}), 400, Some("x")),
        (json!({"prompt": "a", "model": "other"}), 404, Some("model")),
        (json!({"prompt": "a", "state": "none"}), 404, None),
        (json!({"prompt": "a", "echo": true, "state": "none"}), 400, Some("echo")),
        (json!([1]), 400, None),
        (json!({"prompt": "x".repeat(2000)}), 413, None),
    ] {
        let (got, answer) = server.post("/v1/completions", &body);
        let error = &answer["error"];
        assert_eq!((got, error["param"].as_str()), (status, param), "{body}: {answer}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{answer}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for (method, path, status) in [
        ("GET", "/v1/completions", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/states/none", 404),
        ("DELETE", "/v1/states/none", 404),
    ] {
        let (got, answer) = parsed(server.send(method, path, "", &[]));
        assert_eq!((got, answer["error"]["message"].is_string()), (status, true), "{method} {path}");
    }
    for body in [&b"{"[..], b"", b"\xff\xfe", br#"{"prompt": "\ud800"}"#] {
        assert_eq!(server.send("POST", "/v1/completions", "", body).0, 400);
    }
    assert_eq!(server.send("POST", "/v1/states", "", b"no file of states").0, 400);
    // A body that does not arrive.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST /v1/completions HTTP/1.0\r\nContent-Length: 50\r\n\r\n{").unwrap();
    assert_eq!(head(&mut BufReader::new(stream)).0, 408);
    // A stream is refused before it begins.
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 31, "stream": true}));
    assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("max_tokens")));
    assert_eq!(server.get("/health"), (200, json!({"status": "ok"})));
    assert!(!text(&server.complete(&json!({"prompt": PROMPT, "max_tokens": 3}))).is_empty());
}

#[test]
fn a_full_queue_and_a_time_limit_are_errors_that_clients_know() {
    let scheduler = SchedulerOptions::default().with_slots(1).with_queue(1).with_limits(1000, 100_000_000);
    let http = Setup::default().http.with_request_time(Some(Duration::from_millis(700)));
    let server = Server::start(Setup { scheduler, http, ..Setup::default() });
    let body = json!({"prompt": PROMPT, "max_tokens": 100_000_000}).to_string();
    let open: Vec<_> = (0..6).map(|_| server.open("POST", "/v1/completions", "", body.as_bytes())).collect();
    let mut statuses: Vec<u16> = open.into_iter().map(|mut reader| head(&mut reader).0).collect();
    statuses.sort_unstable();
    // One or two run or wait until their time is over; the others find the queue full.
    assert!(statuses.contains(&429) && statuses.contains(&504), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 429 | 504)), "{statuses:?}");
    let streamed = json!({"prompt": PROMPT, "max_tokens": 100_000_000, "stream": true}).to_string();
    let (status, events) = server.send("POST", "/v1/completions", "", streamed.as_bytes());
    let events = String::from_utf8(events).unwrap();
    let last: Value = serde_json::from_str(events.trim().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((status, &last["error"]["code"]), (200, &json!("timeout")));
}

#[test]
fn states_move_between_servers_and_the_library() {
    let (first, second) = (Server::plain(), Server::plain());
    let body = json!({"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "save_state": true});
    let answer = first.complete(&body);
    let whole = first.alone(PROMPT, first.options(30));
    let id = answer["choices"][0]["state"].as_str().unwrap();
    let (status, file) = first.send("GET", &format!("/v1/states/{id}"), "", &[]);
    assert_eq!(status, 200);
    let (status, loaded) = parsed(second.send("POST", "/v1/states", "", &file));
    assert_eq!(status, 200, "{loaded}");
    let consumed = first.tokens(PROMPT).len() + 11;
    assert_eq!((&loaded["consumed_tokens"], &loaded["pending_tokens"]), (&json!(consumed), &json!(1)));
    for (server, state) in [(&first, id), (&second, loaded["id"].as_str().unwrap())] {
        let rest = server.complete(&json!({"state": state, "max_tokens": 18, "temperature": 0}));
        assert_eq!(format!("{}{}", text(&answer), text(&rest)), whole);
    }
    // What the command and the library save and load is the same file.
    let path = first.exported.bundle.dir().join("a.state");
    std::fs::write(&path, &file).unwrap();
    let mut model = runtime::load(&first.exported.bundle, runtime::Choice::Tract, Device::CPU).unwrap();
    let saved = SavedSequence::restore(&mut *model, &Snapshot::load(&path).unwrap()).unwrap();
    let tokenizer = first.scheduler.tokenizer();
    let (rest, _) =
        densessm::resume(&mut *model, tokenizer, saved, None, first.options(18)).unwrap().read_to_end().unwrap();
    assert_eq!(format!("{}{rest}", text(&answer)), whole);

    let path = format!("/v1/states/{id}");
    assert_eq!(parsed(first.send("DELETE", &path, "", &[])).1["deleted"], true);
    assert_eq!(first.send("GET", &path, "", &[]).0, 404);
    // A state with damaged numbers is refused.
    let mut damaged = file;
    let end = damaged.len() - 4;
    damaged[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    let (status, answer) = parsed(second.send("POST", "/v1/states", "", &damaged));
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("finite"), "{answer}");
}

#[test]
fn the_cache_of_a_server_survives_its_restart() {
    let folder = tempfile::tempdir().unwrap();
    let setup = || {
        let cache = CacheOptions::default().with_folder(folder.path(), 1 << 30);
        Setup { scheduler: SchedulerOptions::default().with_cache(cache), ..Setup::default() }
    };
    let body = json!({"prompt": PROMPT, "max_tokens": 10, "temperature": 0});
    let server = Server::start(setup());
    let before = server.complete(&body);
    drop(server);
    let server = Server::start(setup());
    let after = server.complete(&body);
    assert_eq!(text(&after), text(&before));
    let known = server.tokens(PROMPT).len() - 1;
    assert_eq!(after["usage"]["prompt_tokens_details"]["cached_tokens"], known);
}

#[test]
fn a_key_protects_everything_but_the_health_check_and_the_page() {
    let http = Setup::default().http.with_api_key(Some(KEY.to_owned()));
    let server = Server::start(Setup { http, ..Setup::default() });
    for path in ["/health", "/"] {
        assert_eq!(server.send("GET", path, "", &[]).0, 200);
    }
    for header in ["", "Authorization: Bearer wrong\r\n", "Authorization: a key\r\n"] {
        for path in ["/v1/models", "/metrics", "/v1/states/x"] {
            let (status, answer) = parsed(server.send("GET", path, header, &[]));
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("invalid_api_key")), "{path}");
        }
    }
    let header = format!("Authorization: Bearer {KEY}\r\n");
    let (status, models) = parsed(server.send("GET", "/v1/models", &header, &[]));
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
}

#[test]
fn models_tokens_metrics_and_the_page_are_served() {
    let server = Server::plain();
    let (_, list) = server.get("/v1/models");
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny").1["object"], "model");
    let (_, tokens) = server.post("/tokenize", &json!({"prompt": PROMPT}));
    assert_eq!(tokens["tokens"], json!(server.tokens(PROMPT)));
    assert_eq!(tokens["count"], server.tokens(PROMPT).len());
    let (_, text) = server.post("/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["prompt"].as_str().unwrap().trim_start(), PROMPT);
    assert_eq!(server.post("/tokenize", &json!({"prompt": "a", "x": 1})).0, 400);
    server.complete(&json!({"prompt": PROMPT, "max_tokens": 4}));
    let (_, metrics) = server.send("GET", "/metrics", "", &[]);
    let metrics = String::from_utf8(metrics).unwrap();
    for line in [
        format!("densessm_prompt_tokens_total {}", server.tokens(PROMPT).len()),
        "densessm_time_to_first_token_seconds_count 1".to_owned(),
        "densessm_num_requests_running 0".to_owned(),
        "densessm_slots 16".to_owned(),
    ] {
        assert!(metrics.lines().any(|got| got == line), "{line}: {metrics}");
    }
    let (status, page) = server.send("GET", "/", "", &[]);
    let page = String::from_utf8(page).unwrap();
    assert_eq!(status, 200);
    assert!(page.starts_with("<!doctype html>") && !page.contains("://"), "the page refers to something outside");
}

#[test]
fn a_server_that_is_told_to_stop_finishes_what_runs_within_its_deadline() {
    let mut server = Server::plain();
    let expected = server.alone(PROMPT, server.options(200));
    let body = json!({"prompt": PROMPT, "max_tokens": 200, "temperature": 0}).to_string();
    let mut running = server.open("POST", "/v1/completions", "", body.as_bytes());
    let begin = Instant::now();
    while server.scheduler.metrics().generated_tokens() == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the request did not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.stop.store(true, Ordering::Relaxed);
    assert_eq!(head(&mut running).0, 200);
    let mut answer = String::new();
    running.read_to_string(&mut answer).unwrap();
    assert_eq!(text(&serde_json::from_str(&answer).unwrap()), expected);
    server.thread.take().unwrap().join().unwrap();
    assert!(TcpStream::connect(server.address).is_err(), "the port is still open");

    let http = Setup::default().http.with_shutdown(Duration::from_millis(50));
    let scheduler = SchedulerOptions::default().with_limits(1000, 100_000_000);
    let mut server = Server::start(Setup { http, scheduler, ..Setup::default() });
    let body = json!({"prompt": PROMPT, "max_tokens": 100_000_000, "temperature": 0}).to_string();
    let mut running = server.open("POST", "/v1/completions", "", body.as_bytes());
    while server.scheduler.metrics().generated_tokens() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.stop.store(true, Ordering::Relaxed);
    assert_eq!(head(&mut running).0, 503);
    server.thread.take().unwrap().join().unwrap();
}

#[test]
fn a_client_that_does_not_read_delays_nobody() {
    let scheduler = SchedulerOptions::default().with_slots(2).with_limits(1000, 20_000);
    let server = Server::start(Setup { scheduler, ..Setup::default() });
    let body = json!({"prompt": PROMPT, "max_tokens": 20_000, "stream": true, "logprobs": 20}).to_string();
    let unread = server.open("POST", "/v1/completions", "", body.as_bytes());
    for _ in 0..5 {
        let answer = server.complete(&json!({"prompt": PROMPT, "max_tokens": 10, "temperature": 0}));
        assert_eq!(text(&answer), server.alone(PROMPT, server.options(10)));
    }
    drop(unread);
    server.wait_until_idle();
}

#[cfg(unix)]
#[test]
fn a_server_that_is_killed_while_it_writes_states_leaves_whole_ones_only() {
    use std::process::{Command, Stdio};
    let exported = exported(&trained("densemamba-tiny"), &ExportOptions::default());
    let states = exported.bundle.dir().join("states");
    let mut known = 0;
    for round in 0..6 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_densessm"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--runtime", "tract", "--state-cache", "0"]);
        command.arg("--state-cache-dir").arg(&states).arg("--bundle").arg(exported.bundle.dir());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address: SocketAddr = line.trim().rsplit("//").next().unwrap().parse().unwrap();
        // The number of prompt tokens that a cached state had consumed; none once the server is gone.
        let ask = |number: usize| {
            let mut stream = TcpStream::connect(address).ok()?;
            let prompt: Vec<usize> = (0..20).map(|i| 3 + (number * 20 + i * i) % 900).collect();
            let body = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0}).to_string();
            let head = format!("POST /v1/completions HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
        };
        if round > 0 {
            known += ask((round - 1) * 1000).unwrap();
        }
        // The states of the last answers are still being written.
        for number in 0..6 + 5 * round {
            ask(round * 1000 + number).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut log = String::new();
        stderr.read_to_string(&mut log).unwrap();
        assert!(!log.contains("dropped"), "round {round}: {log}");
    }
    assert!(known > 0, "no state survived");
}

#[cfg(unix)]
#[test]
fn the_command_serves_until_it_is_asked_to_terminate() {
    use std::process::{Command, Stdio};
    let exported = exported(&trained("densemamba-tiny"), &ExportOptions::default());
    let mut command = Command::new(env!("CARGO_BIN_EXE_densessm"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--runtime", "tract", "--state-cache", "64M", "--bundle"]);
    let mut child = command.arg(exported.bundle.dir()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("serving bundle on http://").unwrap_or_else(|| panic!("{line}"));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /v1/models HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"id\":\"bundle\""), "{answer}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(log.contains("event=http method=GET path=/v1/models status=200"), "{log}");
    assert!(log.contains("event=stopping"), "{log}");
}
