//! The error of this library, and those that it is made of.
//!
//! Each function returns the error of its crate or module, which says most precisely what can go wrong; all of them
//! convert to [`Error`] with `?`.

pub use crate::{eval::Error as EvalError, parity::Error as ParityError, report::Error as ReportError};
pub use densessm_bundle::Error as ExportError;
pub use densessm_checkpoint::Error as CheckpointError;
pub use densessm_generate::Error as GenerateError;
pub use densessm_reference::Error as ReferenceError;
pub use densessm_session::{Error as SessionError, ParseDeviceError, Unusable};

/// Any error of this library.
///
/// The message is that of the error inside, complete in one line; [`source`](std::error::Error::source) returns only
/// what the message does not already contain.
///
/// ```no_run
/// use densessm::{Bundle, Device, Error, Model, error::SessionError, runtime};
///
/// fn load(path: &std::path::Path) -> Result<Box<dyn Model>, Error> {
///     let bundle = Bundle::open(path)?;
///     match runtime::load(&bundle, runtime::Choice::Ort, "cuda:1".parse::<Device>()?) {
///         Err(SessionError::Unusable(unusable)) => {
///             eprintln!("{unusable}; using the processor");
///             Ok(runtime::load(&bundle, runtime::Choice::Auto, Device::CPU)?)
///         }
///         loaded => Ok(loaded?),
///     }
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint cannot be read or does not fit its model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A bundle or a checkpoint cannot be written.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A bundle, a runtime or an input of a graph is invalid.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The text of a device is invalid.
    #[error(transparent)]
    ParseDevice(#[from] ParseDeviceError),
    /// Text cannot be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A bundle cannot be compared with its checkpoint.
    #[error(transparent)]
    Parity(#[from] ParityError),
    /// The perplexity of a text cannot be computed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A report cannot be made or saved.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl From<Unusable> for Error {
    fn from(unusable: Unusable) -> Self {
        Self::Session(unusable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{error::Error as _, io, path::PathBuf};

    /// The message and those of the sources, outermost first.
    fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
        std::iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect()
    }

    #[test]
    fn no_source_repeats_what_the_message_says() {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        let path = || PathBuf::from("/model/config.json");
        let checkpoint = || CheckpointError::Io { path: path(), error: missing() };
        let session = || SessionError::Io { path: path(), error: missing() };
        let errors: [Error; 8] = [
            checkpoint().into(),
            ExportError::from(checkpoint()).into(),
            session().into(),
            GenerateError::from(session()).into(),
            ParityError::from(session()).into(),
            ParityError::from(checkpoint()).into(),
            EvalError::from(session()).into(),
            ReportError::Io { path: path(), error: missing() }.into(),
        ];
        for error in &errors {
            assert_eq!(chain(error), ["/model/config.json: no such file"], "{error:?}");
        }
    }

    #[test]
    fn what_is_inside_can_be_matched() {
        let error = Error::from(ParseDeviceError::IndexedCpu("cpu:1".to_owned()));
        assert!(matches!(error, Error::ParseDevice(ParseDeviceError::IndexedCpu(_))), "{error}");
        assert!(error.source().is_none());
    }
}
