//! The ioctls of block devices, which have no safe wrappers.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_none_bad!(blkrrpart, 0x125f);
    // The kernel declares the size of a pointer, and writes 64 bits on every architecture.
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
}

/// Makes the kernel read the partition table of a disk.
pub(crate) fn read_partition_table(disk: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { raw::blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}

/// Bytes of the disk that is open.
pub(crate) fn disk_bytes(disk: &File) -> io::Result<u64> {
    let mut bytes: usize = 0;
    // SAFETY: the pointer is that of a live integer, of 64 bits here.
    unsafe { raw::blkgetsize64(disk.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes as u64)
}

// The kernel writes 64 bits, whatever the size of a pointer is.
const _: () = assert!(size_of::<usize>() == 8);
