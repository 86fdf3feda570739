//! PROPFIND and PROPPATCH (RFC 4918 §9.1 and §9.2).

use alknet_core::MountBody;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{
    Bucket, BucketName, Entry, EntryAttributes, EntryLock, EntryPath, ListRequest, ReadTransaction,
    StoreError, StoreObject, SystemTimeSource, TimeSource, TreeChange,
};
use bytes::Bytes;
use http::{Response, StatusCode};

use crate::dav::{
    DavDepth, DavTarget, DeadProperties, LiveProperty, MultistatusWriter, PropertyPatch,
    PropertySource, PropfindBody, QuotaUse, TargetEntry, find_properties,
};
use crate::limits::LIST_PIECE_BYTES;
use crate::rights::{FsRight, VisibleBuckets};

use super::DavFiles;
use super::body::{BodySource, parse_xml, pulled};
use super::call::{CallerFiles, DavBranch, DavCall};
use super::changes::{apply, found, of_files};
use super::conditions::{DavConditions, file_hash};
use super::failure::DavFailure;
use super::respond::{full, xml};
use super::right::MountedObject;

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
            // Before the status is sent: the store may not be served.
            call.with_store(|_| Ok(())).await?;
            let right = call.right_to(MountedObject::List(visible.clone()));
            let source = FoundBuckets {
                files: call.files().clone(),
                visible,
                body,
                stage: if is_deep {
                    BucketStage::Mount
                } else {
                    BucketStage::MountOnly
                },
            };
            Ok(xml(status, pulled(source, right)))
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
                rows_max: PAGE_ENTRIES_MAX,
            };
            // The target before the status is sent: it may not exist.
            let address = entry.address.clone();
            call.with_store(move |store| {
                let found = store.read(move |tx| tx.stat(&tx.view_of(&address)?, &address.path));
                found.wait()?;
                Ok(())
            })
            .await?;
            // Each page looks the bucket up by its name.
            let right = call.right_to(MountedObject::Bucket {
                right: FsRight::Read,
                name: entry.address.bucket.clone(),
                id: None,
            });
            Ok(xml(status, pulled(source, right)))
        }
        DavTarget::Blob(_) | DavTarget::Upload(_) | DavTarget::Snapshots(_) => {
            Err(StoreError::NotFound(StoreObject::Entry).into())
        }
    }
}

/// A PROPFIND of the mount that is being sent: the mount itself, and the buckets that the caller may read.
struct FoundBuckets<F> {
    files: CallerFiles<F>,
    visible: VisibleBuckets,
    body: PropfindBody,
    stage: BucketStage,
}

/// What is sent next.
enum BucketStage {
    /// The mount, and then its buckets.
    Mount,
    /// The mount alone.
    MountOnly,
    /// The buckets behind this one.
    Buckets(Option<BucketName>),
    End,
}

impl<F: DavFiles> BodySource for FoundBuckets<F> {
    fn next_piece(&mut self) -> Result<Option<Bytes>, DavFailure> {
        let stage = std::mem::replace(&mut self.stage, BucketStage::End);
        let writer = match stage {
            BucketStage::End => return Ok(None),
            BucketStage::Mount | BucketStage::MountOnly => {
                if matches!(stage, BucketStage::Mount) {
                    self.stage = BucketStage::Buckets(None);
                }
                let mut writer = MultistatusWriter::begin();
                self.push("/fs/", "fs", &mut writer);
                writer
            }
            BucketStage::Buckets(after) => self.page(after)?,
        };
        Ok(Some(self.piece(writer)))
    }
}

impl<F: DavFiles> FoundBuckets<F> {
    /// Properties of the buckets behind one.
    fn page(&mut self, after: Option<BucketName>) -> Result<MultistatusWriter, DavFailure> {
        let visible = self.visible.clone();
        let lease = self.files.open()?;
        let page = lease.read(move |tx| visible.existing(tx, after.as_ref(), PAGE_ENTRIES_MAX));
        let page: Vec<Bucket> = page.wait()?;
        let mut writer = MultistatusWriter::resume();
        for bucket in page {
            let name = bucket.name.as_str();
            self.push(&format!("/fs/{name}/"), name, &mut writer);
            // An empty page is the last one, and no page is known to be it before.
            self.stage = BucketStage::Buckets(Some(bucket.name));
            if writer.len() >= LIST_PIECE_BYTES {
                break;
            }
        }
        Ok(writer)
    }

    fn push(&self, href: &str, name: &str, writer: &mut MultistatusWriter) {
        let dead = DeadProperties::default();
        let found = find_properties(&self.body, &of_bucket(name), &dead);
        writer.push_properties(href, &found);
    }

    /// What was written, with the end of the document if nothing follows.
    fn piece(&self, mut writer: MultistatusWriter) -> Bytes {
        match self.stage {
            BucketStage::End => writer.finish().into(),
            _ => writer.take().into(),
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
    /// Entries that the next page reads at most.
    rows_max: usize,
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
                request.limit = self.rows_max;
                (false, Some(request))
            }
        };
        let lease = self.files.open()?;
        let (target, body) = (self.target.clone(), self.body.clone());
        let read = lease.read(move |tx| find_page(tx, &target, &body, request));
        let mut page = read.wait()?;
        self.rows_max = rows_after(page.rows);
        self.stage = match page.next {
            Some(next) => PropertyStage::Members(Some(next)),
            None if is_first && is_deep && page.is_directory => PropertyStage::Members(None),
            None => PropertyStage::End,
        };
        let text = match self.stage {
            PropertyStage::End => page.writer.finish(),
            _ => page.writer.take(),
        };
        Ok(Some(text.into()))
    }
}

/// Entries that a page reads after one that had room for this many: a page of long names would otherwise read a thousand
/// for the few that it sends.
pub(super) fn rows_after(rows: usize) -> usize {
    // The target itself is no row, and says nothing of the entries in it.
    match rows {
        0 => PAGE_ENTRIES_MAX,
        rows => rows.saturating_mul(2).min(PAGE_ENTRIES_MAX),
    }
}

/// A part of the body, and where the next one begins.
struct FoundPage {
    writer: MultistatusWriter,
    is_directory: bool,
    /// Entries of a directory that it has.
    rows: usize,
    next: Option<EntryPath>,
}

/// The properties of the target, or of a page of what is in it.
fn find_page(
    tx: &ReadTransaction<'_>,
    target: &TargetEntry,
    body: &PropfindBody,
    request: Option<ListRequest>,
) -> Result<FoundPage, StoreError> {
    let view = tx.view_of(&target.address)?;
    let Some(request) = request else {
        let mut finder = PropertyFinder::new(tx, target, body, MultistatusWriter::begin())?;
        let entry = tx.stat(&view, &target.address.path)?;
        finder.push(&entry)?;
        return Ok(FoundPage {
            writer: finder.writer,
            is_directory: entry.state.is_directory(),
            rows: 0,
            next: None,
        });
    };
    let mut finder = PropertyFinder::new(tx, target, body, MultistatusWriter::resume())?;
    let mut page = tx.list(&view, &request)?;
    let mut rows = 0;
    for listed in &page.entries {
        // Listings leave the dead properties out.
        let entry = match finder.needs_dead {
            true => tx.find(&view, &listed.path)?,
            false => None,
        };
        finder.push(entry.as_ref().unwrap_or(listed))?;
        rows += 1;
        // The client decides how long the answer for an entry is, and the piece waits in memory until it is read.
        if finder.writer.len() >= LIST_PIECE_BYTES {
            break;
        }
    }
    if rows < page.entries.len() {
        page.next = rows
            .checked_sub(1)
            .map(|last| page.entries[last].path.clone());
    }
    Ok(FoundPage {
        writer: finder.writer,
        is_directory: true,
        rows,
        next: page.next,
    })
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
        writer: MultistatusWriter,
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
            writer,
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
