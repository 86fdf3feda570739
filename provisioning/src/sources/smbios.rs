//! OEM strings of the firmware's tables: structures of type 11 (DMTF DSP0134, 7.12), which a
//! hypervisor or a board's maker fills.

use std::fs;

use super::parts::assemble;
use super::{Bytes, SourceContents, unreadable};
use crate::{ConfigOrigin, SourceDiagnostic, SourcePaths, file};

const OEM_STRINGS: u8 = 11;
/// Most bytes of one structure: as many as a whole SMBIOS 2 table could have.
const STRUCTURE_BYTES_MAX: usize = (64 << 10) * 3 / 2;
/// Most structures of this type that are read.
const STRUCTURES_MAX: usize = 64;

const HINT: &str =
    "correct the strings alknet.node in the hypervisor's configuration (docs/provisioning.md)";

pub(super) fn find(
    paths: &SourcePaths,
    problems: &mut Vec<SourceDiagnostic>,
) -> Option<SourceContents> {
    let entries = fs::read_dir(&paths.dmi).ok()?;
    let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    // sysfs names an entry by its type and its number within the type.
    let number = |name: String| name.strip_prefix("11-")?.parse::<u32>().ok();
    let mut numbers: Vec<_> = entries.filter_map(name).filter_map(number).collect();
    // By number and not by name, because `11-10` comes after `11-9`.
    numbers.sort_unstable();
    numbers.truncate(STRUCTURES_MAX);
    let mut structures = Vec::new();
    for number in numbers {
        let raw = paths.dmi.join(format!("11-{number}")).join("raw");
        match file::read_bounded(&raw, STRUCTURE_BYTES_MAX) {
            Ok(found) => structures.extend(found),
            Err(error) => problems.push(unreadable(&ConfigOrigin::Smbios, error, HINT)),
        }
    }
    let texts = structures.iter().flat_map(|it| strings(it, OEM_STRINGS));
    match assemble(texts.filter_map(|it| std::str::from_utf8(it).ok())) {
        Ok(document) => {
            document.map(|it: Bytes| SourceContents::document(ConfigOrigin::Smbios, it))
        }
        Err(error) => {
            problems.push(unreadable(&ConfigOrigin::Smbios, error, HINT));
            None
        }
    }
}

/// The strings of a structure of this type. They follow its formatted part, and each ends with a
/// zero.
pub(super) fn strings(structure: &[u8], kind: u8) -> impl Iterator<Item = &[u8]> {
    let formatted = match structure {
        // The strings follow the formatted part, whose length is its second byte (SMBIOS, 6.1.3).
        [found, length, ..] if *found == kind => usize::from(*length),
        _ => structure.len(),
    };
    let strings = structure.get(formatted..).unwrap_or_default();
    strings
        .split(|byte| *byte == 0)
        // An empty string ends the set (SMBIOS, 6.1.3).
        .take_while(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_stand_behind_the_formatted_part() {
        let structure = b"\x0b\x05\x00\x0b\x02first\0alknet.node=YQ\0\0after";
        let found: Vec<_> = strings(structure, OEM_STRINGS).collect();
        assert_eq!(found, [&b"first"[..], b"alknet.node=YQ"]);
        for none in [
            &b""[..],
            b"\x0b",
            b"\x0b\xff\0",
            b"\x01\x05\0\0\0a\0\0",
            b"\x0b\x05\0\0\0\0\0",
        ] {
            assert_eq!(strings(none, OEM_STRINGS).count(), 0, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = strings(&bytes, OEM_STRINGS).count();
        }
    }
}
