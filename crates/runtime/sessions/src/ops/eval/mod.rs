//! `runtime/eval`: runs a script that its caller sends, at once or line by line.

mod request;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_call::{CallError, Ctx, ErrorCode};
use alknet_core::{Identity, PeerKey};
use alknet_runtime::{
    CallRecorder, IsolateWork, ModuleSet, RecordedCalls, RuntimeCode, ScriptFailure, SessionMode,
    SessionTimeSource,
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::host::{
    ScriptSession, ScriptSessions, SessionConsoleLine, SessionGrants, SessionOutput, SessionSpec,
    SessionState, of_open, overloaded, to_call_error,
};
use crate::limits::{CONSOLE_LINES, REPL_IDLE, REPL_NAME_BYTES_MAX, REPLS_OF_TENANT_MAX};
use request::seed_of;
pub(super) use request::{EvalRequest, output_schema, schema};

/// The code of an exception that is no operation's error.
pub(super) const SCRIPT_FAILED: &str = "SCRIPT_FAILED";

/// The owner of a REPL, and its name.
type Name = (String, String);

/// A session that waits for further lines.
#[derive(Debug)]
struct Repl {
    session: ScriptSession,
    /// Only one line runs at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
    used: Instant,
    /// The identity whose rights it was opened with.
    owner: Option<Arc<Identity>>,
    /// A key of the owner, by which it is known again: another peer may get its id.
    key: Option<PeerKey>,
}

/// A session that waits for further lines, its turn, and its owner at the time of opening.
type Known = (
    ScriptSession,
    Arc<tokio::sync::Mutex<()>>,
    Option<Arc<Identity>>,
);

/// Whether the caller `now` has all rights that the owner had `before`.
fn has_rights_of(now: Option<&Identity>, before: Option<&Identity>) -> bool {
    let (Some(now), Some(before)) = (now, before) else {
        // A REPL that an unknown peer opened has no rights that could be lost.
        return before.is_none();
    };
    let held = |kind| now.resources.get(kind).map_or(&[][..], Vec::as_slice);
    let mut resources = before.resources.iter();
    now.scopes.covers(&before.scopes)
        && resources.all(|(kind, ids)| ids.iter().all(|id| held(kind).contains(id)))
}

/// The listeners of a script's console and calls.
struct EvalListeners {
    console: mpsc::Sender<SessionConsoleLine>,
    record: Option<CallRecorder>,
}

/// Runs scripts for callers.
#[derive(Debug)]
pub(super) struct EvalService {
    sessions: Arc<ScriptSessions>,
    reach: Vec<String>,
    repls: Mutex<HashMap<Name, Repl>>,
    /// How many REPLs are being opened for each owner. Locked after `repls`.
    opening: Mutex<HashMap<String, usize>>,
}

/// A place among an owner's REPLs, until the REPL is open.
struct ReplPermit<'a> {
    evals: &'a EvalService,
    owner: &'a str,
}

impl Drop for ReplPermit<'_> {
    fn drop(&mut self) {
        let mut opening = self.evals.lock_opening();
        if let Some(places) = opening.get_mut(self.owner) {
            *places -= 1;
            if *places == 0 {
                opening.remove(self.owner);
            }
        }
    }
}

impl EvalService {
    pub(super) fn new(sessions: &Arc<ScriptSessions>, reach: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            sessions: Arc::clone(sessions),
            reach,
            repls: Mutex::default(),
            opening: Mutex::default(),
        })
    }

    pub(super) async fn run(
        self: &Arc<Self>,
        request: EvalRequest,
        ctx: &Ctx,
    ) -> Result<Value, CallError> {
        let (console, mut lines) = mpsc::channel(CONSOLE_LINES);
        let record = request.record.then(CallRecorder::default);
        let heard = EvalListeners {
            console,
            record: record.clone(),
        };
        let ran = match request.repl.clone() {
            Some(name) => self.line(name, request, ctx, heard).await,
            None => self.once(request, ctx, heard).await,
        };
        let recorded = record.map(|record| record.end());
        let mut output = Vec::new();
        while let Ok(SessionConsoleLine { level, text }) = lines.try_recv() {
            output.push(json!({ "level": level, "text": text }));
        }
        match ran {
            Ok(ran) => {
                let mut answer = answer(ran, output);
                if let (Some(answer), Some(recorded)) = (answer.as_object_mut(), recorded) {
                    add_calls(answer, &recorded);
                }
                Ok(answer)
            }
            Err(mut error) => {
                let details = error.details.get_or_insert_with(|| Box::new(json!({})));
                if let Some(details) = details.as_object_mut() {
                    if !output.is_empty() {
                        details.insert("console".to_owned(), Value::Array(output));
                    }
                    // A script that failed before its first call has no calls to report.
                    let some = |it: &RecordedCalls| it.left_out > 0 || !it.calls.is_empty();
                    if let Some(recorded) = recorded.filter(some) {
                        add_calls(details, &recorded);
                    }
                }
                Err(error)
            }
        }
    }

    /// Runs a script with its modules.
    async fn once(
        &self,
        request: EvalRequest,
        ctx: &Ctx,
        heard: EvalListeners,
    ) -> Result<SessionOutput, CallError> {
        let main = request
            .main
            .clone()
            .unwrap_or_else(|| "./main.ts".to_owned());
        let mut spec = self.spec(&request, ctx, SessionMode::OneShot)?;
        if let Some(source) = request.source {
            spec.modules
                .insert(&main, source)
                .map_err(|f| request_error(&f))?;
        }
        spec.console = Some(heard.console);
        let opened = self.sessions.open(&ctx.env(), spec).await;
        let session = opened.map_err(|failure| unopened(&failure, ctx))?;
        session.set_record(heard.record);
        let ran = session
            .run(&ctx.env(), IsolateWork::Module { module: main })
            .await;
        ran.map_err(|failure| ended(&failure, ctx))
    }

    /// Runs lines of a REPL, which the first of them opens.
    async fn line(
        self: &Arc<Self>,
        name: String,
        request: EvalRequest,
        ctx: &Ctx,
        heard: EvalListeners,
    ) -> Result<SessionOutput, CallError> {
        if name.is_empty() || name.len() > REPL_NAME_BYTES_MAX {
            let text = format!("a REPL's name has 1 to {REPL_NAME_BYTES_MAX} bytes");
            return Err(CallError::invalid_input(text));
        }
        let tenant = ctx
            .identity()
            .map_or_else(String::new, |who| who.id.to_string());
        let name = (tenant, name);
        let source = request.source.clone().unwrap_or_default();
        let known = self.known(&name, ctx);
        if let Some((.., owner)) = &known
            && !has_rights_of(ctx.identity().map(AsRef::as_ref), owner.as_deref())
        {
            self.lock().remove(&name);
            let text = "the REPL was opened with rights that its owner has no more; it is closed";
            return Err(CallError::new(ErrorCode::Forbidden, text));
        }
        if request.end {
            // Earlier lines run to their end, but later requests do not find the REPL.
            self.lock().remove(&name);
        }
        let (session, turn) = match known {
            Some((session, turn, _)) => (session, turn),
            None if request.end => return Err(CallError::invalid_input("no such REPL is open")),
            None => self.begin(&name, &request, ctx).await?,
        };
        // The session has only one console and one record.
        let _one_at_a_time = turn.lock().await;
        session.set_console(Some(heard.console));
        session.set_record(heard.record);
        let ran = session
            .run(&ctx.env(), IsolateWork::Script { source })
            .await;
        // Output between two lines is only in the log.
        session.set_console(None);
        session.set_record(None);
        // The idle time counts from the end of the line.
        if let Some(repl) = self.lock().get_mut(&name) {
            repl.used = Instant::now();
        }
        ran.map_err(|failure| ended(&failure, ctx))
    }

    fn known(&self, name: &Name, ctx: &Ctx) -> Option<Known> {
        let mut repls = self.lock();
        // A REPL that a limit ended must not answer further lines.
        repls.retain(|_, repl| !matches!(repl.session.info().state, SessionState::Closed(_)));
        // It has the values of a peer that is gone, and globals that this peer may have made for its successor.
        let of_another = |repl: &Repl| repl.key.is_some_and(|key| !ctx.has_key(&key));
        if repls.get(name).is_some_and(of_another) {
            repls.remove(name);
        }
        let repl = repls.get_mut(name)?;
        repl.used = Instant::now();
        let owner = repl.owner.clone();
        Some((repl.session.clone(), Arc::clone(&repl.turn), owner))
    }

    async fn begin(
        self: &Arc<Self>,
        name: &Name,
        request: &EvalRequest,
        ctx: &Ctx,
    ) -> Result<(ScriptSession, Arc<tokio::sync::Mutex<()>>), CallError> {
        // The place is taken before the session is opened, which may take a while: REPLs that begin at the same time
        // count too.
        let _place = self.reserve(&name.0)?;
        let spec = self.spec(request, ctx, SessionMode::Repl)?;
        let opened = self.sessions.open(&ctx.env(), spec).await;
        let session = opened.map_err(|failure| unopened(&failure, ctx))?;
        let turn = Arc::default();
        let repl = Repl {
            session: session.clone(),
            turn: Arc::clone(&turn),
            used: Instant::now(),
            owner: ctx.identity().cloned(),
            key: ctx.lasting_key(),
        };
        // If two requests open it at once, the later one is kept.
        self.lock().insert(name.clone(), repl);
        self.forget_when_idle(name.clone(), session.id());
        Ok((session, turn))
    }

    /// A place for a further REPL of this owner.
    fn reserve<'a>(&'a self, owner: &'a str) -> Result<ReplPermit<'a>, CallError> {
        let repls = self.lock();
        let open = repls.keys().filter(|(tenant, _)| tenant == owner).count();
        let mut opening = self.lock_opening();
        let places = opening.get(owner).copied().unwrap_or_default();
        if open + places >= REPLS_OF_TENANT_MAX {
            return Err(overloaded("as many REPLs as one caller may have are open"));
        }
        opening.insert(owner.to_owned(), places + 1);
        Ok(ReplPermit { evals: self, owner })
    }

    /// Closes a REPL that has not been used for [`REPL_IDLE`].
    fn forget_when_idle(self: &Arc<Self>, name: Name, session: u64) {
        // The reference is weak, so that the waiting task keeps nothing alive.
        let evals = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut wait = REPL_IDLE;
            loop {
                tokio::time::sleep(wait).await;
                let Some(evals) = evals.upgrade() else { return };
                let mut repls = evals.lock();
                // Another REPL may have the name by now, and has a waiting task of its own.
                let Some(repl) = repls.get(&name).filter(|repl| repl.session.id() == session)
                else {
                    return;
                };
                wait = REPL_IDLE.saturating_sub(repl.used.elapsed());
                if wait.is_zero() {
                    repls.remove(&name);
                    return;
                }
            }
        });
    }

    fn spec(
        &self,
        request: &EvalRequest,
        ctx: &Ctx,
        mode: SessionMode,
    ) -> Result<SessionSpec, CallError> {
        let mut modules = ModuleSet::new();
        for (name, text) in &request.modules {
            modules
                .insert(name, text.clone())
                .map_err(|f| request_error(&f))?;
        }
        let mut spec = SessionSpec::new(ctx.identity().cloned(), modules);
        spec.capabilities = ctx.capabilities().clone();
        spec.mode = mode;
        spec.grants = SessionGrants::to(request.uses.as_ref().unwrap_or(&self.reach));
        spec.limits = request.limits.limits();
        if let Some(seed) = &request.seed {
            spec.seed = Some(seed_of(seed)?);
            // A script with a seed gives the same result each time, so it must not depend on the
            // time of day.
            spec.clock = SessionTimeSource::Virtual { start_ms: 0 };
        }
        Ok(spec)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Repl>> {
        self.repls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_opening(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of an invalid request, before anything ran.
fn request_error(failure: &ScriptFailure) -> CallError {
    to_call_error(failure, false, |_| false)
}

/// The error for a session that could not be opened. A lack of room is recorded with the request.
fn unopened(failure: &ScriptFailure, ctx: &Ctx) -> CallError {
    if failure.is_no_capacity() {
        ctx.env().excuse();
    }
    of_open(failure)
}

/// The error of a script. Its caller wrote it, so an exception is for the caller to see, and no
/// fault of the node.
fn ended(failure: &ScriptFailure, ctx: &Ctx) -> CallError {
    let mut error = to_call_error(failure, ctx.is_hindered(), |_| false);
    if failure.code == RuntimeCode::Exception {
        // A lack of room is more important for the caller than the exception.
        if error.code != ErrorCode::Overloaded {
            error.code = CallError::operation(SCRIPT_FAILED, "").code;
        }
        if let (Some(operation), Some(details)) = (&failure.operation, &mut error.details) {
            details["operation"] = json!(operation);
        }
    }
    error
}

/// The value is moved, because the macro would copy it.
fn answer(mut ran: SessionOutput, console: Vec<Value>) -> Value {
    let mut answer = json!({
        "value": null,
        "shown": ran.shown,
        "console": null,
        "stats": {
            "fuel": ran.stats.ticks,
            "cpu_us": ran.stats.cpu_us,
            "heap_peak": ran.stats.heap_peak,
            "external_peak": ran.stats.external_peak,
            "calls": ran.calls,
        },
    });
    answer["value"] = ran.value.take();
    answer["console"] = Value::Array(console);
    answer
}

/// Adds the recorded calls to the answer.
fn add_calls(into: &mut Map<String, Value>, recorded: &RecordedCalls) {
    into.insert("calls".to_owned(), json!(recorded.calls));
    into.insert("calls_left_out".to_owned(), json!(recorded.left_out));
}
