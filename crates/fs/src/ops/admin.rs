//! What an administrator of all files does: `fs/gc`, `fs/scrub`, `fs/repair`, `fs/backup`.

use alknet_call::{
    CallBody, CallError, CallOutput, Ctx, ErrorDef, HandlerKind, OperationSpec, Registration,
};
use alknet_store::{
    CollectPhase, CollectProgress, ContentScrub, CopyOutcome, Durability, GarbageCollection,
    SweepRelease,
};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FsCall, mutation, once, schema, subscription};
use crate::error::{FsError, NO_COPY};
use crate::lease::StoreLease;
use crate::limits::{SCRUB_STEP_BYTES, STEP_PAUSE};
use crate::rights::FsRight;
use crate::service::{FsService, blocking};

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        gc(service),
        scrub(service),
        repair(service),
        backup(service),
    ]
}

fn progress_spec(name: &str, description: &str, output: Value) -> OperationSpec {
    subscription(name, description)
        .with_input(schema::input(&[], json!({}), json!({})))
        .with_output(schema::output(&["done"], output))
}

/// A work in steps, with a report after some of them.
trait ReportedWork: Send + 'static {
    /// Does one step. Blocks.
    fn step(&mut self, service: &FsService, store: &StoreLease) -> Result<Value, FsError>;

    /// Whether it is over.
    fn is_done(&self) -> bool;
}

enum WorkState<W> {
    // In a box, as the other one: the state is moved for each report.
    Requested(Box<RequestedWork<W>>),
    Under(Box<OpenWork<W>>),
    Done,
}

struct RequestedWork<W> {
    call: Result<FsCall, FsError>,
    work: W,
    operation: &'static str,
}

struct OpenWork<W> {
    work: W,
    call: FsCall,
    lease: StoreLease,
}

/// The reports of a work, to a caller who administers all files.
fn reports<W: ReportedWork>(
    call: Result<FsCall, FsError>,
    work: W,
    operation: &'static str,
) -> impl Stream<Item = Result<CallOutput, CallError>> + Send + 'static {
    let begin = RequestedWork {
        call,
        work,
        operation,
    };
    stream::try_unfold(WorkState::Requested(Box::new(begin)), |state| async move {
        let open = match state {
            WorkState::Requested(requested) => {
                let RequestedWork {
                    call,
                    work,
                    operation,
                } = *requested;
                // A stream has no other place for a refusal than its first item.
                let call = call?;
                call.requester.require_everywhere(FsRight::Admin)?;
                // After the check of the right: the log has what was done.
                call.audit(operation, "every bucket");
                let lease = call.lease().await?;
                Box::new(OpenWork { work, call, lease })
            }
            WorkState::Under(mut open) => {
                // Requests get the disk between two steps.
                tokio::time::sleep(STEP_PAUSE).await;
                // What the steps so far have done stays. A further one needs the right that the caller may have lost.
                open.call.renew_rights()?;
                open.call.requester.require_everywhere(FsRight::Admin)?;
                open
            }
            WorkState::Done => return Ok::<_, CallError>(None),
        };
        // A step waits for the disk, which a thread of the runtime must not do.
        let (report, open) = blocking(move || step(open)).await?;
        let next = match open.work.is_done() {
            true => WorkState::Done,
            false => WorkState::Under(open),
        };
        Ok(Some((CallOutput::Value(report), next)))
    })
}

fn step<W: ReportedWork>(mut open: Box<OpenWork<W>>) -> Result<(Value, Box<OpenWork<W>>), FsError> {
    let OpenWork { work, call, lease } = &mut *open;
    let report = work.step(&call.service, lease)?;
    Ok((report, open))
}

fn gc(service: &FsService) -> Registration {
    let spec = progress_spec(
        "fs/gc",
        "Removes former versions whose retention is over, and contents that nothing refers to, with reports of how far it \
         came.",
        json!({
            "phase": { "enum": ["purge", "prune", "sweep-contents", "sweep-objects", "done"] },
            "rows": schema::count("Rows that were removed"),
            "contents": schema::count("Contents that were removed"),
            "bytes": schema::count("Bytes of these contents"),
            "done": { "type": "boolean" },
        }),
    );
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        let call = FsCall::new(&service, input, &ctx);
        reports(call, GarbageCollection::default(), "fs/gc")
    });
    Registration::new(spec, handler)
}

impl ReportedWork for GarbageCollection {
    fn step(&mut self, service: &FsService, store: &StoreLease) -> Result<Value, FsError> {
        // The chores of the service collect as well, and one step runs at a time.
        let _turn = service.collecting();
        let progress = store.collect_step(self)?;
        Ok(shown_progress(progress))
    }

    fn is_done(&self) -> bool {
        Self::is_done(self)
    }
}

fn shown_progress(progress: CollectProgress) -> Value {
    let phase = match progress.phase {
        CollectPhase::Purge => "purge",
        CollectPhase::Prune => "prune",
        CollectPhase::SweepContents => "sweep-contents",
        CollectPhase::SweepObjects => "sweep-objects",
        CollectPhase::Done => "done",
    };
    json!({
        "phase": phase, "rows": progress.rows, "contents": progress.contents,
        "bytes": progress.bytes, "done": progress.phase == CollectPhase::Done,
    })
}

fn scrub(service: &FsService) -> Registration {
    let spec = progress_spec(
        "fs/scrub",
        "Reads all contents and compares them with their hashes, with reports of how far it came.",
        json!({
            "bytes": schema::count("Bytes so far"),
            "damaged": { "type": "array", "items": schema::hash(),
                         "description": "Contents that this step found damaged or lost" },
            "done": { "type": "boolean" },
        }),
    );
    let service = service.clone();
    let handler = HandlerKind::stream(move |input: CallBody, ctx: Ctx| {
        let call = FsCall::new(&service, input, &ctx);
        reports(call, OpenScrub::default(), "fs/scrub")
    });
    Registration::new(spec, handler)
}

#[derive(Default)]
struct OpenScrub {
    scrub: ContentScrub,
    bytes: u64,
    is_done: bool,
}

impl ReportedWork for OpenScrub {
    fn step(&mut self, _: &FsService, store: &StoreLease) -> Result<Value, FsError> {
        let step = store
            .content()
            .scrub_step(&mut self.scrub, SCRUB_STEP_BYTES)?;
        self.bytes += step.bytes;
        self.is_done = step.is_done;
        let damaged: Vec<_> = step.damaged.iter().map(ToString::to_string).collect();
        Ok(json!({ "bytes": self.bytes, "damaged": damaged, "done": self.is_done }))
    }

    fn is_done(&self) -> bool {
        self.is_done
    }
}

fn repair(service: &FsService) -> Registration {
    let mut spec = mutation(
        "fs/repair",
        "Puts a repaired file of names in the place of a damaged one: the newest good copy, and the events after it. No \
         content is touched or swept before release_sweep says so.",
    )
    .with_input(schema::input(
        &[],
        json!({
            "begin_again": schema::flag("Whether an empty store takes the place, if no copy is good"),
            "release_sweep": schema::flag("Instead of a repair: whether contents without a name may be swept again"),
        }),
        json!({}),
    ))
    .with_output(json!({
        "type": "object",
        "properties": {
            "copy": { "type": "string", "description": "The day of the copy" },
            "recovered": schema::count("Events whose changes were made again"),
            "lost": schema::count("Events whose changes are lost"),
            "lost_events": { "type": "array", "items": { "type": "object" } },
            "tail_whole": { "type": "boolean", "description": "Whether every event after the copy could be read" },
        },
    }));
    spec.error_schemas.push(ErrorDef {
        code: NO_COPY.to_owned(),
        description: "No copy of the file of names is good; begin_again makes an empty store."
            .to_owned(),
        schema: json!({ "type": "object" }),
        http_status: Some(409),
    });
    // As long as a call may take: it reads and writes the whole file.
    spec.default_timeout_ms = Some(REPAIR_TIMEOUT_MS);
    once(service, spec, run_repair)
}

/// Milliseconds that a repair may take.
const REPAIR_TIMEOUT_MS: u32 = 600_000;

/// Lost events in the answer of a repair, which has the number of all of them.
const LOST_SHOWN_MAX: usize = 100;

#[derive(Deserialize)]
struct RepairInput {
    #[serde(default)]
    begin_again: bool,
    #[serde(default)]
    release_sweep: bool,
}

async fn run_repair(call: FsCall) -> Result<Value, FsError> {
    let input: RepairInput = call.parse()?;
    call.requester.require_everywhere(FsRight::Admin)?;
    call.audit("fs/repair", "the file of names");
    if input.release_sweep {
        let actor = call.requester.actor().to_owned();
        let release = SweepRelease::Administrator { actor };
        call.write(Durability::Full, move |tx| tx.release_sweep(&release))
            .await?;
        return Ok(json!({}));
    }
    // Without a lease: the store that is repaired is not open.
    let service = call.service.clone();
    let repaired = blocking(move || service.repair(input.begin_again)).await?;
    let Some(repaired) = repaired else {
        return Ok(json!({}));
    };
    // All events of a store that lost much would not fit into a frame.
    let lost = repaired.lost_events.iter().take(LOST_SHOWN_MAX);
    let lost = lost.map(|event| {
        json!({ "id": event.id, "topic": event.topic, "address": event.address,
                "reason": event.reason })
    });
    Ok(json!({
        "copy": repaired.copy.day,
        "recovered": repaired.recovered,
        "lost": repaired.lost,
        "lost_events": lost.collect::<Vec<_>>(),
        "tail_whole": repaired.is_tail_whole,
    }))
}

fn backup(service: &FsService) -> Registration {
    let mut spec = mutation(
        "fs/backup",
        "Copies the file of names, once a day. The newest three copies stay beside it.",
    )
    .with_input(schema::input(&[], json!({}), json!({})))
    .with_output(schema::output(
        &["day", "made"],
        json!({
            "day": { "type": "string", "description": "The day of the copy, as 2027-01-15" },
            "made": { "type": "boolean", "description": "Whether this call made it" },
        }),
    ));
    // A copy reads and writes the whole file as well.
    spec.default_timeout_ms = Some(REPAIR_TIMEOUT_MS);
    once(service, spec, run_backup)
}

async fn run_backup(call: FsCall) -> Result<Value, FsError> {
    call.requester.require_everywhere(FsRight::Admin)?;
    call.audit("fs/backup", "the file of names");
    let copied = call.blocking(|store| Ok(store.db().copy_daily()?)).await?;
    let (copy, is_made) = match copied {
        CopyOutcome::Made(copy) => (copy, true),
        CopyOutcome::Kept(copy) => (copy, false),
    };
    Ok(json!({ "day": copy.day, "made": is_made }))
}
