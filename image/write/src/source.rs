//! The image that is written: raw, or one or more frames of Zstandard.

use std::io::{self, Read};

use alknet_image::{disk_bytes_by_head, head_has_layout};
use zstd::zstd_safe;

use crate::error::FlashError;
use crate::other_form::form_by_head;

/// The beginning of a disk that is kept back and written last: the partition table lies in it.
pub(crate) const HEAD_BYTES: usize = 1 << 20;
/// Bytes that are read to learn the form: the head of a frame has at most 18 (RFC 8878 section 3.1.1.1).
const MAGIC_BYTES: usize = 18;
pub(crate) const ZSTANDARD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The end of the first block of each disk with a partition table (UEFI 2.10 section 5.2.3).
const TABLE_MARK: [u8; 2] = [0x55, 0xaa];

/// An image, of which the beginning was read and checked.
pub struct ImageSource {
    rest: Box<dyn Read>,
    head: Vec<u8>,
    bytes: Option<u64>,
    /// Whether `bytes` is that of the whole image, and not of the first of several frames.
    is_exact: bool,
}

impl ImageSource {
    /// Reads the beginning of an image from `from`, which has `bytes` in all if that is known.
    ///
    /// # Errors
    /// It cannot be read, or is no raw disk.
    pub fn new(mut from: Box<dyn Read>, bytes: Option<u64>) -> Result<Self, FlashError> {
        let read = |source| FlashError::Source { source };
        let magic = filled(&mut from, MAGIC_BYTES).map_err(read)?;
        let is_packed = magic.starts_with(&ZSTANDARD);
        let bytes = match is_packed {
            // A frame may leave its size out, and several frames may follow each other.
            true => zstd_safe::get_frame_content_size(&magic).ok().flatten(),
            false => bytes,
        };
        let whole = io::Cursor::new(magic).chain(from);
        let mut rest: Box<dyn Read> = match is_packed {
            true => Box::new(zstd::Decoder::new(whole).map_err(read)?),
            false => Box::new(whole),
        };
        let head = filled(&mut rest, HEAD_BYTES).map_err(read)?;
        if let Some(what) = form_by_head(&head) {
            return Err(FlashError::NotImage { what });
        }
        if head.len() < HEAD_BYTES {
            return Err(FlashError::NotImage {
                what: "shorter than 1 MiB",
            });
        }
        if head[510..512] != TABLE_MARK {
            return Err(FlashError::NotImage {
                what: "without a partition table",
            });
        }
        Ok(Self {
            rest,
            head,
            bytes,
            is_exact: !is_packed,
        })
    }

    /// Bytes of the unpacked image, if they are known.
    #[must_use]
    pub const fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Checks whether a configuration can be placed on the image. [`flash`](crate::flash) checks it, too, before it writes.
    ///
    /// # Errors
    /// [`FlashError::NoLayout`].
    pub fn check_takes_files(&self) -> Result<(), FlashError> {
        match head_has_layout(&self.head) {
            true => Ok(()),
            false => Err(FlashError::NoLayout),
        }
    }

    /// Compares the bytes of the image, which came or are about to come, with what its source and its partition table say.
    ///
    /// # Errors
    /// [`FlashError::OtherLength`].
    pub(crate) fn check_length(&self, actual: u64) -> Result<(), FlashError> {
        let other = |expected, said_by| {
            Err(FlashError::OtherLength {
                actual,
                expected,
                said_by,
            })
        };
        if let Some(expected) = self.bytes
            && (actual < expected || (self.is_exact && actual > expected))
        {
            return other(expected, "source");
        }
        // A disk may have more behind the backup of its table, and never less.
        match disk_bytes_by_head(&self.head) {
            Some(expected) if actual < expected => other(expected, "partition table"),
            _ => Ok(()),
        }
    }

    /// The same before anything is written, if the source says the length of the whole image.
    pub(crate) fn check_announced(&self) -> Result<(), FlashError> {
        match self.bytes.filter(|_| self.is_exact) {
            Some(bytes) => self.check_length(bytes),
            None => Ok(()),
        }
    }

    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Fills the buffer from what follows the head; fewer bytes are the end.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, FlashError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.rest.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(FlashError::Source { source }),
            }
        }
        Ok(done)
    }
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageSource({:?} bytes)", self.bytes)
    }
}

/// As many of `bytes` as there are.
fn filled(from: &mut dyn Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes);
    from.take(bytes as u64).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Vec<u8> {
        let mut disk = vec![3; HEAD_BYTES + 5000];
        disk[510..512].copy_from_slice(&TABLE_MARK);
        disk
    }

    fn read(bytes: Vec<u8>) -> Result<ImageSource, FlashError> {
        ImageSource::new(Box::new(io::Cursor::new(bytes)), None)
    }

    fn content(mut source: ImageSource) -> Vec<u8> {
        let mut rest = vec![0; 10_000];
        let read = source.fill(&mut rest).expect("readable");
        [source.head(), &rest[..read]].concat()
    }

    #[test]
    fn a_packed_image_is_unpacked_and_says_its_size() {
        let packed = zstd::bulk::compress(&disk(), 1).expect("compressible");
        let source = read(packed).expect("an image");
        assert_eq!(source.bytes(), Some(disk().len() as u64));
        assert_eq!(content(source), disk());
    }

    #[test]
    fn several_frames_are_one_image() {
        let disk = disk();
        let (first, second) = disk.split_at(HEAD_BYTES / 2);
        let pack = |part: &[u8]| zstd::bulk::compress(part, 1).expect("compressible");
        let source = read([pack(first), pack(second)].concat()).expect("an image");
        assert_eq!(content(source), disk);
    }

    #[test]
    fn a_raw_image_is_read_as_it_is() {
        let source = ImageSource::new(Box::new(io::Cursor::new(disk())), Some(7));
        let source = source.expect("an image");
        assert_eq!(source.bytes(), Some(7));
        assert_eq!(content(source), disk());
    }

    #[test]
    fn what_is_no_disk_is_refused_by_its_name() {
        let mut qcow2 = disk();
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        let mut vdi = disk();
        vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        let mut plain = disk();
        plain[510] = 0;
        let packed = zstd::bulk::compress(&qcow2, 1).expect("compressible");
        for (bytes, expected) in [
            (qcow2, "a qcow2 container"),
            (packed, "a qcow2 container"),
            (vdi, "a VDI container"),
            (b"\x1f\x8b\x08".to_vec(), "compressed with gzip"),
            (plain, "without a partition table"),
            (disk()[..HEAD_BYTES - 1].to_vec(), "shorter than 1 MiB"),
            (Vec::new(), "shorter than 1 MiB"),
        ] {
            let Err(FlashError::NotImage { what }) = read(bytes) else {
                panic!("{expected}: it was taken");
            };
            assert_eq!(what, expected);
        }
    }

    #[test]
    fn a_frame_that_is_cut_short_is_an_error() {
        let mut packed = zstd::bulk::compress(&disk(), 1).expect("compressible");
        packed.truncate(packed.len() - 8);
        let refused = read(packed);
        let refused = match refused {
            Ok(mut source) => source.fill(&mut [0; 10_000]).expect_err("cut short"),
            Err(error) => error,
        };
        assert!(matches!(refused, FlashError::Source { .. }), "{refused}");
    }
}
