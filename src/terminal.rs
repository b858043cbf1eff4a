//! How the command speaks: progress bars, sizes, one-line errors.

use indicatif::{ProgressBar, ProgressStyle};
use std::{io, time::Duration};

/// Prints a line to stdout; a reader that went away is an error that [`is_broken_pipe`] knows, not a panic.
macro_rules! outln {
    ($($line:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)))?
    };
}
pub(crate) use outln;

/// Columns of the terminal that stdout is; without end if it is none.
pub(crate) fn width() -> usize {
    let columns = console::Term::stdout().size_checked().map(|(_, columns)| columns);
    columns.map_or(usize::MAX, usize::from)
}

/// A bar over bytes on stderr, if that is a terminal and the work takes over a second.
pub(crate) fn byte_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar over steps on stderr, if that is a terminal and the work takes over a second.
pub(crate) fn step_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {bar:32} {pos}/{len}")
}

fn bar(what: &'static str, template: &str) -> ProgressBar {
    // Hidden by indicatif itself where stderr is no terminal.
    let bar = ProgressBar::new(0).with_message(what);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Says what is being done, where there is no telling how long it takes.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

/// Moves a bar that shows itself only once a second has passed.
pub(crate) fn advance(bar: &ProgressBar, done: u64, total: u64) {
    if bar.elapsed() >= Duration::from_secs(1) {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// A number of bytes with a unit: `1.4 GB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count as f64, "B")
}

/// A number of operations with a prefix: `0.7 G`.
pub(crate) fn scaled(mut value: f64, unit: &str) -> String {
    for prefix in ["", "k", "M", "G", "T"] {
        if value < 1000.0 {
            let digits = if prefix.is_empty() || value >= 100.0 { 0 } else { 1 };
            return format!("{value:.digits$} {prefix}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} P{unit}")
}

/// An error with its causes, each said once: some errors repeat their source's words in their own.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    line
}

/// Whether an error is nothing but a reader that went away.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}
