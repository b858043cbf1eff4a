//! Streaming weights into the data file: read, prepared, stored and written piece by piece.
//!
//! One thread reads and encodes while another hashes and writes; in memory at once are what encoding one weight needs
//! and a few pieces.

use crate::{Error, export::ExportProgress, plan::WeightLayout};
use densessm_checkpoint::Checkpoint;
use densessm_graph::Part;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

/// Pieces that may wait between the two threads.
const QUEUED: usize = 4;

/// Writes the data file as planned and returns its SHA-256.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    plan: &WeightLayout,
    path: &Path,
    progress: impl FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<String, Error> {
    write_from(checkpoint, plan, path, progress)
}

/// Where tensors are read from.
trait Source: Send {
    /// Reads elements of a tensor, from `start` on.
    fn read(&mut self, part: &Part, start: usize, out: &mut [f32]) -> Result<(), Error>;

    /// Checks what reading the tensors did not, once all are read. Stops early where `proceed` says so.
    fn verify(&mut self, proceed: &mut dyn FnMut() -> ControlFlow<()>) -> Result<(), Error>;
}

impl Source for &Checkpoint {
    fn read(&mut self, part: &Part, start: usize, out: &mut [f32]) -> Result<(), Error> {
        match self.tensor(&part.name) {
            Some(tensor) => Ok(Checkpoint::read(self, tensor, start, out)?),
            None => Err(Error::MissingTensor { name: part.name.clone() }),
        }
    }

    fn verify(&mut self, proceed: &mut dyn FnMut() -> ControlFlow<()>) -> Result<(), Error> {
        // Whether it was stopped is known to whoever stopped it.
        let _ = Checkpoint::verify(self, |_| proceed())?;
        Ok(())
    }
}

/// [`write`] with any source of tensors.
fn write_from(
    source: impl Source,
    plan: &WeightLayout,
    path: &Path,
    mut progress: impl FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<String, Error> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    let (pieces, received) = sync_channel::<Vec<u8>>(QUEUED);
    thread::scope(|threads| {
        // The thread owns the sender, so that the receiver sees the end.
        let reader = threads.spawn(move || send_all(plan, source, &pieces));
        let mut hash = Sha256::new();
        let mut done = 0;
        let written = received.iter().try_for_each(|piece| {
            hash.update(&piece);
            file.write_all(&piece).map_err(Error::io(path))?;
            done += piece.len() as u64;
            match progress(ExportProgress { done, total: plan.size }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Stopped),
            }
        });
        // With the receiver gone, the reader stops at its next piece.
        drop(received);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)?;
        file.sync_all().map_err(Error::io(path))?;
        Ok(hex(&hash.finalize()))
    })
}

/// The lower-case hexadecimal digits of some bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why the weights were not all sent.
enum Interruption {
    /// The receiver is gone: it has met an error of its own.
    Receiver,
    Error(Error),
}

impl From<densessm_graph::Error> for Interruption {
    fn from(error: densessm_graph::Error) -> Self {
        Self::Error(error.into())
    }
}

/// Encodes all weights, reading each tensor once, and sends the bytes of the data file in order.
fn send_all(plan: &WeightLayout, mut source: impl Source, pieces: &SyncSender<Vec<u8>>) -> Result<(), Error> {
    let send = |bytes: Vec<u8>| pieces.send(bytes).map_err(|_| Interruption::Receiver);
    let mut sent = 0;
    let mut send_weights = || {
        plan.weights().iter().try_for_each(|weight| {
            weight.encode(
                |part, start, out| source.read(part, start, out).map_err(Interruption::Error),
                |initializer, bytes| {
                    // The gap before the initializer, if these are its first bytes.
                    let gap = plan.place(initializer).offset.saturating_sub(sent);
                    if gap > 0 {
                        send(vec![0; gap as usize])?;
                    }
                    sent += gap + bytes.len() as u64;
                    send(bytes)
                },
            )
        })
    };
    match send_weights() {
        // Empty pieces keep the writer asking whether the caller wants to stop.
        Ok(()) => source.verify(&mut || send(Vec::new()).map_or(ControlFlow::Break(()), ControlFlow::Continue)),
        Err(Interruption::Receiver) => Ok(()),
        Err(Interruption::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tensors that a test makes up.
    impl<F: FnMut(&Part, usize, &mut [f32]) -> Result<(), Error> + Send> Source for F {
        fn read(&mut self, part: &Part, start: usize, out: &mut [f32]) -> Result<(), Error> {
            self(part, start, out)
        }

        fn verify(&mut self, _: &mut dyn FnMut() -> ControlFlow<()>) -> Result<(), Error> {
            Ok(())
        }
    }
    use densessm_graph::{DType, Graph, Lowering, Model, Prepare, Storage, TensorType};
    use std::collections::BTreeMap;

    /// A graph whose weights are stored in every way there is.
    fn model() -> Model {
        let graph = Graph::new("weights", 18, Lowering::Inline).unwrap();
        let x = graph.input("x", TensorType::new(DType::F32, ["rows"]));
        let p = graph.root();
        let mut sum = x.reduce_sum(0);
        let a = p.weight("a", [3, 5]);
        let b = p.with_weights_in(DType::F16).weight_t("b", [6, 700]);
        let c = p.with_weights_in(DType::BF16).weights_t(&[("c", [2, 4]), ("d", [3, 4])]);
        let decay = p.weight_as("A_log", [4, 2], Prepare::NegExp);
        let [values, scales] = p.weight_group(&[("q", &[300, 2050])], Prepare::AsIs, Storage::Int8Blocks { size: 32 });
        let [taps] = p.weight_group(&[("taps", &[3, 1, 2])], Prepare::Taps, Storage::Float(DType::F64));
        let last = p.weight("last", [1]);
        for weight in [a, b, c, decay, values, scales, taps, last] {
            sum = sum + weight.cast(DType::F32).flatten(weight.shape().len()).reduce_sum(0);
        }
        graph.output("sum", sum);
        graph.finish().unwrap()
    }

    fn element(name: &str, index: usize) -> f32 {
        ((index * 7919 + name.len() * 31) % 1000) as f32 / 500.0 - 1.0
    }

    /// The data file of a layout, with every read of a tensor: its name, first element and number of elements.
    fn stream(plan: &WeightLayout) -> (Vec<u8>, Vec<(String, usize, usize)>) {
        let mut reads = Vec::new();
        let read = |part: &Part, start: usize, out: &mut [f32]| {
            reads.push((part.name.clone(), start, out.len()));
            out.iter_mut().enumerate().for_each(|(i, out)| *out = element(&part.name, start + i));
            Ok(())
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.data");
        let mut last = 0;
        let progress = |progress: ExportProgress| {
            assert!(progress.done > last && progress.total == plan.size, "{progress:?} after {last}");
            last = progress.done;
            ControlFlow::Continue(())
        };
        let sha256 = write_from(read, plan, &path, progress).unwrap();
        assert_eq!(last, plan.size);
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(sha256, hex(&Sha256::digest(&bytes)));
        (bytes, reads)
    }

    #[test]
    fn each_initializer_lies_at_its_place_with_gaps_of_zeros() {
        let model = model();
        let plan = WeightLayout::new([&model]).unwrap();
        let (file, _) = stream(&plan);
        assert_eq!(file.len() as u64, plan.size);
        let mut end = 0;
        for weight in plan.weights() {
            let mut encoded: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let read = |part: &Part, start: usize, out: &mut [f32]| {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = element(&part.name, start + i));
                Ok::<(), Error>(())
            };
            let write = |initializer: &densessm_graph::Initializer, bytes: Vec<u8>| {
                encoded.entry(initializer.name.clone()).or_default().extend(bytes);
                Ok(())
            };
            weight.encode(read, write).unwrap();
            for initializer in &weight.initializers {
                let place = plan.place(initializer);
                let (from, to) = (place.offset as usize, (place.offset + place.length) as usize);
                assert_eq!(file[from..to], encoded[&initializer.name], "{}", initializer.name);
                assert_eq!(place.length, initializer.bytes() as u64);
                assert!(file[end..from].iter().all(|&byte| byte == 0), "the gap before {}", initializer.name);
                end = to;
            }
        }
        assert_eq!(end, file.len());
    }

    #[test]
    fn every_tensor_is_read_once_in_order_and_in_pieces() {
        let model = model();
        let (_, reads) = stream(&WeightLayout::new([&model]).unwrap());
        let mut next: BTreeMap<String, usize> = BTreeMap::new();
        for (name, start, count) in reads {
            let next = next.entry(name.clone()).or_default();
            assert_eq!(*next, start, "{name}");
            assert!(name != "q" || count <= 1 << 18, "{count} elements of {name} at once");
            *next += count;
        }
        for part in model.weights().flat_map(|weight| &weight.parts) {
            assert_eq!(next[&part.name], part.elements(), "{}", part.name);
        }
    }

    #[test]
    fn fp16_and_bf16_are_half_as_long_and_hold_the_rounded_transpose() {
        let model = model();
        let plan = WeightLayout::new([&model]).unwrap();
        let (file, _) = stream(&plan);
        let bytes = |name: &str| {
            let weight = plan.weights().iter().find(|weight| weight.name == name).unwrap();
            let place = plan.place(&weight.initializers[0]);
            &file[place.offset as usize..(place.offset + place.length) as usize]
        };
        let b = bytes("b");
        assert_eq!(b.len(), 2 * 6 * 700);
        for (i, bits) in b.as_chunks().0.iter().enumerate() {
            let (column, row) = (i / 6, i % 6);
            let exact = element("b", row * 700 + column);
            let stored = half_to_f32(u16::from_le_bytes(*bits));
            assert!(
                (stored - exact).abs() <= exact.abs().max(2_f32.powi(-14)) * 2_f32.powi(-11),
                "{exact} as {stored}"
            );
        }
        let joined = bytes("c+d");
        assert_eq!(joined.len(), 2 * 5 * 4);
        for (i, bits) in joined.as_chunks().0.iter().enumerate() {
            let (column, row) = (i / 5, i % 5);
            let exact = if row < 2 { element("c", row * 4 + column) } else { element("d", (row - 2) * 4 + column) };
            let stored = f32::from_bits(u32::from(u16::from_le_bytes(*bits)) << 16);
            assert!((stored - exact).abs() <= exact.abs() * 2_f32.powi(-8), "{exact} as {stored}");
        }
    }

    /// IEEE half precision, written out.
    fn half_to_f32(bits: u16) -> f32 {
        let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f32::from(bits & 1023));
        let magnitude = match exponent {
            0 => fraction * 2_f32.powi(-24),
            _ => (1024.0 + fraction) * 2_f32.powi(exponent - 25),
        };
        if sign == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn a_caller_can_stop_the_stream_at_any_piece() {
        let model = model();
        let plan = WeightLayout::new([&model]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for pieces in 1..6 {
            let mut left = pieces;
            let stop = |_| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let read = |_: &Part, _: usize, out: &mut [f32]| {
                out.fill(0.5);
                Ok(())
            };
            let error = write_from(read, &plan, &folder.path().join("w"), stop).unwrap_err();
            assert!(matches!(error, Error::Stopped), "{error}");
        }
    }

    #[test]
    fn a_number_that_its_storage_cannot_hold_stops_the_stream() {
        let model = model();
        let plan = WeightLayout::new([&model]).unwrap();
        let read = |part: &Part, _: usize, out: &mut [f32]| {
            out.fill(if part.name == "b" { 1e6 } else { 0.5 });
            Ok(())
        };
        let folder = tempfile::tempdir().unwrap();
        let go_on = |_| ControlFlow::Continue(());
        let error = write_from(read, &plan, &folder.path().join("w"), go_on).unwrap_err().to_string();
        assert!(error.starts_with("weight `b`: element 0 is 1000000, which is too large for fp16"), "{error}");
    }
}
