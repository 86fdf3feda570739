//! `fs/branch/…`: branches of a bucket.

use alknet_call::{OperationSpec, Registration};
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{
    Branch, BranchName, BucketName, Durability, EntryPath, MergeOutcome, MergeRequest,
    MergeStrategy, NewBranch, ProtectedBranches, ReadTransaction, StoreError,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::addressed::{branch_or_main, target};
use super::{FsCall, mutation, names, once, query, schema, shown};
use crate::error::{FsError, shown_conflicts};
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        create(service),
        list(service),
        set(service),
        merge(service),
        diff(service),
        rebase(service),
        close(service),
        delete(service),
    ]
}

fn branch_schema() -> Value {
    schema::output(
        &["name", "head_seq", "created_ms", "protected", "state"],
        json!({
            "name": schema::branch(), "parent": { "type": ["string", "null"] },
            "base_seq": { "type": ["integer", "null"] }, "head_seq": schema::seq(),
            "created_ms": schema::time(), "expires_ms": { "type": ["integer", "null"] },
            "protected": { "type": "boolean" },
            "state": { "enum": ["open", "merged", "closed", "deleted"] },
        }),
    )
}

/// What the caller may do to protected branches of a bucket, apart from merges into them.
fn protected_branches(call: &FsCall, bucket: &BucketName) -> ProtectedBranches {
    let rights = [FsRight::Merge, FsRight::Admin];
    match rights
        .iter()
        .any(|right| call.requester.may(*right, bucket))
    {
        true => ProtectedBranches::Allowed,
        false => ProtectedBranches::Refused,
    }
}

/// A branch with the name of the one that it was made from.
fn shown_branch(tx: &ReadTransaction<'_>, branch: &Branch) -> Result<Value, StoreError> {
    // The parent may be deleted by now.
    let parent = match branch.parent.map(|parent| tx.branch(parent)) {
        Some(Ok(parent)) => Some(parent.name.to_string()),
        Some(Err(StoreError::NotFound(_))) | None => None,
        Some(Err(error)) => return Err(error),
    };
    Ok(shown::branch(branch, parent.as_deref()))
}

fn create(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/branch/create",
        "Makes a branch from another one. Nothing is copied. A protected branch takes merges only, and needs fs:admin.",
    )
    .with_input(schema::input(
        &["bucket", "name"],
        json!({
            "bucket": schema::bucket(), "name": schema::branch(), "from": schema::branch(),
            "seq": schema::seq(), "expires_ms": schema::time(),
            "protected": schema::flag("Whether the branch takes merges only"),
        }),
        json!({ "bucket": "docs", "name": "draft", "from": "main" }),
    ))
    .with_output(branch_schema());
    once(service, spec, run_create)
}

#[derive(Deserialize)]
struct BranchCreateInput {
    bucket: String,
    name: String,
    from: Option<String>,
    seq: Option<u64>,
    expires_ms: Option<u64>,
    #[serde(default)]
    protected: bool,
}

async fn run_create(call: FsCall) -> Result<Value, FsError> {
    let input: BranchCreateInput = call.parse()?;
    let right = match input.protected {
        true => FsRight::Admin,
        false => FsRight::Write,
    };
    let bucket = call.bucket(right, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    let from = branch_or_main(input.from.as_deref())?;
    let actor = call.requester.actor().to_owned();
    let created = call.write(Durability::Full, move |tx| {
        let parent = target(tx, &bucket, &from)?;
        let mut new = NewBranch::new(name.clone(), parent.branch, &actor);
        new.seq = input.seq;
        new.expires_ms = input.expires_ms;
        new.is_protected = input.protected;
        let branch = tx.create_branch(&new)?;
        shown_branch(tx, &branch)
    });
    created.await
}

fn list(service: &FsService) -> Registration {
    let spec = query(
        "fs/branch/list",
        "Lists the branches of a bucket, in pages.",
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
        "branches",
        &branch_schema(),
        &schema::next_text(),
    ));
    once(service, spec, run_list)
}

async fn run_list(call: FsCall) -> Result<Value, FsError> {
    names::run_list(call, "branches", |tx, bucket, after, limit| {
        let found = tx.branches(bucket, after, limit)?;
        found.iter().map(|it| shown_branch(tx, it)).collect()
    })
    .await
}

fn set(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/branch/set",
        "Sets when a branch may be deleted, and whether it takes merges only.",
    )
    .with_input(schema::input(
        &["bucket", "name", "protected"],
        json!({
            "bucket": schema::bucket(), "name": schema::branch(),
            "expires_ms": schema::time(),
            "protected": { "type": "boolean" },
        }),
        json!({ "bucket": "docs", "name": "main", "protected": true }),
    ))
    .with_output(branch_schema());
    once(service, spec, run_set)
}

#[derive(Deserialize)]
struct BranchSetInput {
    bucket: String,
    name: String,
    expires_ms: Option<u64>,
    protected: bool,
}

async fn run_set(call: FsCall) -> Result<Value, FsError> {
    let input: BranchSetInput = call.parse()?;
    let bucket = call.bucket(FsRight::Admin, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    call.audit("fs/branch/set", &format!("{bucket}@{name}"));
    let set = call.write(Durability::Full, move |tx| {
        let branch = target(tx, &bucket, &name)?.branch;
        let branch = tx.set_branch(branch, input.expires_ms, input.protected)?;
        shown_branch(tx, &branch)
    });
    set.await
}

fn outcome_schema() -> Value {
    schema::output(
        &["changed", "conflicts"],
        json!({
            "seq": { "type": ["integer", "null"], "description": "The commit; null if there was nothing new" },
            "changed": schema::count("Paths that changed"),
            "conflicts": schema::count("Conflicts that the strategy decided"),
            "decided": { "type": "array", "items": { "type": "object" },
                         "description": "The first of them" },
        }),
    )
}

fn shown_outcome(outcome: &MergeOutcome) -> Value {
    json!({
        "seq": outcome.receipt.map(|receipt| receipt.seq),
        "changed": outcome.changed,
        "conflicts": outcome.conflicts.len(),
        "decided": shown_conflicts(&outcome.conflicts),
    })
}

fn merge(service: &FsService) -> Registration {
    let strategies = ["fail", "ours", "theirs", "latest", "keep-both"];
    let spec = mutation(
        "fs/branch/merge",
        "Takes in what a branch changed. With the strategy fail a conflict is refused with CONFLICT, and nothing changes. \
         A merge into a protected branch needs fs:merge, and the end of one that is taken in fs:merge or fs:admin.",
    )
    .with_input(schema::input(
        &["bucket", "from"],
        json!({
            "bucket": schema::bucket(), "from": schema::branch(), "into": schema::branch(),
            "strategy": { "enum": strategies, "default": "fail" },
            "close": schema::flag("Whether the branch that is taken in takes no changes afterwards"),
            "message": schema::commit_members()["message"].clone(),
        }),
        json!({ "bucket": "docs", "from": "draft", "into": "main" }),
    ))
    .with_output(outcome_schema());
    once(service, spec, run_merge)
}

#[derive(Deserialize)]
struct MergeInput {
    bucket: String,
    from: String,
    into: Option<String>,
    strategy: Option<String>,
    #[serde(default)]
    close: bool,
    message: Option<String>,
}

async fn run_merge(call: FsCall) -> Result<Value, FsError> {
    let input: MergeInput = call.parse()?;
    let bucket = input.bucket.parse::<BucketName>()?;
    let rights = [FsRight::Merge, FsRight::Write];
    call.requester.require_any(&rights, &bucket)?;
    // What a merge takes in is shown to its caller by the conflicts.
    call.requester.require(FsRight::Read, &bucket)?;
    let may_write = call.requester.may(FsRight::Write, &bucket);
    let may_merge = call.requester.may(FsRight::Merge, &bucket);
    // The right to merge is about the branch that takes the changes in. The other one is closed by a writer.
    if input.close && !may_write {
        return Err(FsError::Forbidden(FsRight::Write));
    }
    let source = input.from.parse::<BranchName>()?;
    let into = branch_or_main(input.into.as_deref())?;
    let strategy = input.strategy.as_deref();
    let strategy = strategy.map_or(Some(MergeStrategy::Fail), MergeStrategy::from_name);
    let strategy = strategy.ok_or_else(|| FsError::input("there is no such strategy"))?;
    let protected = protected_branches(&call, &bucket);
    let actor = call.requester.actor().to_owned();
    let merged = call.write(Durability::Full, move |tx| {
        let source = target(tx, &bucket, &source)?;
        let into = target(tx, &bucket, &into)?;
        // In the transaction that merges: an administrator may protect the branch meanwhile.
        if into.is_protected && !may_merge {
            return Ok(None);
        }
        let mut request = MergeRequest::new(source.branch, into.branch, &actor);
        request.strategy = strategy;
        request.message.clone_from(&input.message);
        request.closes_source = input.close;
        request.protected = protected;
        tx.merge(&request).map(Some)
    });
    match merged.await? {
        Some(outcome) => Ok(shown_outcome(&outcome)),
        None => Err(FsError::Forbidden(FsRight::Merge)),
    }
}

fn diff(service: &FsService) -> Registration {
    let change = json!({
        "type": "object", "required": ["change"],
        "properties": {
            "change": { "enum": ["added", "changed", "removed", "renamed"] },
            "before": schema::entry(), "after": schema::entry(),
        },
    });
    let members = json!({
        "bucket": schema::bucket(), "from": schema::branch(), "from_seq": schema::seq(),
        "to": schema::branch(), "to_seq": schema::seq(),
    });
    let spec = query(
        "fs/branch/diff",
        "Lists how two versions of a bucket differ, by path and in pages. Each page compares the versions again.",
    )
    .with_input(schema::input(
        &["bucket", "to"],
        schema::joined(&[members, schema::page_members()]),
        json!({ "bucket": "docs", "from": "main", "to": "draft" }),
    ))
    .with_output(schema::page("changes", &change, &schema::next_text()));
    once(service, spec, run_diff)
}

#[derive(Deserialize)]
struct DiffInput {
    bucket: String,
    from: Option<String>,
    from_seq: Option<u64>,
    to: String,
    to_seq: Option<u64>,
    page: Option<String>,
    limit: Option<usize>,
}

async fn run_diff(call: FsCall) -> Result<Value, FsError> {
    let input: DiffInput = call.parse()?;
    let bucket = call.bucket(FsRight::Read, &input.bucket)?;
    let from = branch_or_main(input.from.as_deref())?;
    let to = input.to.parse::<BranchName>()?;
    let after = input.page.as_deref().map(EntryPath::parse).transpose()?;
    let limit = input
        .limit
        .unwrap_or(PAGE_ENTRIES_MAX)
        .min(PAGE_ENTRIES_MAX);
    let found = call.read(move |tx| {
        let first = tx.view(target(tx, &bucket, &from)?.branch, input.from_seq)?;
        let second = tx.view(target(tx, &bucket, &to)?.branch, input.to_seq)?;
        let mut found = tx.diff(&first, &second)?;
        // By path, so that the last row of a page says where the next one begins.
        found.sort_by(|one, other| one.path().cmp(other.path()));
        // One more than the page, which says whether there is a next one.
        let behind = |path: &EntryPath| after.as_ref().is_none_or(|after| path > after);
        found.retain(|difference| behind(difference.path()));
        found.truncate(limit + 1);
        Ok(found)
    });
    let found = found.await?;
    let rows = shown::within_page(found.iter().take(limit).map(shown::difference));
    let has_more = rows.len() < found.len();
    let last = found.get(rows.len().saturating_sub(1));
    let mut answer = json!({ "changes": rows });
    if let Some(last) = last.filter(|_| has_more) {
        answer["next"] = last.path().as_str().into();
    }
    Ok(answer)
}

fn one_branch(name: &str, description: &str) -> OperationSpec {
    mutation(name, description).with_input(schema::input(
        &["bucket", "name"],
        json!({ "bucket": schema::bucket(), "name": schema::branch() }),
        json!({ "bucket": "docs", "name": "draft" }),
    ))
}

#[derive(Deserialize)]
struct BranchInput {
    bucket: String,
    name: String,
    #[serde(default)]
    force: bool,
}

fn rebase(service: &FsService) -> Registration {
    let spec = one_branch(
        "fs/branch/rebase",
        "Takes in what the parent of a branch changed since the branch began. A conflict is refused with CONFLICT. A \
         protected branch needs fs:merge or fs:admin as well.",
    );
    once(service, spec.with_output(outcome_schema()), run_rebase)
}

async fn run_rebase(call: FsCall) -> Result<Value, FsError> {
    let input: BranchInput = call.parse()?;
    let bucket = call.bucket(FsRight::Write, &input.bucket)?;
    // As for a merge: conflicts show what is in both branches.
    call.requester.require(FsRight::Read, &bucket)?;
    let name = input.name.parse::<BranchName>()?;
    let protected = protected_branches(&call, &bucket);
    let actor = call.requester.actor().to_owned();
    let rebased = call.write(Durability::Full, move |tx| {
        let branch = target(tx, &bucket, &name)?.branch;
        tx.rebase_with(branch, &actor, protected)
    });
    Ok(shown_outcome(&rebased.await?))
}

fn close(service: &FsService) -> Registration {
    let spec = one_branch(
        "fs/branch/close",
        "Ends a branch: it takes no changes any more, and can still be read and merged. A protected branch needs fs:merge or \
         fs:admin as well.",
    );
    once(
        service,
        spec.with_output(schema::output(&[], json!({}))),
        run_close,
    )
}

async fn run_close(call: FsCall) -> Result<Value, FsError> {
    let input: BranchInput = call.parse()?;
    let bucket = call.bucket(FsRight::Write, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    let protected = protected_branches(&call, &bucket);
    let actor = call.requester.actor().to_owned();
    let closed = call.write(Durability::Full, move |tx| {
        let branch = target(tx, &bucket, &name)?.branch;
        tx.close_branch_with(branch, &actor, protected)
    });
    closed.await?;
    Ok(json!({}))
}

fn delete(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/branch/delete",
        "Deletes a branch. With force its snapshots are deleted too, and its child branches get copies of what they show of \
         it; that needs fs:admin. A protected branch needs fs:merge or fs:admin as well.",
    )
    .with_input(schema::input(
        &["bucket", "name"],
        json!({
            "bucket": schema::bucket(), "name": schema::branch(),
            "force": schema::flag("Whether a branch with children or snapshots is deleted"),
        }),
        json!({ "bucket": "docs", "name": "draft" }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_delete)
}

async fn run_delete(call: FsCall) -> Result<Value, FsError> {
    let input: BranchInput = call.parse()?;
    let right = match input.force {
        true => FsRight::Admin,
        false => FsRight::Write,
    };
    let bucket = call.bucket(right, &input.bucket)?;
    let name = input.name.parse::<BranchName>()?;
    call.audit("fs/branch/delete", &format!("{bucket}@{name}"));
    // A forced deletion is for administrators, who may end protected branches.
    let protected = protected_branches(&call, &bucket);
    let actor = call.requester.actor().to_owned();
    let deleted = call.write(Durability::Full, move |tx| {
        let branch = target(tx, &bucket, &name)?.branch;
        tx.delete_branch_with(branch, input.force, &actor, protected)
    });
    deleted.await?;
    Ok(json!({}))
}
