//! A file that is read by offset.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::ReadAt;

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        // A pipe or a device has no size and cannot be read by offset.
        if !metadata.is_file() {
            let what = "no regular file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(metadata.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}
