//! The errors of a request, and the errors that its caller gets.

use alknet_call::{CallError as Answered, ErrorCode};
use alknet_compute_wire::{ShaderPosition, codes};
use alknet_worker::{LimitCause, WorkerCallError, WorkerError, WorkerFault, WorkerFrameError};
use serde_json::json;

use crate::limits::QUEUE_RETRY_MS;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A request failed. [`Self::code`] is the inner code; the table of `docs/compute.md` has the code that a caller of
/// an operation gets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller aborted the request.
    #[error("given up")]
    Aborted,
    /// A library of this project refused, with an error that callers may see.
    #[error(transparent)]
    Answered(#[from] Answered),
    /// The device is gone, and the worker with it.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// The element type is unknown, or the operation does not take it.
    #[error("{0}")]
    Dtype(String),
    /// The request used more time on the GPU than its limit.
    #[error("the request has used its time on the GPU")]
    GpuTimeout,
    /// A defect of this program.
    #[error("{0}")]
    Internal(String),
    /// The worker died during the request.
    #[error("the worker was lost: {0}")]
    Lost(String),
    /// There is no adapter to compute with.
    #[error("no adapter: {0}")]
    NoAdapter(String),
    /// The identity has no such handle.
    #[error("there is no such handle")]
    NoHandle,
    /// The policy refuses workers of this kind, or the shader has crashed too many of them.
    #[error("{0}")]
    Policy(String),
    /// The identity would exceed its quota.
    #[error("{0}")]
    Quota(String),
    /// Too many requests run at once.
    #[error("{0}")]
    Overloaded(String),
    /// The shader is invalid, or contradicts its bindings.
    #[error("{message}")]
    Shader {
        /// The position; line 0 if it is no position in the text.
        position: ShaderPosition,
        /// Message for the caller.
        message: String,
    },
    /// The arguments do not match each other.
    #[error("{0}")]
    Shape(String),
    /// The request took longer than its limit.
    #[error("the request did not end in time")]
    Timeout,
    /// A tensor is larger than the limit.
    #[error("{0}")]
    TooLarge(String),
    /// No worker could be started.
    #[error("no worker: {0}")]
    Worker(String),
}

/// Code of a refused shader, declared by `compute/dispatch`.
pub const SHADER_INVALID: &str = "SHADER_INVALID";
/// Code of a damaged stored file, as the tensor store reports it.
pub const TENSOR_INVALID: &str = "TENSOR_INVALID";
/// Code of a tensor above its limit.
pub const TENSOR_TOO_LARGE: &str = "TENSOR_TOO_LARGE";
/// Code of an identity above its limits.
pub const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

impl Error {
    /// The inner code, which callers find in the details.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Aborted => codes::ABORTED,
            Self::Answered(_) | Self::Internal(_) => codes::INTERNAL,
            Self::DeviceLost(_) => codes::DEVICE_LOST,
            Self::Dtype(_) => "E_DTYPE",
            Self::GpuTimeout => "E_GPU_TIMEOUT",
            Self::Lost(_) | Self::Worker(_) => "E_WORKER_LOST",
            Self::NoAdapter(_) => codes::NO_ADAPTER,
            Self::NoHandle => "E_NOTFOUND",
            Self::Policy(_) => "E_POLICY",
            Self::Quota(_) => codes::QUOTA,
            Self::Overloaded(_) => "E_BUSY",
            Self::Shader { .. } => codes::SHADER,
            Self::Shape(_) => codes::SHAPE,
            Self::Timeout => "E_TIMEOUT",
            Self::TooLarge(_) => codes::TOO_LARGE,
        }
    }

    fn call_code(&self) -> ErrorCode {
        match self {
            Self::Aborted => ErrorCode::Aborted,
            Self::Answered(error) => error.code.clone(),
            Self::Dtype(_) | Self::Shape(_) => ErrorCode::InvalidInput,
            Self::Internal(_) => ErrorCode::Internal,
            Self::DeviceLost(_)
            | Self::Lost(_)
            | Self::NoAdapter(_)
            | Self::Policy(_)
            | Self::Worker(_) => ErrorCode::Unavailable,
            Self::GpuTimeout | Self::Timeout => ErrorCode::Timeout,
            Self::NoHandle => ErrorCode::NotFound,
            Self::Overloaded(_) => ErrorCode::Overloaded,
            Self::Quota(_) => ErrorCode::from_name(QUOTA_EXCEEDED),
            Self::Shader { .. } => ErrorCode::from_name(SHADER_INVALID),
            Self::TooLarge(_) => ErrorCode::from_name(TENSOR_TOO_LARGE),
        }
    }

    /// Converts a fault that a worker reported.
    pub(crate) fn from_fault(fault: WorkerFault) -> Self {
        let message = fault.message;
        match fault.code.as_str() {
            codes::ABORTED => Self::Aborted,
            codes::DEVICE_LOST => Self::DeviceLost(message),
            codes::NO_ADAPTER => Self::NoAdapter(message),
            codes::QUOTA => Self::Quota(message),
            codes::SHADER => Self::Shader {
                position: fault.details.read().unwrap_or_default(),
                message,
            },
            codes::SHAPE => Self::Shape(message),
            codes::TOO_LARGE => Self::TooLarge(message),
            _ => Self::Internal(message),
        }
    }
}

impl From<WorkerCallError> for Error {
    fn from(error: WorkerCallError) -> Self {
        match error {
            WorkerCallError::Limit { cause, .. } => match cause {
                LimitCause::Aborted => Self::Aborted,
                LimitCause::Gpu => Self::GpuTimeout,
                LimitCause::Silent => Self::Lost("no sign of life".to_owned()),
                _ => Self::Timeout,
            },
            WorkerCallError::Lost(loss) => Self::Lost(loss.to_string()),
            WorkerCallError::Quarantined => Self::Policy(error.to_string()),
            WorkerCallError::Busy => Self::Overloaded(error.to_string()),
            WorkerCallError::Frame(error) => Self::Internal(error.to_string()),
            error => Self::Lost(error.to_string()),
        }
    }
}

impl From<WorkerError> for Error {
    fn from(error: WorkerError) -> Self {
        let message = error.to_string();
        match error {
            WorkerError::CallerShare
            | WorkerError::Overloaded
            | WorkerError::Relieved
            | WorkerError::TenantShare => Self::Overloaded(message),
            WorkerError::Policy { .. } | WorkerError::NotConfigured(_) => Self::Policy(message),
            _ => Self::Worker(message),
        }
    }
}

impl From<WorkerFrameError> for Error {
    fn from(error: WorkerFrameError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<Error> for Answered {
    fn from(error: Error) -> Self {
        if let Error::Answered(error) = error {
            return error;
        }
        let mut details = json!({ "code": error.code() });
        // Line 0 is no position, and what the error says is its message already.
        if let Error::Shader { position, .. } = &error
            && position.line > 0
        {
            details["line"] = position.line.into();
            details["column"] = position.column.into();
        }
        let mut answered = Self::new(error.call_code(), error.to_string()).with_details(details);
        match error {
            // The same node has the same hardware and the same policy at the next attempt.
            Error::NoAdapter(_) | Error::Policy(_) => answered.retryable = false,
            Error::Overloaded(_) => answered = answered.with_retry_after_ms(QUEUE_RETRY_MS),
            _ => {}
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use alknet_worker::CborBody;

    use super::*;

    #[test]
    fn callers_see_the_documented_codes() {
        let text = String::new;
        let cases = [
            (
                Error::DeviceLost(text()),
                "UNAVAILABLE",
                true,
                "E_DEVICE_LOST",
            ),
            (Error::Dtype(text()), "INVALID_INPUT", false, "E_DTYPE"),
            (Error::GpuTimeout, "TIMEOUT", true, "E_GPU_TIMEOUT"),
            (Error::Lost(text()), "UNAVAILABLE", true, "E_WORKER_LOST"),
            (
                Error::NoAdapter(text()),
                "UNAVAILABLE",
                false,
                "E_NO_ADAPTER",
            ),
            (Error::NoHandle, "NOT_FOUND", false, "E_NOTFOUND"),
            (Error::Overloaded(text()), "OVERLOADED", true, "E_BUSY"),
            (Error::Policy(text()), "UNAVAILABLE", false, "E_POLICY"),
            (Error::Quota(text()), QUOTA_EXCEEDED, false, "E_QUOTA"),
            (Error::Shape(text()), "INVALID_INPUT", false, "E_SHAPE"),
            (Error::Timeout, "TIMEOUT", true, "E_TIMEOUT"),
            (
                Error::TooLarge(text()),
                TENSOR_TOO_LARGE,
                false,
                "E_TOO_LARGE",
            ),
        ];
        for (error, code, retryable, inside) in cases {
            let seen = Answered::from(error);
            assert_eq!(seen.code.name(), code);
            assert_eq!(seen.retryable, retryable, "{code}");
            assert_eq!(seen.details.expect("details")["code"], inside);
        }
    }

    #[test]
    fn a_shader_error_keeps_its_place() {
        let position = ShaderPosition { line: 3, column: 7 };
        let fault = WorkerFault {
            code: codes::SHADER.to_owned(),
            message: "no such type".to_owned(),
            details: CborBody::encode(&position).expect("CBOR"),
        };
        let seen = Answered::from(Error::from_fault(fault));
        assert_eq!(seen.code.name(), SHADER_INVALID);
        let details = seen.details.expect("details");
        assert_eq!(
            *details,
            json!({ "code": "E_SHADER", "line": 3, "column": 7 })
        );
        assert_eq!(seen.message, "no such type");
        let without_place = Answered::from(Error::Shader {
            position: ShaderPosition::default(),
            message: "the entry point 'main' is missing".to_owned(),
        });
        let details = without_place.details.expect("details");
        assert_eq!(*details, json!({ "code": "E_SHADER" }));
    }
}
