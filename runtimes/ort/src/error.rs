//! ONNX Runtime's errors as the session crate's.

use densessm_session::Error;

/// Converts an error of ONNX Runtime during an operation.
pub(crate) fn failed(what: &str) -> impl Fn(ort::Error) -> Error {
    let what = format!("ONNX Runtime: {what}");
    move |error| Error::Runtime { what: what.clone(), problem: message(&error) }
}

/// Returns the first line of ONNX Runtime's message, without the source location before it.
pub(crate) fn message(error: &ort::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.rsplit_once(" : FAIL : ").map_or(line, |(_, message)| message).to_owned()
}
