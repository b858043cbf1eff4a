//! A compilation unit: a kernel source and the constants it is compiled with.

use crate::Architecture;

/// The headers that a source may include, by the name under which it does.
pub type Headers = &'static [(&'static str, &'static str)];

/// A kernel source with the constants it is compiled with.
///
/// Units are equal if they compile to the same machine code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    name: &'static str,
    source: &'static str,
    headers: Headers,
    defines: Vec<String>,
}

impl Unit {
    /// A unit of CUDA C++, named after its main kernel, with options of the form `-DNAME=VALUE`.
    pub const fn new(name: &'static str, source: &'static str, headers: Headers, defines: Vec<String>) -> Self {
        Self { name, source, headers, defines }
    }

    /// Replaces the source, keeping the constants: for experiments with a kernel.
    #[must_use]
    pub fn with_source(mut self, source: &'static str) -> Self {
        self.source = source;
        self
    }

    /// Returns the source's name, which is that of its main kernel.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the CUDA C++ source.
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Returns what the source may include, by name.
    pub fn headers(&self) -> Headers {
        self.headers
    }

    /// Returns the compiler's options.
    pub fn options(&self, architecture: Architecture) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".to_owned(),
            "--extra-device-vectorization".to_owned(),
            // Lambdas are functions of the device.
            "--device-as-default-execution-space".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        options.extend(self.defines.iter().cloned());
        options
    }
}
