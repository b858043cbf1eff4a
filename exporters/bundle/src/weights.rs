//! Streaming weights: read, prepare, write, a piece at a time.
//!
//! One thread reads and prepares while another hashes and writes; what is in memory at once is one matrix (while it
//! is transposed) and a few pieces.

use crate::{Error, export::ExportProgress, plan::WeightLayout};
use densessm_checkpoint::{Checkpoint, Tensor};
use densessm_graph::{Prepare, Weight};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

/// Elements in a piece: 1 MiB of fp32.
const PIECE: usize = 1 << 18;
/// Pieces under way between the two threads.
const UNDER_WAY: usize = 4;

/// Writes the data file as planned and returns its SHA-256.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    plan: &WeightLayout,
    path: &Path,
    mut progress: impl FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<String, Error> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    let (pieces, received) = sync_channel::<Vec<u8>>(UNDER_WAY);
    thread::scope(|threads| {
        let reader = threads.spawn(|| send_all(checkpoint, plan, pieces));
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
        // The reader stops at its next piece once nobody receives it.
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

/// The receiver is gone: it has met an error of its own.
struct Gone;

fn send_all(checkpoint: &Checkpoint, plan: &WeightLayout, pieces: SyncSender<Vec<u8>>) -> Result<(), Error> {
    let mut at = 0;
    for (weight, place) in &plan.entries {
        if place.offset > at && pieces.send(vec![0; (place.offset - at) as usize]).is_err() {
            return Ok(());
        }
        at = place.offset + place.length;
        let tensors: Option<Vec<&Tensor>> = weight.parts.iter().map(|part| checkpoint.tensor(&part.name)).collect();
        let Some(tensors) = tensors else { unreachable!("every declared weight was accounted for") };
        let mut send = |values: &[f32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            pieces.send(bytes).map_err(|_| Gone)
        };
        if let ControlFlow::Break(Gone) = send_one(checkpoint, &tensors, weight, &mut send)? {
            return Ok(());
        }
    }
    // Empty pieces keep the writer asking whether the caller wants to stop.
    let _ = checkpoint.verify(|_| match pieces.send(Vec::new()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    })?;
    Ok(())
}

/// Reads one weight's tensors and sends them as they are stored.
fn send_one(
    checkpoint: &Checkpoint,
    tensors: &[&Tensor],
    weight: &Weight,
    send: &mut impl FnMut(&[f32]) -> Result<(), Gone>,
) -> Result<ControlFlow<Gone>, Error> {
    match weight.prepare {
        Prepare::AsIs | Prepare::NegExp => {
            for (tensor, part) in tensors.iter().zip(&weight.parts) {
                let elements: usize = part.shape.iter().product();
                let mut piece = vec![0.0; PIECE.min(elements)];
                for start in (0..elements).step_by(PIECE) {
                    let piece = &mut piece[..PIECE.min(elements - start)];
                    checkpoint.read(tensor, start, piece)?;
                    if weight.prepare == Prepare::NegExp {
                        piece.iter_mut().for_each(|w| *w = -f64::from(*w).exp() as f32);
                    }
                    if let Err(gone) = send(piece) {
                        return Ok(ControlFlow::Break(gone));
                    }
                }
            }
        }
        // Both turn a matrix, of which several lie below each other: the depthwise kernel [channels, 1, taps] is one of
        // [channels, taps].
        Prepare::Transpose | Prepare::Taps => {
            let [columns, rows] = weight.stored[..] else { unreachable!("a matrix has two axes") };
            let mut matrix = vec![0.0; rows * columns];
            let mut rest = &mut matrix[..];
            for (tensor, part) in tensors.iter().zip(&weight.parts) {
                let (values, behind) = rest.split_at_mut(part.shape.iter().product());
                checkpoint.read(tensor, 0, values)?;
                rest = behind;
            }
            let per_piece = (PIECE / rows.max(1)).max(1);
            let mut piece = Vec::new();
            for first in (0..columns).step_by(per_piece) {
                let count = per_piece.min(columns - first);
                transpose(&matrix, columns, first, count, &mut piece);
                if let Err(gone) = send(&piece) {
                    return Ok(ControlFlow::Break(gone));
                }
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Columns `first .. first + count` of a matrix, each as a row. Works through square tiles, so that both sides stay
/// in the cache.
fn transpose(matrix: &[f32], columns: usize, first: usize, count: usize, out: &mut Vec<f32>) {
    const TILE: usize = 16;
    let rows = matrix.len() / columns;
    out.clear();
    out.resize(rows * count, 0.0);
    for row in (0..rows).step_by(TILE) {
        for column in (0..count).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..count.min(column + TILE) {
                    out[c * rows + r] = matrix[r * columns + first + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_transpose_join_to_the_transpose() {
        let (rows, columns) = (37, 21);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut joined = Vec::new();
        let mut piece = Vec::new();
        for first in (0..columns).step_by(5) {
            transpose(&matrix, columns, first, 5.min(columns - first), &mut piece);
            joined.extend_from_slice(&piece);
        }
        let expected: Vec<f32> = (0..columns).flat_map(|c| (0..rows).map(move |r| (r * columns + c) as f32)).collect();
        assert_eq!(joined, expected);
    }
}
