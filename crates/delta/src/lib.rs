//! Deltas between programs: a build machine makes one ([`make_delta`]), and a machine makes the new program from it and
//! from the program that runs ([`apply_delta`]).
//!
//! The initial file system of a program is compressed, and a changed byte changes everything behind it in compressed
//! data. So a delta is about the unpacked parts. The machine compresses the result again, by the recipe in the delta
//! ([`FrameRecipe`]), and the caller compares length and SHA-256 of the whole with what was signed.
//!
//! Nothing here knows signatures, slots or a network. `docs/update-inside.md` has the reasons.
//!
//! ```
//! use alknet_delta::{FrameRecipe, NewProgram, OldProgram, apply_delta, make_delta};
//!
//! // A program: something before, and a compressed archive.
//! let recipe = FrameRecipe::INITRAMFS;
//! let packed = |archive: &[u8]| {
//!     let mut program = b"a kernel".to_vec();
//!     recipe.compress(archive, &mut program)?;
//!     Ok::<_, std::io::Error>(program)
//! };
//! let (init, archive) = ([b'a'; 5000], [[b'a'; 5000], [b'b'; 5000]].concat());
//! let (running, next) = (packed(&init)?, packed(&archive)?);
//!
//! // On the build machine.
//! let old = OldProgram { program: &running, before: 8, init: &init };
//! let new = NewProgram { program: &next, frame: 8..next.len(), archive: &archive, recipe };
//! let delta = make_delta(&old, &new)?;
//!
//! // On a machine, whose base are files.
//! let mut slot = Vec::new();
//! apply_delta(&*delta, &old, next.len() as u64, &mut slot)?;
//! assert!(slot == next);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod error;
pub mod limits;
mod make;
mod recipe;
mod runs;
mod wire;

pub use apply::{DeltaBase, apply_delta};
pub use error::{DeltaError, DeltaMakingError};
pub use make::{NewProgram, OldProgram, make_delta};
pub use recipe::{FrameRecipe, InvalidRecipe, library_version};
