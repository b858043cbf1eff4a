//! Pickles written opcode by opcode, and the archives that hold them.

use crate::{folder, refused};
use densessm_checkpoint::{Checkpoint, Error};
use std::{fs, io::Write};
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A pickle, opcode by opcode.
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn op(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn text(self, text: &str) -> Self {
        self.op([b'X']).op((text.len() as u32).to_le_bytes()).op(text)
    }

    /// An integer, as a long of 8 bytes.
    fn int(self, value: i64) -> Self {
        self.op([0x8a, 8]).op(value.to_le_bytes())
    }

    fn class(self, name: &str) -> Self {
        self.op("c").op(name).op("\n")
    }

    fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op("("), |pickle, &value| pickle.int(value)).op("t")
    }

    fn tensor(self, class: &str, key: &str, elements: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        self.class("torch._utils\n_rebuild_tensor_v2")
            .op("((")
            .text("storage")
            .class(class)
            .text(key)
            .text("cpu")
            .int(elements)
            .op("tQ")
            .int(offset)
            .ints(shape)
            .ints(strides)
            .op([0x89])
            .class("collections\nOrderedDict")
            .op(")RtR")
    }
}

/// A checkpoint of an archive with these entries.
fn archive(entries: &[(&str, &[u8])], options: SimpleFileOptions) -> TempDir {
    let folder = folder();
    let mut zip = ZipWriter::new(fs::File::create(folder.path().join("pytorch_model.bin")).unwrap());
    for (name, bytes) in entries {
        zip.start_file(format!("model/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    folder
}

fn stored() -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(CompressionMethod::Stored)
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub(crate) fn counted(count: u32) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

fn pickled_with(pickle: &Pickle, numbers: &[f32]) -> TempDir {
    archive(&[("data.pkl", &pickle.0), ("byteorder", b"little"), ("data/0", &bytes(numbers))], stored())
}

/// A checkpoint of a pickle and a storage of 12 floats, 0 to 11.
fn pickled(pickle: &Pickle) -> TempDir {
    pickled_with(pickle, &counted(12))
}

/// A checkpoint whose one tensor `w` is this view of those floats.
pub(crate) fn view_of(numbers: &[f32], offset: i64, shape: &[i64], strides: &[i64]) -> TempDir {
    let table = Pickle::new().op("}").text("w");
    let elements = numbers.len() as i64;
    pickled_with(&table.tensor("torch\nFloatStorage", "0", elements, offset, shape, strides).op("s."), numbers)
}

/// A checkpoint whose one tensor `w` is this view of the 12 floats.
pub(crate) fn view(offset: i64, shape: &[i64], strides: &[i64]) -> TempDir {
    view_of(&counted(12), offset, shape, strides)
}

fn values(folder: &TempDir) -> Result<Vec<f32>, Error> {
    let checkpoint = Checkpoint::open(folder.path())?;
    let tensor = checkpoint.tensor("w").unwrap();
    let mut values = vec![f32::NAN; tensor.elements()];
    checkpoint.read(tensor, 0, &mut values)?;
    Ok(values)
}

#[test]
fn views_are_what_their_strides_make_them() {
    for (offset, shape, strides, expected) in [
        (0, &[3_i64, 4] as &[i64], &[4_i64, 1] as &[i64], vec![0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]),
        (0, &[4, 3], &[1, 4], vec![0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]),
        (1, &[3, 2], &[4, 2], vec![1., 3., 5., 7., 9., 11.]),
        (1, &[3], &[4], vec![1., 5., 9.]),
        (0, &[3], &[5], vec![0., 5., 10.]),
        (2, &[2, 1, 2, 2], &[6, 0, 1, 2], vec![2., 4., 3., 5., 8., 10., 9., 11.]),
        (11, &[], &[], vec![11.]),
        (12, &[0, 5], &[5, 1], vec![]),
    ] {
        assert_eq!(values(&view(offset, shape, strides)).unwrap(), expected, "{offset} {shape:?} {strides:?}");
    }
}

#[test]
fn views_larger_than_what_is_read_at_once_are_whole_in_any_piece() {
    let numbers = counted(3 * 700 * 400);
    // Transposed, every other column of it, one column, and a block of a larger tensor.
    for (offset, shape, strides) in [
        (0, vec![400, 2100], vec![1, 400]),
        (1, vec![200, 2100], vec![2, 400]),
        (7, vec![2100, 1], vec![400, 1]),
        (5, vec![3, 300, 700], vec![280_000, 1, 400]),
    ] {
        let folder = view_of(&numbers, offset, &shape, &strides);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let tensor = checkpoint.tensor("w").unwrap();
        let expected = |mut element: usize| {
            let mut place = offset;
            for (&size, &stride) in shape.iter().zip(&strides).rev() {
                place += (element % size as usize) as i64 * stride;
                element /= size as usize;
            }
            place as f32
        };
        let elements = tensor.elements();
        for (start, end) in [(0, elements), (1, elements - 1), (elements / 3, elements / 2), (elements - 1, elements)] {
            let mut part = vec![f32::NAN; end - start];
            checkpoint.read(tensor, start, &mut part).unwrap();
            let wrong = part.iter().enumerate().find(|&(i, &value)| value != expected(start + i));
            assert_eq!(wrong, None, "{shape:?} {strides:?} {start}..{end}");
        }
    }
}

#[test]
fn only_elements_of_a_view_must_be_finite() {
    let mut numbers = counted(12);
    (numbers[2], numbers[5]) = (f32::NAN, f32::INFINITY);
    let error = values(&view_of(&numbers, 0, &[4, 3], &[1, 4])).unwrap_err().to_string();
    assert!(error.ends_with("pytorch_model.bin: w: expected finite numbers, got inf at element 4"), "{error}");
    assert_eq!(values(&view_of(&numbers, 0, &[2, 3], &[3, 4])).unwrap(), [0., 4., 8., 3., 7., 11.]);
}

#[test]
fn views_that_leave_their_storage_or_repeat_it_are_refused() {
    let large = 1 << 40;
    for (offset, shape, strides, words) in [
        (1, &[3_i64, 4] as &[i64], &[4_i64, 1] as &[i64], "expected a view within its storage of 12"),
        (0, &[13], &[1], "expected a view within its storage of 12"),
        (0, &[3], &[6], "expected a view within its storage of 12"),
        (13, &[0], &[1], "expected a view within its storage of 12"),
        (i64::MAX, &[0], &[1], "expected a view within its storage of 12"),
        (i64::MAX, &[2], &[i64::MAX], "expected a view within its storage of 12"),
        (0, &[2, 2], &[i64::MAX, i64::MAX], "expected a view within its storage of 12"),
        (0, &[large, large, 0], &[1, 1, 1], "expected sizes with strides"),
        (0, &[3, 4], &[4], "expected sizes with strides"),
        (0, &[large, 1], &[0, 1], "expected each element at its own position"),
        (0, &[2, 2], &[1, 1], "expected each element at its own position"),
        (0, &[3, 2], &[2, 3], "expected each element at its own position"),
        (-1, &[3], &[1], "expected a size, got -1"),
        (0, &[-3], &[1], "expected a size, got -3"),
        (0, &[3], &[-1], "expected a size, got -1"),
        (0, &[1; 9], &[1; 9], "expected a tensor of up to 8 axes, got 9"),
    ] {
        refused(view(offset, shape, strides).path(), "pytorch_model.bin: ", words);
    }
}

#[test]
fn storages_are_what_the_pickle_says_or_refused() {
    for (class, key, elements, words) in [
        ("torch\nFloatStorage", "1", 12, "w: expected its storage data/1 in the archive, not found"),
        ("torch\nFloatStorage", "../0", 12, "w: expected its storage data/../0 in the archive, not found"),
        ("torch\nFloatStorage", "0", 11, "w: expected a storage of 11 fp32, got 48 bytes"),
        ("torch\nHalfStorage", "0", 12, "w: expected a storage of 12 fp16, got 48 bytes"),
        ("torch\nFloatStorage", "0", i64::MAX, "got 48 bytes"),
        ("torch\nQInt8Storage", "0", 48, "`torch.QInt8Storage` is not a class that a table of tensors needs"),
        ("torch._utils\n_rebuild_tensor_v2", "0", 12, "expected a storage's class and key"),
    ] {
        let table = Pickle::new().op("}").text("w").tensor(class, key, elements, 0, &[1], &[1]).op("s.");
        refused(pickled(&table).path(), "pytorch_model.bin: ", words);
    }
}

#[test]
fn pickles_that_are_no_table_of_tensors_are_refused() {
    let one = |pickle: Pickle| pickle.tensor("torch\nFloatStorage", "0", 12, 0, &[1], &[1]);
    let class = |name: &str| Pickle::new().class(name).op(".");
    for (pickle, words) in [
        (class("posix\nsystem"), "`posix.system` is not a class"),
        (class("builtins\neval"), "`builtins.eval` is not a class"),
        (class("torch\nload"), "`torch.load` is not a class"),
        (class("torch._utils\n_rebuild_tensor_v2.__globals__"), "is not a class"),
        (class(&format!("{}\nx", "x".repeat(5000))), "expected a class's name of up to 256 bytes"),
        (Pickle::new().text("posix").text("system").op([0x93, b'.']), "`posix.system` is not a class"),
        (class("collections\nOrderedDict"), "expected a dictionary of tensors, got a class"),
        (Pickle::new().op("c").op([0xff]).op("\nx\n."), "expected UTF-8"),
        // INST, OBJ, NEWOBJ, PERSID, EXT1 and what no protocol knows.
        (Pickle::new().op("(iposix\nsystem\n."), "opcode 0x69"),
        (Pickle::new().op("(o."), "opcode 0x6f"),
        (Pickle::new().op(")").op([0x81, b'.']), "opcode 0x81"),
        (Pickle::new().op("P0\n."), "opcode 0x50"),
        (Pickle::new().op([0x82, 1, b'.']), "opcode 0x82"),
        (Pickle::new().op([0xff]), "opcode 0xff"),
        (Pickle(vec![0x80, 6, b'}', b'.']), "expected protocol 2 to 5, got 6"),
        (one(Pickle::new().op("}")).op("."), "expected a dictionary of tensors and nothing else"),
        (one(Pickle::new().op("}").text("w")).op("s.more"), "expected a dictionary of tensors and nothing else"),
        (one(one(Pickle::new().op("}(").text("w")).text("w")).op("u."), "w: appears twice"),
        (one(Pickle::new().op("}").int(1)).op("s."), "expected tensors by name, got an integer as a name"),
        (Pickle::new().op("}").text("w").op("Ns."), "w: expected a tensor, got None"),
        (Pickle::new().op("]."), "expected a dictionary of tensors, got a list"),
        (Pickle::new().op("."), "the stack is empty"),
        (Pickle::new().op("("), "truncated"),
        (Pickle::new().op("(s."), "the stack is empty down to its mark"),
        (Pickle::new().op("u."), "no mark is open"),
        (Pickle::new().op("}(Nu."), "expected keys with values"),
        (Pickle::new().op("h").op([9, b'.']), "slot 9 is empty"),
        (Pickle::new().op("X").op([0xff; 4]).op("."), "truncated"),
        (Pickle::new().op([0x8a, 9]).op([1; 9]).op("."), "expected integers of up to 8 bytes, got one of 9"),
        (Pickle::new().op("N)R."), "expected a class to apply, got None"),
        (Pickle::new().class("torch\nFloatStorage").op(")R."), "cannot apply"),
        (Pickle::new().op("NQ."), "expected a tuple, got None"),
        // A list within itself is no more than a list.
        (Pickle::new().op("]q").op([0]).op("h").op([0, b'a', b'.']), "expected a dictionary of tensors, got a list"),
    ] {
        refused(pickled(&pickle).path(), "pytorch_model.bin: data.pkl: ", words);
    }
}

#[test]
fn sharing_within_a_pickle_multiplies_nothing() {
    // One long text as the key of many storages.
    let long = "x".repeat(1 << 20);
    let keyed = Pickle::new().text("storage").op([b'q', 1]).class("torch\nFloatStorage").op([b'q', 2]);
    let keyed = keyed.text(&long).op([b'q', 3]).op([b'K', 1, b'q', 4]);
    let storage = [b'(', b'h', 1, b'h', 2, b'h', 3, b'h', 1, b'h', 4, b't', b'Q'];
    let keyed = (0..100_000).fold(keyed, |pickle, _| pickle.op(storage)).op(".");
    refused(pickled(&keyed).path(), "pytorch_model.bin: data.pkl: ", "and nothing else");

    let objects = Pickle::new().op(vec![b'N'; 2 << 20]).op(".");
    refused(pickled(&objects).path(), "pytorch_model.bin: data.pkl: ", "expected up to 1048576 objects, got more");
    let kept = Pickle::new().op("N").op(vec![0x94; 2 << 20]).op(".");
    refused(pickled(&kept).path(), "pytorch_model.bin: data.pkl: ", "expected up to 1048576 memoized objects");
    let nested = Pickle::new().op(")").op(vec![0x85; 1 << 19]).op(".");
    refused(pickled(&nested).path(), "pytorch_model.bin: data.pkl: ", "expected a dictionary of tensors, got a tuple");
    let longest = Pickle::new().op(vec![0; 9 << 20]);
    refused(pickled(&longest).path(), "pytorch_model.bin: ", "expected an entry data.pkl of up to 8388608 bytes");
}

#[test]
fn archives_that_torch_does_not_write_are_refused() {
    let table = Pickle::new().op("}.").0;
    assert!(Checkpoint::open(archive(&[("data.pkl", &table)], stored()).path()).is_ok());
    assert!(Checkpoint::open(archive(&[("data.pkl", &table)], stored().large_file(true)).path()).is_ok());
    refused(archive(&[], stored()).path(), "pytorch_model.bin: ", "expected an entry data.pkl");
    refused(archive(&[("data.pkl", b"")], stored()).path(), "pytorch_model.bin: data.pkl: ", "truncated");
    let other = [("data.pkl", table.as_slice()), ("byteorder", b"big")];
    refused(archive(&other, stored()).path(), "pytorch_model.bin: ", "byteorder: expected little, got big");

    let folder = archive(&[("data.pkl", &table), ("data/0", b"0123")], stored());
    let path = folder.path().join("pytorch_model.bin");
    let whole = fs::read(&path).unwrap();
    // The directory's last entry: flags, method and sizes lie 8, 10, 20 and 24 bytes into it.
    let directory = whole.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    for (at, byte, words) in [
        (directory + 10, 8, "model/data/0: expected a stored entry, got a compressed one"),
        (directory + 8, 1, "model/data/0: expected a stored entry, got a compressed one"),
        (directory + 24, 5, "model/data/0: expected a stored entry, got a compressed one"),
    ] {
        let mut lying = whole.clone();
        lying[at] = byte;
        fs::write(&path, lying).unwrap();
        refused(folder.path(), "pytorch_model.bin: ", words);
    }
    let mut lying = whole.clone();
    lying[directory + 20..directory + 28].copy_from_slice(&[0, 0, 1, 0, 0, 0, 1, 0]);
    fs::write(&path, lying).unwrap();
    refused(folder.path(), "pytorch_model.bin: ", "expected within the file's");
    fs::write(&path, b"neither").unwrap();
    refused(folder.path(), "pytorch_model.bin: ", "not an archive of torch.save");
}
