//! Errors, each with the process exit code that the command line gives it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::form::ImageForm;

/// Why an image could not be made. Every message says what to do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A value from the caller is unusable.
    #[error("{what} {value:?} cannot be used: {why}")]
    Argument {
        /// The kind of value.
        what: &'static str,
        /// The value.
        value: String,
        /// What is invalid in it and what is valid.
        why: &'static str,
    },
    /// A form was requested without an input that it needs.
    #[error("form {form} needs {what}: name it, or leave this form out")]
    InputNeeded {
        /// The form.
        form: ImageForm,
        /// The missing input.
        what: &'static str,
    },
    /// An input file cannot be read.
    #[error("cannot read the {what} {}: {source}; build it first or correct the path", path.display())]
    InputUnreadable {
        /// The kind of input.
        what: &'static str,
        /// The path at which it was expected.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An input file was read but is not what it should be.
    #[error("{} is not a usable {what}: {why}", path.display())]
    InputInvalid {
        /// The kind of input.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is invalid in it and what to do.
        why: String,
    },
    /// A program that a form needs is not installed.
    #[error("{tool} is not installed: install the package {package} (apt-get install {package})")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// A program that a form needs refused its work.
    #[error("{tool} failed ({status}): {stderr}")]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// Its exit status.
        status: String,
        /// The end of its output.
        stderr: String,
    },
    /// An output does not fit.
    #[error(
        "the {form} image is {bytes} bytes, but at most {limit} fit: the system partition must hold \
         two of them and one being written; make the kernel or the binary smaller"
    )]
    TooLarge {
        /// The form.
        form: ImageForm,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An output cannot be written.
    #[error("cannot write {}: {source}; check free space and permissions", path.display())]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of a finished folder has other bytes than the folder's manifest says.
    #[error(
        "{} is not the file of the manifest: its SHA-256 is {actual}, and the manifest says {expected}; put the file of \
         the build back, or build the image again",
        path.display()
    )]
    OtherContent {
        /// The file.
        path: PathBuf,
        /// Its SHA-256.
        actual: String,
        /// The SHA-256 of the manifest.
        expected: String,
    },
    /// A manifest does not have the shape that this library writes.
    #[error("{} is not an image manifest: {source}; build the image again", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
}

impl ImageError {
    /// The exit code of a command that ends with this error: 2 bad arguments, 3 input missing or
    /// unusable, 4 tool missing, 5 size limit, 1 everything else.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Argument { .. } | Self::InputNeeded { .. } => 2,
            Self::InputUnreadable { .. }
            | Self::InputInvalid { .. }
            | Self::OtherContent { .. }
            | Self::Manifest { .. } => 3,
            Self::ToolMissing { .. } => 4,
            Self::TooLarge { .. } => 5,
            Self::ToolFailed { .. } | Self::Output { .. } => 1,
        }
    }
}
