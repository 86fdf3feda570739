//! The error of a request.

use alknet_compute_wire::{ShaderPosition, codes};
use alknet_worker::{CborBody, WorkerFault};

use crate::error::Error;

/// The result of a request, or of a part of it.
pub(super) type GpuResult<T> = Result<T, GpuFault>;

/// A code, a message of one line, and for shaders the position of the mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GpuFault {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) position: Option<ShaderPosition>,
}

impl GpuFault {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            position: None,
        }
    }

    pub(super) fn aborted() -> Self {
        Self::new(codes::ABORTED, "given up")
    }

    pub(super) fn internal(why: &str) -> Self {
        Self::new(codes::INTERNAL, why)
    }

    pub(super) fn shader(message: impl Into<String>) -> Self {
        Self {
            position: Some(ShaderPosition::default()),
            ..Self::new(codes::SHADER, message)
        }
    }

    pub(super) fn shape(message: impl Into<String>) -> Self {
        Self::new(codes::SHAPE, message)
    }

    pub(super) fn too_large(what: &str, bytes: u64, most: u64) -> Self {
        let message = format!("{what} of {bytes} bytes; at most {most} are possible");
        Self::new(codes::TOO_LARGE, message)
    }

    pub(super) fn fault(self) -> WorkerFault {
        let details = self
            .position
            .and_then(|position| CborBody::encode(&position).ok());
        WorkerFault {
            code: self.code.to_owned(),
            message: self.message,
            details: details.unwrap_or_default(),
        }
    }
}

impl From<Error> for GpuFault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Lost(_) => Self::new(codes::DEVICE_LOST, message),
            Error::Memory(_) => Self::new(codes::QUOTA, message),
            Error::NoAdapter(_) | Error::NoDevice { .. } | Error::NoDriver => {
                Self::new(codes::NO_ADAPTER, message)
            }
            Error::Shader(_) => Self::shader(message),
            Error::Read { .. } | Error::Worker(_) | Error::Wrong { .. } => Self::internal(&message),
        }
    }
}
