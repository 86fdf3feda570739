//! Reads a bzImage's header (Documentation/arch/x86/boot.rst in the kernel's source).

const BOOT_FLAG_AT: usize = 0x1fe;
const BOOT_FLAG: [u8; 2] = [0x55, 0xaa];
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";
/// Pointer to the release text, relative to 0x200.
const RELEASE_POINTER_AT: usize = 0x20e;
const RELEASE_BASE: usize = 0x200;
/// Longest release text in bytes: the kernel's own utsname field has this length.
const RELEASE_BYTES_MAX: usize = 64;

/// The release of a bzImage, such as `6.12.95-alknet`.
pub(crate) fn release(bzimage: &[u8]) -> Result<String, String> {
    let bytes = |at: usize, len: usize| bzimage.get(at..at + len);
    // Documentation/arch/x86/boot.rst: the boot flag, and the header's magic number.
    if bytes(BOOT_FLAG_AT, 2) != Some(&BOOT_FLAG) || bytes(MAGIC_AT, 4) != Some(MAGIC) {
        return Err("it has no x86 boot header; name arch/x86/boot/bzImage".into());
    }
    let pointer = bytes(RELEASE_POINTER_AT, 2)
        .and_then(|b| b.first_chunk())
        .copied();
    // Documentation/arch/x86/boot.rst, kernel_version: the pointer counts from 0x200.
    let at = RELEASE_BASE + usize::from(u16::from_le_bytes(pointer.unwrap_or_default()));
    let text = bzimage.get(at..).unwrap_or_default();
    let text = &text[..text.len().min(RELEASE_BYTES_MAX)];
    // The text after the first blank names the builder and the time.
    let end = text.iter().position(|&byte| byte == b' ' || byte == 0);
    let release = end
        .and_then(|end| std::str::from_utf8(&text[..end]).ok())
        .unwrap_or_default();
    if !release.starts_with(|c: char| c.is_ascii_digit()) || !release.bytes().all(plain) {
        return Err("its boot header has no release text; build it again".into());
    }
    Ok(release.to_owned())
}

/// The series of a release: `6.12` of `6.12.95-alknet`.
pub(crate) fn series(release: &str) -> String {
    let numbers: Vec<&str> = release.split(['.', '-']).take(2).collect();
    numbers.join(".")
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'+' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(release: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 0x400];
        out[BOOT_FLAG_AT..BOOT_FLAG_AT + 2].copy_from_slice(&BOOT_FLAG);
        out[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        out[RELEASE_POINTER_AT..RELEASE_POINTER_AT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        out[0x300..0x300 + release.len()].copy_from_slice(release);
        out
    }

    #[test]
    fn the_release_is_the_first_word() {
        let image = bzimage(b"6.12.95-alknet (alknet@alknet) #1\0");
        assert_eq!(release(&image).as_deref(), Ok("6.12.95-alknet"));
        assert_eq!(series("6.12.95-alknet"), "6.12");
        assert_eq!(series("7.0-rc1"), "7.0");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(release(b"\x7fELF").is_err());
        assert!(release(&[0; 4096]).is_err());
        assert!(release(&bzimage(b"")).is_err());
        assert!(release(&bzimage(b"../../etc ")).is_err());
        assert!(release(&bzimage(&[b'6'; 0x100])).is_err());
        let mut wild = bzimage(b"6.12 ");
        wild[RELEASE_POINTER_AT..RELEASE_POINTER_AT + 2].fill(0xff);
        assert!(release(&wild).is_err());
    }
}
