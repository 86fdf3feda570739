//! The hash tree of a part of a file, computed when a request first needs it and cached beside the store.

use std::ops::Range;
use std::sync::Arc;

use alknet_core::PeerId;
use alknet_objects::Outboard;
use alknet_tensor::Hash;

use crate::error::ServeError;
use crate::handler::blocking;
use crate::store::{Object, TensorStore};

/// The tree of these bytes of a file, for a request of this identity. A cached tree is not trusted: each pair is
/// checked against the root when it is read, and the root against the hash in the header. The header's hash is the one
/// that the client compares, so a tree with another root would fail there.
pub(crate) async fn prepare_outboard(
    store: &Arc<TensorStore>,
    object: &Arc<Object>,
    range: Range<u64>,
    listed: Option<Hash>,
    who: &PeerId,
) -> Result<Outboard, ServeError> {
    let find = {
        let (store, object, range) = (Arc::clone(store), Arc::clone(object), range.clone());
        move || {
            Ok(store
                .objects()
                .find_outboard(&object.view(), &range, listed)?)
        }
    };
    if let Some(found) = blocking(find).await? {
        return Ok(found);
    }
    // The build reads the whole range. The turn comes before the thread: requests that wait hold none.
    let turn = store.tree_turns().turn(who).await;
    let (store, object) = (Arc::clone(store), Arc::clone(object));
    blocking(move || {
        let _turn = turn;
        // Another request may have computed the tree while this one waited for its turn.
        Ok(store
            .objects()
            .build_outboard(&object.view(), &range, listed)?)
    })
    .await
}
