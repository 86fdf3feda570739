//! PROPFIND and PROPPATCH (RFC 4918 §9.1 and §9.2).

use alknet_core::MountBody;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{
    Bucket, BucketName, Entry, EntryAttributes, EntryLock, EntryPath, ListRequest, ReadTransaction,
    Store, StoreError, StoreObject, SystemTimeSource, TimeSource, TreeChange,
};
use bytes::Bytes;
use http::{Response, StatusCode};

use crate::dav::{
    DavDepth, DavTarget, DeadProperties, LiveProperty, MultistatusWriter, PropertyPatch,
    PropertySource, PropfindBody, QuotaUse, TargetEntry, find_properties,
};
use crate::rights::{FsRight, VisibleBuckets};

use super::DavFiles;
use super::body::{BodySource, parse_xml, pulled};
use super::call::{CallerFiles, DavBranch, DavCall};
use super::changes::{apply, found, of_files};
use super::conditions::{DavConditions, file_hash};
use super::failure::DavFailure;
use super::respond::{full, xml};

/// Lists properties of an entry, and of what is directly in it.
pub(super) async fn find<F: DavFiles>(
    call: DavCall<F>,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    let depth = DavDepth::from_headers(call.headers())?.of_propfind()?;
    let is_deep = depth == DavDepth::One;
    let status = StatusCode::MULTI_STATUS;
    match call.target() {
        DavTarget::Root => {
            let body = parse_xml(body, PropfindBody::parse).await?;
            let visible = call.requester().buckets(&[FsRight::Read]);
            let text = call.with_store(move |store| buckets(store, &visible, &body, is_deep));
            Ok(xml(status, full(text.await?)))
        }
        DavTarget::Entry(entry) => {
            // Before the body is read: a caller without the right must not make the node parse anything.
            call.require_read(&entry.address.bucket)?;
            let body = parse_xml(body, PropfindBody::parse).await?;
            let source = FoundProperties {
                files: call.files().clone(),
                target: entry.clone(),
                body,
                stage: if is_deep {
                    PropertyStage::Target
                } else {
                    PropertyStage::TargetOnly
                },
            };
            // The target before the status is sent: it may not exist.
            let address = entry.address.clone();
            call.with_store(move |store| {
                let found = store.read(move |tx| tx.stat(&tx.view_of(&address)?, &address.path));
                found.wait()?;
                Ok(())
            })
            .await?;
            Ok(xml(status, pulled(source)))
        }
        DavTarget::Blob(_) | DavTarget::Upload(_) | DavTarget::Snapshots(_) => {
            Err(StoreError::NotFound(StoreObject::Entry).into())
        }
    }
}

/// The mount itself, and the buckets that the caller may read.
fn buckets(
    store: &Store,
    visible: &VisibleBuckets,
    body: &PropfindBody,
    is_deep: bool,
) -> Result<String, DavFailure> {
    let mut writer = MultistatusWriter::begin();
    let dead = DeadProperties::default();
    writer.push_properties("/fs/", &find_properties(body, &of_bucket("fs"), &dead));
    if is_deep {
        push_buckets(store, visible, body, &mut writer)?;
    }
    Ok(writer.finish())
}

fn push_buckets(
    store: &Store,
    visible: &VisibleBuckets,
    body: &PropfindBody,
    writer: &mut MultistatusWriter,
) -> Result<(), DavFailure> {
    let dead = DeadProperties::default();
    let mut after: Option<BucketName> = None;
    loop {
        let (begin, visible) = (after.take(), visible.clone());
        let page = store.read(move |tx| visible.existing(tx, begin.as_ref(), PAGE_ENTRIES_MAX));
        let page: Vec<Bucket> = page.wait()?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.name.clone());
        for bucket in &page {
            let name = bucket.name.as_str();
            let found = find_properties(body, &of_bucket(name), &dead);
            writer.push_properties(&format!("/fs/{name}/"), &found);
        }
    }
}

/// A collection that is no entry.
const fn of_bucket(name: &str) -> PropertySource<'_> {
    PropertySource {
        name,
        hash: None,
        size: 0,
        modified_ns: 0,
        created_ms: None,
        locks: &[],
        lock_roots: &[],
        now_ms: 0,
        quota: None,
    }
}

/// A PROPFIND of an entry that is being sent.
struct FoundProperties<F> {
    files: CallerFiles<F>,
    target: TargetEntry,
    body: PropfindBody,
    stage: PropertyStage,
}

/// What is sent next.
enum PropertyStage {
    /// The entry, and then what is in it.
    Target,
    /// The entry alone.
    TargetOnly,
    /// What is in it, behind this path.
    Members(Option<EntryPath>),
    End,
}

impl<F: DavFiles> BodySource for FoundProperties<F> {
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure> {
        let stage = std::mem::replace(&mut self.stage, PropertyStage::End);
        let is_deep = !matches!(stage, PropertyStage::TargetOnly);
        let (is_first, request) = match stage {
            PropertyStage::End => return Ok(None),
            PropertyStage::Target | PropertyStage::TargetOnly => (true, None),
            PropertyStage::Members(after) => {
                let mut request = ListRequest::new(self.target.address.path.clone());
                request.after = after;
                (false, Some(request))
            }
        };
        let lease = self.files.open()?;
        let (target, body) = (self.target.clone(), self.body.clone());
        let read = lease.read(move |tx| find_page(tx, &target, &body, request));
        let (mut writer, is_directory, next) = read.wait()?;
        self.stage = match next {
            Some(next) => PropertyStage::Members(Some(next)),
            None if is_first && is_deep && is_directory => PropertyStage::Members(None),
            None => PropertyStage::End,
        };
        let is_end = matches!(self.stage, PropertyStage::End);
        let mut text = if is_first {
            writer.take()
        } else {
            // Each page begins a document of its own, and only the first one is sent with its head.
            let head = MultistatusWriter::begin().take();
            writer.take().split_off(head.len())
        };
        if is_end {
            text.push_str(&writer.finish());
        }
        Ok(Some(text.into()))
    }
}

type FoundPage = (MultistatusWriter, bool, Option<EntryPath>);

/// The properties of the target, or of a page of what is in it.
fn find_page(
    tx: &ReadTransaction<'_>,
    target: &TargetEntry,
    body: &PropfindBody,
    request: Option<ListRequest>,
) -> Result<FoundPage, StoreError> {
    let view = tx.view_of(&target.address)?;
    let mut finder = PropertyFinder::new(tx, target, body)?;
    let Some(request) = request else {
        let entry = tx.stat(&view, &target.address.path)?;
        finder.push(&entry)?;
        return Ok((finder.writer, entry.state.is_directory(), None));
    };
    let page = tx.list(&view, &request)?;
    for listed in &page.entries {
        // Listings leave the dead properties out.
        let entry = match finder.needs_dead {
            true => tx.find(&view, &listed.path)?,
            false => None,
        };
        finder.push(entry.as_ref().unwrap_or(listed))?;
    }
    Ok((finder.writer, true, page.next))
}

/// Reads what the properties of entries show.
struct PropertyFinder<'a, 'c> {
    tx: &'a ReadTransaction<'c>,
    target: &'a TargetEntry,
    body: &'a PropfindBody,
    branch: Option<DavBranch>,
    quota: Option<QuotaUse>,
    needs_dead: bool,
    now_ms: u64,
    writer: MultistatusWriter,
}

impl<'a, 'c> PropertyFinder<'a, 'c> {
    fn new(
        tx: &'a ReadTransaction<'c>,
        target: &'a TargetEntry,
        body: &'a PropfindBody,
    ) -> Result<Self, StoreError> {
        let bucket = tx.bucket_by_name(&target.address.bucket)?;
        let used = tx.usage(bucket.id)?.bytes;
        let needs_dead = match body {
            PropfindBody::Named(names) => {
                names.iter().any(|it| LiveProperty::from_name(it).is_none())
            }
            PropfindBody::AllProperties { .. } | PropfindBody::PropertyNames => true,
        };
        Ok(Self {
            tx,
            target,
            body,
            // A version that takes no changes has no locks.
            branch: DavBranch::find(tx, &target.address).ok(),
            quota: Some(QuotaUse {
                used,
                available: bucket.quota_bytes.map(|quota| quota.saturating_sub(used)),
            }),
            needs_dead,
            now_ms: SystemTimeSource.unix_ms(),
            writer: MultistatusWriter::begin(),
        })
    }

    fn push(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let shown = self
            .target
            .at(entry.path.clone(), entry.state.is_directory());
        let locks: Vec<EntryLock> = match self.branch {
            Some(head) => self
                .tx
                .covering_locks(head.branch, &entry.path, self.now_ms)?,
            None => Vec::new(),
        };
        let roots = locks
            .iter()
            .map(|it| self.target.at(it.path.clone(), false).href());
        let roots: Vec<_> = roots.collect();
        let source = PropertySource {
            name: shown.display_name(),
            hash: file_hash(entry),
            size: entry.state.size,
            modified_ns: entry.state.mtime_ns,
            created_ms: None,
            locks: &locks,
            lock_roots: &roots,
            now_ms: self.now_ms,
            quota: self.quota,
        };
        // Attributes of another program have no properties to show.
        let dead = DeadProperties::from_xattr(entry.state.xattr.as_deref());
        let found = find_properties(self.body, &source, &dead.unwrap_or_default());
        self.writer.push_properties(&shown.href(), &found);
        Ok(())
    }
}

/// Sets and removes dead properties.
pub(super) async fn patch<F: DavFiles>(
    call: DavCall<F>,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    call.require_write(&call.entry()?.address.bucket)?;
    let patch = parse_xml(body, PropertyPatch::parse).await?;
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let text = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let current = found(&held)?.clone();
        let entry = conditions.entry();
        let before = DeadProperties::from_xattr(current.state.xattr.as_deref());
        // The attributes of another program stay: the change would lose them.
        let before = before.map_err(|_| DavFailure::Status(StatusCode::CONFLICT))?;
        let outcome = patch.apply(&before);
        if let Some(properties) = &outcome.properties {
            let change = TreeChange::SetAttributes {
                path: current.path.clone(),
                attributes: EntryAttributes {
                    xattr: Some(properties.to_xattr().unwrap_or_default()),
                    ..EntryAttributes::default()
                },
                precondition: of_files(&held),
            };
            apply(store, entry, &actor, vec![change], held)?;
        }
        let shown = entry.at(current.path, current.state.is_directory());
        let mut writer = MultistatusWriter::begin();
        writer.push_properties(&shown.href(), &outcome.statuses);
        Ok(writer.finish())
    });
    Ok(xml(StatusCode::MULTI_STATUS, full(text.await?)))
}
