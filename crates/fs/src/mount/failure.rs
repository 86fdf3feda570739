//! Requests that fail.

use alknet_core::{MountBody, MountCaller};
use alknet_store::{ContentHash, QuotaResource, StoreError};
use http::header::{CONTENT_TYPE, ETAG, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::dav::{DavCondition, DavError, DavTarget, EntityTag, UPLOAD_OFFSET, UploadError};
use crate::error::{FsError, logged_error};
use crate::requester::FsRequester;
use crate::rights::FsRight;

use super::respond::{empty, full, header_value, with_body, xml};

/// Why a request fails.
#[derive(Debug)]
pub(super) enum DavFailure {
    /// A condition that has a name.
    Condition(DavCondition),
    /// The caller lacks a right, or the store is not served.
    Fs(FsError),
    /// The file is not what the request expects. It has this content, if it has one that the caller may know.
    Precondition(Option<ContentHash>),
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
            Self::Precondition(current) => of_precondition(current),
            Self::Refused(error) => match error.condition() {
                Some(condition) => of_condition(error.status(), &condition),
                None => text(error.status(), error.to_string()),
            },
            Self::Status(status) => empty(status),
            Self::Store(StoreError::PreconditionFailed { current }) => {
                // A caller that may only write learns that the version is another one, and not which.
                of_precondition(current.filter(|_| may_read(target, caller)))
            }
            Self::Store(error) => of_store(&error, target, caller),
            Self::Upload(error) => of_upload(error),
        }
    }
}

/// The response has the present version, so that the client can decide without a second request.
fn of_precondition(current: Option<ContentHash>) -> Response<MountBody> {
    let error = StoreError::PreconditionFailed { current };
    let mut response = text(StatusCode::PRECONDITION_FAILED, error.to_string());
    if let Some(hash) = current {
        let tag = EntityTag::of_content(hash).to_string();
        response.headers_mut().insert(ETAG, header_value(&tag));
    }
    response
}

/// Whether the caller may read the bucket that a request is for.
fn may_read(target: Option<&DavTarget>, caller: &MountCaller) -> bool {
    // By now: an upload may have taken hours.
    let (Some(DavTarget::Entry(entry)), Some(identity)) = (target, caller.identity_now()) else {
        return false;
    };
    let requester = FsRequester::of_identity(identity);
    requester.may(FsRight::Read, &entry.address.bucket)
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
