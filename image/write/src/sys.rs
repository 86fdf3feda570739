//! The one ioctl that has no safe wrapper.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_none_bad!(blkrrpart, 0x125f);
}

/// Makes the kernel read the partition table of a disk.
pub(crate) fn read_partition_table(disk: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    unsafe { raw::blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}
