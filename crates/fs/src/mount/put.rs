//! PUT (RFC 9110 §9.3.4): the body is written into a session, and becomes the file when it is whole.

use alknet_core::MountBody;
use alknet_store::limits::READ_BLOCK_BYTES;
use alknet_store::{
    ClosedSession, EntryPrecondition, NewWriteSession, StoreError, WriteSessionId, WriteSessionMode,
};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, ETAG};
use http::{Response, StatusCode};
use http_body_util::BodyExt;

use crate::dav::{ContentRangeHeader, EntityTag};

use super::DavFiles;
use super::call::{DavBranch, DavCall, open};
use super::changes::require_parent;
use super::conditions::DavConditions;
use super::failure::DavFailure;
use super::respond::{empty, header_value};

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
    let (session, is_new) = open_session(&call).await?;
    let mut upload = OpenSession {
        call: &call,
        session: Some(session),
    };
    // The first read of the body lets the server send 100 to a client that expects it.
    let closed = upload.receive(body).await?;
    let mut response = empty(if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::NO_CONTENT
    });
    let tag = EntityTag::of_content(closed.hash).to_string();
    response.headers_mut().insert(ETAG, header_value(&tag));
    Ok(response)
}

/// Opens the session, after everything was checked that can be checked without the body. Returns whether the file is new.
async fn open_session<F: DavFiles>(
    call: &DavCall<F>,
) -> Result<(WriteSessionId, bool), DavFailure> {
    let conditions = DavConditions::new(call)?;
    let length = call.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|it| it.to_str().ok()?.parse().ok());
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
struct OpenSession<'a, F: DavFiles> {
    call: &'a DavCall<F>,
    session: Option<WriteSessionId>,
}

impl<F: DavFiles> OpenSession<'_, F> {
    async fn receive(&mut self, mut body: MountBody) -> Result<ClosedSession, DavFailure> {
        let gone = || StoreError::NotFound(alknet_store::StoreObject::Session);
        let session = self.session.ok_or_else(gone)?;
        let mut at = 0;
        let mut gathered = BytesMut::new();
        while let Some(frame) = body.frame().await {
            // The client broke off, or was too slow. The file is as before.
            let frame = frame.map_err(|_| DavFailure::Status(StatusCode::BAD_REQUEST))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            gathered.extend_from_slice(&data);
            if gathered.len() >= READ_BLOCK_BYTES {
                let block = gathered.split().freeze();
                let length = block.len() as u64;
                self.write(session, at, block).await?;
                at += length;
            }
        }
        self.write(session, at, gathered.freeze()).await?;
        let actor = self.call.actor().to_owned();
        // From here on the session ends by itself, whatever happens.
        self.session = None;
        let closed = self.call.with_store(move |store| {
            let precondition: Option<EntryPrecondition> = None;
            Ok(store.sessions().close(session, &actor, precondition)?)
        });
        closed.await
    }

    async fn write(
        &self,
        session: WriteSessionId,
        at: u64,
        block: Bytes,
    ) -> Result<(), DavFailure> {
        let actor = self.call.actor().to_owned();
        let written = self
            .call
            .with_store(move |store| Ok(store.sessions().write(session, &actor, at, &block)?));
        written.await
    }
}

impl<F: DavFiles> Drop for OpenSession<'_, F> {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let (files, actor) = (self.call.files().clone(), self.call.actor().to_owned());
        // The server drops the request of a client that has gone. The abort blocks on the disk, and without a runtime the
        // session is swept later.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                if let Ok(lease) = open(&*files)
                    && let Err(error) = lease.sessions().abort(session, &actor)
                {
                    tracing::debug!(%error, "a write session had ended already");
                }
            });
        }
    }
}
