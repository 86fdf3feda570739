//! Content-addressed files: a folder of objects, each named by the BLAKE3 hash of its bytes, with Bao outboards.
//!
//! ```text
//! objects/ab/HEX           an object; HEX is its hash, ab the first two digits
//! outboards/HEX-FROM-TO    the hash tree of these bytes of an object; deleting it is always safe
//! uploads/…                what is being written; emptied when the folder is opened
//! ```
//!
//! An object is stored whole or not at all, never changes, and is durable when [`StagedObject::place`] returns. A reader
//! gets no byte that was not compared with the hash, in groups of 16 KiB, by a tree that has the encoding of bao-tree and
//! of iroh's blobs. Names, rights, quotas and the network are the business of the caller.
//!
//! To store a content that is there already costs the same syncs as a new one, so that they do not tell an uploader that
//! the folder has the content. What still differs: the stored file is read once to compare it, nothing is renamed, and the
//! free space is afterwards what it was before. A caller that must hide this as well stores a copy for each owner.
//!
//! ```
//! use alknet_objects::{ObjectFolder, ObjectRemoval, OutboardPolicy};
//!
//! let folder = tempfile::tempdir()?;
//! let objects = ObjectFolder::open(folder.path().join("content"), OutboardPolicy::Placed)?;
//!
//! // Written in any order, then placed under its hash.
//! let content = vec![7; 100_000];
//! let mut staged = objects.stage()?;
//! for (piece, bytes) in content.chunks(4096).enumerate() {
//!     staged.write_at(piece as u64 * 4096, bytes)?;
//! }
//! let placed = staged.place()?;
//! let hash = placed.hash();
//! assert_eq!(hash, blake3::hash(&content));
//!
//! // The object is pinned until a name leads to it.
//! assert_eq!(objects.remove(&hash)?, ObjectRemoval::InUse);
//! drop(placed);
//!
//! // Each group is verified before it is handed out.
//! let mut part = Vec::new();
//! for block in objects.reader(&hash)?.bytes(50_000..60_000)? {
//!     part.extend(block?);
//! }
//! assert_eq!(part, content[50_000..60_000]);
//!
//! assert_eq!(objects.remove(&hash)?, ObjectRemoval::Removed { bytes: 100_000 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod limits;

mod disk;
mod disk_usage;
mod error;
mod folder;
mod hash_tree;
mod list;
mod outboard;
mod outboard_folder;
mod reader;
mod scrub;
mod selection;
mod staged;
mod tree_files;
mod tree_hasher;
mod verified;
mod view;

pub use disk::{ObjectDisk, SystemObjectDisk};
pub use disk_usage::bytes_on_disk;
pub use error::{DamagedPart, ObjectError};
pub use folder::{ObjectFolder, ObjectPin, ObjectRemoval};
pub use hash_tree::{ExpectedHashes, PAIR_BYTES, TreeStep, TreeSteps, encode_group};
pub use list::{ListedObject, ObjectCursor};
pub use outboard::Outboard;
pub use outboard_folder::OutboardPolicy;
pub use reader::{ObjectBlocks, ObjectReader};
pub use scrub::{CheckedObject, ObjectDamage, ObjectScrub, ScrubStep};
pub use selection::ChunkSelection;
pub use staged::{PlacedObject, Placement, StagedObject};
pub use verified::VerifiedPart;
pub use view::{ObjectStamp, ObjectView};
