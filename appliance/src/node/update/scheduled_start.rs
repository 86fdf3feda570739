//! A start that waits for its moment, also while the node restarts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::{Identity, PeerKey, TokenHash};
use alknet_init::control::RefusalCode;
use alknet_update::AgreedFloor;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::act::{StagedProgram, StartOrder};
use super::refusal::{is_busy, may_pass, refused};
use super::session::{SessionTurn, StagingRequest};
use super::waiting::waiting_version;
use super::{ADMIN_SCOPE, APPLY_SCOPE, NodeUpdates};
use crate::node::ops::caller;

/// The file of the start that waits, in the state directory. The node may write in that folder of it.
const START_FILE: &str = "state/scheduled-start.json";
/// How far ahead a start may be asked for, in seconds: 30 days.
const AHEAD_S_MAX: i64 = 30 * 86_400;
/// How late the version still starts, in seconds, if the node did not run at the moment: an hour. A later restart would
/// surprise the caller, who chose the moment for a reason.
pub(super) const LATE_S_MAX: i64 = 3600;
/// How often the clock is read while a start waits: it may be set meanwhile. A start for which PID 1 was busy is tried
/// again after the same time.
pub(super) const START_STEP: Duration = Duration::from_secs(10);

/// A start that waits for its moment, as its file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ScheduledStart {
    pub(super) at: Timestamp,
    /// SHA-256 of the program that it is for, in hex.
    pub(super) sha256: String,
    /// The version of this program. Empty if PID 1 has not said it.
    #[serde(default)]
    pub(super) version: String,
    /// The floor to which the caller has agreed. `None` in a file of an earlier version, whose start has no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) agreed_floor: Option<AgreedFloor>,
    /// The id of the caller that set it. A text, because the id of a program's token is not a `PeerId`.
    pub(super) by: String,
    /// A key by which this caller is known again: another peer may get its id meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<PeerKey>,
    /// The hash of its token if the caller has no key: another token may get the same name meanwhile. A file that has
    /// neither starts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<TokenHash>,
    /// Whether this caller is no administrator.
    pub(super) limited: bool,
    /// Why the version did not start. Empty while the start waits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) failure: String,
    /// Whether its program is not staged any more, or not with a floor to which the caller has agreed. This stays until a
    /// version is started, or a caller takes the start back or sets another moment, for which it has to be an administrator
    /// if this is a start of one: a caller that stages a third program must not hide it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) replaced: bool,
}

impl ScheduledStart {
    /// Whether this start is for the staged program, and its caller has agreed to the floor of this program. PID 1 refuses
    /// any other one at the moment.
    pub(super) fn is_for(&self, staged: &StagedProgram) -> bool {
        let agreed = self.agreed_floor.as_ref();
        let permits = agreed.is_none_or(|agreed| agreed.permits(staged.raised_floor().as_ref()));
        permits && self.sha256 == staged.sha256
    }
}

/// So many steps lie between two tries if PID 1 lacks something: a try makes it read the staged program.
const STEPS_OF_OTHERS: u32 = 6;

/// The caller that plans a start, with what it proved.
pub(super) struct StartPlanner {
    pub(super) id: String,
    pub(super) key: Option<PeerKey>,
    /// `None` if the caller showed a key alone.
    pub(super) token: Option<TokenHash>,
}

impl StartPlanner {
    /// The caller of this request.
    ///
    /// # Errors
    /// `FORBIDDEN` for a caller that cannot be known again at the moment.
    pub(super) fn from_ctx(ctx: &Ctx) -> Result<Self, CallError> {
        // A caller that showed the token of a peer need not have a key of this peer: its start must end with the token.
        let (key, token) = match ctx.token() {
            Some(token) => (None, token.hash().ok()),
            None => (ctx.lasting_key(), None),
        };
        if key.is_none() && token.is_none() {
            let text = "a moment for the start needs a caller with a key or a token, by which the node knows it again";
            return Err(CallError::new(ErrorCode::Forbidden, text));
        }
        Ok(Self {
            id: caller(ctx),
            key,
            token,
        })
    }
}

/// What becomes of a start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartTurn {
    Waits,
    Now,
    /// Its moment passed more than [`LATE_S_MAX`] ago.
    Missed,
    /// It is not for the staged program any more, or none is staged.
    Over,
}

/// Why a start did not happen.
struct StartFailure {
    text: String,
    /// The time until the next try. `None` if the reason does not pass by itself.
    again_after: Option<Duration>,
}

/// A start with the task that waits for its moment. Dropping it ends the task.
struct StartTimer {
    start: ScheduledStart,
    /// `None` once the start has ended before its moment.
    task: Option<AbortHandle>,
}

impl Drop for StartTimer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The one start of a node, in memory and in its file.
pub(super) struct ScheduledStartStore {
    file: PathBuf,
    step: Duration,
    timer: Mutex<Option<StartTimer>>,
}

impl ScheduledStartStore {
    /// `step` is [`START_STEP`], except in tests.
    pub(super) fn new(state_dir: &Path, step: Duration) -> Self {
        Self {
            file: state_dir.join(START_FILE),
            step,
            timer: Mutex::default(),
        }
    }

    /// Forgets the start, with its file, if it is one of these.
    pub(super) fn forget_if(
        &self,
        is_over: impl FnOnce(&ScheduledStart) -> bool,
    ) -> Option<ScheduledStart> {
        let mut timer = self.lock();
        // Dropping the timer at the end aborts its task, which may be the one that runs here: it has nothing more to do.
        let over = timer.take_if(|it| is_over(&it.start))?;
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the file of a start that is over cannot be removed");
        }
        Some(over.start.clone())
    }

    /// Notes why a start did not happen, unless another one has taken its place. A restart of the node does not repeat
    /// it then. Returns it with the reason.
    fn fail(&self, start: &ScheduledStart, failure: String) -> Option<ScheduledStart> {
        let mut timer = self.lock();
        let timer = timer.as_mut().filter(|it| it.start == *start)?;
        timer.start.failure = failure;
        if let Err(error) = self.write(&timer.start) {
            tracing::warn!(%error, "the failure of a start cannot be kept");
        }
        Some(timer.start.clone())
    }

    /// Notes that the start ends before its moment, if it is one of these and this is not noted yet. Returns it with the
    /// reason, behind that of an earlier failure.
    pub(super) fn end_if(
        &self,
        is_over: impl FnOnce(&ScheduledStart) -> bool,
        why: String,
    ) -> Option<ScheduledStart> {
        let mut timer = self.lock();
        let timer = timer
            .as_mut()
            .filter(|it| !it.start.replaced && is_over(&it.start))?;
        // The task may be the one that runs here: it has nothing more to wait for.
        if let Some(task) = timer.task.take() {
            task.abort();
        }
        let start = &mut timer.start;
        start.failure = match start.failure.is_empty() {
            true => why,
            false => format!("{}; and {why}", start.failure),
        };
        start.replaced = true;
        if let Err(error) = self.write(start) {
            tracing::warn!(%error, "the end of a planned start cannot be kept");
        }
        Some(start.clone())
    }

    /// The start that waits or has failed.
    pub(super) fn current(&self) -> Option<ScheduledStart> {
        self.lock().as_ref().map(|it| it.start.clone())
    }

    /// How often the clock is read.
    pub(super) fn step(&self) -> Duration {
        self.step
    }

    /// What the file says. `None` if no start waited.
    pub(super) fn read(&self) -> io::Result<Option<ScheduledStart>> {
        match fs::read(&self.file) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, start: &ScheduledStart) -> io::Result<()> {
        let text = serde_json::to_vec(start).map_err(io::Error::other)?;
        // PID 1 makes the folder on a machine; on a host nothing else may need it.
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        alknet_durable::replace(&self.file, &text, 0o600)
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
        // A start that was taken back must not return after a power cut.
        self.file
            .parent()
            .map_or(Ok(()), alknet_durable::sync_folder)
    }

    fn lock(&self) -> MutexGuard<'_, Option<StartTimer>> {
        self.timer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task, as the end of the process does: the file stays.
    #[cfg(test)]
    pub(super) fn end_for_tests(&self) {
        drop(self.lock().take());
    }
}

impl NodeUpdates {
    /// The moment at which the staged version starts.
    pub(super) fn start_moment(&self) -> Option<Timestamp> {
        let start = self.0.scheduled.current();
        let start = start.filter(|it| it.failure.is_empty());
        let waits = start.filter(|it| match self.known_program() {
            Some(staged) => it.is_for(&staged),
            // It stands until it is known that another program is staged, or none.
            None => self.has_read_slots() && !self.knows_slots(),
        });
        waits.map(|it| it.at)
    }

    /// Takes up the start that waited when the node ended. Must run inside a runtime if there is a PID 1.
    pub(super) fn restore_start(&self) {
        if self.0.init.check().is_err() {
            return;
        }
        // Locked before the task begins, so that the task finds its entry.
        let mut timer = self.0.scheduled.lock();
        match self.0.scheduled.read() {
            Ok(start) => *timer = start.map(|start| self.timer(start)),
            Err(error) => tracing::warn!(%error, "the start that was planned cannot be read"),
        }
    }

    pub(super) fn start_at(
        &self,
        at: Timestamp,
        order: StartOrder,
        planner: StartPlanner,
    ) -> Result<Value, CallError> {
        let staged = self.check_moment(at, order.sha256)?;
        let agreed_floor = floor_agreed_to(&staged, order.agreed_floor)?;
        // What was staged a moment ago may have ended a start already.
        self.end_start_of_others();
        let mut timer = self.0.scheduled.lock();
        // One start at a time: a later order takes the place of an earlier one. Of an administrator's only if it is one, too:
        // an update that an administrator has planned must not wait for another month. A start that has failed or was
        // replaced counts as well: the problem that says so ends with another moment.
        let before = timer.as_ref().map(|it| &it.start);
        if let Some(before) = before {
            if order.limited && !before.limited {
                let text = format!(
                    "an administrator ({}) has set the start to {}: only an administrator sets another moment",
                    before.by, before.at
                );
                return Err(conflict("scheduled", &text));
            }
            tracing::info!(by = planner.id, %at, before = %before.at, set_by = before.by, "update.apply moves a start");
        }
        let start = ScheduledStart {
            at,
            version: self.staged_version(),
            agreed_floor: Some(agreed_floor),
            sha256: staged.sha256,
            by: planner.id,
            key: planner.key,
            token: planner.token,
            limited: order.limited,
            failure: String::new(),
            replaced: false,
        };
        // A moment that a restart of the node would undo is not accepted.
        self.0.scheduled.write(&start).map_err(|error| {
            let text = format!("the moment of the start cannot be kept: {error}");
            refused(RefusalCode::Disk.name(), &text)
        })?;
        *timer = Some(self.timer(start));
        Ok(json!({ "scheduled": at.to_string() }))
    }

    /// The program that may be started at this moment.
    fn check_moment(
        &self,
        at: Timestamp,
        wanted: Option<String>,
    ) -> Result<StagedProgram, CallError> {
        let now = self.now_s().ok_or_else(|| {
            conflict(
                "no-clock",
                "this machine does not know the time: start the version now, or set its clock",
            )
        })?;
        let staged = self.staged_program().ok_or_else(|| {
            let text = "no version waits to be started: send one first";
            refused(RefusalCode::NotStaged.name(), text)
        })?;
        if wanted.is_some_and(|wanted| wanted != staged.sha256) {
            let text = "another version is staged than the one that is to start";
            return Err(refused(RefusalCode::OtherStaged.name(), text));
        }
        if !(now..=now + AHEAD_S_MAX).contains(&at.as_second()) {
            let text = "the moment is in the past, or more than 30 days ahead";
            return Err(CallError::invalid_input(text));
        }
        Ok(staged)
    }

    /// The version that is staged, for texts. Empty if it is not known.
    pub(super) fn staged_version(&self) -> String {
        let known = self.0.sessions.staged().map(|plan| plan.to);
        let facts = self.0.facts.load();
        let waiting = || waiting_version(&facts.update).map(str::to_owned);
        known.or_else(waiting).unwrap_or_default()
    }

    /// The start with the task that waits for its moment, or that looks what became of its program if it has failed.
    fn timer(&self, start: ScheduledStart) -> StartTimer {
        let (updates, of_task) = (self.clone(), start.clone());
        let task = match start.failure.is_empty() {
            true => tokio::spawn(updates.wait_and_start(of_task)),
            false => tokio::spawn(updates.settle_failed_start(of_task)),
        };
        StartTimer {
            start,
            task: Some(task.abort_handle()),
        }
    }

    async fn wait_and_start(self, start: ScheduledStart) {
        // Why the last try failed.
        let mut last: Option<String> = None;
        let started = loop {
            let mut pause = self.0.scheduled.step;
            match self.start_turn(&start) {
                StartTurn::Waits => {}
                StartTurn::Now => match self.start_scheduled(&start).await {
                    Ok(()) => break Ok(()),
                    // A client must not spend the start by a request that keeps PID 1 busy at its moment.
                    Err(StartFailure {
                        text,
                        again_after: Some(after),
                    }) => {
                        if last.as_ref() != Some(&text) {
                            tracing::warn!(by = start.by, at = %start.at, failure = text, "update.apply is tried again");
                        }
                        pause = after;
                        last = Some(text);
                    }
                    Err(failure) => break Err(failure.text),
                },
                StartTurn::Missed => {
                    let missed =
                        || "the node did not run then, or did not know the time".to_owned();
                    break Err(last.unwrap_or_else(missed));
                }
                // If the start has ended, so does this task at its next pause. Otherwise a bundle has begun meanwhile.
                StartTurn::Over => self.end_start(&start),
            }
            tokio::time::sleep(pause).await;
        };
        match started {
            Ok(()) => {
                self.0.scheduled.forget_if(|it| *it == start);
            }
            Err(failure) => {
                tracing::warn!(by = start.by, at = %start.at, failure, "update.apply at its moment failed");
                let failed = self.0.scheduled.fail(&start, failure);
                // PID 1 may have refused the start because another program is staged of which the facts say nothing yet.
                if let Some(failed) = failed.filter(|_| !self.knows_slots()) {
                    self.settle_failed_start(failed).await;
                }
            }
        }
    }

    /// What becomes of a start now.
    pub(super) fn start_turn(&self, start: &ScheduledStart) -> StartTurn {
        // The version on trial may be this one. Outdated facts do not let the moment pass: PID 1 compares the program.
        if !self.has_read_slots() {
            return StartTurn::Waits;
        }
        if self.is_replaced(start) {
            return StartTurn::Over;
        }
        // A clock that is lost meanwhile lets the moment wait: without the time nothing starts by itself.
        match self.now_s().map(|now| now - start.at.as_second()) {
            Some(late) if late > LATE_S_MAX => StartTurn::Missed,
            Some(late) if late >= 0 => StartTurn::Now,
            _ => StartTurn::Waits,
        }
    }

    /// Whether it is known that this start is not for what is staged.
    fn is_replaced(&self, start: &ScheduledStart) -> bool {
        match self.known_program() {
            Some(staged) => !start.is_for(&staged),
            None => !self.may_be_staged(),
        }
    }

    /// Whether PID 1 has said how the slots stand. After a start it reads them beside the node's start.
    fn has_read_slots(&self) -> bool {
        self.staged_sha256().is_some() || !self.0.facts.load().update.state.is_empty()
    }

    /// Whether what is staged is known now. While a bundle is staged, and until PID 1 has read the slots again, its facts
    /// say how they stood before, and that may be before what this node has staged and forgotten.
    pub(super) fn knows_slots(&self) -> bool {
        self.0.sessions.staged().is_some() || self.has_current_facts()
    }

    /// Whether PID 1 has read the slots since they changed last.
    pub(super) fn has_current_facts(&self) -> bool {
        let facts = self.0.facts.load();
        !(facts.update.state.is_empty() || facts.update.outdated)
    }

    /// Whether a version may be staged although none is known.
    fn may_be_staged(&self) -> bool {
        let facts = self.0.facts.load();
        let state = facts.update.state.as_str();
        facts.update.outdated || matches!(state, "" | "absent" | "staged" | "unreadable")
    }

    /// Starts the version at its moment, by the rights that its caller has now.
    async fn start_scheduled(&self, start: &ScheduledStart) -> Result<(), StartFailure> {
        // Not by `start`, which would abort this task.
        let mut started = self
            .send_request(self.order_now(start)?.request(), &start.by)
            .await;
        if started.as_ref().is_err_and(is_busy)
            && let Some(turn) = self.end_lesser_session(&start.by).await
        {
            let order = self.order_now(start)?;
            started = self.send_request(order.request(), &start.by).await;
            // Until here no other session could begin.
            drop(turn);
        }
        let step = self.0.scheduled.step;
        started.map_err(|error| StartFailure {
            again_after: match &error {
                error if is_busy(error) => Some(step),
                error if may_pass(error) => Some(step * STEPS_OF_OTHERS),
                _ => None,
            },
            text: error.message,
        })?;
        self.0.attempts.applied.fetch_add(1, Ordering::Relaxed);
        tracing::info!(by = start.by, "update.apply at its moment");
        Ok(())
    }

    /// What the caller that set the moment may order now.
    fn order_now(&self, start: &ScheduledStart) -> Result<StartOrder, StartFailure> {
        let who = self.planner_now(start);
        let may = |scope| who.as_ref().is_some_and(|who| who.scopes.allows(scope));
        let is_admin = may(ADMIN_SCOPE);
        if !is_admin && !may(APPLY_SCOPE) {
            return Err(StartFailure {
                text: "the caller that set the moment may not start versions any more".to_owned(),
                again_after: None,
            });
        }
        Ok(StartOrder {
            // PID 1 compares the program once more.
            sha256: Some(start.sha256.clone()),
            agreed_floor: start.agreed_floor.clone(),
            limited: start.limited || !is_admin,
            unasked: false,
        })
    }

    /// The caller that set the moment, if it may still connect by the key or the token that it had then.
    fn planner_now(&self, start: &ScheduledStart) -> Option<Arc<Identity>> {
        let identities = &self.0.identities;
        let who = match (&start.key, &start.token) {
            (Some(key), _) => identities.by_key(key),
            (None, Some(token)) => identities.by_token_hash(token),
            (None, None) => None,
        };
        who.filter(|who| who.id.as_str() == start.by)
    }

    /// Gives up the session under way unless it brings a version for a caller that may start versions: another caller
    /// could keep PID 1 busy by a slow bundle until the start is too late. The caller of the start may do this itself, by
    /// `update/cancel`. Returns the turn of the next session, if there was such a session: its client could begin another
    /// one at once.
    async fn end_lesser_session(&self, by: &str) -> Option<SessionTurn> {
        let sessions = &self.0.sessions;
        let is_lesser = |it: &StagingRequest| it.limited || it.unasked || it.dry_run;
        let lesser = || sessions.current().filter(|it| is_lesser(&it.request));
        lesser()?;
        let turn = sessions.turn().ok()?;
        let session = lesser()?;
        let (id, owner) = (session.id.clone(), session.request.owner.clone());
        drop(session);
        self.note_interruption(by);
        let why = format!("the start of another version, which {by} has planned, is due");
        let ended = sessions.give_up((&id, &owner), why).await;
        ended.is_ok().then_some(turn)
    }
}

/// The floor to which the caller of a planned start agrees: the one that it names, or else that of the program that is
/// staged now. Refuses at once what PID 1 would refuse at the moment.
fn floor_agreed_to(
    staged: &StagedProgram,
    wanted: Option<AgreedFloor>,
) -> Result<AgreedFloor, CallError> {
    match (wanted, staged.raised_floor()) {
        (None, raised) => Ok(AgreedFloor::new(raised)),
        (Some(agreed), raised) if agreed.permits(raised.as_ref()) => Ok(agreed),
        (Some(agreed), raised) => {
            let raised = raised.as_ref().map(ToString::to_string);
            let text = format!(
                "once the staged version is confirmed, no version before {} runs here, and the floor that you agreed to is \
                 {agreed}: look at its plan again",
                raised.unwrap_or_default()
            );
            Err(refused(RefusalCode::FloorRaised.name(), &text))
        }
    }
}

fn conflict(code: &str, text: &str) -> CallError {
    let details = json!({ "code": code, "text": text });
    CallError::new(ErrorCode::Conflict, text).with_details(details)
}
