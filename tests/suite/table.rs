//! The table of every runtime, device, lowering and precision: the tolerance of its results, and why some rows are not
//! run.

use densessm::{
    Bundle, Device, Model,
    proto::{self, Lowering, Precision, ToleranceClass},
    runtime,
};

/// The project's tolerances for a precision.
#[derive(Debug)]
pub(crate) struct Tolerance {
    /// What the weights are stored as.
    pub(crate) precision: Precision,
}

/// The tolerances of fp32 bundles.
pub(crate) const FP32: Tolerance = Tolerance { precision: Precision::Fp32 };
/// The tolerances of bundles in half precision beside exact results.
pub(crate) const HALF: [Tolerance; 2] =
    [Tolerance { precision: Precision::Fp16 }, Tolerance { precision: Precision::Bf16 }];

impl Tolerance {
    /// Compares logits with those expected.
    #[track_caller]
    pub(crate) fn assert_close<E: Copy + Into<f64>>(&self, got: &[f32], expected: &[E], what: &str) {
        self.assert(ToleranceClass::Logits, got, expected, what);
    }

    /// Compares a state with the one expected.
    #[track_caller]
    pub(crate) fn assert_state<E: Copy + Into<f64>>(&self, got: &[f32], expected: &[E], what: &str) {
        self.assert(ToleranceClass::States, got, expected, what);
    }

    #[track_caller]
    fn assert<E: Copy + Into<f64>>(&self, class: ToleranceClass, got: &[f32], expected: &[E], what: &str) {
        let compared = proto::Tolerance::of(class, self.precision).compare(got, expected);
        compared.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// Where a row is run.
#[derive(Clone, Copy, Debug, PartialEq)]
enum RunPolicy {
    /// On every machine.
    Everywhere,
    /// Where the device is usable.
    OnTheDevice,
    /// Nowhere; the runtime's error contains this reason.
    Nowhere(&'static str),
    /// Nowhere; where the device is usable, the runtime's error contains this reason.
    RefusedOnTheDevice(&'static str),
}

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) runtime: runtime::Choice,
    pub(crate) device: Device,
    pub(crate) lowering: Lowering,
    pub(crate) tolerance: &'static Tolerance,
    policy: RunPolicy,
}

const fn row(runtime: runtime::Choice, device: Device, lowering: Lowering, policy: RunPolicy) -> Row {
    Row { runtime, device, lowering, tolerance: &FP32, policy }
}

const TABLE: [Row; 12] = {
    use Lowering::{Function, Inline};
    use RunPolicy::{Everywhere, Nowhere, OnTheDevice, RefusedOnTheDevice};
    use runtime::Choice::{Ort, Tract};
    const CPU: Device = Device::CPU;
    const CUDA: Device = Device::CUDA;
    const TENSORRT: Device = Device::TENSORRT;
    const CPU_ONLY: RunPolicy = Nowhere("runs on the processor only");
    [
        row(Ort, CPU, Function, Everywhere),
        row(Ort, CPU, Inline, Everywhere),
        row(Ort, CUDA, Function, OnTheDevice),
        row(Ort, CUDA, Inline, OnTheDevice),
        row(Ort, TENSORRT, Function, RefusedOnTheDevice("expected lowering inline for TensorRT")),
        row(Ort, TENSORRT, Inline, OnTheDevice),
        row(Tract, CPU, Function, Everywhere),
        row(Tract, CPU, Inline, Everywhere),
        row(Tract, CUDA, Function, CPU_ONLY),
        row(Tract, CUDA, Inline, CPU_ONLY),
        row(Tract, TENSORRT, Function, CPU_ONLY),
        row(Tract, TENSORRT, Inline, CPU_ONLY),
    ]
};

/// The rows that are run here.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(|row| row.skipped().is_none())
}

impl Row {
    /// Why it is not run here.
    fn skipped(&self) -> Option<String> {
        match self.policy {
            RunPolicy::Everywhere => None,
            RunPolicy::Nowhere(reason) => Some(reason.to_owned()),
            RunPolicy::OnTheDevice => self.unusable(),
            RunPolicy::RefusedOnTheDevice(reason) => Some(self.unusable().unwrap_or_else(|| reason.to_owned())),
        }
    }

    fn unusable(&self) -> Option<String> {
        runtime::availability(self.runtime, self.device).err().map(|unusable| unusable.to_string())
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        let Self { runtime, device, lowering, tolerance, .. } = self;
        format!("{} on {device}, {lowering}, {}", runtime.name(), tolerance.precision)
    }

    /// Whether the operators run as this project's kernels rather than as functions of standard operators.
    pub(crate) fn has_kernels(&self) -> bool {
        matches!(self.device, Device::CPU | Device::CUDA) && self.lowering == Lowering::Function
    }

    /// Loads both graphs of a bundle of the row's lowering.
    pub(crate) fn load(&self, bundle: &Bundle) -> Box<dyn Model> {
        runtime::load(bundle, self.runtime, self.device).unwrap_or_else(|error| {
            panic!("{}: {error}\n(tests/run fetches ONNX Runtime; on its own, set ORT_DYLIB_PATH)", self.name())
        })
    }
}

mod tests {
    use super::*;
    use crate::bundles::{LOWERINGS, exported, golden};
    use densessm::ExportOptions;

    #[test]
    fn the_table_has_every_combination_once() {
        for runtime in runtime::ALL {
            for device in [Device::CPU, Device::CUDA, Device::TENSORRT] {
                for lowering in LOWERINGS {
                    let is = |row: &&Row| (row.runtime, row.device, row.lowering) == (runtime, device, lowering);
                    assert_eq!(TABLE.iter().filter(is).count(), 1, "{} on {device}, {lowering}", runtime.name());
                }
            }
        }
    }

    /// A row that is skipped although it could be run is a mistake in the table.
    #[test]
    fn what_is_skipped_does_not_load_and_says_why() {
        for model in ["densemamba-m2-both-gates", "denseretnet-m0"] {
            for row in &TABLE {
                let Some(reason) = row.skipped() else { continue };
                println!("skipped: {}: {reason}", row.name());
                let options = ExportOptions::default().with_lowering(row.lowering);
                let exported = exported(&golden(model), &options);
                let error = match runtime::load(&exported.bundle, row.runtime, row.device) {
                    Ok(_) => panic!("{}: skipped, and loads", row.name()),
                    Err(error) => error.to_string(),
                };
                assert!(error.contains(&reason), "{}: expected {reason}, got {error}", row.name());
            }
        }
    }
}
