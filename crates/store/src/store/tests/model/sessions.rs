//! Write sessions: opened, written, closed under conditions, aborted, and swept.

use super::*;

/// Open sessions at most.
const SESSIONS: usize = 4;
/// Bytes up to which a session writes.
const SESSION_BYTES: usize = 150_000;

/// A session, and the bytes that it would store now.
#[derive(Clone)]
pub(super) struct ModelWriteSession {
    id: WriteSessionId,
    pub(super) branch: BranchId,
    path: String,
    mode: WriteSessionMode,
    origin: usize,
    bytes: Vec<u8>,
    tokens: Vec<LockToken>,
    touched_ms: u64,
}

impl FilesRun {
    pub(super) fn use_session(&mut self) -> &'static str {
        let is_new =
            self.sessions.is_empty() || self.sessions.len() < SESSIONS && self.random.is_one_in(3);
        if is_new {
            return self.open_session();
        }
        let at = self.random.below(self.sessions.len());
        match self.random.below(9) {
            0..5 => self.write_session(at),
            5..8 => self.close_session(at),
            _ => {
                let session = self.sessions.swap_remove(at);
                let sessions = self.files.store().sessions();
                sessions.abort(session.id, "alice").expect("open");
                self.end_faults();
                self.sweep_sessions();
                "aborted session"
            }
        }
    }

    /// Removes rows that the disk kept from being removed, and sessions that no step has used for long.
    fn sweep_sessions(&mut self) {
        let swept = self.files.store().sessions().sweep();
        swept.expect("the disk works");
        let now_ms = self.files.clock.unix_ms();
        let oldest = now_ms - SESSION_TTL_MS_DEFAULT;
        self.sessions.retain(|it| it.touched_ms > oldest);
        assert_eq!(self.files.store().sessions().count(), self.sessions.len());
    }

    fn open_session(&mut self) -> &'static str {
        let branch = self.any_branch();
        let at = self.random.path();
        let modes = ["create", "truncate", "modify", "append"];
        let mode = self.random.pick(&modes);
        let mode = WriteSessionMode::from_name(mode).expect("a mode");
        let tokens = self.any_tokens();
        let tree = self.tree(branch);
        let there = tree.get(&at);
        let path_use = match there {
            Some(_) => PathUse::Content,
            None => PathUse::Name,
        };
        let is_refused = there.is_some_and(|what| what == DIRECTORY)
            || mode == WriteSessionMode::Create && there.is_some()
            || forbids(&self.locks_of(branch), &tokens, &at, path_use);
        let keeps = matches!(mode, WriteSessionMode::Modify | WriteSessionMode::Append);
        let base = there.filter(|_| keeps).and_then(|it| self.contents.get(it));
        let bytes = base.cloned().unwrap_or_default();
        let new = NewWriteSession {
            attributes: fixed_time(),
            lock_tokens: tokens.clone(),
            ..NewWriteSession::new(branch, path(&at), mode, "alice")
        };
        let opened = self.files.store().open_session(&new);
        match self.attempt(opened) {
            Attempt::Done(id) => {
                assert!(!is_refused, "{at}: {mode:?}");
                let origin = match mode {
                    WriteSessionMode::Append => bytes.len(),
                    _ => 0,
                };
                self.sessions.push(ModelWriteSession {
                    id,
                    branch,
                    path: at,
                    mode,
                    origin,
                    bytes,
                    tokens,
                    touched_ms: self.files.clock.unix_ms(),
                });
                "session"
            }
            Attempt::Refused(error) => {
                assert!(is_refused, "{at}: {mode:?}: {error}");
                "refused session"
            }
            Attempt::Failed(_) => "failed session",
        }
    }

    fn write_session(&mut self, at: usize) -> &'static str {
        let session = self.sessions[at].clone();
        let room = (session.bytes.len() - session.origin + 1000).min(SESSION_BYTES);
        let offset = self.random.below(room);
        let len = 1 + self.random.below(30_000);
        let piece = content(self.random.below(40) as u64, len);
        let start = session.origin + offset;
        self.sessions[at].touched_ms = self.files.clock.unix_ms();
        let bytes = &mut self.sessions[at].bytes;
        bytes.resize(bytes.len().max(start + len), 0);
        bytes[start..start + len].copy_from_slice(&piece);
        let expected = bytes.clone();
        let syncs = self.random.is_one_in(4);
        let sessions = self.files.store().sessions();
        let written = sessions.write(session.id, "alice", offset as u64, &piece);
        let written = written.and_then(|()| match syncs {
            true => sessions.sync(session.id, "alice"),
            false => Ok(()),
        });
        match self.attempt(written) {
            Attempt::Done(()) => {
                let shown = self.files.store().sessions();
                let shown = shown.read(session.id, "alice", 0..expected.len() as u64);
                assert!(shown.expect("readable") == expected);
                "written session"
            }
            Attempt::Refused(error) => panic!("{error}"),
            Attempt::Failed(_) => {
                // It may be over by itself, and its client gives up.
                let sessions = self.files.store().sessions();
                sessions.abort(session.id, "alice").ok();
                self.sessions.swap_remove(at);
                self.sweep_sessions();
                "failed session"
            }
        }
    }

    fn close_session(&mut self, at: usize) -> &'static str {
        let session = self.sessions.swap_remove(at);
        let ModelWriteSession { branch, tokens, .. } = &session;
        let shown = self.remember(&session.bytes);
        let mut tree = self.tree(*branch).clone();
        let mut locks = self.locks_of(*branch);
        let there = tree.get(&session.path).cloned();
        let expects = match self.random.below(4) {
            0 => Some(EntryPrecondition::Content(ContentHash::new([7; 32]))),
            1 => Some(EntryPrecondition::Present),
            _ => None,
        };
        let meets = match (expects, session.mode) {
            (Some(EntryPrecondition::Present), _) => there.is_some(),
            (Some(_), _) => false,
            (None, WriteSessionMode::Create) => there.is_none(),
            (None, _) => true,
        };
        let model = ReferenceChange::Put(session.path.clone(), shown.clone());
        let is_allowed = meets
            && !forbids_change(&locks, tokens, &tree, &model)
            && model.apply(&mut tree).is_ok();
        end_locks(&mut locks, &model);
        let sessions = self.files.store().sessions();
        let closed = sessions.close(session.id, "alice", expects);
        match self.attempt(closed) {
            Attempt::Done(closed) => {
                assert!(is_allowed, "{}", session.path);
                assert_eq!(shown_hash(closed.hash), shown);
                self.note(*branch, closed.seq, tree, locks);
                "closed session"
            }
            Attempt::Refused(error) => {
                assert!(!is_allowed, "{}: {error}", session.path);
                "refused close"
            }
            Attempt::Failed(failed) => {
                self.sweep_sessions();
                self.fail(failed, (*branch, tree, locks));
                "failed close"
            }
        }
    }
}
