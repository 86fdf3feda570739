//! Requests that fail.

use alknet_core::{MountBody, MountCaller};
use alknet_store::{QuotaResource, StoreError};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::dav::{DavCondition, DavError, DavTarget, UPLOAD_OFFSET, UploadError};
use crate::error::{FsError, logged_error};

use super::respond::{empty, full, with_body, xml};

/// Why a request fails.
#[derive(Debug)]
pub(super) enum DavFailure {
    /// A condition that has a name.
    Condition(DavCondition),
    /// The caller lacks a right, or the store is not served.
    Fs(FsError),
    /// The request is wrong by itself.
    Refused(DavError),
    /// Nothing more to say than the status.
    Status(StatusCode),
    /// The store refuses it.
    Store(StoreError),
    /// An upload does not take it.
    Upload(UploadError),
}

impl From<DavError> for DavFailure {
    fn from(error: DavError) -> Self {
        Self::Refused(error)
    }
}

impl From<FsError> for DavFailure {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Store(error) => Self::Store(error),
            // A status says nothing of peers.
            FsError::Unavailable { hash, .. } => {
                Self::Store(StoreError::ContentUnavailable { hash })
            }
            error => Self::Fs(error),
        }
    }
}

impl From<StoreError> for DavFailure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<UploadError> for DavFailure {
    fn from(error: UploadError) -> Self {
        Self::Upload(error)
    }
}

impl From<DavCondition> for DavFailure {
    fn from(condition: DavCondition) -> Self {
        Self::Condition(condition)
    }
}

impl DavFailure {
    /// The response. Paths of locks are shown in the tree of `target`.
    pub(super) fn into_response(
        self,
        target: Option<&DavTarget>,
        caller: &MountCaller,
    ) -> Response<MountBody> {
        match self {
            Self::Condition(condition) => of_condition(condition.status(), &condition),
            Self::Fs(error) => of_fs(error, caller),
            Self::Refused(error) => match error.condition() {
                Some(condition) => of_condition(error.status(), &condition),
                None => text(error.status(), error.to_string()),
            },
            Self::Status(status) => empty(status),
            Self::Store(error) => of_store(&error, target, caller),
            Self::Upload(error) => of_upload(error),
        }
    }
}

fn of_fs(error: FsError, caller: &MountCaller) -> Response<MountBody> {
    let status = match &error {
        FsError::Forbidden(_) | FsError::ForbiddenEverywhere(_) => StatusCode::FORBIDDEN,
        FsError::Unserved => StatusCode::SERVICE_UNAVAILABLE,
        _ => {
            let id = &caller.request_id;
            tracing::error!("{id}: a request for files failed: {}", error.logged());
            return empty(StatusCode::INTERNAL_SERVER_ERROR);
        }
    };
    text(status, error.to_string())
}

fn of_store(
    error: &StoreError,
    target: Option<&DavTarget>,
    caller: &MountCaller,
) -> Response<MountBody> {
    let status = StatusCode::from_u16(error.http_status());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let condition = match error {
        StoreError::Locked { path } => Some(DavCondition::LockTokenSubmitted(vec![href_in(
            target, path,
        )])),
        StoreError::QuotaExceeded {
            resource: QuotaResource::Bytes | QuotaResource::Entries,
            ..
        } => Some(DavCondition::QuotaNotExceeded),
        StoreError::NoSpace => Some(DavCondition::SufficientDiskSpace),
        _ => None,
    };
    if let Some(condition) = condition {
        return of_condition(status, &condition);
    }
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        // What the system says is for the administrator.
        let id = &caller.request_id;
        tracing::error!("{id}: the store of files failed: {}", logged_error(error));
        return empty(status);
    }
    let mut response = text(status, error.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let second = HeaderValue::from_static("1");
        response.headers_mut().insert(RETRY_AFTER, second);
    }
    response
}

/// The client learns where to go on.
fn of_upload(error: UploadError) -> Response<MountBody> {
    let mut response = text(error.status(), error.to_string());
    if let UploadError::OffsetMismatch { expected } = error {
        response
            .headers_mut()
            .insert(UPLOAD_OFFSET, expected.into());
    }
    response
}

/// The URI reference of a path in the tree that a request is for.
fn href_in(target: Option<&DavTarget>, path: &str) -> String {
    match (target, path.parse()) {
        (Some(DavTarget::Entry(entry)), Ok(path)) => entry.at(path, false).href(),
        _ => path.to_owned(),
    }
}

fn of_condition(status: StatusCode, condition: &DavCondition) -> Response<MountBody> {
    xml(status, full(condition.to_body()))
}

fn text(status: StatusCode, text: String) -> Response<MountBody> {
    let mut response = with_body(status, full(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}
