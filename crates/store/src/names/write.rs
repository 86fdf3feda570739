//! How each change is made.

use std::slice;

use super::change::{ChangeRequest, EntryAttributes, EntryPrecondition, TreeChange};
use super::commit::{CommitHeader, OpenCommit};
use super::entry::{Entry, EntryKind, EntryState, FILE_MODE_DEFAULT, MODE_MASK, SYMLINK_MODE};
use super::list::TreeScan;
use super::resolve::TreeView;
use super::usage::FileContent;
use crate::db::WriteTransaction;
use crate::error::{StoreError, StoreObject};
use crate::limits::{BATCH_CHANGES_MAX, SYMLINK_TARGET_BYTES_MAX, XATTR_BYTES_MAX};
use crate::locks::LockedChange;
use crate::outbox::EventTopic;
use crate::path::{EntryPath, PathRule};

/// A copy or a move of one entry.
#[derive(Clone, Copy)]
struct Transfer<'a> {
    from: &'a EntryPath,
    to: &'a EntryPath,
    may_replace: bool,
    /// Whether everything below a directory comes along.
    is_recursive: bool,
}

impl WriteTransaction<'_> {
    /// Begins the commit of a request.
    pub(super) fn begin_changes(
        &mut self,
        request: &ChangeRequest,
    ) -> Result<OpenCommit, StoreError> {
        // A history shows what a single change was; a batch has several names.
        let op = match request.changes.as_slice() {
            [one] => one.op(),
            _ => "batch",
        };
        if request.changes.len() > BATCH_CHANGES_MAX {
            return Err(StoreError::TooLarge {
                unit: "changes in a batch",
                limit: BATCH_CHANGES_MAX as u64,
            });
        }
        let is_deletion =
            !request.changes.is_empty() && request.changes.iter().all(TreeChange::is_deletion);
        // A deletion writes rows too, and they fit into the reserve that all others leave.
        if !is_deletion {
            self.check_space()?;
        }
        self.begin_commit(CommitHeader {
            branch: request.branch,
            op,
            actor: &request.actor,
            message: request.message.as_deref(),
            merged: None,
            is_deletion,
        })
    }

    pub(super) fn apply_change(
        &mut self,
        commit: &mut OpenCommit,
        change: &TreeChange,
    ) -> Result<(), StoreError> {
        match change {
            TreeChange::Put {
                path,
                content,
                attributes,
                precondition,
            } => {
                let current = self.expect(commit, path, *precondition)?;
                self.put(commit, path, content, attributes, current)
            }
            TreeChange::Mkdir {
                path,
                attributes,
                may_exist,
            } => self.mkdir(commit, path, attributes, *may_exist),
            TreeChange::Symlink {
                path,
                target,
                may_replace,
            } => self.symlink(commit, path, target, *may_replace),
            TreeChange::Rename {
                from,
                to,
                may_replace,
                precondition,
            } => {
                let source = self.expect(commit, from, *precondition)?;
                let transfer = Transfer {
                    from,
                    to,
                    may_replace: *may_replace,
                    is_recursive: true,
                };
                self.rename(commit, transfer, source)
            }
            TreeChange::Copy {
                view,
                from,
                to,
                is_recursive,
                may_replace,
            } => {
                let transfer = Transfer {
                    from,
                    to,
                    may_replace: *may_replace,
                    is_recursive: *is_recursive,
                };
                self.copy(commit, view.as_ref(), transfer)
            }
            TreeChange::Delete {
                path,
                is_recursive,
                precondition,
            } => {
                let current = self.expect(commit, path, *precondition)?;
                self.delete(commit, path, *is_recursive, current)
            }
            TreeChange::SetAttributes {
                path,
                attributes,
                precondition,
            } => {
                let current = self.expect(commit, path, *precondition)?;
                self.set_attributes(commit, path, attributes, current)
            }
            TreeChange::Restore { path, seq } => self.restore(commit, path, *seq),
        }
    }

    /// The entry at a path, if it is what the caller expects.
    fn expect(
        &self,
        commit: &OpenCommit,
        path: &EntryPath,
        precondition: EntryPrecondition,
    ) -> Result<Option<Entry>, StoreError> {
        let entry = self.find(&commit.view, path)?;
        // In the transaction of the change, so that no other write comes between the check and the
        // change.
        precondition.require(entry.as_ref())?;
        Ok(entry)
    }

    /// Makes the directories above a path that are missing.
    pub(super) fn make_parents(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
    ) -> Result<(), StoreError> {
        let Some(parent) = path.parent() else {
            return Ok(());
        };
        // Above a directory there are only directories.
        if self.is_directory(&commit.view, &parent)? {
            return Ok(());
        }
        for directory in path.ancestors() {
            if !self.is_directory(&commit.view, &directory)? {
                self.check_lock_of(commit, &directory, LockedChange::Name)?;
                let state = EntryState::directory(commit.now_ns);
                self.write_entry(commit, &directory, &state)?;
                self.emit_entry(commit, EventTopic::Mkdir, &directory, None, &state)?;
            }
        }
        Ok(())
    }

    /// Whether there is a directory.
    ///
    /// # Errors
    /// There is something else.
    fn is_directory(&self, view: &TreeView, path: &EntryPath) -> Result<bool, StoreError> {
        match self.find(view, path)? {
            None => Ok(false),
            Some(entry) if entry.state.is_directory() => Ok(true),
            Some(_) => Err(StoreError::NotDirectory {
                path: path.to_string(),
            }),
        }
    }

    fn put(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        content: &FileContent,
        attributes: &EntryAttributes,
        current: Option<Entry>,
    ) -> Result<(), StoreError> {
        path.columns()?;
        if current.as_ref().is_some_and(|it| it.state.is_directory()) {
            return Err(StoreError::IsDirectory {
                path: path.to_string(),
            });
        }
        // After the checks of the path itself, so that a refusal names the entry and not its
        // directories.
        self.make_parents(commit, path)?;
        let content = self.declare_content(commit.bucket.id, content)?;
        let file = current.filter(|entry| entry.state.kind == EntryKind::File);
        let (mode, xattr) = match file {
            Some(entry) => (entry.state.mode, entry.state.xattr),
            None => (FILE_MODE_DEFAULT, None),
        };
        let state = EntryState {
            kind: EntryKind::File,
            hash: Some(content.hash),
            size: content.size,
            mode,
            mtime_ns: commit.now_ns,
            target: None,
            xattr,
        };
        let state = with_attributes(state, attributes)?;
        self.write_entry(commit, path, &state)?;
        self.emit_entry(commit, EventTopic::Put, path, None, &state)
    }

    fn mkdir(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        attributes: &EntryAttributes,
        may_exist: bool,
    ) -> Result<(), StoreError> {
        match self.find(&commit.view, path)? {
            Some(entry) if may_exist && entry.state.is_directory() => return Ok(()),
            Some(_) => return Err(StoreError::Exists(StoreObject::Entry)),
            None => {}
        }
        self.make_parents(commit, path)?;
        let state = EntryState::directory(commit.now_ns);
        let state = with_attributes(state, attributes)?;
        self.write_entry(commit, path, &state)?;
        self.emit_entry(commit, EventTopic::Mkdir, path, None, &state)
    }

    fn symlink(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        target: &str,
        may_replace: bool,
    ) -> Result<(), StoreError> {
        if target.len() > SYMLINK_TARGET_BYTES_MAX {
            return Err(StoreError::TooLarge {
                unit: "bytes in the target of a link",
                limit: SYMLINK_TARGET_BYTES_MAX as u64,
            });
        }
        if target.contains('\0') {
            return Err(PathRule::Nul.into());
        }
        if target.is_empty() {
            return Err(PathRule::EmptyComponent.into());
        }
        match self.find(&commit.view, path)? {
            Some(entry) if entry.state.is_directory() => {
                return Err(StoreError::IsDirectory {
                    path: path.to_string(),
                });
            }
            Some(_) if !may_replace => return Err(StoreError::Exists(StoreObject::Entry)),
            _ => {}
        }
        self.make_parents(commit, path)?;
        let state = EntryState {
            kind: EntryKind::Symlink,
            mode: SYMLINK_MODE,
            target: Some(target.to_owned()),
            ..EntryState::deletion(commit.now_ns)
        };
        self.write_entry(commit, path, &state)?;
        self.emit_entry(commit, EventTopic::Put, path, None, &state)
    }

    fn rename(
        &mut self,
        commit: &mut OpenCommit,
        transfer: Transfer<'_>,
        source: Option<Entry>,
    ) -> Result<(), StoreError> {
        let Transfer { from, to, .. } = transfer;
        from.columns()?;
        let source = source.ok_or(StoreError::NotFound(StoreObject::Entry))?;
        // As rename(2) has it.
        if from == to {
            return Ok(());
        }
        // The directory would become its own ancestor, and no path from the root would lead to it.
        if to.is_below(from) {
            return Err(PathRule::IntoItself.into());
        }
        let view = commit.view.clone();
        self.transfer(commit, transfer, &view, &source)?;
        // An entry that moves counts once, and the transfer has counted it.
        self.delete_rows(commit, &source)?;
        self.emit_entry(commit, EventTopic::Rename, from, Some(to), &source.state)
    }

    fn copy(
        &mut self,
        commit: &mut OpenCommit,
        view: Option<&TreeView>,
        transfer: Transfer<'_>,
    ) -> Result<(), StoreError> {
        let Transfer { from, to, .. } = transfer;
        // From another branch the same path is no copy into itself: a caller takes a file over so. Neither is a copy from a
        // version of before this commit, such as a snapshot: it does not change by what is written now.
        let is_within = view.is_none_or(|view| {
            let is_before = view.as_of().is_some_and(|seq| seq < commit.seq);
            view.branch() == commit.branch.id && !is_before
        });
        if is_within && (from == to || to.is_below(from)) {
            return Err(PathRule::IntoItself.into());
        }
        // A view of an earlier read may be of a version that a collection has pruned since, or of a branch that is gone: the
        // copy would have fewer files, and nothing would say so.
        let view = match view {
            Some(view) => self.view(view.branch(), view.as_of())?,
            None => commit.view.clone(),
        };
        let source = self.stat(&view, from)?;
        self.transfer(commit, transfer, &view, &source)?;
        self.emit_entry(commit, EventTopic::Put, to, None, &source.state)
    }

    /// Writes an entry of a tree at its new path, with everything below it.
    fn transfer(
        &mut self,
        commit: &mut OpenCommit,
        transfer: Transfer<'_>,
        view: &TreeView,
        source: &Entry,
    ) -> Result<(), StoreError> {
        let Transfer {
            from,
            to,
            may_replace,
            is_recursive,
        } = transfer;
        to.columns()?;
        let is_directory = source.state.is_directory();
        if let Some(target) = self.find(&commit.view, to)? {
            self.check_replaced(commit, &target, may_replace, is_directory)?;
        }
        // All paths are checked before the first row is written.
        let entries = if is_recursive {
            self.count_subtree(view, source, |path| Ok(path.moved(from, to).map(drop)?))?
        } else {
            1
        };
        self.check_growth(commit, entries)?;
        self.make_parents(commit, to)?;
        let buckets = (view.bucket, commit.bucket.id);
        self.carry_contents(buckets.0, buckets.1, slice::from_ref(source))?;
        self.write_row(commit, to, &source.state)?;
        if !is_directory || !is_recursive {
            return Ok(());
        }
        // Piece by piece: the extended attributes of a large directory take gigabytes together.
        let mut scan = TreeScan::below(view, &source.path).with_attributes();
        while let Some(chunk) = scan.next_chunk(self)? {
            self.carry_contents(buckets.0, buckets.1, &chunk)?;
            for Entry { path, state, .. } in chunk {
                self.write_row(commit, &path.moved(from, to)?, &state)?;
            }
        }
        Ok(())
    }

    /// Whether an entry may be replaced by another one, as rename(2) has it.
    fn check_replaced(
        &self,
        commit: &OpenCommit,
        target: &Entry,
        may_replace: bool,
        by_directory: bool,
    ) -> Result<(), StoreError> {
        let path = target.path.to_string();
        if !may_replace {
            return Err(StoreError::Exists(StoreObject::Entry));
        }
        match (target.state.is_directory(), by_directory) {
            (false, false) => Ok(()),
            (false, true) => Err(StoreError::NotDirectory { path }),
            (true, false) => Err(StoreError::IsDirectory { path }),
            (true, true) if self.is_empty(&commit.view, &target.path)? => Ok(()),
            (true, true) => Err(StoreError::NotEmpty { path }),
        }
    }

    fn delete(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        is_recursive: bool,
        current: Option<Entry>,
    ) -> Result<(), StoreError> {
        path.columns()?;
        let current = current.ok_or(StoreError::NotFound(StoreObject::Entry))?;
        if current.state.is_directory() && !is_recursive && !self.is_empty(&commit.view, path)? {
            return Err(StoreError::NotEmpty {
                path: path.to_string(),
            });
        }
        let entries = self.count_subtree(&commit.view, &current, |_| Ok(()))?;
        self.count_entries(entries)?;
        self.delete_rows(commit, &current)?;
        self.emit_entry(commit, EventTopic::Delete, path, None, &current.state)
    }

    /// Writes the deletion of an entry and of everything below it. The caller has counted them.
    fn delete_rows(&mut self, commit: &mut OpenCommit, entry: &Entry) -> Result<(), StoreError> {
        let deletion = EntryState::deletion(commit.now_ns);
        self.write_row(commit, &entry.path, &deletion)?;
        if !entry.state.is_directory() {
            return Ok(());
        }
        let view = commit.view.clone();
        let mut scan = TreeScan::below(&view, &entry.path);
        while let Some(chunk) = scan.next_chunk(self)? {
            for below in chunk {
                self.write_row(commit, &below.path, &deletion)?;
            }
        }
        Ok(())
    }

    fn set_attributes(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        attributes: &EntryAttributes,
        current: Option<Entry>,
    ) -> Result<(), StoreError> {
        path.columns()?;
        let current = current.ok_or(StoreError::NotFound(StoreObject::Entry))?;
        let state = with_attributes(current.state, attributes)?;
        self.write_entry(commit, path, &state)?;
        self.emit_entry(commit, EventTopic::Put, path, None, &state)
    }
}

/// The state with new attributes.
fn with_attributes(
    state: EntryState,
    attributes: &EntryAttributes,
) -> Result<EntryState, StoreError> {
    let xattr = match &attributes.xattr {
        None => state.xattr,
        Some(bytes) if bytes.len() > XATTR_BYTES_MAX => {
            return Err(StoreError::TooLarge {
                unit: "bytes of extended attributes",
                limit: XATTR_BYTES_MAX as u64,
            });
        }
        Some(bytes) => (!bytes.is_empty()).then(|| bytes.clone()),
    };
    Ok(EntryState {
        // The upper bits of a mode from SFTP name the kind of file, which the column `kind` has
        // already.
        mode: attributes.mode.map_or(state.mode, |mode| mode & MODE_MASK),
        mtime_ns: attributes.mtime_ns.unwrap_or(state.mtime_ns),
        xattr,
        ..state
    })
}
