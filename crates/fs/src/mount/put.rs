//! PUT (RFC 9110 §9.3.4): the body is written into a session, and becomes the file when it is whole.

use alknet_core::MountBody;
use alknet_store::limits::READ_BLOCK_BYTES;
use alknet_store::{
    BucketName, ClosedSession, NewWriteSession, StoreError, StoreObject, WriteSessionId,
    WriteSessionMode,
};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, ETAG};
use http::{Response, StatusCode};
use http_body_util::BodyExt;

use crate::dav::{ContentRangeHeader, EntityTag, UploadAppend, UploadProgress};
use crate::error::logged_error;
use crate::rights::FsRight;

use super::DavFiles;
use super::call::{DavBranch, DavCall};
use super::changes::require_parent;
use super::conditions::DavConditions;
use super::failure::DavFailure;
use super::respond::{empty, header_value};
use super::right::MountedObject;
use super::uploads;

/// Stores a file.
pub(super) async fn answer<F: DavFiles>(
    call: DavCall<F>,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    let entry = call.entry()?;
    call.require_write(&entry.address.bucket)?;
    if entry.is_collection {
        return Err(DavFailure::Status(StatusCode::METHOD_NOT_ALLOWED));
    }
    // A part must not replace the whole (RFC 9110 §14.5).
    if ContentRangeHeader::from_headers(call.headers())?.is_some() {
        return Err(DavFailure::Status(StatusCode::BAD_REQUEST));
    }
    if let Some(append) = UploadAppend::of_new_upload(call.headers())? {
        return uploads::begin(&call, body, append).await;
    }
    let length = call.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
    let (session, is_new) = open_session(&call, length).await?;
    let mut upload = PutSession {
        call: &call,
        session: Some(session),
    };
    // The first read of the body lets the server send 100 to a client that expects it.
    let closed = upload.receive(body).await?;
    Ok(stored(closed, is_new))
}

/// The response to a request that made a file.
pub(super) fn stored(closed: ClosedSession, is_new: bool) -> Response<MountBody> {
    let mut response = empty(if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    });
    let tag = EntityTag::of_content(closed.hash).to_string();
    response.headers_mut().insert(ETAG, header_value(&tag));
    response
}

/// Opens the session, after everything was checked that can be checked without the body. Returns whether the file is new.
pub(super) async fn open_session<F: DavFiles>(
    call: &DavCall<F>,
    length: Option<u64>,
) -> Result<(WriteSessionId, bool), DavFailure> {
    let conditions = DavConditions::new(call)?;
    let actor = call.actor().to_owned();
    let opened = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let entry = conditions.entry();
        match &held.current {
            Some(current) if current.state.is_directory() => {
                return Err(DavFailure::Status(StatusCode::METHOD_NOT_ALLOWED));
            }
            Some(_) => {}
            None => require_parent(store, entry)?,
        }
        let address = entry.address.clone();
        let head = store.read(move |tx| DavBranch::find(tx, &address)).wait()?;
        let path = entry.address.path.clone();
        let mut new = NewWriteSession::new(head.branch, path, WriteSessionMode::Truncate, &actor);
        new.expected_size = length;
        new.precondition = held.precondition;
        new.lock_tokens = held.tokens;
        Ok((store.open_session(&new)?, held.current.is_none()))
    });
    opened.await
}

/// A session that is being written. A request that ends before its body does gives the session up.
struct PutSession<'a, F: DavFiles> {
    call: &'a DavCall<F>,
    session: Option<WriteSessionId>,
}

impl<F: DavFiles> PutSession<'_, F> {
    async fn receive(&mut self, body: MountBody) -> Result<ClosedSession, DavFailure> {
        let gone = || StoreError::NotFound(StoreObject::Session);
        let session = self.session.ok_or_else(gone)?;
        let bucket = &self.call.entry()?.address.bucket;
        let progress = &mut UploadProgress::new(None);
        write_body(self.call, (session, bucket), body, progress).await?;
        // From here on the session ends by itself, whatever happens.
        self.session = None;
        close_session(self.call, session).await
    }
}

/// Writes a body behind what its session for a bucket has. If it breaks off, the session has what came. A body may take
/// hours: a caller that loses the right to write meanwhile writes no further block, and makes no file of those before.
pub(super) async fn write_body<F: DavFiles>(
    call: &DavCall<F>,
    (session, bucket): (WriteSessionId, &BucketName),
    mut body: MountBody,
    progress: &mut UploadProgress,
) -> Result<(), DavFailure> {
    // Without the number of the bucket, so that a look is one into memory: the session finds a bucket that is gone.
    let mut right = call.right_to(MountedObject::Bucket {
        right: FsRight::Write,
        name: bucket.clone(),
        id: None,
    });
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            // The client broke off, or was too slow.
            write_block(call, session, gathered.freeze(), progress).await?;
            return Err(DavFailure::Status(StatusCode::BAD_REQUEST));
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        gathered.extend_from_slice(&data);
        if gathered.len() >= READ_BLOCK_BYTES {
            right.check_if_due()?;
            let block = gathered.split().freeze();
            right.note_bytes(block.len());
            write_block(call, session, block, progress).await?;
        }
    }
    right.check()?;
    write_block(call, session, gathered.freeze(), progress).await
}

async fn write_block<F: DavFiles>(
    call: &DavCall<F>,
    session: WriteSessionId,
    block: Bytes,
    progress: &mut UploadProgress,
) -> Result<(), DavFailure> {
    let at = progress.received();
    // First: the write goes on if the request is dropped meanwhile.
    progress.push(block.len() as u64)?;
    let actor = call.actor().to_owned();
    let written =
        call.with_store(move |store| Ok(store.sessions().write(session, &actor, at, &block)?));
    written.await
}

/// Makes the content of a session that of its file.
pub(super) async fn close_session<F: DavFiles>(
    call: &DavCall<F>,
    session: WriteSessionId,
) -> Result<ClosedSession, DavFailure> {
    let actor = call.actor().to_owned();
    let closed = call.with_store(move |store| Ok(store.sessions().close(session, &actor, None)?));
    closed.await
}

impl<F: DavFiles> Drop for PutSession<'_, F> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let (files, actor) = (self.call.files().clone(), self.call.actor().to_owned());
        // The server drops the request of a client that has gone. The abort blocks on the disk, and without a runtime the
        // session is swept later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                if let Ok(lease) = files.open()
                    && let Err(error) = lease.sessions().abort(session, &actor)
                {
                    let error = logged_error(&error);
                    tracing::debug!(%error, "a write session had ended already");
                }
            });
        }
    }
}
