//! LOCK and UNLOCK (RFC 4918 §9.10 and §9.11).

use std::time::Duration;

use alknet_core::MountBody;
use alknet_store::{
    LockDepth, NewLock, Store, StoreError, StoreObject, SystemTimeSource, TimeSource,
};
use http::{Response, StatusCode};

use crate::dav::{
    DavCondition, DavDepth, LockBody, LockInfo, TargetEntry, lock_response, lock_time, unlock_token,
};

use super::DavFiles;
use super::body::parse_xml;
use super::call::{DavBranch, DavCall};
use super::changes::require_parent;
use super::conditions::{DavConditions, HeldConditions};
use super::failure::DavFailure;
use super::respond::{empty, full, header_value, xml};

/// Takes a lock, or gives one more time.
pub(super) async fn lock<F: DavFiles>(
    call: DavCall<F>,
    body: MountBody,
) -> Result<Response<MountBody>, DavFailure> {
    call.require_write(&call.entry()?.address.bucket)?;
    let depth = DavDepth::from_headers(call.headers())?.of_lock()?;
    let time = lock_time(call.headers())?;
    let body = parse_xml(body, LockBody::parse).await?;
    let conditions = DavConditions::new(&call)?;
    let actor = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let held = conditions.check(store)?;
        let entry = conditions.entry();
        match body {
            LockBody::New(info) => take(store, entry, &actor, (info, depth, time), held),
            LockBody::Refresh => refresh(store, entry, &actor, time, &held),
        }
    });
    done.await
}

fn take(
    store: &Store,
    entry: &TargetEntry,
    actor: &str,
    (info, depth, time): (LockInfo, LockDepth, Duration),
    held: HeldConditions,
) -> Result<Response<MountBody>, DavFailure> {
    if held.current.is_none() {
        require_parent(store, entry)?;
    }
    let head = branch(store, entry)?;
    let mut new = NewLock::exclusive(head.branch, entry.address.path.clone(), actor, depth, time);
    new.note = info.owner;
    let locked = store
        .write(move |tx| tx.lock_entry(&new, &held.tokens))
        .wait();
    let locked = match locked {
        Err(StoreError::Locked { path }) => {
            let root = path.parse().map(|path| entry.at(path, false).href());
            let roots = vec![root.unwrap_or(path)];
            return Err(DavCondition::NoConflictingLock(roots).into());
        }
        locked => locked?,
    };
    // A name that did not exist is an empty file now (RFC 4918 §7.3).
    let status = match locked.made {
        Some(_) => StatusCode::CREATED,
        None => StatusCode::OK,
    };
    let root = entry.at(locked.lock.path.clone(), false).href();
    let text = lock_response(&locked.lock, &root, SystemTimeSource.unix_ms());
    let mut response = xml(status, full(text));
    let token = header_value(&format!("<{}>", locked.lock.token));
    response.headers_mut().insert("lock-token", token);
    Ok(response)
}

fn refresh(
    store: &Store,
    entry: &TargetEntry,
    actor: &str,
    time: Duration,
    held: &HeldConditions,
) -> Result<Response<MountBody>, DavFailure> {
    // A refresh names its lock, and one only (RFC 4918 §9.10.2).
    let &[token] = &held.tokens[..] else {
        return Err(DavFailure::Status(StatusCode::BAD_REQUEST));
    };
    let head = branch(store, entry)?;
    let (path, owner) = (entry.address.path.clone(), actor.to_owned());
    let renewed = store.write(move |tx| tx.renew_lock(head.branch, &path, &owner, token, time));
    let lock = match renewed.wait() {
        Err(StoreError::NotFound(StoreObject::Lock) | StoreError::LeaseLost) => {
            return Err(DavFailure::Status(StatusCode::PRECONDITION_FAILED));
        }
        lock => lock?,
    };
    let root = entry.at(lock.path.clone(), false).href();
    let text = lock_response(&lock, &root, SystemTimeSource.unix_ms());
    Ok(xml(StatusCode::OK, full(text)))
}

/// Gives a lock back.
pub(super) async fn unlock<F: DavFiles>(
    call: DavCall<F>,
) -> Result<Response<MountBody>, DavFailure> {
    call.require_write(&call.entry()?.address.bucket)?;
    let token = unlock_token(call.headers())?;
    let token = token.ok_or(DavCondition::LockTokenMatchesRequestUri)?;
    let entry = call.entry()?.clone();
    let owner = call.actor().to_owned();
    let done = call.with_store(move |store| {
        let head = branch(store, &entry)?;
        let path = entry.address.path.clone();
        let unlocked = store.write(move |tx| tx.unlock_entry(head.branch, &path, &owner, token));
        match unlocked.wait() {
            Err(StoreError::NotFound(StoreObject::Lock) | StoreError::LeaseLost) => {
                Err(DavCondition::LockTokenMatchesRequestUri.into())
            }
            unlocked => Ok(unlocked?),
        }
    });
    done.await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

fn branch(store: &Store, entry: &TargetEntry) -> Result<DavBranch, DavFailure> {
    let address = entry.address.clone();
    Ok(store.read(move |tx| DavBranch::find(tx, &address)).wait()?)
}
