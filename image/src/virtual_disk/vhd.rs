//! A fixed virtual hard disk (Microsoft, "Virtual Hard Disk Image Format Specification" 1.0): the only kind that Azure
//! takes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::{HeaderBytes, RawDisk, write_data};

/// Azure takes disks of whole MiB.
const UNIT_BYTES: u64 = 1 << 20;
const FOOTER_BYTES: usize = 512;
/// Where the footer has its checksum.
const CHECKSUM_AT: usize = 64;
/// A fixed disk.
const FIXED: u32 = 2;

/// Writes the disk, and the footer behind it. Pages of zeros stay holes of the file.
pub(crate) fn write(file: &File, disk: &RawDisk, id: Uuid) -> io::Result<()> {
    let bytes = disk.bytes().next_multiple_of(UNIT_BYTES);
    for index in 0..disk.units(UNIT_BYTES) {
        if let Some(content) = disk.unit(UNIT_BYTES, index)? {
            write_data(file, &content, index * UNIT_BYTES)?;
        }
    }
    file.write_all_at(&footer(bytes, id), bytes)
}

fn footer(bytes: u64, id: Uuid) -> Vec<u8> {
    let (cylinders, heads, sectors) = geometry(bytes / 512);
    let mut footer = HeaderBytes::default()
        .put(b"conectix")
        // A reserved bit that is always set.
        .put(&2_u32.to_be_bytes())
        .put(&0x0001_0000_u32.to_be_bytes())
        // A fixed disk has no further header.
        .put(&u64::MAX.to_be_bytes())
        // Two builds must give the same bytes, so this is the first second that the field can hold.
        .put(&0_u32.to_be_bytes())
        // Readers take the size of an unknown creator's disk from the geometry, which rounds it.
        .put(b"win \x00\x0a\x00\x00Wi2k")
        .put(&bytes.to_be_bytes())
        .put(&bytes.to_be_bytes())
        .put(&cylinders.to_be_bytes())
        .put(&[heads, sectors])
        .put(&FIXED.to_be_bytes())
        .put(&[0; 4])
        .put(id.as_bytes())
        .padded(FOOTER_BYTES);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// Cylinders, heads and sectors of a track, as the appendix of the specification computes them.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    /// The largest disk that the three numbers can describe.
    const SECTORS_MAX: u64 = 65_535 * 16 * 255;
    let sectors = sectors.min(SECTORS_MAX);
    let found = |per_track: u64, heads: u64| {
        let small = |value: u64| u8::try_from(value).expect("at most 255");
        let cylinders = sectors / per_track / heads;
        let cylinders = u16::try_from(cylinders).unwrap_or(u16::MAX);
        (cylinders, small(heads), small(per_track))
    };
    if sectors >= 65_535 * 16 * 63 {
        return found(255, 16);
    }
    let tracks = sectors / 17;
    let heads = tracks.div_ceil(1024).max(4);
    if tracks < heads * 1024 && heads <= 16 {
        return found(17, heads);
    }
    let tracks = sectors / 31;
    if tracks < 16 * 1024 {
        return found(31, 16);
    }
    found(63, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_complement_of_the_sum_of_the_other_bytes() {
        let mut footer = footer(272 << 20, Uuid::from_u128(7));
        let field = CHECKSUM_AT..CHECKSUM_AT + 4;
        let told = u32::from_be_bytes(footer[field.clone()].try_into().expect("four bytes"));
        footer[field].fill(0);
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        assert_eq!(told, !sum);
        assert_eq!(footer.len(), FOOTER_BYTES);
    }

    #[test]
    fn the_geometry_never_describes_more_than_the_disk() {
        for mib in [1, 16, 272, 1024, 4096, 127 << 10, 2 << 20] {
            let sectors = (mib << 20) / 512;
            let (cylinders, heads, per_track) = geometry(sectors);
            let described = u64::from(cylinders) * u64::from(heads) * u64::from(per_track);
            assert!(described <= sectors && described > 0, "{mib} MiB");
        }
    }
}
