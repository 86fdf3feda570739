//! What can go wrong, and the exit code that says so.

/// Result of anything here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Each message is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The device took the work and did not finish it.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// More memory than there is, or than the device gives out.
    #[error("out of device memory: {0}")]
    Memory(String),
    /// Drivers are linked, and none of them found something to compute on.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The adapter gave no device.
    #[error("no device on {adapter}: {why}")]
    NoDevice {
        /// Which adapter.
        adapter: String,
        /// wgpu's reason.
        why: String,
    },
    /// The program was built without any driver.
    #[error("no Vulkan driver linked: `cargo xtask driver` builds one")]
    NoDriver,
    /// A file of the command line cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The shader, or what it was to be run with, is wrong.
    #[error("{0}")]
    Shader(String),
    /// This process cannot be the worker that its caller wanted.
    #[error("{0}")]
    Worker(String),
    /// A kernel's result is not the processor's.
    #[error("{kernel}: {why}")]
    Wrong {
        /// Which kernel.
        kernel: &'static str,
        /// The first difference.
        why: String,
    },
}

impl Error {
    /// 1 a computation failed or is wrong, 3 no driver is linked, 4 no adapter or device; 2 (wrong
    /// arguments) comes from the command line.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::NoDriver => 3,
            Self::NoAdapter(_) | Self::NoDevice { .. } => 4,
            Self::Lost(_)
            | Self::Memory(_)
            | Self::Read { .. }
            | Self::Shader(_)
            | Self::Worker(_)
            | Self::Wrong { .. } => 1,
        }
    }

    /// The code that stands beside the message in JSON: one for each exit code.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NoDriver => "NO_DRIVER",
            Self::NoAdapter(_) | Self::NoDevice { .. } => "NO_ADAPTER",
            Self::Lost(_)
            | Self::Memory(_)
            | Self::Read { .. }
            | Self::Shader(_)
            | Self::Worker(_)
            | Self::Wrong { .. } => "LOCAL",
        }
    }
}

impl From<wgpu::Error> for Error {
    fn from(error: wgpu::Error) -> Self {
        match error {
            wgpu::Error::OutOfMemory { source } => Self::Memory(one_line(&source.to_string())),
            wgpu::Error::Validation { description, .. } => Self::Shader(one_line(&description)),
            wgpu::Error::Internal { description, .. } => Self::Lost(one_line(&description)),
        }
    }
}

/// The words of a text on one line. wgpu and clap draw the place of a mistake over several lines.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
