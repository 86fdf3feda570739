//! `fs/sync/status`: how far a bucket is the same as those of its peers.

use alknet_call::Registration;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{FsCall, once, query, schema};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;
use crate::sync::{SyncRecord, SyncTarget};

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![status(service)]
}

fn status(service: &FsService) -> Registration {
    let spec = query(
        "fs/sync/status",
        "Says how the last synchronisations of a bucket ended, for each branch and peer, since the node started.",
    )
    .with_input(schema::input(
        &["bucket"],
        json!({ "bucket": schema::bucket() }),
        json!({ "bucket": "docs" }),
    ))
    .with_output(schema::output(
        &["synced", "peers"],
        json!({
            "synced": { "type": "boolean", "description": "Whether the bucket is synchronised" },
            "peers": { "type": "array", "items": {
                "type": "object", "required": ["peer", "branch", "failures"],
                "properties": {
                    "peer": { "type": "string" },
                    "branch": schema::branch(),
                    "equal_ms": schema::time(),
                    "equal_seq": schema::count("Commit of this node up to which both had the same then"),
                    "failures": schema::count("Sessions in a row that failed"),
                    "failure": { "type": "string", "description": "Code of the last one that failed" },
                    "failed_names": {
                        "type": "object", "additionalProperties": { "type": "string" },
                        "description": "Names in the root of a split bucket whose sessions failed, each with the code",
                    },
                },
            } },
        }),
    ));
    once(service, spec, run_status)
}

#[derive(Deserialize)]
struct SyncStatusInput {
    bucket: String,
}

async fn run_status(call: FsCall) -> Result<Value, FsError> {
    let input: SyncStatusInput = call.parse()?;
    // The names of peers are for those who administer the bucket.
    let name = call.bucket(FsRight::Admin, &input.bucket)?;
    let found = name.clone();
    let bucket = call.read(move |tx| tx.bucket_by_name(&found)).await?;
    let records = call.service.sync_records().list().into_iter();
    let rows = records.filter(|(target, _)| target.bucket == name);
    let rows: Vec<_> = rows.map(|(target, record)| row(&target, &record)).collect();
    Ok(json!({ "synced": bucket.sync.is_on, "peers": rows }))
}

fn row(target: &SyncTarget, record: &SyncRecord) -> Value {
    let mut row = json!({
        "peer": target.peer.as_str(),
        "branch": target.branch.as_str(),
        "failures": record.failures,
    });
    if let Some(ms) = record.equal_ms {
        row["equal_ms"] = ms.into();
    }
    if let Some(seq) = record.equal_seq {
        row["equal_seq"] = seq.into();
    }
    if let Some(failure) = record.failure {
        row["failure"] = failure.into();
    }
    if !record.failed_tops.is_empty() {
        let names = record.failed_tops.iter();
        let names = names.map(|(name, code)| (name.clone(), Value::from(*code)));
        row["failed_names"] = Value::Object(names.collect::<Map<_, _>>());
    }
    row
}
