//! The operations of the files of a node.
//!
//! Every identified caller may call them. What the caller may do follows from its scopes, which each handler asks before it
//! looks anything up.

pub(crate) mod addressed;
mod admin;
mod blobs;
mod branches;
mod buckets;
mod changes;
mod consumers;
mod entries;
mod locks;
mod names;
mod queues;
mod read;
mod schema;
mod sessions;
mod shares;
mod shown;
mod snapshots;
mod synchronisation;
mod transfers;
mod watch;

use std::future::Future;

use alknet_call::{
    CallBody, CallError, Ctx, HandlerKind, Idempotence, OperationSpec, Registration,
};
use alknet_store::{
    Durability, ReadTransaction, Store, StoreError, StoreErrorCode, WriteTransaction,
};
use base64::Engine;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{FsError, declared};
use crate::lease::StoreLease;
use crate::requester::FsRequester;
use crate::service::{FsService, blocking};

/// The operations of a service.
#[must_use]
pub fn operations(service: &FsService) -> Vec<Registration> {
    let mut all = entries::operations(service);
    all.push(read::operation(service));
    all.extend(changes::operations(service));
    all.extend(sessions::operations(service));
    all.push(watch::operation(service));
    all.extend(branches::operations(service));
    all.extend(snapshots::operations(service));
    all.extend(buckets::operations(service));
    all.extend(synchronisation::operations(service));
    all.extend(blobs::operations(service));
    all.extend(transfers::operations(service));
    all.extend(shares::operations(service));
    all.extend(admin::operations(service));
    all.extend(consumers::operations(service));
    all.extend(queues::operations(service));
    all.extend(locks::operations(service));
    all
}

/// Codes that any operation may answer with.
const COMMON: [StoreErrorCode; 2] = [StoreErrorCode::Busy, StoreErrorCode::InvalidPath];

/// Further codes of operations that look at entries.
const READING: [StoreErrorCode; 6] = [
    StoreErrorCode::IsDir,
    StoreErrorCode::NotDir,
    StoreErrorCode::ContentMissing,
    StoreErrorCode::ContentUnavailable,
    StoreErrorCode::ReadOnly,
    StoreErrorCode::TooLarge,
];

/// Further codes of operations that change something.
const WRITING: [StoreErrorCode; 10] = [
    StoreErrorCode::ContentMissing,
    StoreErrorCode::ContentUnavailable,
    StoreErrorCode::Exists,
    StoreErrorCode::IsDir,
    StoreErrorCode::NoSpace,
    StoreErrorCode::NotDir,
    StoreErrorCode::NotEmpty,
    StoreErrorCode::QuotaExceeded,
    StoreErrorCode::ReadOnly,
    StoreErrorCode::TooLarge,
];

/// The description of an operation that changes nothing.
fn query(name: &str, description: &str) -> OperationSpec {
    with_errors(OperationSpec::query(name, description), &READING)
}

/// The description of an operation that changes something. With a key, a repetition runs once.
fn mutation(name: &str, description: &str) -> OperationSpec {
    let mut spec = with_errors(OperationSpec::mutation(name, description), &WRITING);
    // A client whose connection broke does not know whether its change was made, and repeats it with the key.
    spec.idempotent = Idempotence::Keyed;
    spec
}

/// The description of a subscription.
fn subscription(name: &str, description: &str) -> OperationSpec {
    with_errors(OperationSpec::subscription(name, description), &READING)
}

fn with_errors(mut spec: OperationSpec, codes: &[StoreErrorCode]) -> OperationSpec {
    spec.error_schemas = declared(&COMMON);
    spec.error_schemas.extend(declared(codes));
    spec.with_identity()
}

/// An operation that answers once.
fn once<F, Fut>(service: &FsService, spec: OperationSpec, run: F) -> Registration
where
    F: Fn(FsCall) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Value, FsError>> + Send + 'static,
{
    let service = service.clone();
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        // Who calls is read here, so that the future owns what it needs.
        let answer = FsCall::new(&service, input, &ctx).map(&run);
        async move { Ok::<Value, CallError>(answer?.await?) }
    });
    Registration::new(spec, handler)
}

/// A call of an operation.
#[derive(Debug)]
struct FsCall {
    service: FsService,
    requester: FsRequester,
    input: CallBody,
    ctx: Ctx,
}

impl FsCall {
    fn new(service: &FsService, input: CallBody, ctx: &Ctx) -> Result<Self, FsError> {
        Ok(Self {
            service: service.clone(),
            requester: FsRequester::from_ctx(ctx)?,
            input,
            ctx: ctx.clone(),
        })
    }

    /// Gives a call that is under way the rights that its requester has by now. Returns whether these differ from those of
    /// before.
    fn renew_rights(&mut self) -> Result<bool, FsError> {
        // The common case costs a comparison of two numbers.
        if self.ctx.has_rights_of_now() {
            return Ok(false);
        }
        let now = FsRequester::as_of_now(&self.ctx)?;
        let has_changed = !now.has_rights_of(&self.requester);
        self.requester = now;
        Ok(has_changed)
    }

    /// Lets go of the input, for a call that goes on for long after it was read.
    fn drop_input(&mut self) {
        self.input = CallBody::from_text(Bytes::from_static(b"null"));
    }

    /// The input. `null` counts as no members.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, FsError> {
        let input = match self.input.is_null() {
            true => CallBody::from_text(Bytes::from_static(b"{}")).parse(),
            false => self.input.parse(),
        };
        Ok(input?)
    }

    /// The bytes of a member of the input: binary data of a mixed frame, or base64 (RFC 4648 section 4).
    fn bytes(&self, value: &Value) -> Result<Bytes, FsError> {
        if let Some(bytes) = self.input.binary(value) {
            return Ok(bytes);
        }
        let text = value.as_str();
        let decoded = text.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        match decoded {
            Some(Ok(bytes)) => Ok(bytes.into()),
            _ => Err(FsError::input(
                "bytes are {\"$bin\":[offset,length]} or base64",
            )),
        }
    }

    async fn lease(&self) -> Result<StoreLease, FsError> {
        self.service.lease_for(self.requester.actor()).await
    }

    /// Runs a read on a thread of the store.
    async fn read<T, F>(&self, work: F) -> Result<T, FsError>
    where
        T: Send + 'static,
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let lease = self.lease().await?;
        Ok(lease.read(work).await?)
    }

    /// Runs a write on the thread of the store that writes.
    async fn write<T, F>(&self, durability: Durability, work: F) -> Result<T, FsError>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTransaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let lease = self.lease().await?;
        Ok(lease.db().write_with(durability, work).await?)
    }

    /// Runs work that blocks on the disk.
    async fn blocking<T, F>(&self, work: F) -> Result<T, FsError>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> Result<T, FsError> + Send + 'static,
    {
        let lease = self.lease().await?;
        blocking(move || work(&lease)).await
    }

    /// Notes what an administrator does.
    fn audit(&self, operation: &str, object: &str) {
        let by = self.requester.actor();
        tracing::info!(by, object, "{operation}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use alknet_call::{OperationType, Registry};
    use alknet_store::FileStoreOptions;

    use super::*;

    fn all() -> Vec<Registration> {
        let nowhere = FsService::new(Path::new("/nonexistent"), FileStoreOptions::default());
        operations(&nowhere)
    }

    /// Each example passes its own schema, so that a person can send it as it is.
    #[test]
    fn every_operation_has_an_example_that_its_schema_takes() {
        let mut builder = Registry::builder();
        for registration in all() {
            builder.add(registration);
        }
        let registry = builder.build().expect("no rule is broken");
        for spec in registry.specs().filter(|spec| spec.namespace == "fs") {
            let examples = spec.input_schema["examples"].as_array();
            let examples = examples.map(Vec::as_slice).unwrap_or_default();
            assert!(!examples.is_empty(), "{} has no example", spec.name);
            for example in examples {
                let checked = registry.validate(&spec.name, example);
                assert!(checked.is_ok(), "{}: {checked:?}", spec.name);
            }
        }
    }

    #[test]
    fn every_operation_asks_for_an_identity_and_declares_its_statuses() {
        for registration in all() {
            let spec = registration.spec();
            assert!(spec.access_control.identified, "{}", spec.name);
            assert!(!spec.description.is_empty(), "{}", spec.name);
            let has_status = spec.error_schemas.iter().all(|it| it.http_status.is_some());
            assert!(has_status, "{}", spec.name);
            let is_mutation = spec.op_type == OperationType::Mutation;
            let is_repeatable = spec.idempotent != Idempotence::No;
            assert_eq!(is_mutation, is_repeatable, "{}", spec.name);
        }
    }
}
