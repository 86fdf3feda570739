//! Operations that change entries: one change each, or several in a batch. Each call is one commit.

mod plan;

use alknet_call::{OperationSpec, Registration};
use alknet_store::ContentHash;
use alknet_store::limits::{BATCH_CHANGES_MAX, SYMLINK_TARGET_BYTES_MAX};
use serde::Deserialize;
use serde_json::{Value, json};

use self::plan::ChangePlan;
use super::addressed::{AttributesInput, CommitInput, ConditionInput};
use super::{FsCall, mutation, once, schema};
use crate::error::FsError;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        put(service),
        mkdir(service),
        rename(service),
        copy(service),
        delete(service),
        link(service),
        symlink(service),
        setattr(service),
        restore(service),
        batch(service),
    ]
}

/// A change as a request names it. In a batch the member `op` tells them apart.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum FsChangeInput {
    Copy(CopyInput),
    Delete(DeleteInput),
    Link(LinkInput),
    Mkdir(MkdirInput),
    Put(PutInput),
    Rename(RenameInput),
    Restore(RestoreInput),
    Setattr(SetattrInput),
    Symlink(SymlinkInput),
}

#[derive(Debug, Deserialize)]
pub(super) struct PutInput {
    path: String,
    bytes: Value,
    #[serde(flatten)]
    attributes: AttributesInput,
    #[serde(flatten)]
    condition: ConditionInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct MkdirInput {
    path: String,
    #[serde(default)]
    may_exist: bool,
    #[serde(flatten)]
    attributes: AttributesInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct RenameInput {
    path: String,
    to: String,
    #[serde(default)]
    replace: bool,
    #[serde(flatten)]
    condition: ConditionInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct CopyInput {
    path: String,
    to: String,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    replace: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct LinkInput {
    path: String,
    to: String,
    #[serde(default)]
    replace: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeleteInput {
    path: String,
    #[serde(default)]
    recursive: bool,
    #[serde(flatten)]
    condition: ConditionInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct SymlinkInput {
    path: String,
    target: String,
    #[serde(default)]
    replace: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct SetattrInput {
    path: String,
    #[serde(flatten)]
    attributes: AttributesInput,
    #[serde(flatten)]
    condition: ConditionInput,
}

#[derive(Debug, Deserialize)]
pub(super) struct RestoreInput {
    path: String,
    seq: u64,
}

fn put_members() -> Value {
    schema::joined(&[
        json!({ "path": schema::address(), "bytes": schema::bytes() }),
        schema::attribute_members(),
        schema::condition_members(),
    ])
}

fn put(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/put",
        "Gives a file a content of at most 512 KiB, and makes the file and its directories if they are missing.",
    )
    .with_input(schema::input(
        &["path", "bytes"],
        schema::joined(&[put_members(), schema::commit_members()]),
        json!({ "path": "docs:/hello.txt", "bytes": "aGVsbG8K", "if_none_match": "*" }),
    ))
    .with_output(schema::output(
        &["hash", "bytes", "seq"],
        json!({ "hash": schema::hash(), "bytes": schema::count("Bytes of the content"),
                "seq": schema::seq() }),
    ));
    once(service, spec, run_put)
}

async fn run_put(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Put(call.parse()?);
    let committed = commit(&call, vec![change]).await?;
    let mut answer = json!({ "seq": committed.seq });
    // A put has one content.
    if let Some((hash, bytes)) = committed.contents.first() {
        answer["hash"] = hash.to_string().into();
        answer["bytes"] = (*bytes).into();
    }
    Ok(answer)
}

fn mkdir_members() -> Value {
    schema::joined(&[
        json!({
            "path": schema::address(),
            "may_exist": schema::flag("Whether a directory that exists is left as it is"),
        }),
        schema::attribute_members(),
    ])
}

fn mkdir(service: &FsService) -> Registration {
    let spec = changing(
        "fs/mkdir",
        "Makes a directory, and those above it that are missing.",
        &["path"],
        mkdir_members(),
        json!({ "path": "docs:/2026/november" }),
    );
    once(service, spec, run_mkdir)
}

async fn run_mkdir(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Mkdir(call.parse()?);
    one(&call, change).await
}

fn rename_members() -> Value {
    schema::joined(&[
        json!({
            "path": schema::address(), "to": schema::address(),
            "replace": schema::flag("Whether an entry of the same kind is replaced, a directory only if it is empty"),
        }),
        schema::condition_members(),
    ])
}

fn rename(service: &FsService) -> Registration {
    let spec = changing(
        "fs/rename",
        "Moves an entry within its branch, with everything below it.",
        &["path", "to"],
        rename_members(),
        json!({ "path": "docs:/draft.txt", "to": "docs:/2026/report.txt" }),
    );
    once(service, spec, run_rename)
}

async fn run_rename(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Rename(call.parse()?);
    one(&call, change).await
}

fn copy_members() -> Value {
    json!({
        "path": schema::address(), "to": schema::address(),
        "recursive": schema::flag("Whether everything below a directory is copied too"),
        "replace": schema::flag("Whether an entry of the same kind is replaced, a directory only if it is empty"),
    })
}

fn copy(service: &FsService) -> Registration {
    let spec = changing(
        "fs/copy",
        "Copies an entry of any version, branch or bucket. No bytes are copied.",
        &["path", "to"],
        copy_members(),
        json!({ "path": "docs@draft:/a", "to": "docs:/a", "recursive": true }),
    );
    once(service, spec, run_copy)
}

async fn run_copy(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Copy(call.parse()?);
    one(&call, change).await
}

fn delete_members() -> Value {
    schema::joined(&[
        json!({
            "path": schema::address(),
            "recursive": schema::flag("Whether a directory is deleted with everything below it"),
        }),
        schema::condition_members(),
    ])
}

fn delete(service: &FsService) -> Registration {
    let spec = changing(
        "fs/delete",
        "Deletes an entry. Former versions stay until the retention of the bucket is over.",
        &["path"],
        delete_members(),
        json!({ "path": "docs:/2026", "recursive": true }),
    );
    once(service, spec, run_delete)
}

async fn run_delete(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Delete(call.parse()?);
    one(&call, change).await
}

fn link_members() -> Value {
    json!({
        "path": schema::address(), "to": schema::address(),
        "replace": schema::flag("Whether a file that exists is replaced"),
    })
}

fn link(service: &FsService) -> Registration {
    let spec = changing(
        "fs/link",
        "Gives the content of a file a further name. Later changes of one name do not change the other.",
        &["path", "to"],
        link_members(),
        json!({ "path": "docs:/report.txt", "to": "docs:/latest.txt", "replace": true }),
    );
    once(service, spec, run_link)
}

async fn run_link(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Link(call.parse()?);
    one(&call, change).await
}

fn symlink_members() -> Value {
    json!({
        "path": schema::address(),
        "target": { "type": "string", "minLength": 1, "maxLength": SYMLINK_TARGET_BYTES_MAX },
        "replace": schema::flag("Whether a file or a link that exists is replaced"),
    })
}

fn symlink(service: &FsService) -> Registration {
    let spec = changing(
        "fs/symlink",
        "Makes a symbolic link, which the store does not follow.",
        &["path", "target"],
        symlink_members(),
        json!({ "path": "docs:/current", "target": "2026" }),
    );
    once(service, spec, run_symlink)
}

async fn run_symlink(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Symlink(call.parse()?);
    one(&call, change).await
}

fn setattr_members() -> Value {
    schema::joined(&[
        json!({ "path": schema::address() }),
        schema::attribute_members(),
        schema::condition_members(),
    ])
}

fn setattr(service: &FsService) -> Registration {
    let spec = changing(
        "fs/setattr",
        "Sets the permission bits and the time of an entry. Its content stays.",
        &["path"],
        setattr_members(),
        json!({ "path": "docs:/run.sh", "mode": 0o755 }),
    );
    once(service, spec, run_setattr)
}

async fn run_setattr(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Setattr(call.parse()?);
    one(&call, change).await
}

fn restore_members() -> Value {
    json!({ "path": schema::address(), "seq": schema::seq() })
}

fn restore(service: &FsService) -> Registration {
    let spec = changing(
        "fs/restore",
        "Makes an entry what it was after a commit, by a new version. A directory gets what was below it then.",
        &["path", "seq"],
        restore_members(),
        json!({ "path": "docs:/2026/report.txt", "seq": 17 }),
    );
    once(service, spec, run_restore)
}

async fn run_restore(call: FsCall) -> Result<Value, FsError> {
    let change = FsChangeInput::Restore(call.parse()?);
    one(&call, change).await
}

fn batch(service: &FsService) -> Registration {
    let change = |op: &str, required: &[&str], members: Value| {
        let members = schema::joined(&[json!({ "op": { "const": op } }), members]);
        let mut names = vec!["op"];
        names.extend(required);
        // A misspelt condition must not be ignored: the change would be made without it.
        json!({ "type": "object", "required": names, "additionalProperties": false,
                "properties": members })
    };
    let kinds = json!([
        change("copy", &["path", "to"], copy_members()),
        change("delete", &["path"], delete_members()),
        change("link", &["path", "to"], link_members()),
        change("mkdir", &["path"], mkdir_members()),
        change("put", &["path", "bytes"], put_members()),
        change("rename", &["path", "to"], rename_members()),
        change("restore", &["path", "seq"], restore_members()),
        change("setattr", &["path"], setattr_members()),
        change("symlink", &["path", "target"], symlink_members()),
    ]);
    let members = json!({
        "changes": { "type": "array", "minItems": 1, "maxItems": BATCH_CHANGES_MAX,
                     "items": { "oneOf": kinds },
                     "description": "Each sees those before it; all of them or none" },
    });
    let spec = changing(
        "fs/batch",
        "Makes up to 1,000 changes of one branch in one commit.",
        &["changes"],
        members,
        json!({ "changes": [
            { "op": "mkdir", "path": "docs:/new" },
            { "op": "rename", "path": "docs:/a", "to": "docs:/new/a" },
        ] }),
    );
    once(service, spec, run_batch)
}

#[derive(Deserialize)]
struct BatchInput {
    changes: Vec<FsChangeInput>,
}

async fn run_batch(call: FsCall) -> Result<Value, FsError> {
    let input: BatchInput = call.parse()?;
    let committed = commit(&call, input.changes).await?;
    Ok(json!({ "seq": committed.seq }))
}

/// The description of an operation whose answer is the number of its commit.
fn changing(
    name: &str,
    description: &str,
    required: &[&str],
    members: Value,
    example: Value,
) -> OperationSpec {
    let members = schema::joined(&[members, schema::commit_members()]);
    let output = schema::output(&["seq"], json!({ "seq": schema::seq() }));
    mutation(name, description)
        .with_input(schema::input(required, members, example))
        .with_output(output)
}

/// What a call changed.
struct Committed {
    seq: u64,
    /// Hash and size of each content that was put.
    contents: Vec<(ContentHash, u64)>,
}

async fn one(call: &FsCall, change: FsChangeInput) -> Result<Value, FsError> {
    let committed = commit(call, vec![change]).await?;
    Ok(json!({ "seq": committed.seq }))
}

async fn commit(call: &FsCall, changes: Vec<FsChangeInput>) -> Result<Committed, FsError> {
    let commit: CommitInput = call.parse()?;
    let tokens = commit.tokens()?;
    // Rights and rules of all paths first: a refused call has stored nothing.
    let plan = ChangePlan::new(call, changes)?;
    let target = call.head(plan.branch()).await?;
    let (mut request, contents) = plan.prepare(call, target).await?;
    request.message = commit.message;
    // Before the store takes the contents over.
    let named = contents.iter().map(|it| (it.hash(), it.size())).collect();
    let lease = call.lease().await?;
    // The contents go along: no collection takes them before the commit refers to them.
    let receipt = lease.apply_with(target.durability, request, contents, tokens);
    Ok(Committed {
        seq: receipt.await?.seq,
        contents: named,
    })
}
