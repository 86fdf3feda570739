//! Uploads that can be resumed (draft-ietf-httpbis-resumable-upload). A PUT with `Upload-Complete` makes one, which has a
//! path of its own: HEAD tells how far it is, PATCH goes on, DELETE gives it up. Its bytes are in a write session, so that
//! the file is as before until the last of them has come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::MountBody;
use alknet_store::limits::{SESSIONS_MAX, SESSIONS_PER_IDENTITY_MAX};
use alknet_store::{BucketName, StoreError, StoreObject, WriteSessionId};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, LOCATION};
use http::{HeaderValue, Response, StatusCode};

use crate::dav::{UPLOAD_COMPLETE, UPLOAD_OFFSET, UploadAppend, UploadProgress, UploadStage};
use crate::rights::FsRight;

use super::DavFiles;
use super::call::DavCall;
use super::failure::DavFailure;
use super::put::{close_session, open_session, stored, write_body};
use super::respond::{empty, header_value};
use super::right::MountedObject;

/// Uploads of one identity that the table has, those whose sessions are over counted. The store has half as many sessions.
const UPLOADS_OF_IDENTITY_MAX: usize = 2 * SESSIONS_PER_IDENTITY_MAX;

/// Uploads that the table has in all.
const UPLOADS_MAX: usize = 2 * SESSIONS_MAX;

/// The uploads in progress. One whose session was ended by an operation, or swept, stays until there is no room for others.
#[derive(Debug, Default)]
pub(super) struct PendingUploads(Mutex<HashMap<WriteSessionId, Arc<PendingUpload>>>);

/// An upload in progress.
#[derive(Debug)]
struct PendingUpload {
    identity: String,
    bucket: BucketName,
    is_new: bool,
    /// Locked by the one request that sends bytes.
    progress: tokio::sync::Mutex<UploadProgress>,
}

impl PendingUploads {
    /// Adds an upload. If there is no room, those go whose sessions are over, first of the same identity: the uploads that an
    /// identity begins and ends must not cost those of others.
    fn insert(
        &self,
        id: WriteSessionId,
        upload: Arc<PendingUpload>,
        is_open: impl Fn(WriteSessionId) -> bool,
    ) -> Result<(), StoreError> {
        let mut uploads = self.lock();
        let is_own = |it: &PendingUpload| it.identity == upload.identity;
        let count_own = |uploads: &HashMap<WriteSessionId, Arc<PendingUpload>>| {
            uploads.values().filter(|it| is_own(it)).count()
        };
        if count_own(&uploads) >= UPLOADS_OF_IDENTITY_MAX {
            uploads.retain(|id, it| !is_own(it) || is_open(*id));
        }
        if uploads.len() >= UPLOADS_MAX {
            uploads.retain(|id, _| is_open(*id));
        }
        // Only if the store had more sessions than its limits say: an upload that goes on is never dropped.
        if uploads.len() >= UPLOADS_MAX || count_own(&uploads) >= UPLOADS_OF_IDENTITY_MAX {
            return Err(StoreError::Busy("too many uploads are in progress"));
        }
        uploads.insert(id, upload);
        Ok(())
    }

    fn find(&self, id: WriteSessionId, identity: &str) -> Result<Arc<PendingUpload>, StoreError> {
        let found = self.lock().get(&id).cloned();
        let found = found.filter(|it| it.identity == identity);
        found.ok_or(StoreError::NotFound(StoreObject::Session))
    }

    fn remove(&self, id: WriteSessionId) {
        self.lock().remove(&id);
    }

    /// A table is never half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<WriteSessionId, Arc<PendingUpload>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes an upload, and takes the first of its bytes.
pub(super) async fn begin<F: DavFiles>(
    call: &DavCall<F>,
    body: MountBody,
    append: UploadAppend,
) -> Result<Response<MountBody>, DavFailure> {
    let length = match append.is_complete {
        Some(true) => append.length.or_else(|| content_length(call)),
        _ => append.length,
    };
    let (id, is_new) = open_session(call, length).await?;
    let upload = Arc::new(PendingUpload {
        identity: call.actor().to_owned(),
        bucket: call.entry()?.address.bucket.clone(),
        is_new,
        progress: tokio::sync::Mutex::new(UploadProgress::new(length)),
    });
    remember(call, id, &upload).await?;
    let mut response = receive(call, (id, &upload), body, append).await?;
    let location = header_value(&format!("/fs/.upload/{id}"));
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// Puts an upload into the table. Without room there, its session ends.
async fn remember<F: DavFiles>(
    call: &DavCall<F>,
    id: WriteSessionId,
    upload: &Arc<PendingUpload>,
) -> Result<(), DavFailure> {
    let (uploads, upload) = (Arc::clone(call.uploads()), Arc::clone(upload));
    let actor = call.actor().to_owned();
    call.with_store(move |store| {
        let sessions = store.sessions();
        let inserted = uploads.insert(id, upload, |it| sessions.is_open(it));
        // Nothing leads to a session that is not in the table, and it would count for its identity until it is swept.
        if inserted.is_err()
            && let Err(error) = sessions.abort(id, &actor)
        {
            tracing::debug!(%error, "the session of an upload had ended already");
        }
        Ok(inserted?)
    })
    .await
}

/// Answers a request to the path of an upload. That of another identity does not exist.
pub(super) async fn answer<F: DavFiles>(
    call: DavCall<F>,
    id: WriteSessionId,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    let upload = call.uploads().find(id, call.actor())?;
    // The right may have been taken from the identity meanwhile.
    call.require_write(&upload.bucket)?;
    match call.method().as_str() {
        "HEAD" => {
            let progress = upload.progress.try_lock().map_err(|_| busy())?;
            Ok(with_progress(StatusCode::NO_CONTENT, &progress))
        }
        "PATCH" => {
            let append = UploadAppend::from_headers(call.headers())?;
            receive(&call, (id, &upload), body, append).await
        }
        "DELETE" => {
            call.uploads().remove(id);
            let actor = call.actor().to_owned();
            call.with_store(move |store| Ok(store.sessions().abort(id, &actor)?))
                .await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => {
            let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
            let methods = HeaderValue::from_static("HEAD, PATCH, DELETE");
            response.headers_mut().insert(ALLOW, methods);
            Ok(response)
        }
    }
}

async fn receive<F: DavFiles>(
    call: &DavCall<F>,
    (id, upload): (WriteSessionId, &PendingUpload),
    body: MountBody,
    append: UploadAppend,
) -> Result<Response<MountBody>, DavFailure> {
    let mut progress = upload.progress.try_lock().map_err(|_| busy())?;
    progress.begin(&append, content_length(call))?;
    let written = write_body(call, (id, &upload.bucket), body, &mut progress).await;
    let stage = match written {
        Ok(()) => progress.finish(&append),
        // The upload stays open after a connection that broke, and goes with its session otherwise.
        Err(DavFailure::Status(status)) => return Err(DavFailure::Status(status)),
        Err(failure) => {
            give_up(call, id, &mut progress).await;
            return Err(failure);
        }
    };
    match stage {
        Ok(UploadStage::Complete) => {
            call.uploads().remove(id);
            let closed = close_session(call, id).await;
            let closed = closed.map_err(|failure| match failure {
                // The path of an upload does not say whose version the client may know.
                DavFailure::Store(StoreError::PreconditionFailed { current }) => {
                    let right = call.right_to(MountedObject::Bucket {
                        right: FsRight::Read,
                        name: upload.bucket.clone(),
                        id: None,
                    });
                    DavFailure::Precondition(current.filter(|_| right.check().is_ok()))
                }
                failure => failure,
            })?;
            let mut response = stored(closed, upload.is_new);
            let headers = response.headers_mut();
            headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("?1"));
            Ok(response)
        }
        Ok(_) => Ok(with_progress(StatusCode::ACCEPTED, &progress)),
        Err(error) => {
            give_up(call, id, &mut progress).await;
            Err(error.into())
        }
    }
}

/// Ends an upload that cannot become a file any more.
async fn give_up<F: DavFiles>(
    call: &DavCall<F>,
    id: WriteSessionId,
    progress: &mut UploadProgress,
) {
    progress.cancel();
    call.uploads().remove(id);
    let actor = call.actor().to_owned();
    let ended = call.with_store(move |store| Ok(store.sessions().abort(id, &actor)?));
    if ended.await.is_err() {
        tracing::debug!("the session of an upload had ended already");
    }
}

fn with_progress(status: StatusCode, progress: &UploadProgress) -> Response<MountBody> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(UPLOAD_OFFSET, progress.received().into());
    headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("?0"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Another request sends bytes of the upload.
const fn busy() -> DavFailure {
    DavFailure::Status(StatusCode::CONFLICT)
}

fn content_length<F: DavFiles>(call: &DavCall<F>) -> Option<u64> {
    let length = call.headers().get(CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(identity: &str) -> Arc<PendingUpload> {
        Arc::new(PendingUpload {
            identity: identity.to_owned(),
            bucket: "docs".parse().expect("a name"),
            is_new: true,
            progress: tokio::sync::Mutex::new(UploadProgress::new(None)),
        })
    }

    /// The session with this number.
    fn session(number: usize) -> WriteSessionId {
        WriteSessionId::new((number as u128).to_be_bytes())
    }

    /// One identity begins uploads and ends their sessions by the operation, which the table does not see.
    #[test]
    fn uploads_that_were_ended_cost_no_other_identity_its_upload() {
        let uploads = PendingUploads::default();
        let ours = session(0);
        let inserted = uploads.insert(ours, upload("ada"), |_| true);
        assert_eq!(inserted, Ok(()));
        for number in 1..=UPLOADS_MAX + 1 {
            let inserted = uploads.insert(session(number), upload("eve"), |it| it == ours);
            assert_eq!(inserted, Ok(()));
            assert!(uploads.lock().len() <= UPLOADS_OF_IDENTITY_MAX + 1);
        }
        assert!(uploads.find(ours, "ada").is_ok());
        // Nor do as many identities as fill the table.
        for number in 1..=UPLOADS_MAX + 1 {
            let eve = upload(&format!("eve-{number}"));
            let inserted = uploads.insert(session(2 * UPLOADS_MAX + number), eve, |it| it == ours);
            assert_eq!(inserted, Ok(()));
            assert!(uploads.lock().len() <= UPLOADS_MAX);
        }
        assert!(uploads.find(ours, "ada").is_ok());
    }

    #[test]
    fn an_upload_without_room_is_refused_and_drops_none() {
        let uploads = PendingUploads::default();
        let begin = |number| uploads.insert(session(number), upload("ada"), |_| true);
        for number in 0..UPLOADS_OF_IDENTITY_MAX {
            assert_eq!(begin(number), Ok(()));
        }
        let refused = begin(UPLOADS_OF_IDENTITY_MAX);
        assert!(matches!(refused, Err(StoreError::Busy(_))));
        assert!(uploads.find(session(0), "ada").is_ok());
        let other = uploads.insert(session(UPLOADS_MAX), upload("bob"), |_| true);
        assert_eq!(other, Ok(()));
    }
}
