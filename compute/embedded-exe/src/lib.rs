//! A program that another one carries behind its own end, compressed.
//!
//! `alknet` is one file, and most of its processes never compute. The program for GPUs is four times
//! its size; as a part of the executable it would be linked, mapped and relocated with it. Behind the end
//! of what the kernel loads it costs nothing but the bytes on the disk:
//!
//! ```text
//! 0            what is executed
//! e            one zstd frame, with its checksum: the program after the BCJ filter of its architecture
//! e+packed     16 bytes "alknet-carried-1"
//!              u64 LE  packed: bytes of the frame
//!              u64 LE  unpacked: bytes of the program
//! ```
//!
//! It is added after linking, so that the one program need not be built before the other is linked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use lzma_rust2::filter::bcj::{BcjReader, BcjWriter};

/// Marks a file that carries something, and the version of the layout.
const MAGIC: &[u8; 16] = b"alknet-carried-1";
/// Bytes of the end that says what is carried.
const TRAILER_BYTES: usize = 32;
/// Largest program: `alknet-gpu` is promised to be 75 MB at most.
pub const UNPACKED_BYTES_MAX: u64 = 256 << 20;
/// Largest window of the frame, as a power of two: what `zstd -19` uses, 8 MiB. It is the memory that
/// unpacking takes.
const WINDOW_LOG_MAX: u32 = 23;
/// Unpacking takes the same time at every level; packing is done once.
const LEVEL: i32 = 19;
/// Where an ELF file says for which machine it is, and what it says for 64-bit ARM.
const MACHINE: std::ops::Range<usize> = 18..20;
const MACHINE_AARCH64: [u8; 2] = [183, 0];

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedExeError {
    /// The file ends without it.
    #[error(
        "this alknet carries no program for GPUs; `cargo xtask image` and `up` make one that does"
    )]
    None,
    /// The end says what cannot be.
    #[error("the program behind this executable is damaged: {0}; get alknet again")]
    Damaged(&'static str),
    /// The file cannot be read, or what it was unpacked into cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where the carried program lies, and how much it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddedExe {
    /// Bytes of the file before it.
    pub offset: u64,
    /// Bytes in the file.
    pub packed: u64,
    /// Bytes when unpacked.
    pub unpacked: u64,
}

impl EmbeddedExe {
    /// Looks at the end of a file.
    ///
    /// # Errors
    /// [`EmbeddedExeError::None`] if the file carries nothing.
    pub fn find(file: &File) -> Result<Self, EmbeddedExeError> {
        let len = file.metadata()?.len();
        let Some(at) = len.checked_sub(TRAILER_BYTES as u64) else {
            return Err(EmbeddedExeError::None);
        };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, at)?;
        Self::parse(&trailer, at)
    }

    /// The same for a file that is in memory.
    ///
    /// # Errors
    /// The errors of [`Self::find`].
    pub fn find_in(bytes: &[u8]) -> Result<Self, EmbeddedExeError> {
        let Some((before, trailer)) = bytes.split_last_chunk::<TRAILER_BYTES>() else {
            return Err(EmbeddedExeError::None);
        };
        Self::parse(trailer, before.len() as u64)
    }

    fn parse(trailer: &[u8; TRAILER_BYTES], at: u64) -> Result<Self, EmbeddedExeError> {
        let (magic, lengths) = trailer.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(EmbeddedExeError::None);
        }
        let number = |at: usize| {
            let bytes = lengths.get(at..).and_then(|rest| rest.first_chunk());
            bytes.copied().map_or(0, u64::from_le_bytes)
        };
        let (packed, unpacked) = (number(0), number(8));
        let Some(offset) = at.checked_sub(packed) else {
            return Err(EmbeddedExeError::Damaged("it is longer than the file"));
        };
        if packed == 0 || unpacked == 0 || unpacked > UNPACKED_BYTES_MAX {
            return Err(EmbeddedExeError::Damaged("its length is out of range"));
        }
        Ok(Self {
            offset,
            packed,
            unpacked,
        })
    }

    /// Unpacks from `file` into `sink`. Takes about 10 MiB of memory while it does.
    ///
    /// # Errors
    /// If what lies there is not what the end of the file says, or `sink` takes no more.
    pub fn unpack(&self, file: &File, sink: &mut impl Write) -> Result<(), EmbeddedExeError> {
        let frame = FileSection {
            file,
            at: self.offset,
            left: self.packed,
        };
        let mut decoder = zstd::Decoder::new(frame)?.single_frame();
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        // The program runs where this one does.
        let filtered = match cfg!(target_arch = "aarch64") {
            true => BcjReader::new_arm64(decoder, 0),
            false => BcjReader::new_x86(decoder, 0),
        };
        // One more than promised shows that there is more.
        let mut limited = filtered.take(self.unpacked.saturating_add(1));
        let unpacked = io::copy(&mut limited, sink).map_err(|error| match error.kind() {
            // What the decoder says about its input.
            io::ErrorKind::Other | io::ErrorKind::UnexpectedEof => {
                EmbeddedExeError::Damaged("it does not unpack")
            }
            _ => EmbeddedExeError::Io(error),
        })?;
        if unpacked != self.unpacked {
            return Err(EmbeddedExeError::Damaged(
                "it has another length than it says",
            ));
        }
        Ok(())
    }
}

/// Packs a program on `threads` threads; [`trailer`] has to stand behind what it writes. Calls of
/// functions are written as addresses instead of distances first, so that those of the same function
/// look the same: a twentieth less.
///
/// # Errors
/// If `sink` takes no more.
pub fn pack(program: &[u8], sink: impl Write, threads: u32) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(sink, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.window_log(WINDOW_LOG_MAX)?;
    encoder.multithread(threads)?;
    let mut filter = match program.get(MACHINE) == Some(&MACHINE_AARCH64[..]) {
        true => BcjWriter::new_arm64(encoder, 0),
        false => BcjWriter::new_x86(encoder, 0),
    };
    filter.write_all(program)?;
    filter.finish()?.finish()?;
    Ok(())
}

/// What stands behind a frame of `packed` bytes.
#[must_use]
pub fn trailer(packed: u64, unpacked: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(packed.to_le_bytes());
    out.extend(unpacked.to_le_bytes());
    out
}

/// The executable of this process, found without `/proc` too, which an empty root does not have.
///
/// # Errors
/// If neither way leads to a file that can be read.
pub fn this_executable() -> io::Result<File> {
    File::open("/proc/self/exe").or_else(|error| {
        let path = rustix::param::linux_execfn();
        let path = path.to_str().map_err(|_| error)?;
        File::open(path)
    })
}

/// A part of a file, read without moving the file's own position, which others may share.
struct FileSection<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for FileSection<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("writable");
        file
    }

    fn carrying(program: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        pack(program, &mut packed, 1).expect("it packs");
        let mut bytes = b"what is executed".to_vec();
        let lengths = (packed.len() as u64, program.len() as u64);
        bytes.extend(packed);
        bytes.extend(trailer(lengths.0, lengths.1));
        bytes
    }

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, EmbeddedExeError> {
        let file = file(bytes);
        let carried = EmbeddedExe::find(&file)?;
        assert_eq!(EmbeddedExe::find_in(bytes).ok(), Some(carried));
        let mut out = Vec::new();
        carried.unpack(&file, &mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_carried_comes_out_again() {
        let program: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        assert!(unpacked(&carrying(&program)).expect("it is whole") == program);
    }

    #[test]
    fn code_comes_out_as_it_went_in() {
        let path = std::env::current_exe().expect("a test has a path");
        let program = std::fs::read(path).expect("a test can read itself");
        let program = &program[..program.len().min(4 << 20)];
        assert!(unpacked(&carrying(program)).expect("it is whole") == program);
    }

    #[test]
    fn a_file_that_carries_nothing_says_so() {
        for bytes in [&b""[..], b"short", &[0; 1000]] {
            assert!(matches!(unpacked(bytes), Err(EmbeddedExeError::None)));
        }
    }

    #[test]
    fn damage_is_found() {
        let whole = carrying(&[7; 5000]);
        let end = whole.len() - 16;
        for (at, value) in [
            (end, 0),
            (end, 255),
            (end + 8, 1),
            (end + 14, 1),
            (17, 0),
            (30, 9),
        ] {
            let mut bytes = whole.clone();
            assert_ne!(bytes[at], value, "{at}");
            bytes[at] = value;
            let found = unpacked(&bytes);
            assert!(
                matches!(found, Err(EmbeddedExeError::Damaged(_))),
                "{at}: {found:?}"
            );
        }
    }

    #[test]
    fn the_test_itself_is_found_and_carries_nothing() {
        let file = this_executable().expect("it runs, so it is there");
        assert!(matches!(
            EmbeddedExe::find(&file),
            Err(EmbeddedExeError::None)
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_u64..400) {
            bytes.extend(trailer(at, at.wrapping_mul(3)));
            let _ = unpacked(&bytes);
        }
    }
}
