//! Images of volumes with a few small files in their root.

mod fat;
mod iso;

pub(crate) use fat::fat;
pub(crate) use iso::iso;

/// The label of a NoCloud volume.
const LABEL: &str = "CIDATA";

/// A file of a volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VolumeFile<'a> {
    pub(crate) name: &'a str,
    pub(crate) content: &'a [u8],
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}
