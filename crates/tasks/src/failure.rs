//! Why a command failed, and its exit code.

use std::io;
use std::path::PathBuf;

/// Result of a task.
pub type Result<T> = std::result::Result<T, TaskError>;

/// An error of a task. Each message says what failed and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A step beside this one failed, and the command reports that one.
    #[error("ended because another step failed")]
    Abandoned,
    /// The command line requests something impossible.
    #[error("{0}")]
    Arguments(String),
    /// The machine did not boot as it should.
    #[error("{why}; the console's log is {}", log.display())]
    Boot {
        /// What the command waited for.
        why: String,
        /// The whole serial console.
        log: PathBuf,
    },
    /// The cache exceeds its limit, and the rest of it must not be removed.
    #[error(
        "the cache still holds {left}, and the limit is {limit}: {needed} of it are what this tree needs; \
         name a higher --limit, or delete folders by hand (`cargo xtask cache` lists them)"
    )]
    CacheFull {
        /// What it holds.
        left: String,
        /// The part of it that this tree needs.
        needed: String,
        /// The limit.
        limit: String,
    },
    /// An image could not be made.
    #[error(transparent)]
    Image(#[from] alknet_image::ImageError),
    /// A file operation or a process of this machine failed.
    #[error("cannot {what}: {source}; check permissions and free space")]
    Io {
        /// What was tried, as an infinitive.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel's own rules changed requested options.
    #[error(
        "the kernel's configuration lost what kernel-config/ asks for:\n{}\nThe option was renamed, \
         needs another one first, or does not exist for this processor.",
        .0.join("\n")
    )]
    OptionsLost(Vec<String>),
    /// The virtual machine could not be set up or followed.
    #[error(transparent)]
    Qemu(#[from] alknet_qemu::Error),
    /// The pinned source was found nowhere.
    #[error(
        "no place has the source \"{name}\":\n{}\nPut a matching file into a folder and name it with \
         --sources DIR.",
        attempts.join("\n")
    )]
    Source {
        /// The source's name in the pins file.
        name: String,
        /// What was tried, with each result.
        attempts: Vec<String>,
    },
    /// A program failed.
    #[error("{what} failed ({how}){}", log_hint(.log.as_deref()))]
    Step {
        /// What it was to do.
        what: String,
        /// How it ended.
        how: String,
        /// Its output, if that is not on the terminal.
        log: Option<PathBuf>,
    },
    /// A result is larger than allowed.
    #[error("{what} is {bytes} bytes, but at most {limit} are allowed")]
    TooLarge {
        /// The result.
        what: String,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Preparing the clone failed.
    #[error("{0}")]
    Workspace(String),
}

fn log_hint(log: Option<&std::path::Path>) -> String {
    log.map_or_else(String::new, |log| {
        format!("; what it said is in {}", log.display())
    })
}

impl TaskError {
    /// 2 arguments, 3 an input is missing, 5 too large, 6 a kernel option was lost, 7 it did not
    /// boot, 1 everything else. 4 (a tool is missing) comes from the image library.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(_) => 2,
            Self::Source { .. } => 3,
            Self::CacheFull { .. } | Self::TooLarge { .. } => 5,
            Self::OptionsLost(_) => 6,
            Self::Boot { .. } | Self::Qemu(_) => 7,
            Self::Image(error) => error.exit_code(),
            Self::Abandoned | Self::Io { .. } | Self::Step { .. } | Self::Workspace(_) => 1,
        }
    }

    /// An adapter for `map_err` on file operations.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }
}
