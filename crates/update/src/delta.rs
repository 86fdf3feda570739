//! What a release says about a delta: the member `alknet-delta` of the target's `custom` object.

use serde::{Deserialize, Serialize};

use crate::limits::DELTA_BLOCK_BYTES;
use crate::release::{InvalidRelease, is_sha256};

/// The name of the member of `custom`. It is not a member of the description of a program, so that clients that know no
/// deltas take the target for a file of another kind.
pub(crate) const MEMBER: &str = "alknet-delta";

/// The name of the file in a channel that has the delta from the program with this SHA-256, in hex. A machine that runs the
/// program asks for it, beside the bundle with the whole program.
///
/// ```
/// assert_eq!(alknet_update::delta_file_name("ab12"), "from-ab12.tar");
/// ```
#[must_use]
pub fn delta_file_name(base: &str) -> String {
    format!("from-{base}.tar")
}

/// The description of a target that makes a program from another one.
///
/// It is signed with the target. Members that this version does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DeltaInfo {
    /// The name of the target that it makes, in the same document.
    pub target: String,
    /// SHA-256 of the program that it starts from, in hex.
    pub base: String,
    /// The version number of the library that compressed the target.
    pub library: u32,
    /// SHA-256 of each block of [`DELTA_BLOCK_BYTES`], in hex. [`UpdateTarget::describe_delta`] fills it in.
    ///
    /// A machine reads a delta as its bytes arrive. Without these hashes its decompressor would read bytes that the server
    /// or the network made.
    ///
    /// [`UpdateTarget::describe_delta`]: crate::UpdateTarget::describe_delta
    pub blocks: Vec<String>,
}

impl DeltaInfo {
    /// Fails if the base is no hash, or if a delta of this length has other blocks.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self, bytes: u64) -> Result<(), InvalidRelease> {
        if !is_sha256(&self.base) {
            return Err(InvalidRelease::new("its base is no SHA-256 in hex"));
        }
        // With a hash too few, a machine would notice it only at that block, with half a program in its free slot.
        let count = bytes.div_ceil(DELTA_BLOCK_BYTES as u64);
        match self.blocks.len() as u64 == count && self.blocks.iter().all(|it| is_sha256(it)) {
            true => Ok(()),
            false => Err(InvalidRelease::new(
                "it has not one SHA-256 in hex for each of its blocks",
            )),
        }
    }
}
