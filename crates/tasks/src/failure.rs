//! Why a command did not do what it was asked, and the exit code that says so.

use std::io;
use std::path::PathBuf;

/// Result of a task.
pub type Result<T> = std::result::Result<T, TaskError>;

/// Each message says what failed and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A step beside this one failed, and the command reports that one.
    #[error("ended because another step failed")]
    Abandoned,
    /// The command line asks for something impossible.
    #[error("{0}")]
    Arguments(String),
    /// The machine booted badly.
    #[error("{why}; the console's log is {}", log.display())]
    Boot {
        /// What was waited for and did not come.
        why: String,
        /// The whole serial console.
        log: PathBuf,
    },
    /// The cache passes its limit, and what it holds is not to be removed.
    #[error(
        "the cache still holds {left}, and the limit is {limit}: {needed} of it are what this tree needs; \
         name a higher --limit, or delete folders by hand (`cargo xtask cache` lists them)"
    )]
    CacheFull {
        /// What it holds.
        left: String,
        /// What this tree needs of that.
        needed: String,
        /// What it was to stay below.
        limit: String,
    },
    /// An image could not be made.
    #[error(transparent)]
    Image(#[from] alknet_image::ImageError),
    /// A file or process of this machine is in the way.
    #[error("cannot {what}: {source}; check permissions and free space")]
    Io {
        /// What was tried, as an infinitive.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Kernel options that did not survive the kernel's own rules.
    #[error(
        "the kernel's configuration lost what kernel-config/ asks for:\n{}\nThe option was renamed, \
         needs another one first, or does not exist for this processor.",
        .0.join("\n")
    )]
    OptionsLost(Vec<String>),
    /// The virtual machine could not be set up or followed.
    #[error(transparent)]
    Qemu(#[from] alknet_qemu::Error),
    /// No place had the source that was pinned.
    #[error(
        "no place has the source \"{name}\":\n{}\nPut a matching file into a folder and name it with \
         --sources DIR.",
        attempts.join("\n")
    )]
    Source {
        /// The source's name in the pins file.
        name: String,
        /// What was tried, and what came of it.
        attempts: Vec<String>,
    },
    /// A program did not do its work.
    #[error("{what} failed ({how}){}", log_hint(.log.as_deref()))]
    Step {
        /// What it was to do.
        what: String,
        /// How it ended.
        how: String,
        /// What it said, when that is not on the terminal.
        log: Option<PathBuf>,
    },
    /// A result is larger than what was promised.
    #[error("{what} is {bytes} bytes, but at most {limit} are allowed")]
    TooLarge {
        /// Which result.
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
    /// boot, 1 everything else; 4 (a tool is missing) comes from the image library.
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

    /// For `map_err` on file operations.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }
}
