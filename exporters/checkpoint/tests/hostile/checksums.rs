//! Damaged torch files: the checksums of the archive's entries.

use crate::pickles::{counted, view, view_of};
use densessm_checkpoint::{Checkpoint, Error};
use std::{fs, ops::ControlFlow};
use tempfile::TempDir;
use zip::ZipArchive;

/// An archive that can be damaged at a known position.
struct Damage {
    folder: TempDir,
    whole: Vec<u8>,
}

impl Damage {
    fn new(folder: TempDir) -> Self {
        let whole = fs::read(folder.path().join("pytorch_model.bin")).unwrap();
        Self { folder, whole }
    }

    fn position(&self, entry: &str) -> usize {
        let mut zip = ZipArchive::new(std::io::Cursor::new(&self.whole)).unwrap();
        zip.by_name(&format!("model/{entry}")).unwrap().data_start().unwrap() as usize
    }

    /// The positions of an entry's CRC-32 in the archive's directory.
    fn crc(&self, entry: &str) -> usize {
        let directory = self.whole.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
        let name = format!("model/{entry}");
        let found = self.whole[directory..].windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
        directory + found - 46 + 16
    }

    /// Opens the archive with one byte changed.
    fn flipped(&self, at: usize) -> Result<Checkpoint, Error> {
        let mut bytes = self.whole.clone();
        bytes[at] ^= 1;
        fs::write(self.folder.path().join("pytorch_model.bin"), bytes).unwrap();
        Checkpoint::open(self.folder.path())
    }
}

fn read_all(checkpoint: &Checkpoint) -> Result<(), Error> {
    checkpoint.tensors().try_for_each(|tensor| checkpoint.read(tensor, 0, &mut vec![0.0; tensor.elements()]))
}

fn verify(checkpoint: &Checkpoint) -> Result<u64, Error> {
    let mut bytes = 0;
    let ended = checkpoint.verify(|piece| {
        bytes += piece;
        ControlFlow::Continue(())
    })?;
    assert!(ended.is_continue());
    Ok(bytes)
}

#[track_caller]
fn damaged<T>(result: Result<T, Error>, entry: &str, tensor: Option<&str>) {
    let Err(error) = result else { panic!("a damaged file was accepted") };
    let text = error.to_string();
    let Error::Checksum { path, entry: named, tensor: of, expected, got } = error else { panic!("{text}") };
    assert!(path.ends_with("pytorch_model.bin"));
    assert_eq!((named.as_str(), of.as_deref()), (entry, tensor));
    let of = of.map(|name| format!("{name}: ")).unwrap_or_default();
    let end = format!(
        "pytorch_model.bin: {entry}: {of}expected CRC-32 {expected:08x}, got {got:08x}; \
         the file is damaged, copy or download it again"
    );
    assert!(text.ends_with(&end), "{text}");
}

/// Large enough to be read in several pieces.
const LARGE: u32 = 3 * 700 * 400;

#[test]
fn a_finite_weight_with_a_flipped_bit_is_found_while_it_is_read() {
    let damage = Damage::new(view_of(&counted(LARGE), 0, &[2100, 400], &[400, 1]));
    let start = damage.position("data/0");
    for element in [0, 1, 300_000, LARGE as usize - 1] {
        damaged(read_all(&damage.flipped(start + 4 * element).unwrap()), "data/0", Some("w"));
    }
    fs::write(damage.folder.path().join("pytorch_model.bin"), &damage.whole).unwrap();
    let checkpoint = Checkpoint::open(damage.folder.path()).unwrap();
    read_all(&checkpoint).unwrap();
    assert_eq!(verify(&checkpoint).unwrap(), 0, "what was read whole needs no second pass");
}

#[test]
fn bytes_that_views_skip_are_verified_at_the_end() {
    let total = 4 * u64::from(LARGE);
    // The whole transposed, every other column, one column, the second half, the first half, and nothing.
    for (offset, shape, strides, unread) in [
        (0, vec![400, 2100], vec![1, 400], 0),
        (1, vec![200, 2100], vec![2, 400], total),
        (7, vec![2100, 1], vec![400, 1], total),
        (420_000, vec![420_000], vec![1], total),
        (0, vec![420_000], vec![1], total / 2),
        (5, vec![0], vec![1], total),
    ] {
        let damage = Damage::new(view_of(&counted(LARGE), offset, &shape, &strides));
        let checkpoint = Checkpoint::open(damage.folder.path()).unwrap();
        read_all(&checkpoint).unwrap();
        assert_eq!(verify(&checkpoint).unwrap(), unread, "{shape:?} {strides:?}");
        assert_eq!(verify(&checkpoint).unwrap(), 0, "{shape:?} {strides:?}");
        let start = damage.position("data/0");
        // Elements that no view above but the first reads: they may be found at the end only.
        for element in [0, LARGE as usize - 1] {
            let checkpoint = damage.flipped(start + 4 * element).unwrap();
            damaged(read_all(&checkpoint).and_then(|()| verify(&checkpoint)), "data/0", Some("w"));
            damaged(verify(&checkpoint), "data/0", Some("w"));
        }
    }
}

#[test]
fn pieces_in_any_order_are_verified_once() {
    let damage = Damage::new(view_of(&counted(LARGE), 0, &[2100, 400], &[400, 1]));
    let checkpoint = Checkpoint::open(damage.folder.path()).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    let mut half = vec![0.0; 420_000];
    checkpoint.read(tensor, 420_000, &mut half).unwrap();
    checkpoint.read(tensor, 0, &mut half).unwrap();
    assert_eq!(verify(&checkpoint).unwrap(), 4 * 420_000);
    checkpoint.read(tensor, 0, &mut half).unwrap();
    assert_eq!(verify(&checkpoint).unwrap(), 0);
}

#[test]
fn verifying_can_be_interrupted_and_continued() {
    let damage = Damage::new(view_of(&counted(LARGE), 0, &[2100, 400], &[400, 1]));
    let checkpoint = Checkpoint::open(damage.folder.path()).unwrap();
    let mut first = 0;
    let ended = checkpoint.verify(|piece| {
        first = piece;
        ControlFlow::Break(())
    });
    assert!(ended.unwrap().is_break());
    assert!(first > 0);
    assert_eq!(verify(&checkpoint).unwrap(), 4 * u64::from(LARGE) - first);
}

#[test]
fn damage_explains_a_weight_that_is_not_finite() {
    let damage = Damage::new(view_of(&counted(LARGE), 0, &[2100, 400], &[400, 1]));
    // The last byte of element 1 holds the sign and most of the exponent; 1.0 becomes NaN or an infinity with 0x7f.
    let mut bytes = damage.whole.clone();
    bytes[damage.position("data/0") + 7] = 0x7f;
    fs::write(damage.folder.path().join("pytorch_model.bin"), bytes).unwrap();
    damaged(read_all(&Checkpoint::open(damage.folder.path()).unwrap()), "data/0", Some("w"));
}

#[test]
fn a_wrong_checksum_of_the_pickle_is_found_when_the_file_is_opened() {
    let damage = Damage::new(view(0, &[3, 4], &[4, 1]));
    damaged(damage.flipped(damage.crc("data.pkl")), "data.pkl", None);
    damaged(damage.flipped(damage.crc("byteorder")), "byteorder", None);
    // A byte of the pickle that is neither an opcode nor a length: the location `cpu` of the storage.
    let cpu = damage.whole.windows(3).position(|bytes| bytes == b"cpu").unwrap();
    damaged(damage.flipped(cpu), "data.pkl", None);
    let checkpoint = damage.flipped(damage.crc("data/0")).unwrap();
    damaged(read_all(&checkpoint), "data/0", Some("w"));
}

#[test]
fn files_that_were_saved_without_checksums_are_read() {
    let damage = Damage::new(view(0, &[3, 4], &[4, 1]));
    let mut bytes = damage.whole.clone();
    for entry in ["data.pkl", "byteorder", "data/0"] {
        bytes[damage.crc(entry)..][..4].fill(0);
    }
    fs::write(damage.folder.path().join("pytorch_model.bin"), &bytes).unwrap();
    let checkpoint = Checkpoint::open(damage.folder.path()).unwrap();
    read_all(&checkpoint).unwrap();
    assert_eq!(verify(&checkpoint).unwrap(), 0);
    // A single zero is a wrong checksum.
    bytes[damage.crc("data.pkl")..][..4].copy_from_slice(&damage.whole[damage.crc("data.pkl")..][..4]);
    fs::write(damage.folder.path().join("pytorch_model.bin"), &bytes).unwrap();
    damaged(Checkpoint::open(damage.folder.path()), "byteorder", None);
}
