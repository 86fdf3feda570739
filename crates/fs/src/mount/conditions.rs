//! Conditions of a request, evaluated on the store.

use alknet_store::{
    ContentHash, Entry, EntryKind, EntryPrecondition, LockKind, LockToken, ReadTransaction, Store,
    StoreError, SystemTimeSource, TimeSource,
};
use http::{HeaderMap, Method, StatusCode};

use crate::dav::{
    DavTarget, EntityTag, EntityVersion, IfHeader, IfResources, RequestCondition, TargetEntry,
    pin_version,
};

use super::DavFiles;
use super::call::{DavBranch, DavCall};
use super::failure::DavFailure;

/// The conditions of a request, away from it, so that they can be evaluated on another thread.
pub(super) struct DavConditions {
    method: Method,
    headers: HeaderMap,
    entry: TargetEntry,
    if_header: Option<IfHeader>,
    /// For each list of the `If` header whether it holds is decided by these resources, which the caller may see.
    resources: Vec<TargetEntry>,
    origin: Option<crate::dav::RequestOrigin>,
}

/// What a request that may be carried out expects and brings.
#[derive(Clone, Debug)]
pub(super) struct HeldConditions {
    /// The entry, if there is one.
    pub(super) current: Option<Entry>,
    /// What the commit expects at the entry.
    pub(super) precondition: EntryPrecondition,
    /// Tokens of locks.
    pub(super) tokens: Vec<LockToken>,
}

impl DavConditions {
    pub(super) fn new<F: DavFiles>(call: &DavCall<F>) -> Result<Self, DavFailure> {
        let if_header = IfHeader::from_headers(call.headers())?;
        let mut conditions = Self {
            method: call.method().clone(),
            headers: call.headers().clone(),
            entry: call.entry()?.clone(),
            if_header,
            resources: Vec::new(),
            origin: None,
        };
        if let Some(header) = &conditions.if_header {
            let origin = call.origin()?;
            for resource in header.resources(call.target(), &origin) {
                // The state of a resource that the caller may not see would show whether it exists.
                if let DavTarget::Entry(entry) = resource
                    && call.require_read(&entry.address.bucket).is_ok()
                {
                    conditions.resources.push(entry);
                }
            }
            conditions.origin = Some(origin);
        }
        Ok(conditions)
    }

    pub(super) const fn entry(&self) -> &TargetEntry {
        &self.entry
    }

    /// Evaluates all conditions. Blocks.
    pub(super) fn check(&self, store: &Store) -> Result<HeldConditions, DavFailure> {
        let address = self.entry.address.clone();
        let current = store.read(move |tx| tx.find(&tx.view_of(&address)?, &address.path));
        let current = current.wait()?;
        let version = current.as_ref().map(version_of);
        // The failure of the store, as if its commit had found it.
        let failed = || StoreError::PreconditionFailed {
            current: current.as_ref().and_then(file_hash),
        };
        match RequestCondition::evaluate(&self.method, &self.headers, version.as_ref())? {
            RequestCondition::Holds => {}
            RequestCondition::NotModified => {
                return Err(DavFailure::Status(StatusCode::NOT_MODIFIED));
            }
            RequestCondition::Failed => return Err(failed().into()),
        }
        let mut tokens = Vec::new();
        let mut is_about_versions = false;
        if let (Some(header), Some(origin)) = (&self.if_header, &self.origin) {
            // Behind the conditions on the entry alone: each of these resources costs a look-up.
            let states = self.read_states(store)?;
            let target = DavTarget::Entry(self.entry.clone());
            if !header.holds(&target, origin, &states) {
                return Err(failed().into());
            }
            tokens = header.lock_tokens();
            is_about_versions = header.has_entity_tag();
        }
        let hash = current.as_ref().and_then(|it| it.state.hash);
        Ok(HeldConditions {
            precondition: pin_version(&self.headers, is_about_versions, hash),
            current,
            tokens,
        })
    }

    fn read_states(&self, store: &Store) -> Result<ResourceStates, DavFailure> {
        let resources = self.resources.clone();
        let states = store.read(move |tx| {
            let states = resources.into_iter().map(|it| ResourceState::read(tx, it));
            states.collect::<Result<Vec<_>, _>>()
        });
        Ok(ResourceStates(states.wait()?))
    }
}

/// The version of an entry.
pub(super) fn version_of(entry: &Entry) -> EntityVersion {
    EntityVersion {
        tag: file_hash(entry).map(EntityTag::of_content),
        modified_s: entry.state.mtime_ns.div_euclid(1_000_000_000),
    }
}

/// The content of a file; `None` for everything else.
pub(super) fn file_hash(entry: &Entry) -> Option<ContentHash> {
    let is_file = entry.state.kind == EntryKind::File;
    entry.state.hash.filter(|_| is_file)
}

/// The states of the resources that an `If` header is about.
struct ResourceStates(Vec<ResourceState>);

struct ResourceState {
    resource: TargetEntry,
    tag: Option<EntityTag>,
    tokens: Vec<LockToken>,
}

impl ResourceState {
    fn read(tx: &ReadTransaction<'_>, resource: TargetEntry) -> Result<Self, StoreError> {
        let address = &resource.address;
        // Where no bucket or branch is, nothing is in any state.
        let found = match tx.view_of(address) {
            Ok(view) => tx.find(&view, &address.path)?,
            Err(StoreError::NotFound(_)) => None,
            Err(error) => return Err(error),
        };
        let locks = match DavBranch::find(tx, address) {
            Ok(head) => {
                let now_ms = SystemTimeSource.unix_ms();
                tx.covering_locks(head.branch, &address.path, now_ms)?
            }
            Err(StoreError::NotFound(_) | StoreError::ReadOnly(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        let locks = locks.iter().filter(|it| it.kind == LockKind::Exclusive);
        Ok(Self {
            tag: found
                .as_ref()
                .and_then(file_hash)
                .map(EntityTag::of_content),
            tokens: locks.map(|it| it.token).collect(),
            resource,
        })
    }
}

impl ResourceStates {
    fn find(&self, resource: &DavTarget) -> Option<&ResourceState> {
        let DavTarget::Entry(entry) = resource else {
            return None;
        };
        self.0.iter().find(|it| it.resource == *entry)
    }
}

impl IfResources for ResourceStates {
    fn entity_tag(&self, resource: &DavTarget) -> Option<EntityTag> {
        self.find(resource)?.tag.clone()
    }

    fn is_locked_by(&self, resource: &DavTarget, token: &str) -> bool {
        let token = token.parse::<LockToken>();
        let state = self.find(resource);
        state.is_some_and(|it| token.is_ok_and(|token| it.tokens.contains(&token)))
    }
}
