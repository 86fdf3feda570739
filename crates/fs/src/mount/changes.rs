//! DELETE, MKCOL, COPY and MOVE (RFC 4918 §9.3 and §9.6 to §9.9).

use alknet_core::MountBody;
use alknet_store::{
    ChangeRequest, Entry, EntryPath, EntryPrecondition, ReadTransaction, Store, StoreError,
    StoreObject, TreeChange,
};
use http::{Response, StatusCode};

use crate::dav::{DavDepth, TargetEntry, destination, is_overwrite_allowed};

use super::DavFiles;
use super::body::has_content;
use super::call::{DavBranch, DavCall};
use super::conditions::{DavConditions, HeldConditions};
use super::failure::DavFailure;
use super::respond::empty;

/// Deletes an entry, with everything below it.
pub(super) async fn delete<F: DavFiles>(
    call: DavCall<F>,
) -> Result<Response<MountBody>, DavFailure> {
    call.require_write(&call.entry()?.address.bucket)?;
    let depth = DavDepth::from_headers(call.headers())?;
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let current = found(&held)?;
        depth.check_whole_tree(current.state.is_directory())?;
        refuse_root(&current.path)?;
        let change = TreeChange::Delete {
            path: current.path.clone(),
            is_recursive: true,
            precondition: of_files(&held),
        };
        apply(store, conditions.entry(), &actor, vec![change], held)
    });
    done.await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Makes a collection.
pub(super) async fn make_collection<F: DavFiles>(
    call: DavCall<F>,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    call.require_write(&call.entry()?.address.bucket)?;
    // This server knows no body of MKCOL (RFC 4918 §9.3).
    if has_content(body).await? {
        return Err(DavFailure::Status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let held = conditions.check(store)?;
        if held.current.is_some() {
            return Err(DavFailure::Status(StatusCode::METHOD_NOT_ALLOWED));
        }
        let entry = conditions.entry();
        require_parent(store, entry)?;
        let change = TreeChange::mkdir(entry.address.path.clone());
        apply(store, entry, &actor, vec![change], held)
    });
    done.await?;
    Ok(empty(StatusCode::CREATED))
}

/// Copies an entry. No content is copied.
pub(super) async fn copy<F: DavFiles>(call: DavCall<F>) -> Result<Response<MountBody>, DavFailure> {
    let is_recursive = DavDepth::from_headers(call.headers())?.is_copy_recursive()?;
    call.require_read(&call.entry()?.address.bucket)?;
    let (to, may_replace) = destination_of(&call)?;
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let current = found(&held)?;
        let from = conditions.entry();
        let replaced = prepare(store, from, &to, may_replace)?;
        let source = from.address.clone();
        // Within one tree the copy sees the deletion before it, and from another one it needs its view.
        let view = if is_same_tree(from, &to) {
            None
        } else {
            Some(store.read(move |tx| tx.view_of(&source)).wait()?)
        };
        let copy = TreeChange::Copy {
            view,
            from: current.path.clone(),
            to: to.address.path.clone(),
            is_recursive,
            may_replace: false,
        };
        let mut changes = replacement(&to, replaced);
        changes.push(copy);
        apply(store, &to, &actor, changes, held)?;
        Ok(replaced)
    });
    Ok(created_or_replaced(done.await?))
}

/// Moves an entry within its tree.
pub(super) async fn rename<F: DavFiles>(
    call: DavCall<F>,
) -> Result<Response<MountBody>, DavFailure> {
    let depth = DavDepth::from_headers(call.headers())?;
    call.require_write(&call.entry()?.address.bucket)?;
    let (to, may_replace) = destination_of(&call)?;
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let current = found(&held)?;
        depth.check_whole_tree(current.state.is_directory())?;
        refuse_root(&current.path)?;
        let from = conditions.entry();
        if !is_same_tree(from, &to) {
            // Two trees have no common transaction (RFC 4918 §9.9.4: another namespace).
            return Err(DavFailure::Status(StatusCode::BAD_GATEWAY));
        }
        let replaced = prepare(store, from, &to, may_replace)?;
        let rename = TreeChange::Rename {
            from: current.path.clone(),
            to: to.address.path.clone(),
            may_replace: false,
            precondition: of_files(&held),
        };
        let mut changes = replacement(&to, replaced);
        changes.push(rename);
        apply(store, &to, &actor, changes, held)?;
        Ok(replaced)
    });
    Ok(created_or_replaced(done.await?))
}

fn destination_of<F: DavFiles>(call: &DavCall<F>) -> Result<(TargetEntry, bool), DavFailure> {
    let to = destination(call.headers(), &call.origin()?)?;
    call.require_write(&to.address.bucket)?;
    Ok((to, is_overwrite_allowed(call.headers())?))
}

/// Checks the destination of a COPY or a MOVE. Returns whether something is there.
fn prepare(
    store: &Store,
    from: &TargetEntry,
    to: &TargetEntry,
    may_replace: bool,
) -> Result<bool, DavFailure> {
    let (source, target) = (&from.address.path, &to.address.path);
    refuse_root(target)?;
    // The same entry, or one within the other (RFC 4918 §9.8.5 and §9.9.4).
    let is_related = source == target || source.is_below(target) || target.is_below(source);
    if is_same_tree(from, to) && is_related {
        return Err(DavFailure::Status(StatusCode::FORBIDDEN));
    }
    require_parent(store, to)?;
    let address = to.address.clone();
    let present = store.read(move |tx| tx.find(&tx.view_of(&address)?, &address.path));
    let is_present = present.wait()?.is_some();
    if is_present && !may_replace {
        return Err(DavFailure::Status(StatusCode::PRECONDITION_FAILED));
    }
    Ok(is_present)
}

/// The deletion of what a COPY or a MOVE replaces (RFC 4918 §9.8.4), in the same commit.
fn replacement(to: &TargetEntry, is_present: bool) -> Vec<TreeChange> {
    let deletion = is_present.then(|| TreeChange::delete(to.address.path.clone()));
    deletion.into_iter().collect()
}

fn created_or_replaced(is_replaced: bool) -> Response<MountBody> {
    empty(if is_replaced {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::CREATED
    })
}

fn is_same_tree(one: &TargetEntry, other: &TargetEntry) -> bool {
    one.address.bucket == other.address.bucket && one.address.version == other.address.version
}

/// The root of a tree is always there (403, and not the 400 of an invalid path).
fn refuse_root(path: &EntryPath) -> Result<(), DavFailure> {
    if path.is_root() {
        return Err(DavFailure::Status(StatusCode::FORBIDDEN));
    }
    Ok(())
}

/// The entry that a request is for.
pub(super) fn found(held: &HeldConditions) -> Result<&Entry, DavFailure> {
    let missing = StoreError::NotFound(StoreObject::Entry);
    held.current.as_ref().ok_or_else(|| missing.into())
}

/// What a commit expects of an entry that exists. The conditions of a directory were checked, and it has no version that
/// the commit could compare.
pub(super) fn of_files(held: &HeldConditions) -> EntryPrecondition {
    match held.precondition {
        EntryPrecondition::Absent => EntryPrecondition::Present,
        precondition => precondition,
    }
}

/// Refuses to make an entry whose collection does not exist (RFC 4918 §9.3.1, §9.7.1 and §9.8.5). The store would make it.
pub(super) fn require_parent(store: &Store, entry: &TargetEntry) -> Result<(), DavFailure> {
    let address = entry.address.clone();
    let is_there = store.read(move |tx| has_parent(tx, &address));
    if is_there.wait()? {
        Ok(())
    } else {
        Err(DavFailure::Status(StatusCode::CONFLICT))
    }
}

fn has_parent(
    tx: &ReadTransaction<'_>,
    address: &alknet_store::EntryAddress,
) -> Result<bool, StoreError> {
    let Some(parent) = address.path.parent() else {
        return Ok(true);
    };
    let found = tx.find(&tx.view_of(address)?, &parent)?;
    Ok(found.is_some_and(|it| it.state.is_directory()))
}

/// Makes changes in the tree of an entry, in one commit. Blocks.
pub(super) fn apply(
    store: &Store,
    entry: &TargetEntry,
    actor: &str,
    changes: Vec<TreeChange>,
    held: HeldConditions,
) -> Result<(), DavFailure> {
    let address = entry.address.clone();
    let head = store.read(move |tx| DavBranch::find(tx, &address)).wait()?;
    let request = ChangeRequest {
        branch: head.branch,
        actor: actor.to_owned(),
        message: None,
        changes,
    };
    let applied = store.apply_with(head.durability, request, Vec::new(), held.tokens);
    applied.wait()?;
    Ok(())
}
