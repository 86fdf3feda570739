//! The changes of a call on their way to the store: rights and paths first, then contents, then one request.

use alknet_store::{
    ChangeRequest, EntryAddress, EntryPath, PreparedContent, StoreError, TreeChange, TreeView,
};
use bytes::Bytes;
use serde_json::Value;

use super::super::FsCall;
use super::super::addressed::{BranchTarget, head_name};
use super::FsChangeInput;
use crate::error::FsError;
use crate::limits::PUT_BYTES_MAX;
use crate::rights::FsRight;

/// Changes of one branch, whose rights are checked.
pub(super) struct ChangePlan {
    /// The address of the first change, whose branch is that of all of them.
    branch: EntryAddress,
    changes: Vec<PlannedChange>,
}

/// A change that may need something from the store before it can be made.
enum PlannedChange {
    /// As it is.
    Ready(TreeChange),
    /// A file, whose content has to be durable first.
    Put {
        bytes: Bytes,
        /// Gets the content.
        into: Box<dyn FnOnce(&PreparedContent) -> TreeChange + Send>,
    },
    /// A copy from a tree that has to be looked up first.
    Copy {
        from: EntryAddress,
        to: EntryPath,
        is_recursive: bool,
        may_replace: bool,
        /// Whether only a file may be copied.
        is_link: bool,
    },
}

impl ChangePlan {
    /// Checks the rights and the paths of all changes. Nothing is looked up.
    pub(super) fn new(call: &FsCall, changes: Vec<FsChangeInput>) -> Result<Self, FsError> {
        let mut branch = None;
        let mut planned = Vec::with_capacity(changes.len());
        for change in changes {
            let mut to_change = |text: &str| changed_path(call, &mut branch, text);
            planned.push(plan(call, change, &mut to_change)?);
        }
        let branch = branch.ok_or_else(|| FsError::input("a batch has at least one change"))?;
        Ok(Self {
            branch,
            changes: planned,
        })
    }

    /// An address on the branch that all changes are of.
    pub(super) const fn branch(&self) -> &EntryAddress {
        &self.branch
    }

    /// Makes the contents durable and looks the sources of copies up. The contents stay pinned until the request is made.
    pub(super) async fn prepare(
        self,
        call: &FsCall,
        target: BranchTarget,
    ) -> Result<(ChangeRequest, Vec<PreparedContent>), FsError> {
        let mut contents = Vec::new();
        let mut changes = Vec::with_capacity(self.changes.len());
        for planned in self.changes {
            changes.push(match planned {
                PlannedChange::Ready(change) => change,
                PlannedChange::Put { bytes, into } => {
                    // Durable before a name leads to it: a power cut must not leave a name without bytes.
                    let put = call.blocking(move |store| Ok(store.put_bytes(&bytes)?));
                    let content = put.await?;
                    let change = into(&content);
                    contents.push(content);
                    change
                }
                PlannedChange::Copy {
                    from,
                    to,
                    is_recursive,
                    may_replace,
                    is_link,
                } => {
                    let path = from.path.clone();
                    let view = source_view(call, from, target, is_link).await?;
                    TreeChange::Copy {
                        view,
                        from: path,
                        to,
                        is_recursive,
                        may_replace,
                    }
                }
            });
        }
        let request = ChangeRequest {
            branch: target.branch,
            actor: call.requester.actor().to_owned(),
            message: None,
            changes,
        };
        Ok((request, contents))
    }
}

/// The path of an address to be changed. All of them have to be of one branch.
fn changed_path(
    call: &FsCall,
    branch: &mut Option<EntryAddress>,
    text: &str,
) -> Result<EntryPath, FsError> {
    let address = call.address(FsRight::Write, text)?;
    // Former versions and snapshots take no changes.
    head_name(&address)?;
    let path = address.path.clone();
    match branch {
        Some(first) if first.bucket != address.bucket || first.version != address.version => Err(
            FsError::input("all paths that a call changes are of one branch"),
        ),
        Some(_) => Ok(path),
        None => {
            *branch = Some(address);
            Ok(path)
        }
    }
}

fn plan(
    call: &FsCall,
    change: FsChangeInput,
    to_change: &mut dyn FnMut(&str) -> Result<EntryPath, FsError>,
) -> Result<PlannedChange, FsError> {
    let ready = match change {
        FsChangeInput::Put(input) => {
            let path = to_change(&input.path)?;
            let precondition = input.condition.precondition()?;
            let attributes = input.attributes.attributes();
            let bytes = put_bytes(call, &input.bytes)?;
            let into = move |content: &PreparedContent| TreeChange::Put {
                path,
                content: content.content(),
                attributes,
                precondition,
            };
            let into = Box::new(into);
            return Ok(PlannedChange::Put { bytes, into });
        }
        FsChangeInput::Copy(input) => {
            let from = call.address(FsRight::Read, &input.path)?;
            return Ok(PlannedChange::Copy {
                from,
                to: to_change(&input.to)?,
                is_recursive: input.recursive,
                may_replace: input.replace,
                is_link: false,
            });
        }
        FsChangeInput::Link(input) => {
            let from = call.address(FsRight::Read, &input.path)?;
            return Ok(PlannedChange::Copy {
                from,
                to: to_change(&input.to)?,
                is_recursive: false,
                may_replace: input.replace,
                is_link: true,
            });
        }
        FsChangeInput::Mkdir(input) => TreeChange::Mkdir {
            path: to_change(&input.path)?,
            attributes: input.attributes.attributes(),
            may_exist: input.may_exist,
        },
        FsChangeInput::Rename(input) => TreeChange::Rename {
            from: to_change(&input.path)?,
            to: to_change(&input.to)?,
            may_replace: input.replace,
            precondition: input.condition.precondition()?,
        },
        FsChangeInput::Delete(input) => TreeChange::Delete {
            path: to_change(&input.path)?,
            is_recursive: input.recursive,
            precondition: input.condition.precondition()?,
        },
        FsChangeInput::Symlink(input) => TreeChange::Symlink {
            path: to_change(&input.path)?,
            target: input.target,
            may_replace: input.replace,
        },
        FsChangeInput::Setattr(input) => TreeChange::SetAttributes {
            path: to_change(&input.path)?,
            attributes: input.attributes.attributes(),
            precondition: input.condition.precondition()?,
        },
        FsChangeInput::Restore(input) => TreeChange::Restore {
            path: to_change(&input.path)?,
            seq: input.seq,
        },
    };
    Ok(PlannedChange::Ready(ready))
}

fn put_bytes(call: &FsCall, value: &Value) -> Result<Bytes, FsError> {
    let bytes = call.bytes(value)?;
    if bytes.len() > PUT_BYTES_MAX {
        return Err(StoreError::TooLarge {
            unit: "bytes in fs/put; a write session takes more",
            limit: PUT_BYTES_MAX as u64,
        }
        .into());
    }
    Ok(bytes)
}

/// The tree that a copy comes from. `None` is the branch that is changed, so that a batch copies what it made before.
async fn source_view(
    call: &FsCall,
    from: EntryAddress,
    target: BranchTarget,
    is_link: bool,
) -> Result<Option<TreeView>, FsError> {
    let read = call.read(move |tx| {
        let view = tx.view_of(&from)?;
        // The store copies directories as well, and a link is to a file alone.
        if is_link
            && tx
                .find(&view, &from.path)?
                .is_some_and(|it| it.state.is_directory())
        {
            let path = from.path.to_string();
            return Err(StoreError::IsDirectory { path });
        }
        // The view is of the commit of this read. A batch has to see its own changes.
        let is_own = view.branch() == target.branch && !from.is_read_only();
        Ok((!is_own).then_some(view))
    });
    read.await
}
