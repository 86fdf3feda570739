//! What the program of a boot slot says about itself: that it is an EFI program, and its version.

use std::io;

use alknet_boot_state::BootSlot;
use alknet_fat::{BlockDevice, FatError};
use alknet_update::ReleaseVersion;

use super::disk::{SlotDisk, SlotFile, slot_path};

/// Bytes at the beginning of a program that have its headers: those of our images end within the first two pages.
pub(super) const HEAD_BYTES: usize = 8 << 10;
/// Most bytes of the section `.osrel`.
const OSREL_BYTES_MAX: usize = 4 << 10;
/// Fewest bytes of a whole image: the kernel alone has several MiB.
pub(super) const PROGRAM_BYTES_MIN: u64 = 1 << 20;

const POINTER_AT: usize = 0x3c;
const COFF_BYTES: usize = 24;
const SECTION_BYTES: usize = 40;
/// More than any image has.
const SECTIONS_MAX: usize = 96;

/// Why a file is no program of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    #[error("it is no EFI program: {0}")]
    Form(&'static str),
    #[error("it has {0} bytes, and an image has more than {PROGRAM_BYTES_MIN}")]
    Short(u64),
    #[error("its section .osrel names no version of a release")]
    Version,
}

/// Where the section `.osrel` lies in a program with this beginning: its position and its length.
pub(super) fn find_osrel(head: &[u8]) -> Result<(u64, usize), ProgramError> {
    if !head.starts_with(b"MZ") {
        return Err(ProgramError::Form("it does not begin with MZ"));
    }
    let cut = ProgramError::Form("its headers are cut short, or too long");
    let pe = u32_at(head, POINTER_AT).ok_or(ProgramError::Form("it has no PE header"))? as usize;
    let has_magic = head.get(pe..).is_some_and(|at| at.starts_with(b"PE\0\0"));
    if !has_magic {
        return Err(ProgramError::Form("it has no PE header"));
    }
    let (Some(count), Some(optional)) = (u16_at(head, pe + 6), u16_at(head, pe + 20)) else {
        return Err(cut);
    };
    let (count, optional) = (usize::from(count), usize::from(optional));
    if count > SECTIONS_MAX {
        return Err(ProgramError::Form("it has too many sections"));
    }
    let table = pe + COFF_BYTES + optional;
    for at in (0..count).map(|index| table + index * SECTION_BYTES) {
        let Some(section) = head.get(at..at + SECTION_BYTES) else {
            return Err(cut);
        };
        if !section.starts_with(b".osrel\0\0") {
            continue;
        }
        let number = |at| u32_at(section, at).unwrap_or(0);
        // The section is padded in the file, and what is in memory is its content.
        let bytes = number(8).min(number(16)) as usize;
        return match bytes <= OSREL_BYTES_MAX {
            true => Ok((number(20).into(), bytes)),
            false => Err(ProgramError::Version),
        };
    }
    Err(ProgramError::Version)
}

/// The version in the content of `.osrel` (os-release(5)).
pub(super) fn version_of(osrel: &[u8]) -> Result<ReleaseVersion, ProgramError> {
    let text = std::str::from_utf8(osrel).map_err(|_| ProgramError::Version)?;
    let mut lines = text.trim_end_matches('\0').lines();
    let value = lines.find_map(|line| line.trim().strip_prefix("VERSION_ID="));
    let value = value.map(|value| value.trim_matches(['"', '\'']));
    let version = value.and_then(|value| value.parse().ok());
    version.ok_or(ProgramError::Version)
}

/// The version of a slot's program.
pub(super) fn read_version<D: BlockDevice>(
    file: &SlotFile<'_, D>,
) -> Result<ReleaseVersion, ProgramError> {
    // The headers of a file that was cut short may be whole, so its length is compared first.
    if file.len() < PROGRAM_BYTES_MIN {
        return Err(ProgramError::Short(file.len()));
    }
    let mut head = vec![0; HEAD_BYTES];
    file.read_at(&mut head, 0).map_err(ProgramError::Io)?;
    let (at, bytes) = find_osrel(&head)?;
    let mut osrel = vec![0; bytes];
    file.read_at(&mut osrel, at).map_err(ProgramError::Io)?;
    version_of(&osrel)
}

/// The versions of the slots' programs. `None` for a slot without one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotPrograms {
    a: Option<String>,
    b: Option<String>,
}

impl SlotPrograms {
    pub(super) fn of_slot(&self, slot: BootSlot) -> Option<&str> {
        match slot {
            BootSlot::A => self.a.as_deref(),
            BootSlot::B => self.b.as_deref(),
        }
    }
}

/// The versions of both slots' programs, as far as they have one.
pub(super) fn slot_programs<D: BlockDevice>(
    disk: &mut SlotDisk<D>,
) -> Result<SlotPrograms, FatError> {
    let volume = disk.volume()?;
    let version = |slot| {
        let file = SlotFile::open(&volume, &slot_path(slot)).ok()?;
        read_version(&file).ok().map(|version| version.to_string())
    };
    Ok(SlotPrograms {
        a: version(BootSlot::A),
        b: version(BootSlot::B),
    })
}

/// Looks at a program while its bytes pass, so that a wrong one is refused before it becomes the slot's file.
#[derive(Debug, Default)]
pub(super) struct PassingProgram {
    head: Vec<u8>,
    /// Where `.osrel` lies, once the head has passed.
    osrel_range: Option<Result<(u64, usize), ProgramError>>,
    osrel: Vec<u8>,
    passed: u64,
}

impl PassingProgram {
    /// Takes the next bytes.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        let missing = HEAD_BYTES - self.head.len();
        self.head
            .extend_from_slice(&bytes[..missing.min(bytes.len())]);
        if self.head.len() == HEAD_BYTES && self.osrel_range.is_none() {
            let osrel_range = find_osrel(&self.head);
            // The section may begin within the head, whose bytes have passed already.
            if let Ok((at, length)) = osrel_range {
                let within = usize::try_from(at).ok().and_then(|at| self.head.get(at..));
                let within = within.unwrap_or_default();
                self.osrel
                    .extend_from_slice(&within[..within.len().min(length)]);
            }
            self.osrel_range = Some(osrel_range);
        }
        if let Some(Ok((at, length))) = self.osrel_range {
            self.collect(at + self.osrel.len() as u64, length, bytes);
        }
        self.passed += bytes.len() as u64;
    }

    /// Takes the part of `.osrel` from position `wanted` on that is within `bytes`, which begin at `passed`.
    fn collect(&mut self, wanted: u64, length: usize, bytes: &[u8]) {
        let skip = wanted.checked_sub(self.passed);
        let skip = skip.and_then(|skip| usize::try_from(skip).ok());
        let rest = skip.and_then(|skip| bytes.get(skip..)).unwrap_or_default();
        let missing = length - self.osrel.len();
        self.osrel
            .extend_from_slice(&rest[..rest.len().min(missing)]);
    }

    /// The version of the program, all of whose bytes have passed.
    pub(super) fn finish(self) -> Result<ReleaseVersion, ProgramError> {
        if self.passed < PROGRAM_BYTES_MIN {
            return Err(ProgramError::Short(self.passed));
        }
        let (_, bytes) = self.osrel_range.unwrap_or(Err(ProgramError::Version))?;
        match self.osrel.len() == bytes {
            true => version_of(&self.osrel),
            false => Err(ProgramError::Form(
                "its section .osrel ends behind the file",
            )),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let chunk = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let chunk = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::testing::program;

    fn passed(program: &[u8], piece: usize) -> Result<ReleaseVersion, ProgramError> {
        let mut passing = PassingProgram::default();
        program.chunks(piece).for_each(|bytes| passing.pass(bytes));
        passing.finish()
    }

    #[test]
    fn the_version_is_read_whatever_the_pieces_are() {
        for osrel_at in [1024, HEAD_BYTES as u64 - 5, HEAD_BYTES as u64, 500_000] {
            let program = program("1.4.0-rc.2", osrel_at, 1);
            for piece in [1000, 4096, HEAD_BYTES, 65_536, program.len()] {
                let version = passed(&program, piece).expect("a program");
                assert_eq!(version.to_string(), "1.4.0-rc.2", "{osrel_at} {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_program_of_ours_is_refused() {
        let whole = program("1.4.0", 4096, 1);
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut program = whole.clone();
            change(&mut program);
            passed(&program, 4096).expect_err("refused").to_string()
        };
        assert_eq!(
            refused(&|it| it.truncate(5000)),
            "it has 5000 bytes, and an image has more than 1048576"
        );
        assert!(refused(&|it| it[0] = b'X').contains("MZ"));
        assert!(refused(&|it| it[0x3c] = 0xff).contains("PE header"));
        assert!(refused(&|it| it[4096..4106].fill(b'x')).contains(".osrel"));
        assert!(refused(&|it| it[0x80 + 6] = 200).contains("sections"));
        // The section is said to begin behind the file.
        let table = 0x80 + COFF_BYTES;
        assert!(refused(&|it| it[table + 22] = 0x7f).contains("behind"));
        // It is said to be longer than any.
        assert!(refused(&|it| it[table + 8..table + 20].fill(0xff)).contains(".osrel"));
    }

    #[test]
    fn a_version_is_read_with_and_without_quotes() {
        for (osrel, version) in [
            ("ID=alknet\nVERSION_ID=1.2.3\n", Some("1.2.3")),
            ("VERSION_ID=\"1.2.3\"\0\0", Some("1.2.3")),
            ("VERSION_ID='1.2.3'", Some("1.2.3")),
            ("VERSION_ID=12\n", None),
            ("OTHER_VERSION_ID=1.2.3\n", None),
            ("", None),
        ] {
            let found = version_of(osrel.as_bytes()).ok();
            let found = found.map(|version| version.to_string());
            assert_eq!(found.as_deref(), version, "{osrel:?}");
        }
    }
}
