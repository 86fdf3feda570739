//! The events of a damaged file after its last copy, and the changes that they tell of.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::{Durability, StoreDb, WriteTransaction, open};
use crate::address::{BranchName, BucketName};
use crate::error::{StoreError, StoreObject};
use crate::hash::ContentHash;
use crate::limits::{EVENTS_CHUNK, INLINE_BYTES_MAX, LOST_EVENTS_LISTED_MAX};
use crate::names::{
    BranchId, ChangeRequest, ContentPresence, EntryAttributes, EntryKind, EntryPrecondition,
    FileContent, NewBucket, TreeChange,
};
use crate::outbox::{EventPayload, EventTopic};
use crate::path::EntryPath;

/// Message of the commits that a repair makes.
const MESSAGE: &str = "repaired from the outbox";

/// Actor of changes whose event names none.
const ACTOR: &str = "repair";

/// Why an entry that was recovered counts as lost, too.
const WITHOUT_ATTRIBUTES: &str = "the entry is back, and its mode and extended attributes are lost";

/// A damaged number may be any. One that is higher than the copy's by more than this is not believed.
const NUMBERS_BELIEVED: i64 = 1 << 40;

/// Reads that fail one after the other before the tail counts as ended. Each skips twice as many events as the one before.
const FAILED_READS_MAX: u32 = 40;

/// An event whose change could not be made again, or not with all that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostEvent {
    /// Its number in the damaged file.
    pub id: i64,
    /// Its topic.
    pub topic: String,
    /// Its bucket, branch and path, as far as it names them.
    pub address: String,
    /// Why the change is lost.
    pub reason: String,
}

/// What became of the events of a tail.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplayCount {
    pub(super) recovered: u64,
    pub(super) lost: u64,
    pub(super) lost_events: Vec<LostEvent>,
}

impl ReplayCount {
    fn add_lost(&mut self, event: &TailEvent, reason: String) {
        self.lost += 1;
        // The report goes to an administrator as one message.
        if self.lost_events.len() < LOST_EVENTS_LISTED_MAX {
            let payload = event.parse().unwrap_or_default();
            let parts = [payload.bucket, payload.branch, payload.path];
            let parts: Vec<_> = parts.into_iter().flatten().collect();
            self.lost_events.push(LostEvent {
                id: event.id,
                topic: event.topic.clone(),
                address: parts.join(" "),
                reason,
            });
        }
    }
}

/// A row of the damaged outbox.
struct TailEvent {
    id: i64,
    topic: String,
    payload: String,
}

impl TailEvent {
    fn parse(&self) -> Option<EventPayload> {
        serde_json::from_str(&self.payload).ok()
    }
}

/// What has to be done for an event.
enum ReplayStep {
    /// A bucket is made.
    Bucket(NewBucket),
    /// A branch is changed, with a content that lies in the damaged file.
    Change(Box<TreeChange>, Option<Vec<u8>>),
    /// The event is about contents, and no name changes.
    Nothing,
}

/// What a change brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplayResult {
    /// All that the event was about.
    Whole,
    /// The entry, but not its mode or extended attributes, which no event has.
    WithoutAttributes,
}

/// The outbox of a damaged file, as far as it can be read.
pub(super) struct OutboxTail {
    /// `None` if the file cannot be opened, or is of another store.
    damaged: Option<Connection>,
    is_whole: bool,
}

impl OutboxTail {
    /// Opens the damaged file without a write to it.
    pub(super) fn open(damaged: &Path, store_id: &[u8]) -> Self {
        let opened = open::open_copier(damaged).and_then(|connection| {
            let query = "SELECT v FROM meta WHERE k = 'store_id'";
            let id: Vec<u8> = connection.query_row(query, [], |row| row.get(0))?;
            Ok((connection, id))
        });
        // The events of another store would change files that they are not about.
        let damaged = match opened {
            Ok((connection, id)) if id == store_id => Some(connection),
            _ => None,
        };
        let is_whole = damaged.is_some();
        Self { damaged, is_whole }
    }

    /// Whether every event so far could be read.
    pub(super) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The last number that a table of the damaged file gave. `None` if the file does not say so, or says what cannot be.
    pub(super) fn last_number(&self, table: &str, known: i64) -> Option<i64> {
        let query = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let damaged = self.damaged.as_ref()?;
        let last: i64 = damaged.query_row(query, [table], |row| row.get(0)).ok()?;
        (known..=known.saturating_add(NUMBERS_BELIEVED))
            .contains(&last)
            .then_some(last)
    }

    /// Makes the changes of all events behind this one again, in their order.
    pub(super) fn replay(
        &mut self,
        db: &StoreDb,
        after: i64,
        count: &mut ReplayCount,
    ) -> Result<(), StoreError> {
        let last = self.last_number("outbox", after);
        let Some(damaged) = self.damaged.take() else {
            return Ok(());
        };
        let (mut after, mut failed) = (after, 0);
        while failed < FAILED_READS_MAX {
            match read_chunk(&damaged, after) {
                Ok(events) if events.is_empty() => break,
                Ok(events) if is_in_order(&events, after) => {
                    failed = 0;
                    for event in events {
                        // Numbers have no gaps, so what is missing was pruned or is damaged.
                        self.is_whole &= event.id == after.saturating_add(1);
                        after = event.id;
                        replay_event(db, &damaged, &event, count)?;
                    }
                }
                // A damaged page: what lies behind it may be whole. Numbers out of order would let the
                // loop go round.
                _ => {
                    self.is_whole = false;
                    after = after.saturating_add(1_i64 << failed);
                    failed += 1;
                }
            }
        }
        self.is_whole &= last.is_some_and(|last| after >= last);
        Ok(())
    }
}

/// Whether the numbers of events grow from this one on.
fn is_in_order(events: &[TailEvent], after: i64) -> bool {
    let begins_behind = events.first().is_some_and(|event| event.id > after);
    begins_behind && events.is_sorted_by(|a, b| a.id < b.id)
}

fn read_chunk(damaged: &Connection, after: i64) -> rusqlite::Result<Vec<TailEvent>> {
    let query = "SELECT id, topic, payload FROM outbox WHERE id > ?1 ORDER BY id LIMIT ?2";
    let mut statement = damaged.prepare(query)?;
    let limit = i64::try_from(EVENTS_CHUNK).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![after, limit], |row| {
        Ok(TailEvent {
            id: row.get(0)?,
            topic: row.get(1)?,
            payload: row.get(2)?,
        })
    })?;
    let mut events = Vec::new();
    for row in rows {
        match row {
            Ok(event) => events.push(event),
            // What was read before the damage is good.
            Err(error) if events.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(events)
}

/// Makes the change of one event again.
///
/// # Errors
/// The repaired file takes no changes at all.
fn replay_event(
    db: &StoreDb,
    damaged: &Connection,
    event: &TailEvent,
    count: &mut ReplayCount,
) -> Result<(), StoreError> {
    let Some(payload) = event.parse() else {
        count.add_lost(event, "the event is damaged".to_owned());
        return Ok(());
    };
    let mut done = replay_once(db, damaged, event, &payload);
    // A disk that fails once must not cost a change.
    if let Ok(Some(Err(StoreError::Database(_) | StoreError::FileSystem(_)))) = done {
        done = replay_once(db, damaged, event, &payload);
    }
    match done {
        Ok(None) => {}
        Ok(Some(Ok(ReplayResult::Whole))) => count.recovered += 1,
        Ok(Some(Ok(ReplayResult::WithoutAttributes))) => {
            count.recovered += 1;
            count.add_lost(event, WITHOUT_ATTRIBUTES.to_owned());
        }
        // These would fail all further events too, and an administrator can help.
        Ok(Some(Err(
            error @ (StoreError::NoSpace | StoreError::Closed | StoreError::Damaged(_)),
        ))) => return Err(error),
        Ok(Some(Err(error))) => count.add_lost(event, error.to_string()),
        Err(reason) => count.add_lost(event, reason),
    }
    Ok(())
}

/// Makes the change of one event again, if there is one. The outer error says why the event tells no change.
fn replay_once(
    db: &StoreDb,
    damaged: &Connection,
    event: &TailEvent,
    payload: &EventPayload,
) -> Result<Option<Result<ReplayResult, StoreError>>, String> {
    let payload = payload.clone();
    // Without a sync for each: a power cut lets the whole repair begin again, and the end of it syncs.
    let done = match plan_step(damaged, event, &payload)? {
        ReplayStep::Nothing => return Ok(None),
        ReplayStep::Bucket(new) => {
            db.write_with(Durability::Normal, move |tx| make_bucket(tx, &new))
        }
        ReplayStep::Change(change, inline) => db.write_with(Durability::Normal, move |tx| {
            make_change(tx, &payload, &change, inline.as_deref())
        }),
    };
    Ok(Some(done.wait()))
}

fn make_bucket(tx: &mut WriteTransaction<'_>, new: &NewBucket) -> Result<ReplayResult, StoreError> {
    match tx.create_bucket(new) {
        // The copy has it: the copy and the event of the bucket are of the same moment.
        Ok(_) | Err(StoreError::Exists(StoreObject::Bucket)) => Ok(ReplayResult::Whole),
        Err(error) => Err(error),
    }
}

fn make_change(
    tx: &mut WriteTransaction<'_>,
    payload: &EventPayload,
    change: &TreeChange,
    inline: Option<&[u8]>,
) -> Result<ReplayResult, StoreError> {
    // The store took the change once. What the collections since the copy gave back is not given back here, and a lock or
    // a frozen bucket of the copy may have been of an earlier time.
    tx.begin_replay();
    let branch = branch_of(tx, payload)?;
    let result = result_of(tx, branch, payload, change)?;
    if let (TreeChange::Put { content, .. }, Some(data)) = (change, inline) {
        let insert = "INSERT OR IGNORE INTO inline_(hash, data) VALUES (?1, ?2)";
        tx.execute(insert, params![content.hash, data])?;
    }
    let request = ChangeRequest {
        branch,
        actor: payload.actor.clone().unwrap_or_else(|| ACTOR.to_owned()),
        message: Some(MESSAGE.to_owned()),
        changes: vec![change.clone()],
    };
    match tx.apply(&request) {
        // What is to be deleted was made by a change that is lost.
        Err(StoreError::NotFound(StoreObject::Entry))
            if matches!(change, TreeChange::Delete { .. }) =>
        {
            Ok(result)
        }
        applied => applied.map(|_| result),
    }
}

/// What the change of an event will bring back, before it is made.
fn result_of(
    tx: &WriteTransaction<'_>,
    branch: BranchId,
    payload: &EventPayload,
    change: &TreeChange,
) -> Result<ReplayResult, StoreError> {
    let is_content_known = match change {
        // A version with the same content has other attributes, or none: the event does not say which.
        TreeChange::Put { path, content, .. } => {
            let present = tx.find(&tx.view(branch, None)?, path)?;
            present.is_some_and(|it| it.state.hash == Some(content.hash))
        }
        _ => false,
    };
    Ok(match payload.attributes == Some(true) || is_content_known {
        true => ReplayResult::WithoutAttributes,
        false => ReplayResult::Whole,
    })
}

/// The branch that an event names.
fn branch_of(tx: &WriteTransaction<'_>, payload: &EventPayload) -> Result<BranchId, StoreError> {
    let bucket = payload.bucket.as_deref().unwrap_or_default();
    let bucket = tx.bucket_by_name(&BucketName::parse(bucket)?)?.id;
    let branch = payload.branch.as_deref().unwrap_or_default();
    Ok(tx.branch_by_name(bucket, &BranchName::parse(branch)?)?.id)
}

/// What has to be done for an event, or why its change is lost.
fn plan_step(
    damaged: &Connection,
    event: &TailEvent,
    payload: &EventPayload,
) -> Result<ReplayStep, String> {
    let lost = |reason: &str| Err(reason.to_owned());
    let topic = EventTopic::from_name(&event.topic);
    let topic = topic.ok_or_else(|| "a later program wrote the event".to_owned())?;
    let change = match topic {
        EventTopic::BlobComplete | EventTopic::BlobBad => return Ok(ReplayStep::Nothing),
        EventTopic::BucketCreate => {
            let name = payload.bucket.as_deref().unwrap_or_default();
            let name = BucketName::parse(name).map_err(|error| error.to_string())?;
            let owner = payload.actor.as_deref().unwrap_or(ACTOR);
            return Ok(ReplayStep::Bucket(NewBucket::new(name, owner)));
        }
        EventTopic::Put => return plan_put(damaged, payload),
        EventTopic::Delete => TreeChange::delete(path_of(payload.path.as_deref())?),
        EventTopic::Mkdir => TreeChange::Mkdir {
            path: path_of(payload.path.as_deref())?,
            attributes: EntryAttributes::default(),
            may_exist: true,
        },
        EventTopic::Rename => TreeChange::Rename {
            from: path_of(payload.path.as_deref())?,
            to: path_of(payload.to.as_deref())?,
            may_replace: true,
            precondition: EntryPrecondition::Any,
        },
        EventTopic::BranchCreate => return lost("the event does not say where the branch began"),
        EventTopic::BranchClose => return lost("the event does not say how the branch ended"),
        EventTopic::BranchMerge | EventTopic::SyncMerged => {
            return lost("the event does not list the paths of the merge");
        }
        EventTopic::SnapshotCreate => return lost("the version has another number now"),
        EventTopic::BucketQuota => return lost("the event does not have the quota"),
    };
    Ok(ReplayStep::Change(Box::new(change), None))
}

/// What has to be done for a new version of an entry.
fn plan_put(damaged: &Connection, payload: &EventPayload) -> Result<ReplayStep, String> {
    let kind = payload.kind.as_deref();
    if kind != Some(EntryKind::File.name()) {
        return Err("the event does not have the target or the entries below".to_owned());
    }
    let hash = payload.hash.as_deref().unwrap_or_default();
    let hash: ContentHash = hash
        .parse()
        .map_err(|_| "the event has no content".to_owned())?;
    let size = payload.size.unwrap_or(0);
    let inline = if size <= INLINE_BYTES_MAX {
        inline_content(damaged, hash, size)
    } else {
        None
    };
    // A small content was in the damaged file alone, unless a peer has it. A large one is in a file
    // that was on the disk before its name.
    let presence = if size <= INLINE_BYTES_MAX && inline.is_none() {
        ContentPresence::Wanted
    } else {
        ContentPresence::Complete
    };
    let path = path_of(payload.path.as_deref())?;
    let content = FileContent {
        hash,
        size,
        presence,
    };
    Ok(ReplayStep::Change(
        Box::new(TreeChange::put(path, content)),
        inline,
    ))
}

/// A small content of the damaged file. Its reader compares it with its hash.
fn inline_content(damaged: &Connection, hash: ContentHash, size: u64) -> Option<Vec<u8>> {
    let query = "SELECT data FROM inline_ WHERE hash = ?1";
    let data = damaged
        .query_row(query, [hash], |row| row.get::<_, Vec<u8>>(0))
        .optional();
    let data = data.ok().flatten();
    data.filter(|data| data.len() as u64 == size)
}

fn path_of(text: Option<&str>) -> Result<EntryPath, String> {
    let path = EntryPath::parse(text.unwrap_or_default());
    path.map_err(|error| error.to_string())
}
