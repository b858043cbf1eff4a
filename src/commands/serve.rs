//! `densessm serve`

use super::load;
use crate::{cli::RuntimeArgs, interrupt};
use anyhow::{Context, Result, ensure};
use clap::{Args, builder::RangedU64ValueParser};
use densessm::{
    Bundle, Tokenizer,
    serve::{CacheOptions, HttpOptions, HttpServer, Log, Scheduler, SchedulerOptions},
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// The environment variable that sets the API key where the option does not.
const API_KEY: &str = "DENSESSM_API_KEY";

#[derive(Args)]
pub(crate) struct Serve {
    /// Bundle: a folder made by `densessm export`.
    #[arg(long)]
    bundle: PathBuf,
    /// Address and port to listen on; port 0 lets the system choose one. By default, only this machine can connect.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Name of the model that clients see and send; the name of the bundle's folder by default.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Key that clients have to send as bearer token. The environment variable DENSESSM_API_KEY sets it as well, and does
    /// not show it to other users of the machine.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Maximum number of sequences that run at once; each takes the memory of one state.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive())]
    slots: usize,
    /// Maximum number of prompt tokens that are read between two steps of the running sequences.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive())]
    prompt_piece: usize,
    /// Maximum number of requests that wait for a slot; further ones are refused.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive())]
    queue: usize,
    /// Maximum number of tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    max_prompt_tokens: usize,
    /// Maximum number of tokens that a request may ask for.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_new_tokens: usize,
    /// Memory for states after prompts, so that a known beginning is not read again: bytes, or a number with K, M or G
    /// (powers of 1024); 0 keeps none.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    state_cache: u64,
    /// Folder in which these states are kept as well, so that they survive a restart.
    #[arg(long, value_name = "DIR")]
    state_cache_dir: Option<PathBuf>,
    /// Maximum size of the files in that folder, as for --state-cache.
    #[arg(long, value_name = "SIZE", default_value = "10G", value_parser = size)]
    state_cache_dir_size: u64,
    /// Maximum number of sequences that clients keep by name; the least recently used one is dropped first.
    #[arg(long, value_name = "N", default_value_t = 32)]
    saved_states: usize,
    /// Maximum size of the body of a request, as for --state-cache.
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = size)]
    body_limit: u64,
    /// Maximum number of seconds that a request may take, waiting included; 0 sets no limit.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    request_timeout: u64,
    /// Number of seconds that running requests get when the server is asked to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
    /// Do not write a line to standard error for each request.
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    on: RuntimeArgs,
}

pub(crate) fn run(arguments: &Serve) -> Result<()> {
    let stop = interrupt::watch()?;
    let bundle = Bundle::open(&arguments.bundle)?;
    let tokenizer = Tokenizer::open(bundle.dir())?;
    let graphs = bundle.manifest().graphs.iter().map(|graph| graph.kind).collect();
    let model = load(&bundle, graphs, &arguments.on)?;
    let log = if arguments.quiet { Log::default() } else { Log::stderr() };
    let options = http(arguments)?;
    let name = options.model.clone();
    let scheduler = Scheduler::start_with_log(model, tokenizer, scheduler(arguments), log.clone())?;
    let server = HttpServer::bind(scheduler, options, log)?;
    eprintln!("serving {name} on http://{}", server.address()?);
    Ok(server.run(stop)?)
}

fn scheduler(arguments: &Serve) -> SchedulerOptions {
    let mut cache = CacheOptions::default().with_bytes(arguments.state_cache);
    if let Some(folder) = &arguments.state_cache_dir {
        cache = cache.with_folder(folder, arguments.state_cache_dir_size);
    }
    SchedulerOptions::default()
        .with_slots(arguments.slots)
        .with_piece(arguments.prompt_piece)
        .with_queue(arguments.queue)
        .with_limits(arguments.max_prompt_tokens, arguments.max_new_tokens)
        .with_max_saved(arguments.saved_states)
        .with_cache(cache)
}

fn http(arguments: &Serve) -> Result<HttpOptions> {
    let folder = || {
        let path = std::path::absolute(&arguments.bundle).context("name of the bundle's folder")?;
        Ok::<_, anyhow::Error>(
            path.file_name().map_or("densessm".to_owned(), |name| name.to_string_lossy().into_owned()),
        )
    };
    let name = arguments.model_name.clone().map_or_else(folder, Ok)?;
    let api_key = arguments.api_key.clone().or_else(|| std::env::var(API_KEY).ok());
    ensure!(api_key.as_deref() != Some(""), "api key: expected a text, got an empty one");
    let defaults = HttpOptions::new(name);
    let (body_bytes, body_time) = (usize::try_from(arguments.body_limit).unwrap_or(usize::MAX), defaults.body_time);
    let request_time = (arguments.request_timeout > 0).then(|| Duration::from_secs(arguments.request_timeout));
    Ok(defaults
        .with_address(arguments.listen)
        .with_api_key(api_key)
        .with_body(body_bytes, body_time)
        .with_request_time(request_time)
        .with_shutdown(Duration::from_secs(arguments.shutdown_timeout)))
}

fn positive() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Reads a number of bytes: `512M` is 512 times 1024 times 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => return Err(format!("expected bytes or a number with K, M or G, got the unit `{unit}`")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("expected a number, got `{digits}`"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("expected fewer bytes, got `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("3K", 3 << 10), ("512M", 512 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "M", "1T", "1.5G", "-1", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
