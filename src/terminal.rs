//! Output of the command: lines, progress bars, sizes and one-line errors.

use densessm_kernels::cuda::on_compilation;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, Write},
    time::Duration,
};

/// Prints a line to stdout. A closed pipe is an error that [`is_broken_pipe`] recognizes, not a panic.
macro_rules! outln {
    ($($line:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)))?
    };
}
pub(crate) use outln;

/// Prints text to stdout as it is.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Returns the columns of the terminal on stdout; `usize::MAX` if stdout is not a terminal.
pub(crate) fn width() -> usize {
    let columns = console::Term::stdout().size_checked().map(|(_, columns)| columns);
    columns.map_or(usize::MAX, usize::from)
}

/// Returns a progress bar over bytes on stderr, shown if that is a terminal and the work takes over a second.
pub(crate) fn byte_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// Returns a progress bar over steps on stderr, shown if that is a terminal and the work takes over a second.
pub(crate) fn step_bar(what: &'static str) -> ProgressBar {
    bar(what, "{msg} {bar:32} {pos}/{len}")
}

fn bar(what: &'static str, template: &str) -> ProgressBar {
    // indicatif hides it where stderr is not a terminal.
    let bar = ProgressBar::new(0).with_message(what);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Returns a spinner on stderr for work of unknown duration.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}

/// Advances a bar, which appears once a second has passed.
pub(crate) fn advance(bar: &ProgressBar, done: u64, total: u64) {
    if bar.elapsed() >= Duration::from_secs(1) {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// Shows the compilation of kernels for the GPU on stderr until the value is dropped: as messages of a spinner if that is a
/// terminal, else as a line at the first and the last kernel.
pub(crate) struct Compilation(ProgressBar);

impl Compilation {
    /// Shows messages of a spinner of its own.
    pub(crate) fn show() -> Self {
        Self::show_in(&ProgressBar::new_spinner())
    }

    /// Shows messages of this spinner.
    pub(crate) fn show_in(spinner: &ProgressBar) -> Self {
        let shown = spinner.clone();
        on_compilation(move |done, total, kernel| {
            let message = format!("compiled kernel {done} of {total} for the GPU: {kernel}");
            if !shown.is_hidden() {
                shown.set_message(message);
            } else if done == 1 || done == total {
                eprintln!("{message}");
            }
        });
        Self(spinner.clone())
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        on_compilation(|_, _, _| ());
        self.0.finish_and_clear();
    }
}

/// Formats a number of bytes with a unit: `1.4 GB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count as f64, "B")
}

/// Formats a number with an SI prefix and a unit: `1.4 GFLOP`.
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

/// Joins the messages of an error and its causes; a cause that the line already contains is left out.
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

/// Returns whether an error is a closed pipe.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}
