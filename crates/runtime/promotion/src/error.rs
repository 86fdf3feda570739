//! The reasons why a proposal does not become an operation.

use alknet_call::{CallError, ErrorCode};
use alknet_runtime::ScriptFailure;
use alknet_runtime::ops::ScriptTestReport;
use serde_json::json;
use thiserror::Error;

use crate::bundle::BundleError;
use crate::check::Finding;
use crate::limits::BUSY_RETRY_MS;
use crate::store::PromotionStoreError;

/// The code of a bundle whose sources have faults.
pub(crate) const CHECK_FAILED: &str = "CHECK_FAILED";
/// The code of a full store.
pub(crate) const STORE_FULL: &str = "STORE_FULL";
/// The code of a bundle whose tests fail.
pub(crate) const TESTS_FAILED: &str = "TESTS_FAILED";

/// The reason why a proposal, a review or a rollback failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PromotionError {
    /// The document is no valid bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The scan of the sources found faults.
    #[error("the bundle does not pass its checks; see details")]
    Check(Vec<Finding>),
    /// The node's state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The request has an invalid value.
    #[error("{0}")]
    Input(String),
    /// The code could not be assembled or run.
    #[error("{0}")]
    Run(#[from] ScriptFailure),
    /// The store failed or refused.
    #[error(transparent)]
    Store(#[from] PromotionStoreError),
    /// Tests fail.
    #[error("the bundle does not pass its tests; see details")]
    Tests(Box<ScriptTestReport>),
    /// The node is not ready, or is stopping.
    #[error("{0}")]
    Unavailable(String),
}

/// The error for code that has not run because there was no room: the caller may retry.
pub(crate) fn no_capacity(failure: ScriptFailure) -> CallError {
    CallError::new(ErrorCode::Overloaded, failure.message)
        .with_details(json!({ "code": failure.code.name() }))
        .with_retry_after_ms(BUSY_RETRY_MS)
}

/// The error for code that ran until something that it called had no room. `retryable` says whether the caller may
/// retry.
pub(crate) fn lacked_capacity(message: String, retryable: bool) -> CallError {
    let mut error = CallError::new(ErrorCode::Overloaded, message);
    error.retryable = retryable;
    error.retry_after_ms = retryable.then_some(BUSY_RETRY_MS);
    error
}

impl From<PromotionError> for CallError {
    fn from(error: PromotionError) -> Self {
        let text = error.to_string();
        match error {
            PromotionError::Bundle(_) | PromotionError::Input(_) => Self::invalid_input(text),
            PromotionError::Check(findings) => {
                Self::operation(CHECK_FAILED, text).with_details(json!({ "findings": findings }))
            }
            PromotionError::Conflict(_) => Self::new(ErrorCode::Conflict, text),
            PromotionError::Forbidden(_) => Self::new(ErrorCode::Forbidden, text),
            PromotionError::Run(failure) if failure.is_no_capacity() => no_capacity(failure),
            PromotionError::Run(failure) => {
                let (name, retryable) = failure.code.on_the_wire();
                let mut error = Self::new(ErrorCode::from_name(name), text);
                // A code that only the operation itself could declare is not one of the node's codes.
                if matches!(error.code, ErrorCode::Operation(_) | ErrorCode::NotFound) {
                    error.code = ErrorCode::InvalidInput;
                }
                error.retryable = retryable;
                error.with_details(json!({ "code": failure.code.name() }))
            }
            PromotionError::Store(store) => match store {
                PromotionStoreError::Conflict(_) => Self::new(ErrorCode::Conflict, text),
                PromotionStoreError::Full(_) => Self::operation(STORE_FULL, text),
                PromotionStoreError::Unknown(_) => Self::new(ErrorCode::NotFound, text),
                _ => Self::internal(text),
            },
            PromotionError::Tests(report) => {
                Self::operation(TESTS_FAILED, text).with_details(json!({ "report": report }))
            }
            PromotionError::Unavailable(_) => Self::unavailable(text),
        }
    }
}
