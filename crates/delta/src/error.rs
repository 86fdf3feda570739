//! Why a delta does not make its program, and why none was made.

use std::io;

use crate::limits::{
    FRAMES_MAX, GROUP_BYTES_MAX, GROUP_PIECES_MAX, PIECES_MAX, READS_OF_PROGRAM_MAX,
    UNPACKED_BYTES_MAX,
};
use crate::recipe::InvalidRecipe;

/// Why a delta was given up. What was written until then is no program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The base cannot be read.
    #[error("the program that runs cannot be read: {0}")]
    Base(io::Error),
    /// The delta ends within a number or a piece, or its compression is damaged, or its source failed.
    #[error("the delta cannot be read to its end: {0}")]
    Delta(io::Error),
    /// A piece has no bytes: a delta without an end could consist of such pieces.
    #[error("a piece of the delta makes no bytes")]
    EmptyPiece,
    /// The file has no delta of this form.
    #[error("the file has no delta, or one of a later form")]
    Form,
    /// A frame has another length than its beginning says, or begins within another one, or does not end.
    #[error("a compressed frame of the delta {0}")]
    Frame(&'static str),
    /// More frames than a program has.
    #[error("the delta has more than {FRAMES_MAX} compressed frames")]
    Frames,
    /// The caller does not want the program any more ([`DeltaBase::is_given_up`](crate::DeltaBase::is_given_up)).
    #[error("the program that the delta makes was given up")]
    GivenUp,
    /// A group of pieces is larger than a machine holds.
    #[error("a group has more than {GROUP_PIECES_MAX} pieces or {GROUP_BYTES_MAX} bytes")]
    Group,
    /// Another version of the compressing library makes other bytes.
    #[error("the delta is for Zstandard {wanted}, and this program has Zstandard {here}")]
    Library {
        /// Version number of the library that compressed the program.
        wanted: u32,
        /// Version number of the library here.
        here: u32,
    },
    /// The base has other lengths than the one that the delta was made from.
    #[error("the delta is for another program than the one that runs")]
    OtherBase,
    /// A piece lies behind the end of the base.
    #[error("a piece of the delta lies outside of the program that runs")]
    OutOfBase,
    /// The output refused bytes.
    #[error("what the delta makes cannot be written: {0}")]
    Output(io::Error),
    /// More pieces than any delta has.
    #[error("the delta has more than {PIECES_MAX} pieces")]
    Pieces,
    /// The delta takes its pieces from so many places that reading them would take a machine minutes.
    #[error(
        "the delta reads the program that runs more often than {READS_OF_PROGRAM_MAX} times over"
    )]
    Reads,
    /// The recipe of a frame takes too much memory or time.
    #[error(transparent)]
    Recipe(#[from] InvalidRecipe),
    /// The delta makes fewer bytes than the program has.
    #[error("the delta makes fewer than the {0} bytes of the program")]
    Short(u64),
    /// The delta makes more bytes than the program has.
    #[error("the delta makes more than the {0} bytes of the program")]
    TooLong(u64),
    /// The delta makes more bytes before they are compressed than any program has.
    #[error("the delta makes more than {UNPACKED_BYTES_MAX} bytes before they are compressed")]
    Unpacked,
}

/// Why no delta was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaMakingError {
    /// The delta that was made does not make the program.
    #[error("the delta that was made is wrong: {0}; please report it")]
    Check(DeltaError),
    /// The program's frame cannot be made again.
    #[error(
        "the initial file system of the new program was not compressed as this alknet compresses: make the image with this \
         alknet"
    )]
    Frame,
    /// The program that the delta makes is another one.
    #[error("the delta that was made makes another program; please report it")]
    Other,
    /// The delta is larger than any that machines take.
    #[error("both programs differ too much: {0}")]
    TooLarge(DeltaError),
    /// Writing fails.
    #[error("the delta cannot be written: {0}")]
    Write(#[from] io::Error),
}

impl DeltaError {
    /// The error behind one of input and output, if it is one of ours on its way through the compressor.
    pub(crate) fn through(error: io::Error, other: impl FnOnce(io::Error) -> Self) -> Self {
        error.downcast::<Self>().unwrap_or_else(other)
    }
}
