//! What half precision changes: the weights by rounding, and the arithmetic by the device.

use super::{
    Measure,
    measure::{ComparedValues, Tally},
    modes::Expected,
};
use crate::{
    Device,
    proto::{Precision, Tolerance, ToleranceClass},
};
use densessm_reference::{HalfType, Reference};
use std::borrow::Cow;

/// The checkpoint with its matrices as a bundle of this precision stores them.
pub(super) fn stored(reference: &Reference, precision: Precision) -> Cow<'_, Reference> {
    let half = match precision {
        Precision::Fp16 => HalfType::Fp16,
        Precision::Bf16 => HalfType::Bf16,
        _ => return Cow::Borrowed(reference),
    };
    Cow::Owned(reference.rounded(half, |name, shape| Precision::stores(name, shape.len())))
}

/// The precision in which a device computes with a bundle: processors widen the weights and compute in fp32.
pub(super) fn arithmetic(bundle: Precision, device: Device) -> Precision {
    if device.is_cpu() { Precision::Fp32 } else { bundle }
}

/// Compares the logits of the prompt with the weights as stored, which are expected, with those of the checkpoint.
pub(super) fn measure(checkpoint: &Reference, expected: &Expected, precision: Precision) -> Measure {
    let mut tally = Tally::new(Tolerance::of(ToleranceClass::Logits, precision));
    let exact = checkpoint.parallel(&expected.tokens, &mut checkpoint.initial_state::<f64>(), &mut ());
    for (exact, stored) in exact.rows().into_iter().zip(expected.logits.rows()) {
        let stored: Vec<f32> = stored.iter().map(|&logit| logit as f32).collect();
        tally.add_logits(&stored, &exact.to_vec());
    }
    tally.measure("reference", &format!("matrices rounded to {precision}"), ComparedValues::Logits)
}
