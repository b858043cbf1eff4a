//! Which shared libraries a library needs, read from its file without loading it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// Segment types.
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
/// Tags of dynamic entries.
const NEEDED: u64 = 1;
const STRINGS: u64 = 5;
const STRINGS_BYTES: u64 = 10;
/// No table that is read here is larger.
const MOST_BYTES: u64 = 16 << 20;

/// A part of the file and where it is in memory.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    bytes: u64,
}

/// Returns the names of the libraries that an ELF file of 64 bits needs, in the order in which they are loaded.
///
/// # Errors
/// When the file cannot be read, or is not such a file.
pub fn needed_libraries(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let header = read(&mut file, 0, 64)?;
    // Magic number, 64 bits, little endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(broken("expected an ELF file of 64 bits, got another format"));
    }
    let (table, size, count) = (word(&header, 32)?, half(&header, 54)?, half(&header, 56)?);
    let programs = read(&mut file, table, u64::from(size) * u64::from(count))?;
    let segments = programs.chunks(usize::from(size).max(1)).map(segment).collect::<io::Result<Vec<_>>>()?;
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == DYNAMIC) else { return Ok(Vec::new()) };
    let entries = read(&mut file, dynamic.offset, dynamic.bytes)?;
    let entries = entries.chunks_exact(16).map(|entry| Ok((word(entry, 0)?, word(entry, 8)?)));
    let entries = entries.collect::<io::Result<Vec<_>>>()?;
    let value = |tag| entries.iter().find(|entry| entry.0 == tag).map(|entry| entry.1);
    let (Some(address), Some(bytes)) = (value(STRINGS), value(STRINGS_BYTES)) else { return Ok(Vec::new()) };
    let holds = |segment: &&Segment| {
        segment.kind == LOAD && address.checked_sub(segment.address).is_some_and(|at| at < segment.bytes)
    };
    let segment = segments.iter().find(holds).ok_or_else(|| broken("expected its names in a segment, got none"))?;
    let offset = segment.offset.checked_add(address - segment.address);
    let strings = read(&mut file, offset.ok_or_else(|| broken("expected an offset within the file"))?, bytes)?;
    let name = |&(_, at): &(u64, u64)| {
        let rest = usize::try_from(at).ok().and_then(|at| strings.get(at..));
        let name = rest.and_then(|rest| rest.split(|byte| *byte == 0).next());
        name.map(|name| String::from_utf8_lossy(name).into_owned()).ok_or_else(|| broken("expected a name, got none"))
    };
    entries.iter().filter(|entry| entry.0 == NEEDED).map(name).collect()
}

fn segment(header: &[u8]) -> io::Result<Segment> {
    let kind = header.first_chunk().ok_or_else(|| broken("expected a program header, got a shorter one"))?;
    Ok(Segment {
        kind: u32::from_le_bytes(*kind),
        offset: word(header, 8)?,
        address: word(header, 16)?,
        bytes: word(header, 32)?,
    })
}

fn read(file: &mut File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    if bytes > MOST_BYTES {
        return Err(broken("expected a table of at most 16 MiB, got a larger one"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut content = vec![0; bytes as usize];
    file.read_exact(&mut content)?;
    Ok(content)
}

fn word(bytes: &[u8], at: usize) -> io::Result<u64> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|word| u64::from_le_bytes(*word)).ok_or_else(|| broken("expected 8 bytes, got fewer"))
}

fn half(bytes: &[u8], at: usize) -> io::Result<u16> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map(|half| u16::from_le_bytes(*half)).ok_or_else(|| broken("expected 2 bytes, got fewer"))
}

fn broken(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::needed_libraries;
    use std::{fs, io::Write};

    /// A file of one segment with a dynamic table that needs two libraries.
    fn library() -> Vec<u8> {
        let strings = b"\0libcublas.so.13\0libm.so.6\0";
        let (dynamic, names, base) = (64 + 2 * 56, 64 + 2 * 56 + 5 * 16, 0x1000_u64);
        let total = names + strings.len();
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&2_u16.to_le_bytes());
        for (kind, offset, address, bytes) in
            [(1_u32, 0, base, total), (2, dynamic, base + dynamic as u64, names - dynamic)]
        {
            let mut header = kind.to_le_bytes().to_vec();
            header.resize(56, 0);
            header[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
            header[16..24].copy_from_slice(&address.to_le_bytes());
            header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
            file.extend(header);
        }
        for (tag, value) in [(1, 1), (5, base + names as u64), (10, strings.len() as u64), (1, 17), (0, 0)] {
            file.extend(u64::to_le_bytes(tag));
            file.extend(u64::to_le_bytes(value));
        }
        file.extend(strings);
        file
    }

    #[test]
    fn the_libraries_that_a_library_needs_are_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&library()).unwrap();
        assert_eq!(needed_libraries(file.path()).unwrap(), ["libcublas.so.13", "libm.so.6"]);
    }

    #[test]
    fn a_damaged_file_is_an_error_or_names_nothing_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library");
        let whole = library();
        for length in 0..whole.len() - 1 {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(needed_libraries(&path).is_err(), "cut to {length} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            fs::write(&path, &changed).unwrap();
            let _ = needed_libraries(&path);
        }
    }

    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    #[test]
    fn this_program_needs_the_c_library() {
        let needed = needed_libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(needed.iter().any(|name| name.starts_with("libc.")), "{needed:?}");
    }
}
