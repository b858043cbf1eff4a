//! Log lines: an event and its fields, as `key=value`.

use std::{
    io::Write,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Where log lines go. Clones share it.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl Default for Log {
    /// Writes nothing.
    fn default() -> Self {
        Self::to(|_| {})
    }
}

impl Log {
    /// Calls a function with each line, which has no line break.
    pub fn to(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }

    /// Writes to standard error, each line with the seconds since 1970 in front. A line that cannot be written is lost.
    pub fn stderr() -> Self {
        Self::to(|line| {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // The log has nowhere to report its own failure.
            let _ = writeln!(std::io::stderr(), "ts={:.3} {line}", time.as_secs_f64());
        })
    }

    /// Writes one line. Values that contain spaces or quotes are quoted.
    pub fn line(&self, event: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        let mut line = format!("event={event}");
        for (key, value) in fields {
            let value = value.to_string();
            let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '='));
            line.push_str(&if plain { format!(" {key}={value}") } else { format!(" {key}={value:?}") });
        }
        (self.0)(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_line_has_its_fields_in_order_and_quotes_what_is_not_plain() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let log = Log::to(move |line| kept.lock().unwrap().push(line.to_owned()));
        log.line("request", &[("id", &7), ("error", &"a \"b\"\nc"), ("empty", &"")]);
        assert_eq!(*lines.lock().unwrap(), [r#"event=request id=7 error="a \"b\"\nc" empty="""#]);
    }
}
