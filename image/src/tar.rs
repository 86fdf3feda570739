//! The part of the ustar archive (POSIX.1-2017, pax) that OCI layouts need.

const BLOCK_BYTES: usize = 512;
const NAME_BYTES_MAX: usize = 100;

/// The types of a plain file and of a folder.
const FILE: &str = "0";
const FOLDER: &str = "5";

/// An unfinished archive of plain files and folders, owned by one user and group with the same number, at time zero.
#[derive(Debug, Default)]
pub(crate) struct Tar {
    out: Vec<u8>,
    /// 0 is root.
    owner: u32,
}

impl Tar {
    /// An archive whose entries belong to this user and group.
    pub(crate) const fn owned_by(owner: u32) -> Self {
        Self {
            out: Vec::new(),
            owner,
        }
    }

    /// Adds a folder. Its name ends in a slash.
    pub(crate) fn folder(&mut self, name: &str, mode: u32) {
        self.out
            .extend_from_slice(&header(name, mode, self.owner, 0, FOLDER));
    }

    /// Adds a file. `name` is one of ours: ASCII and at most 100 bytes.
    pub(crate) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.out
            .extend_from_slice(&header(name, mode, self.owner, contents.len(), FILE));
        self.out.extend_from_slice(contents);
        self.out
            .resize(self.out.len().next_multiple_of(BLOCK_BYTES), 0);
    }

    /// The archive with its two closing blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        // Two blocks of zeros end an archive (POSIX, ustar interchange format).
        self.out.resize(self.out.len() + 2 * BLOCK_BYTES, 0);
        self.out
    }
}

fn header(name: &str, mode: u32, owner: u32, bytes: usize, kind: &str) -> [u8; BLOCK_BYTES] {
    assert!(
        name.len() <= NAME_BYTES_MAX,
        "names of OCI blobs are 77 bytes, the others shorter"
    );
    let mut out = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| out[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    // Mode, owner, group, size and time are in octal.
    put(100, &format!("{mode:07o}"));
    put(108, &format!("{owner:07o}"));
    put(116, &format!("{owner:07o}"));
    put(124, &format!("{bytes:011o}"));
    put(136, "00000000000");
    // The sum counts its own field as blanks.
    put(148, "        ");
    put(156, kind);
    put(257, "ustar\x0000");
    let sum: u32 = out.iter().map(|&byte| u32::from(byte)).sum();
    out[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_padded_to_blocks_and_two_empty_ones_close() {
        let mut tar = Tar::default();
        tar.file("a", 0o644, b"hello");
        tar.file("b", 0o755, &[1; BLOCK_BYTES]);
        let out = tar.finish();
        assert_eq!(out.len(), 6 * BLOCK_BYTES);
        assert_eq!(&out[BLOCK_BYTES..BLOCK_BYTES + 6], b"hello\0");
        assert!(out[4 * BLOCK_BYTES..].iter().all(|&byte| byte == 0));
    }
}
