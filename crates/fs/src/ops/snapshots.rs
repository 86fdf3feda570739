//! `fs/snapshot/…`: read-only names of versions.

use alknet_call::Registration;
use alknet_store::{BranchName, Durability, ReadTransaction, Snapshot, StoreError};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::{branch_or_main, target};
use super::{FsCall, mutation, names, once, query, schema, shown};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![create(service), list(service), delete(service)]
}

fn snapshot_schema() -> Value {
    schema::output(
        &["name", "seq", "created_ms"],
        json!({
            "name": schema::branch(), "branch": { "type": ["string", "null"] },
            "seq": schema::seq(), "created_ms": schema::time(),
        }),
    )
}

fn shown_snapshot(tx: &ReadTransaction<'_>, snapshot: &Snapshot) -> Result<Value, StoreError> {
    let branch = match tx.branch(snapshot.branch) {
        Ok(branch) => Some(branch.name.to_string()),
        // A snapshot outlives its branch.
        Err(StoreError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    Ok(shown::snapshot(snapshot, branch.as_deref()))
}

fn create(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/snapshot/create",
        "Gives a version of a branch a name, under which it stays readable as bucket:/.snap/NAME/path.",
    )
    .with_input(schema::input(
        &["bucket", "name"],
        json!({
            "bucket": schema::bucket(), "name": schema::branch(), "branch": schema::branch(),
            "seq": schema::seq(),
        }),
        json!({ "bucket": "docs", "name": "monday" }),
    ))
    .with_output(snapshot_schema());
    once(service, spec, run_create)
}

#[derive(Deserialize)]
struct SnapshotCreateInput {
    bucket: String,
    name: String,
    branch: Option<String>,
    seq: Option<u64>,
}

async fn run_create(call: FsCall) -> Result<Value, FsError> {
    let input: SnapshotCreateInput = call.parse()?;
    let bucket = call.bucket(FsRight::Write, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    let branch = branch_or_main(input.branch.as_deref())?;
    let actor = call.requester.actor().to_owned();
    let created = call.write(Durability::Full, move |tx| {
        let branch = target(tx, &bucket, &branch)?.branch;
        let snapshot = tx.create_snapshot(&name, branch, input.seq, &actor)?;
        shown_snapshot(tx, &snapshot)
    });
    created.await
}

fn list(service: &FsService) -> Registration {
    let spec = query(
        "fs/snapshot/list",
        "Lists the snapshots of a bucket, in pages.",
    )
    .with_input(schema::input(
        &["bucket"],
        schema::joined(&[
            json!({ "bucket": schema::bucket() }),
            schema::page_members(),
        ]),
        json!({ "bucket": "docs" }),
    ))
    .with_output(schema::page(
        "snapshots",
        &snapshot_schema(),
        &schema::next_text(),
    ));
    once(service, spec, run_list)
}

async fn run_list(call: FsCall) -> Result<Value, FsError> {
    names::run_list(call, "snapshots", |tx, bucket, after, limit| {
        let found = tx.snapshots(bucket, after, limit)?;
        found.iter().map(|it| shown_snapshot(tx, it)).collect()
    })
    .await
}

fn delete(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/snapshot/delete",
        "Deletes a snapshot. What it named stays until the retention of the bucket is over.",
    )
    .with_input(schema::input(
        &["bucket", "name"],
        json!({ "bucket": schema::bucket(), "name": schema::branch() }),
        json!({ "bucket": "docs", "name": "monday" }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_delete)
}

#[derive(Deserialize)]
struct SnapshotDeleteInput {
    bucket: String,
    name: String,
}

async fn run_delete(call: FsCall) -> Result<Value, FsError> {
    let input: SnapshotDeleteInput = call.parse()?;
    let bucket = call.bucket(FsRight::Write, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    let deleted = call.write(Durability::Full, move |tx| {
        let bucket = tx.bucket_by_name(&bucket)?.id;
        tx.delete_snapshot(bucket, &name)
    });
    deleted.await?;
    Ok(json!({}))
}
