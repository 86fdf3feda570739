//! The right of a peer to a session, which it may lose while the session lasts.

use std::sync::Arc;

use alknet_core::Identity;

use super::error::{ByeCode, SyncError};
use super::message::SyncHello;
use super::session::SessionContext;
use crate::rights::FsRight;

/// Whether an identity may synchronise a bucket.
pub(super) fn may_sync(identity: Option<&Identity>, hello: &SyncHello) -> bool {
    identity.is_some_and(|it| FsRight::Sync.is_allowed(&it.scopes, &hello.bucket))
}

/// Ends a session whose peer has lost the right.
pub(super) fn check_right(
    context: &SessionContext,
    identity: &(dyn Fn() -> Option<Arc<Identity>> + Send + Sync),
) -> Result<(), SyncError> {
    match may_sync(identity().as_deref(), &context.hello) {
        true => Ok(()),
        false => Err(SyncError::refused(
            ByeCode::NotFound,
            "the peer has no right to synchronise the bucket",
        )),
    }
}

/// Returns when the peer of a session that waits has lost the right.
pub(super) async fn lost_right(
    context: &SessionContext,
    identity: &(dyn Fn() -> Option<Arc<Identity>> + Send + Sync),
) -> SyncError {
    loop {
        tokio::time::sleep(context.right_check_time).await;
        if let Err(error) = check_right(context, identity) {
            return error;
        }
    }
}
