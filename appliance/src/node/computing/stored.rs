//! Gives scripts and shaders the tensors of the node's store.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use alknet_call::{CallError, Ctx, Env};
use alknet_compute::limits::TENSOR_BYTES_MAX;
use alknet_compute::{Error, ReferencedTensor, TensorReferences};
use alknet_core::BoxFuture;
use alknet_sessions::TensorFiles;
use alknet_tensor::FileId;
use alknet_tensor_serve::{
    FilePart, Object, PartSelector, TensorFileRef, TensorRequester, TensorStore,
};
use alknet_worker::RevocableMemfd;
use serde_json::Value;

/// Prefix of a reference: `alknet-tensor://NODE/ID#NAME`.
const SCHEME: &str = "alknet-tensor://";

/// The tensor store for scripts and shaders.
pub(super) struct TensorStoreView {
    store: Arc<TensorStore>,
    /// The node's name in references.
    identity: String,
}

impl TensorStoreView {
    pub(super) fn new(store: Arc<TensorStore>, identity: &str) -> Self {
        Self {
            store,
            identity: identity.to_owned(),
        }
    }
}

impl TensorFiles for TensorStoreView {
    fn open(&self, env: &Env, src: Value) -> BoxFuture<'static, Result<File, CallError>> {
        let store = Arc::clone(&self.store);
        let requester = TensorRequester::through(env);
        Box::pin(blocking(move || {
            let id = requester?.resolve(&store, &TensorFileRef::from_value(&src)?)?;
            Ok(store.file(id)?)
        }))
    }
}

impl TensorReferences for TensorStoreView {
    fn find(
        &self,
        ctx: &Ctx,
        reference: &str,
    ) -> BoxFuture<'static, Result<ReferencedTensor, CallError>> {
        let store = Arc::clone(&self.store);
        let requester = TensorRequester::from_ctx(ctx);
        let reference_parts = self.parse_reference(reference);
        Box::pin(blocking(move || {
            let (id, name) = reference_parts?;
            let id = requester?.resolve(&store, &TensorFileRef::Id(id))?;
            let object = store.object(id)?;
            find(&object, name)
        }))
    }
}

impl TensorStoreView {
    /// The file id and the tensor name in a reference.
    fn parse_reference(&self, reference: &str) -> Result<(FileId, String), CallError> {
        let parts = reference.strip_prefix(SCHEME).and_then(|rest| {
            let (node, rest) = rest.split_once('/')?;
            let (id, name) = rest.split_once('#')?;
            Some((node, id.parse::<FileId>().ok()?, name))
        });
        let Some((node, id, name)) = parts else {
            let text = format!(
                "'{reference}' is no reference: it is {SCHEME}NODE/ID#NAME, where NODE is the node's key without an \
                 address (`alknet status` shows it as identity), and ID is the file's id and no path (`alknet tensor \
                 stored` lists both)"
            );
            return Err(Error::Shape(text).into());
        };
        if node != self.identity {
            let text = format!(
                "{node} is another node: put its file into this one's store first (`alknet tensor \
                 pull`, `tensor/put`)"
            );
            return Err(Error::Shape(text).into());
        }
        Ok((id, name.to_owned()))
    }
}

/// Finds one tensor. Its bytes are copied into sealed memory, where the store's writers cannot
/// change them.
fn find(object: &Arc<Object>, name: String) -> Result<ReferencedTensor, CallError> {
    let mut part = FilePart::find(object, &PartSelector::Tensor(name))?;
    // The limit is checked before the copy, which would fill the memory first.
    if part.head.len > TENSOR_BYTES_MAX {
        return Err(too_large(part.head.len));
    }
    let dtype = part.head.dtype.take().unwrap_or_default();
    let shape = part.head.shape.take().unwrap_or_default();
    Ok(ReferencedTensor {
        dtype,
        shape,
        copy: Box::new(move || copy(part)),
    })
}

fn copy(mut part: FilePart) -> Result<RevocableMemfd, CallError> {
    // The error of the file says more than the error that the memory returns for it.
    let mut failed = None;
    let data = RevocableMemfd::written(|memory| {
        loop {
            match part.next_block() {
                Ok(Some(block)) => memory.write_all(&block)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    failed = Some(error);
                    return Err(io::Error::other("the file cannot be read"));
                }
            }
        }
    });
    match (data, failed) {
        (_, Some(error)) => Err(error.into()),
        (Ok(data), None) => Ok(data),
        (Err(error), None) => Err(CallError::internal(error.to_string())),
    }
}

fn too_large(bytes: u64) -> CallError {
    let text = format!("the tensor has {bytes} bytes; {TENSOR_BYTES_MAX} are the most");
    Error::TooLarge(text).into()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| CallError::internal(error.to_string()))?
}
