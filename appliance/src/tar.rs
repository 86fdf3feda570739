//! Sites travel as a tar archive of regular files (IEEE Std 1003.1-2017, pax, "ustar Interchange
//! Format" and "pax Interchange Format"). The command line writes such archives. The node reads
//! those of other programs as well.

use std::io::{self, ErrorKind, Read, Write};

/// Bytes of a header, and the size to which contents are padded.
const BLOCK: usize = 512;
/// Maximum length of a name in a header. A longer name is in an extended header before it.
const NAME_BYTES_MAX: usize = 100;
/// Maximum length in bytes of an extended header that is read: a path, and further records of other
/// programs.
const EXTENDED_BYTES_MAX: u64 = 64 << 10;

/// Fields of a header: where each begins and how long it is.
const MODE: (usize, usize) = (100, 8);
const SIZE: (usize, usize) = (124, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const MAGIC: usize = 257;
const PREFIX: (usize, usize) = (345, 155);

/// The two blocks of zeros behind the last entry.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TarEntryKind {
    File,
    Folder,
    /// A link, a device or a pipe.
    Other,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// The path as the archive has it, unchecked.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: TarEntryKind,
    pub(crate) bytes: u64,
}

/// Reads an archive from its beginning to its end. Errors of the archive have the kind
/// `InvalidData` or `UnexpectedEof`. Other errors come from `input`.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    /// Unread bytes of the present entry's content, and of the padding behind it.
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry. Returns `None` at the end of the archive.
    ///
    /// # Errors
    /// The archive is damaged or ends too early, or the input cannot be read.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<TarEntry>> {
        let (mut path, mut size) = (None, None);
        loop {
            // An extended header may name any length, even for an entry without content, so the sum
            // may overflow.
            let rest = self.left.checked_add(self.padding);
            self.skip(rest.ok_or_else(|| damaged("an entry is longer than any archive"))?)?;
            (self.left, self.padding) = (0, 0);
            let mut header = [0; BLOCK];
            let read = self.input.read_exact(&mut header);
            read.map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => broken_off(),
                _ => error,
            })?;
            // A block of zeros ends the archive. The second one behind it need not be read.
            if header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let bytes = checked_size(&header)?;
            match header[KIND] {
                b'x' => extended(&self.body(bytes)?, &mut path, &mut size)?,
                // GNU tar writes a long name this way.
                b'L' => path = Some(until_zero(&self.body(bytes)?).to_vec()),
                // Records for all entries, and targets of links, have neither a path nor a length
                // of the next entry.
                b'g' | b'K' => self.expect(bytes),
                kind => {
                    // The length in the extended header wins: 8 GiB and more do not fit into the
                    // other.
                    let bytes = size.unwrap_or(bytes);
                    self.expect(bytes);
                    return Ok(Some(TarEntry {
                        path: path.unwrap_or_else(|| own_path(&header)),
                        kind: entry_kind(kind),
                        bytes,
                    }));
                }
            }
        }
    }

    /// Writes the content of the present entry.
    ///
    /// # Errors
    /// The archive ends too early, or reading or writing fails.
    pub(crate) fn copy_to(&mut self, output: &mut impl Write) -> io::Result<()> {
        let copied = io::copy(&mut self.input.by_ref().take(self.left), output)?;
        let is_whole = copied == self.left;
        self.left = 0;
        match is_whole {
            true => Ok(()),
            false => Err(broken_off()),
        }
    }

    fn expect(&mut self, bytes: u64) {
        let block = BLOCK as u64;
        self.left = bytes;
        self.padding = (block - bytes % block) % block;
    }

    /// Reads the content of an extended header.
    fn body(&mut self, bytes: u64) -> io::Result<Vec<u8>> {
        if bytes > EXTENDED_BYTES_MAX {
            return Err(damaged("an extended header is longer than 64 KiB"));
        }
        self.expect(bytes);
        let mut body = Vec::new();
        self.copy_to(&mut body)?;
        Ok(body)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())?;
        match skipped == bytes {
            true => Ok(()),
            false => Err(broken_off()),
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn broken_off() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the archive breaks off")
}

fn entry_kind(kind: u8) -> TarEntryKind {
    match kind {
        // Archives before POSIX write a zero byte for a file, and `7` is a contiguous file.
        b'0' | 0 | b'7' => TarEntryKind::File,
        b'5' => TarEntryKind::Folder,
        _ => TarEntryKind::Other,
    }
}

/// The length in a header, after its checksum was verified.
fn checked_size(header: &[u8; BLOCK]) -> io::Result<u64> {
    if !header[MAGIC..].starts_with(b"ustar") {
        return Err(damaged("it is no tar archive"));
    }
    if number(field(header, CHECKSUM)) != Some(sum(header)) {
        return Err(damaged("the sum of a header is wrong"));
    }
    number(field(header, SIZE)).ok_or_else(|| damaged("a header has no length"))
}

fn field(header: &[u8; BLOCK], (at, len): (usize, usize)) -> &[u8] {
    &header[at..at + len]
}

/// Parses octal digits between spaces and zeros.
fn number(text: &[u8]) -> Option<u64> {
    let text = until_zero(text).trim_ascii();
    let digit = |sum: u64, byte: &u8| {
        let digit = (b'0'..=b'7')
            .contains(byte)
            .then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(8)?.checked_add(digit)
    };
    text.iter().try_fold(0, digit)
}

fn until_zero(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The checksum of a header: the sum of its bytes, with spaces in the field of the sum itself.
fn sum(header: &[u8; BLOCK]) -> u64 {
    let own = CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1;
    let bytes = header.iter().enumerate();
    bytes
        // The field of the sum counts as spaces.
        .map(|(at, byte)| u64::from(if own.contains(&at) { b' ' } else { *byte }))
        .sum()
}

fn own_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&header[..NAME_BYTES_MAX]);
    // GNU tar has times in this field, and other bytes behind the magic.
    let is_posix = header[MAGIC + 5] == 0;
    match until_zero(field(header, PREFIX)) {
        prefix if is_posix && !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

/// Takes path and length from the records of an extended header, `LENGTH KEY=VALUE
/// ` each.
fn extended(
    mut records: &[u8],
    path: &mut Option<Vec<u8>>,
    size: &mut Option<u64>,
) -> io::Result<()> {
    let invalid_record = || damaged("an extended header is damaged");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ');
        let (digits, _) = records.split_at(space.ok_or_else(invalid_record)?);
        let digits = std::str::from_utf8(digits).map_err(|_| invalid_record())?;
        // The length counts the whole record, including its own digits.
        let length: usize = digits.parse().map_err(|_| invalid_record())?;
        let (record, rest) = records
            .split_at_checked(length)
            .ok_or_else(invalid_record)?;
        let record = record.get(digits.len() + 1..).ok_or_else(invalid_record)?;
        let record = record.strip_suffix(b"\n").ok_or_else(invalid_record)?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.ok_or_else(invalid_record)?);
        let value = &value[1..];
        if key == b"path" {
            *path = Some(value.to_vec());
        } else if key == b"size" {
            let text = std::str::from_utf8(value).map_err(|_| invalid_record())?;
            *size = Some(text.parse().map_err(|_| invalid_record())?);
        } else if key.starts_with(b"GNU.sparse") {
            return Err(damaged("a file in it is sparse; pack it without --sparse"));
        }
        records = rest;
    }
    Ok(())
}

/// The header before the content of a file. [`padding`] comes behind the content.
pub(crate) fn file_header(path: &str, bytes: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(BLOCK);
    if path.len() > NAME_BYTES_MAX {
        let record = path_record(path);
        let length = record.len() as u64;
        header.extend(block(b"PaxHeader", b'x', length));
        header.extend(&record);
        header.extend(padding(length));
    }
    let name = &path.as_bytes()[..path.len().min(NAME_BYTES_MAX)];
    header.extend(block(name, b'0', bytes));
    header
}

/// Zeros up to the next header.
pub(crate) fn padding(bytes: u64) -> Vec<u8> {
    let beyond = (bytes % BLOCK as u64) as usize;
    vec![0; (BLOCK - beyond) % BLOCK]
}

/// A record whose length counts its own digits.
fn path_record(path: &str) -> Vec<u8> {
    let rest = format!(" path={path}\n");
    let mut length = rest.len();
    loop {
        let record = format!("{length}{rest}");
        // A length with more digits makes the record longer, so it is counted again.
        if record.len() == length {
            return record.into_bytes();
        }
        length = record.len();
    }
}

fn block(name: &[u8], kind: u8, bytes: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name);
    // Mode, user and group are fixed: the node sets its own on each file.
    put(
        MODE.0,
        format!("{:07o}\0{:07o}\0{:07o}\0", 0o644, 0, 0).as_bytes(),
    );
    put(SIZE.0, format!("{bytes:011o}\0{:011o}\0", 0).as_bytes());
    put(KIND, &[kind]);
    put(MAGIC, b"ustar\x0000");
    let sum = sum(&header);
    // Six digits, a zero and a space, as the oldest programs write it.
    let text = format!("{sum:06o}\0 ");
    header[CHECKSUM.0..CHECKSUM.0 + CHECKSUM.1].copy_from_slice(text.as_bytes());
    header
}

/// An archive of files with these paths and contents.
#[cfg(test)]
pub(crate) fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, content) in files {
        archive.extend(file_header(path, content.len() as u64));
        archive.extend(*content);
        archive.extend(padding(content.len() as u64));
    }
    archive.extend(END);
    archive
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Paths, kinds and contents of an archive.
    fn read(archive: &[u8]) -> io::Result<Vec<(String, TarEntryKind, Vec<u8>)>> {
        let mut reader = TarReader::new(archive);
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            reader.copy_to(&mut content)?;
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            found.push((path, entry.kind, content));
        }
        Ok(found)
    }

    #[test]
    fn what_is_packed_is_read_again() {
        let long = format!("docs/{}/index.html", "a".repeat(200));
        let files = [
            ("index.html", &b"<h1>here</h1>"[..]),
            ("empty", b""),
            (long.as_str(), &[7; 1024]),
        ];
        let found = read(&packed(&files)).expect("our own archive");
        let expected =
            files.map(|(path, content)| (path.to_owned(), TarEntryKind::File, content.to_vec()));
        assert_eq!(found, expected);
    }

    /// GNU tar reads the program's archives, and the program reads those of GNU tar in each of its
    /// formats.
    #[test]
    fn gnu_tar_and_we_read_each_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = dir.path().join("site");
        let long = format!("{}/{}", "b".repeat(120), "c".repeat(120));
        std::fs::create_dir_all(folder.join(&long)).expect("a writable directory");
        let path = format!("{long}/page.html");
        std::fs::write(folder.join(&path), b"deep").expect("a writable directory");
        std::fs::write(folder.join("a.txt"), b"first").expect("a writable directory");
        std::os::unix::fs::symlink("a.txt", folder.join("link")).expect("a writable directory");
        for format in ["gnu", "posix"] {
            let mut tar = Command::new("tar");
            tar.arg(format!("--format={format}"))
                .args(["-C"])
                .arg(&folder);
            let told = tar
                .args(["-cf", "-", "."])
                .output()
                .expect("tar is installed");
            assert!(told.status.success(), "{told:?}");
            let found = read(&told.stdout).expect("an archive of GNU tar");
            let file = |name: &str, content: &[u8]| {
                let name = format!("./{name}");
                found.contains(&(name, TarEntryKind::File, content.to_vec()))
            };
            assert!(
                file(&path, b"deep") && file("a.txt", b"first"),
                "{format}: {found:?}"
            );
            let links = found.iter().filter(|it| it.1 == TarEntryKind::Other);
            assert_eq!(links.count(), 1, "{format}: {found:?}");
        }
        let ours = dir.path().join("ours.tar");
        let content = packed(&[(path.as_str(), b"deep"), ("a.txt", b"first")]);
        std::fs::write(&ours, content).expect("a writable directory");
        let mut tar = Command::new("tar");
        let listed = tar
            .arg("-tf")
            .arg(&ours)
            .output()
            .expect("tar is installed");
        assert!(listed.status.success(), "{listed:?}");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(listed.lines().collect::<Vec<_>>(), [path.as_str(), "a.txt"]);
    }

    #[test]
    fn what_breaks_off_or_is_damaged_is_an_error() {
        let whole = packed(&[("a", &[1; 700]), ("b", b"2")]);
        for cut in [1, 511, 512, 600, 1535, 1536, 2047, 2560] {
            let error = read(&whole[..cut]).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{cut}");
        }
        for at in [0, SIZE.0 + 10, KIND, MAGIC] {
            let mut wrong = whole.clone();
            wrong[at] ^= 1;
            let error = read(&wrong).expect_err("damaged");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{at}");
        }
        assert!(read(&[b'x'; 1024]).is_err());
    }

    #[test]
    fn a_length_that_no_number_has_room_for_with_its_padding_is_damage() {
        let record = b"29 size=18446744073709551615\n";
        let bytes = record.len() as u64;
        let mut archive = block(b"headers", b'x', bytes).to_vec();
        archive.extend(record);
        archive.extend(padding(bytes));
        archive.extend(block(b"folder/", b'5', 0));
        archive.extend(END);
        let mut reader = TarReader::new(&archive[..]);
        let entry = reader.next_entry().expect("both headers are right");
        let entry = entry.expect("it is the first");
        assert_eq!((entry.kind, entry.bytes), (TarEntryKind::Folder, u64::MAX));
        let error = reader.next_entry().expect_err("nothing is so long");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    /// Only headers have a checksum, so damaged contents may be read wrongly, and reading them
    /// ends.
    #[test]
    fn no_damage_panics() {
        let long = format!("{}/page.html", "d".repeat(150));
        let whole = packed(&[("a", &[1; 700]), (long.as_str(), b"2")]);
        let mut ends = 0;
        for at in 0..whole.len() {
            for bits in [1, 0xff] {
                let mut wrong = whole.clone();
                wrong[at] ^= bits;
                ends += usize::from(read(&wrong).is_err());
            }
            assert!(read(&whole[..at]).is_err() || at >= whole.len() - BLOCK);
        }
        assert!(ends > BLOCK, "{ends} of them are errors");
    }

    #[test]
    fn damaged_extended_headers_are_errors() {
        for records in [
            &b"path=a\n"[..],
            b"9 path=a",
            b"99 path=a\n",
            b"0 path=a\n",
            b"3 path=a\n",
            b"9 path:a\n",
            b"9 size=a\n",
            b"22 GNU.sparse.major=1\n",
        ] {
            let (mut path, mut size) = (None, None);
            let read = extended(records, &mut path, &mut size);
            assert!(read.is_err(), "{:?}", String::from_utf8_lossy(records));
        }
        let (mut path, mut size) = (None, None);
        extended(b"9 path=a\n11 size=12\n8 x=y z\n", &mut path, &mut size)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((path.as_deref(), size), (Some(&b"a"[..]), Some(12)));
    }
}
