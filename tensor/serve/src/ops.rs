//! The operations of a store: `tensor/list`, `open`, `stat`, `fetch`, `put` and `remove`.

use std::sync::Arc;

use alknet_call::{
    CallBody, CallError, CallOutput, Ctx, ErrorCode, ErrorDef, HandlerKind, OperationSpec,
    Registration,
};
use alknet_tensor::TensorErrorCode;
use base64::Engine;
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::{Value, json};

use crate::access::ReadablePaths;
use crate::describe;
use crate::error::{QUOTA_EXCEEDED, ServeError, TENSOR_INVALID};
use crate::handler::{NAMELESS, blocking, read_on};
use crate::limits::{PATH_BYTES, UPLOAD_IDLE};
use crate::part::FilePart;
use crate::path::StorePath;
use crate::path::TensorFileRef;
use crate::pending::ResponsePermit;
use crate::request::Fetch;
use crate::requester::TensorRequester;
use crate::store::{Object, TensorRemoval, TensorStore, TensorUpload};
use crate::uploads::Uploads;

/// The operations of a store. Every identified caller may call them. What the caller may read and write follows from
/// its scopes and, if an operation calls on its behalf, from that operation's authority as well.
#[must_use]
pub fn operations(store: &Arc<TensorStore>) -> Vec<Registration> {
    let uploads = Uploads::new(UPLOAD_IDLE);
    vec![
        list(store),
        open(store),
        stat(store),
        fetch(store),
        put(store, &uploads),
        remove(store),
    ]
}

/// Paths in one answer of `tensor/list`, and paths that the node looks at for it: with ids and sizes they take less
/// than 700 KB of a frame.
const LISTED_MAX: usize = 1000;

fn list(store: &Arc<TensorStore>) -> Registration {
    let path = json!({ "type": "string", "maxLength": PATH_BYTES });
    let spec = OperationSpec::query(
        "tensor/list",
        "Lists the paths of the stored files that the caller may read, in order and in pages.",
    )
    .with_input(json!({
        "type": ["object", "null"], "additionalProperties": false,
        "properties": { "below": path, "after": path },
    }))
    .with_output(json!({
        "type": "object", "required": ["files"],
        "properties": {
            "files": { "type": "array", "items": {
                "type": "object", "required": ["path", "id", "bytes"],
                "properties": {
                    "path": { "type": "string" }, "id": { "type": "string" },
                    "bytes": { "type": "integer" },
                } } },
            "next": { "type": "string", "description": "If there are more: the after of the next page" },
        },
    }))
    .with_identity();
    let store = Arc::clone(store);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let store = Arc::clone(&store);
        async move { listed(store, input.try_value()?, &ctx).await }
    });
    Registration::new(spec, handler)
}

async fn listed(
    store: Arc<TensorStore>,
    input: &Value,
    ctx: &Ctx,
) -> Result<CallOutput, CallError> {
    let asker = TensorRequester::from_ctx(ctx)?;
    let path = |name: &str| input[name].as_str().map(StorePath::parse).transpose();
    let (below, after) = (path("below")?, path("after")?);
    let readable = asker.readable().ok_or_else(|| {
        let text = "a list needs a scope for reading, such as 'tensor:read:PATH' or 'tensor:read:*'; a hub gets it by \
                    join.scopes on the worker";
        CallError::new(ErrorCode::Forbidden, text)
    })?;
    let within = match below {
        Some(below) => readable.and(ReadablePaths::below([below])),
        None => readable,
    };
    let page = blocking(move || Ok(store.list(&within, after.as_ref(), LISTED_MAX)));
    let page = page.await?;
    let rows = page.files.iter().map(|file| {
        json!({ "path": file.path.as_str(), "id": file.id.to_string(), "bytes": file.bytes })
    });
    let mut answer = json!({ "files": rows.collect::<Vec<_>>() });
    if let Some(next) = &page.next {
        answer["next"] = next.as_str().into();
    }
    Ok(answer.into())
}

fn open(store: &Arc<TensorStore>) -> Registration {
    let spec = OperationSpec::query("tensor/open", "Returns the header of a tensor file.")
        .with_input(json!({
            "type": "object", "required": ["src"], "additionalProperties": false,
            "properties": { "src": src_schema() },
        }))
        .with_identity();
    let store = Arc::clone(store);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let store = Arc::clone(&store);
        async move {
            let object = object(&store, input.try_value()?, &ctx).await?;
            describe::file(&object)
        }
    });
    reading(spec, handler)
}

fn stat(store: &Arc<TensorStore>) -> Registration {
    let spec = OperationSpec::query("tensor/stat", "Describes one tensor of a file.")
        .with_input(json!({
            "type": "object", "required": ["src", "name"], "additionalProperties": false,
            "properties": { "src": src_schema(), "name": { "type": "string" } },
        }))
        .with_identity();
    let store = Arc::clone(store);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let store = Arc::clone(&store);
        async move {
            let object = object(&store, input.try_value()?, &ctx).await?;
            let name = input.try_value()?["name"].as_str().unwrap_or_default();
            describe::tensor(&object, name)
        }
    });
    reading(spec, handler)
}

fn fetch(store: &Arc<TensorStore>) -> Registration {
    let spec = OperationSpec::subscription(
        "tensor/fetch",
        "Sends a part of a file: first its description, then its bytes.",
    )
    .with_input(json!({
        "type": "object", "required": ["src", "want"], "additionalProperties": false,
        "properties": {
            "src": src_schema(),
            "want": { "enum": ["header", "tensor", "rows", "range"] },
            "name": { "type": "string" },
            "rows": { "type": "array" },
            "range": { "type": "array" },
            "encoding": { "enum": ["raw", "bao16"], "default": "raw" },
        },
    }))
    .with_identity();
    let store = Arc::clone(store);
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        let begin = FetchState::Requested(Arc::clone(&store), input, Box::new(ctx));
        items(begin)
    });
    reading(spec, handler)
}

fn put(store: &Arc<TensorStore>, uploads: &Arc<Uploads>) -> Registration {
    let mut spec = OperationSpec::mutation(
        "tensor/put",
        "Stores a file in steps: its header, its bytes piece by piece, and the commit.",
    )
    .with_input(json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "header": { "description": "The header with the length before it, as bytes" },
            "path": { "type": "string", "description": "What leads to it, with its header" },
            "upload": { "type": "string" },
            "offset": { "type": "integer", "minimum": 0 },
            "bytes": { "description": "The bytes from the offset on" },
            "commit": { "const": true },
        },
    }))
    .with_identity();
    spec.error_schemas.push(error(
        QUOTA_EXCEEDED,
        "The store has no room for the file; details.code is E_QUOTA.",
    ));
    let (store, uploads) = (Arc::clone(store), Arc::clone(uploads));
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (store, uploads) = (Arc::clone(&store), Arc::clone(&uploads));
        async move { store_piece(store, uploads, input, &ctx).await }
    });
    Registration::new(spec, handler)
}

fn remove(store: &Arc<TensorStore>) -> Registration {
    let spec = OperationSpec::mutation(
        "tensor/remove",
        "Removes a path, and its file if no other path leads to it; or a file without a path, by its id.",
    )
    .with_input(json!({
        "type": "object", "required": ["src"], "additionalProperties": false,
        "properties": { "src": src_schema() },
    }))
    .with_output(json!({
        "type": "object", "required": ["id", "freed"],
        "properties": {
            "id": { "type": "string" },
            "freed": { "type": "integer",
                       "description": "Bytes that the store got back; 0 if another path leads to the file" },
        },
    }))
    .with_identity();
    let store = Arc::clone(store);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let store = Arc::clone(&store);
        async move { remove_stored(store, input.try_value()?, &ctx).await }
    });
    Registration::new(spec, handler)
}

/// A caller without the right to write there gets the same answer as a caller that names nothing that is stored.
async fn remove_stored(
    store: Arc<TensorStore>,
    input: &Value,
    ctx: &Ctx,
) -> Result<CallOutput, CallError> {
    let asker = TensorRequester::from_ctx(ctx)?;
    let src = TensorFileRef::from_value(&input["src"])?;
    let place = src.scope_path();
    if !asker.may_write(&place) {
        return Err(ServeError::Missing.into());
    }
    let removed = blocking(move || match src {
        TensorFileRef::Id(id) => store.remove_file(id),
        TensorFileRef::Path(path) => store.remove(&path),
    });
    let TensorRemoval { id, freed } = removed.await?;
    let (by, through) = (asker.id().as_str(), asker.by().map(|label| &**label));
    tracing::info!(by, through, path = place.as_str(), file = %id, freed, "tensor.remove");
    Ok(json!({ "id": id.to_string(), "freed": freed }).into())
}

fn reading(mut spec: OperationSpec, handler: HandlerKind) -> Registration {
    spec.error_schemas.push(error(
        TENSOR_INVALID,
        "The stored file has changed; details.code says how.",
    ));
    Registration::new(spec, handler)
}

fn error(code: &str, description: &str) -> ErrorDef {
    ErrorDef {
        code: code.to_owned(),
        description: description.to_owned(),
        schema: json!({ "type": "object", "properties": { "code": { "type": "string" } } }),
        http_status: None,
    }
}

fn src_schema() -> Value {
    json!({
        "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
        "properties": {
            "id": { "type": "string", "description": "BLAKE3 of the file, 64 hex digits" },
            "path": { "type": "string", "description": "What leads to the file" },
        },
    })
}

async fn object(
    store: &Arc<TensorStore>,
    input: &Value,
    ctx: &Ctx,
) -> Result<Arc<Object>, ServeError> {
    let asker = TensorRequester::from_ctx(ctx)?;
    let id = asker.resolve(store, &TensorFileRef::from_value(&input["src"])?)?;
    store.opened(id, asker.id()).await
}

/// The state of a fetch: the request, then the part that is under way.
enum FetchState {
    Requested(Arc<TensorStore>, CallBody, Box<Ctx>),
    Under(FilePart, ResponsePermit),
}

fn items(begin: FetchState) -> impl Stream<Item = Result<CallOutput, CallError>> {
    stream::try_unfold(begin, |state| async move {
        match state {
            FetchState::Requested(store, input, ctx) => {
                let (part, flight) = begin_fetch(store, &input, &ctx).await?;
                let head = CallOutput::json(&part.head)?;
                Ok::<_, CallError>(Some((head, FetchState::Under(part, flight))))
            }
            FetchState::Under(part, flight) => {
                let (part, block) = read_on(part).await?;
                let item = |block: Bytes| {
                    let reference = json!({ "bytes": { "$bin": [0, block.len()] } });
                    let output = CallOutput::Mixed(reference, block);
                    (output, FetchState::Under(part, flight))
                };
                Ok(block?.map(item))
            }
        }
    })
}

async fn begin_fetch(
    store: Arc<TensorStore>,
    input: &CallBody,
    ctx: &Ctx,
) -> Result<(FilePart, ResponsePermit), CallError> {
    let asker = TensorRequester::from_ctx(ctx)?;
    let fetch = Fetch::from_value(input.try_value()?)?;
    let id = asker.resolve(&store, &fetch.src)?;
    let bytes_in_flight = Arc::clone(store.bytes_in_flight());
    let part = FilePart::prepare(&store, id, fetch, asker.id()).await?;
    // The bytes count before the head is sent, so a refused caller gets an error instead of a beginning.
    let flight = bytes_in_flight.enter(asker.id(), part.head.len)?;
    Ok((part, flight))
}

/// The step that a call of `tensor/put` takes.
enum PutStep<'i> {
    Begin,
    Add(&'i str, u64),
    Commit(&'i str),
}

impl<'i> PutStep<'i> {
    /// Decides by the members that the input has.
    fn parse(input: &'i Value) -> Result<Self, CallError> {
        let members = input.as_object().map(|members| members.keys());
        let mut members: Vec<&str> = members.into_iter().flatten().map(String::as_str).collect();
        // The order of members in a JSON object has no meaning (RFC 8259 section 4), so they are compared in sorted
        // order.
        members.sort_unstable();
        let upload = input["upload"].as_str().unwrap_or_default();
        match (&*members, input["offset"].as_u64()) {
            (["header"] | ["header", "path"], _) => Ok(Self::Begin),
            (["bytes", "offset", "upload"], Some(offset)) => Ok(Self::Add(upload, offset)),
            (["commit", "upload"], _) if input["commit"] == true => Ok(Self::Commit(upload)),
            _ => Err(CallError::invalid_input(
                "put takes header, with path if it has one; upload, offset and bytes; or upload \
                 and commit",
            )),
        }
    }
}

async fn store_piece(
    store: Arc<TensorStore>,
    uploads: Arc<Uploads>,
    input: CallBody,
    ctx: &Ctx,
) -> Result<CallOutput, CallError> {
    let asker = TensorRequester::from_ctx(ctx)?;
    match PutStep::parse(input.try_value()?)? {
        PutStep::Begin => begin_upload(store, &uploads, &input, &asker).await,
        PutStep::Add(name, offset) => {
            let piece = bytes(&input, &input.try_value()?["bytes"])?;
            add_piece(&uploads, &asker, name, offset, piece).await
        }
        PutStep::Commit(name) => {
            let mut held = uploads
                .lookup(asker.id(), asker.by(), name)?
                .lock_owned()
                .await;
            // The name is removed first, so a second commit of the same upload finds nothing.
            uploads.forget(name);
            let upload = held.take().ok_or(ServeError::Missing)?;
            let id = blocking(move || upload.commit()).await?;
            Ok(json!({ "id": id.to_string() }).into())
        }
    }
}

async fn begin_upload(
    store: Arc<TensorStore>,
    uploads: &Arc<Uploads>,
    input: &CallBody,
    asker: &TensorRequester,
) -> Result<CallOutput, CallError> {
    let value = input.try_value()?;
    let path = value["path"].as_str().map(StorePath::parse).transpose()?;
    let place = path.as_ref().map_or(NAMELESS, StorePath::as_str);
    if !asker.may_write(place) {
        return Err(ServeError::Missing.into());
    }
    // The room is checked before the header is read too, so a refusal costs no parsing.
    uploads.check_slots(asker.id())?;
    let header = bytes(input, &value["header"])?;
    let turn = store.header_turns().turn(asker.id()).await;
    let begin = move || {
        let _turn = turn;
        TensorUpload::begin(&store, &header, path)
    };
    let upload = blocking(begin).await?;
    let name = uploads.add(asker.id(), asker.by(), upload)?;
    Ok(json!({ "upload": name }).into())
}

async fn add_piece(
    uploads: &Uploads,
    asker: &TensorRequester,
    name: &str,
    offset: u64,
    piece: Bytes,
) -> Result<CallOutput, CallError> {
    // The lock is moved to the thread that writes, so a call that its caller cancels half-way does not lose the
    // upload.
    let mut held = uploads
        .lookup(asker.id(), asker.by(), name)?
        .lock_owned()
        .await;
    let have = held.as_ref().ok_or(ServeError::Missing)?.have();
    // A caller that repeats a piece after a lost response learns from `have` where to go on.
    if offset != have {
        let message = format!("the next piece begins at {have}");
        let details = json!({ "code": TensorErrorCode::Shape.as_str(), "have": have });
        return Err(CallError::invalid_input(message).with_details(details));
    }
    let written = blocking(move || {
        let upload = held.as_mut().ok_or(ServeError::Missing)?;
        upload.write(&piece)?;
        Ok(upload.have())
    });
    match written.await {
        Ok(have) => Ok(json!({ "have": have }).into()),
        Err(error) => {
            // How much of the piece was written is unknown, so no further piece can follow it.
            uploads.forget(name);
            Err(error.into())
        }
    }
}

/// Bytes beside the JSON of the input, or as base64 within it.
fn bytes(input: &CallBody, value: &Value) -> Result<Bytes, CallError> {
    if let Some(bytes) = input.binary(value) {
        return Ok(bytes);
    }
    // JSON without binary parts has the bytes in base64 (RFC 4648 section 4).
    let text = value.as_str();
    let decoded = text.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
    match decoded {
        Some(Ok(bytes)) => Ok(bytes.into()),
        _ => Err(CallError::new(
            ErrorCode::InvalidInput,
            "bytes are {\"$bin\":[offset,length]} or base64",
        )),
    }
}
