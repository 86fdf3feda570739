//! The errors of the program, and their exit codes.

/// The result of this program's functions.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Each message is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The device took the work and did not finish it.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// The request needs more memory than the device has or grants.
    #[error("out of device memory: {0}")]
    Memory(String),
    /// Drivers are linked, and they found no adapter.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The adapter did not open a device.
    #[error("no device on {adapter}: {why}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// wgpu's reason.
        why: String,
    },
    /// The program was built without any driver.
    #[error("no Vulkan driver linked: `cargo xtask driver` builds one")]
    NoDriver,
    /// A file named on the command line cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The shader, or its input, is invalid.
    #[error("{0}")]
    Shader(String),
    /// This process cannot be the worker that the node requested.
    #[error("{0}")]
    Worker(String),
    /// A kernel's result differs from the processor's.
    #[error("{kernel}: {why}")]
    Wrong {
        /// The kernel's name.
        kernel: &'static str,
        /// The first difference.
        why: String,
    },
}

impl Error {
    /// 1 if a computation failed or is wrong, 3 if no driver is linked, 4 if there is no adapter or
    /// device; the command line itself returns 2 for wrong arguments.
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

    /// The code beside the message in JSON: one for each exit code.
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

/// The words of a text on one line, because wgpu and clap draw the position of a mistake over
/// several lines.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
