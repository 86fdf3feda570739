//! The parts of a finished EFI program that deltas are about: its initial file system, unpacked.

use std::io::{self, Read};
use std::ops::Range;

use alknet_delta::limits::UNPACKED_BYTES_MAX;
use alknet_delta::{FrameRecipe, NewProgram, OldProgram};
use thiserror::Error;
use zstd::zstd_safe::find_frame_compressed_size;

use crate::{cpio, uki};

/// The section with the initial file system.
const SECTION: &str = ".initrd";
/// The file of the initial file system that is nearly all of it.
const INIT: &str = "init";

/// Why a file has no parts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProgramPartsError {
    /// It is no program of this project.
    #[error("it is no EFI program of alknet: {0}")]
    Form(String),
    /// The initial file system has no file `/init`.
    #[error("its initial file system has no /init")]
    NoInit,
    /// The initial file system does not unpack.
    #[error("its initial file system does not unpack: {0}")]
    Packed(io::Error),
    /// The initial file system is larger than any.
    #[error("its initial file system has more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
}

/// A program and what is packed in it.
#[derive(Debug)]
pub struct ProgramParts<'a> {
    program: &'a [u8],
    /// Where the compressed initial file system lies, without the zeros behind it.
    frame: Range<usize>,
    archive: Vec<u8>,
    /// Where the file `/init` lies in the archive.
    init: Range<usize>,
}

impl<'a> ProgramParts<'a> {
    /// Unpacks a program, signed for Secure Boot or not.
    ///
    /// # Errors
    /// It is not a program that this library has made.
    pub fn unpack(program: &'a [u8]) -> Result<Self, ProgramPartsError> {
        let section = uki::raw_range(program, SECTION).map_err(ProgramPartsError::Form)?;
        let packed = program.get(section.clone());
        let packed = packed.ok_or_else(|| ProgramPartsError::Form("it is truncated".into()))?;
        let bytes = find_frame_compressed_size(packed).map_err(|_| {
            let why = "it has no frame of Zstandard";
            ProgramPartsError::Packed(io::Error::new(io::ErrorKind::InvalidData, why))
        })?;
        let archive = unpacked(&packed[..bytes])?;
        let init = cpio::file(&archive, INIT).ok_or(ProgramPartsError::NoInit)?;
        Ok(Self {
            program,
            frame: section.start..section.start + bytes,
            archive,
            init,
        })
    }

    /// The program as one from which a delta starts.
    #[must_use]
    pub fn as_old(&self) -> OldProgram<'_> {
        OldProgram {
            program: self.program,
            before: self.frame.start,
            init: &self.archive[self.init.clone()],
        }
    }

    /// The program as one that a delta makes.
    #[must_use]
    pub fn as_new(&self) -> NewProgram<'_> {
        NewProgram {
            program: self.program,
            frame: self.frame.clone(),
            archive: &self.archive,
            recipe: FrameRecipe::INITRAMFS,
        }
    }
}

fn unpacked(frame: &[u8]) -> Result<Vec<u8>, ProgramPartsError> {
    let decoder = zstd::Decoder::with_buffer(frame).map_err(ProgramPartsError::Packed)?;
    let mut archive = Vec::new();
    let read = decoder
        .single_frame()
        .take(UNPACKED_BYTES_MAX + 1)
        .read_to_end(&mut archive);
    read.map_err(ProgramPartsError::Packed)?;
    match archive.len() as u64 > UNPACKED_BYTES_MAX {
        true => Err(ProgramPartsError::TooLarge),
        false => Ok(archive),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use alknet_delta::{apply_delta, make_delta};

    use super::*;
    use crate::tree::{RootFiles, root};
    use crate::zstandard;

    fn program(binary: &[u8], version: &str) -> Vec<u8> {
        let tree = root(RootFiles {
            binary,
            version: version.as_bytes(),
            update_root: Some(b"{}"),
        });
        let initrd = zstandard::frame(&cpio::archive(&tree));
        let section = |name, data| uki::UkiSection {
            name,
            data: Cow::Owned(data),
        };
        let sections = [section(".linux", vec![7; 5000]), section(SECTION, initrd)];
        uki::append(&uki::tests::stub(), &sections).expect("has room")
    }

    #[test]
    fn a_delta_of_two_programs_makes_the_second_from_files_of_the_first() {
        let binary: Vec<u8> = (0..90_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut changed = binary.clone();
        changed.splice(5000..5000, *b"an instruction more");
        let (old, new) = (program(&binary, "1.0.0\n"), program(&changed, "1.1.0\n"));
        let parts = ProgramParts::unpack(&old).expect("a program");
        assert!(parts.as_old().init == binary);
        let next = ProgramParts::unpack(&new).expect("a program");
        let delta = make_delta(&parts.as_old(), &next.as_new()).expect("made");
        assert!(
            delta.len() * 20 < new.len(),
            "{} of {}",
            delta.len(),
            new.len()
        );
        let mut made = Vec::new();
        let base = parts.as_old();
        apply_delta(&*delta, &base, new.len() as u64, &mut made).expect("it fits");
        assert!(made == new);
    }

    #[test]
    fn other_files_have_no_parts() {
        let refused = |program: &[u8]| {
            let parts = ProgramParts::unpack(program);
            parts.expect_err("no parts").to_string()
        };
        let whole = program(&[1; 9000], "1.0.0\n");
        assert!(refused(b"MZ").contains("no EFI program of alknet"));
        assert!(refused(&uki::tests::stub()).contains("no section .initrd"));
        assert!(refused(&whole[..whole.len() - 600]).contains("truncated"));
        let mut damaged = whole.clone();
        let frame = ProgramParts::unpack(&whole).expect("a program").frame;
        damaged[frame.start] ^= 1;
        assert!(refused(&damaged).contains("does not unpack"));
    }
}
