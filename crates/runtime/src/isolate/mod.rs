//! One isolate: an engine with its limits, its globals and the calls that run in it.
//!
//! An isolate belongs to the thread that made it. [`Isolate::next`] drives it: it runs jobs until there are no more,
//! waits for an answer, a timer or an [`IsolateHandle`], and returns each call's [`EntryOutcome`]. Between two turns
//! no script runs and nothing is charged.

mod bytes;
mod drive;
mod entry;
mod failure;
mod heap;
mod interrupt_budget;
mod pending;
mod shared;
mod spec;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use rquickjs::context::intrinsic;
use rquickjs::{Context, Ctx, Runtime, Value as JsValue};
use tokio::sync::mpsc;

pub(crate) use bytes::{read as read_bytes, share as share_bytes};
pub(crate) use entry::ActiveEntry;
pub use entry::{EntryOutcome, EntryStats, IsolateWork};
pub(crate) use failure::of_error;
use heap::{CountingAllocator, HeapQuota};
pub use interrupt_budget::InterruptBudget;
pub(crate) use shared::{EvaluationRoot, IsolateState, OfferedOperation, PromiseSettler, Timer};
pub use spec::{GlobalGrants, IsolateSpec, SessionMode};

use crate::error::{RuntimeCode, ScriptFailure};
use crate::globals;
use crate::host::IsolateHost;
use crate::modules;

/// The features of the engine: all of the language except those that show the time or the garbage collector. `Eval`
/// is needed to compile modules; outside a REPL, a script can reach nothing that leads to it.
type Intrinsics = (
    intrinsic::Date,
    intrinsic::Eval,
    intrinsic::RegExpCompiler,
    intrinsic::RegExp,
    intrinsic::Json,
    intrinsic::Proxy,
    intrinsic::MapSet,
    intrinsic::TypedArrays,
    intrinsic::Promise,
    intrinsic::DOMException,
);

/// The version of the engine: fuel and the ids of scripts are the same within one version.
pub const ENGINE: &str = "quickjs-ng 0.16";

/// Promises that were rejected without a handler.
type Rejected<'js> = RefCell<Vec<JsValue<'js>>>;

/// The bytes that the engine allocates before it collects cycles.
const COLLECT_AFTER_BYTES: usize = 1 << 20;

/// An engine and the calls that run in it.
pub struct Isolate {
    shared: Rc<IsolateState>,
    entries: Vec<ActiveEntry>,
    finished: VecDeque<EntryOutcome>,
    commands: mpsc::UnboundedReceiver<IsolateCommand>,
    sender: mpsc::UnboundedSender<IsolateCommand>,
    /// The reason why it accepts no further call.
    closed: Option<ScriptFailure>,
    /// Wakes the task when the next timer is due.
    sleeping: RefCell<Option<LocalBoxFuture<'static, ()>>>,
    heap: Arc<HeapQuota>,
    context: Context,
    runtime: Runtime,
}

impl fmt::Debug for Isolate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolate")
            .field("entries", &self.entries.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// A command from another thread.
#[derive(Debug)]
pub(crate) enum IsolateCommand {
    Start(u64, IsolateWork),
    Abort(u64),
}

/// The handle by which other threads reach an isolate.
#[derive(Clone, Debug)]
pub struct IsolateHandle {
    budget: Arc<InterruptBudget>,
    heap: Arc<HeapQuota>,
    commands: mpsc::UnboundedSender<IsolateCommand>,
}

impl IsolateHandle {
    /// Begins a call with an id that the caller chooses.
    pub fn start(&self, entry: u64, work: IsolateWork) {
        // A closed channel means that the isolate has ended and answered its calls.
        let _ = self.commands.send(IsolateCommand::Start(entry, work));
    }

    /// Asks one call to end: its `AbortSignal` fires, and it is answered with `E_ABORT`. A script that computes does
    /// not notice this, and [`stop`](Self::stop) ends it.
    pub fn abort(&self, entry: u64) {
        let _ = self.commands.send(IsolateCommand::Abort(entry));
    }

    /// Ends the isolate at the engine's next check, with `code` as the reason for all its calls.
    pub fn stop(&self, code: RuntimeCode) {
        self.budget.stop(code);
    }

    /// The resource use, for heartbeats.
    #[must_use]
    pub fn budget(&self) -> &Arc<InterruptBudget> {
        &self.budget
    }

    /// The most bytes that the engine had allocated at once so far.
    #[must_use]
    pub fn heap_peak(&self) -> u64 {
        self.heap.peak() as u64
    }
}

impl Isolate {
    /// Makes an engine with the globals of `spec`.
    ///
    /// # Errors
    /// [`RuntimeCode::Limit`] for limits out of range; [`RuntimeCode::Memory`] if the heap cannot hold the globals.
    pub fn open(spec: IsolateSpec, host: Arc<dyn IsolateHost>) -> Result<Self, ScriptFailure> {
        Self::open_under(spec, host, None)
    }

    /// Like `open`, for a test case, which ends when its session does.
    pub(crate) fn open_under(
        mut spec: IsolateSpec,
        host: Arc<dyn IsolateHost>,
        parent: Option<Arc<InterruptBudget>>,
    ) -> Result<Self, ScriptFailure> {
        spec.limits = spec.limits.checked()?;
        crate::math::linked();
        let seed = seed(&spec)?;
        let budget = InterruptBudget::new(parent);
        let shared = IsolateState::new(spec, host, Arc::clone(&budget), seed);
        let heap = Arc::clone(&shared.heap);
        let (runtime, context) = engine(&shared, &heap)?;
        let (sender, commands) = mpsc::unbounded_channel();
        Ok(Self {
            shared,
            entries: Vec::new(),
            finished: VecDeque::new(),
            commands,
            sender,
            closed: None,
            sleeping: RefCell::default(),
            heap,
            context,
            runtime,
        })
    }

    /// A handle for other threads.
    #[must_use]
    pub fn remote(&self) -> IsolateHandle {
        IsolateHandle {
            budget: Arc::clone(&self.shared.budget),
            heap: Arc::clone(&self.heap),
            commands: self.sender.clone(),
        }
    }

    /// The reason why it accepts no further call; `None` while it does.
    #[must_use]
    pub const fn closed(&self) -> Option<&ScriptFailure> {
        self.closed.as_ref()
    }

    /// The most bytes that the engine had allocated at once so far.
    #[must_use]
    pub fn heap_peak(&self) -> u64 {
        self.heap.peak() as u64
    }
}

impl Drop for Isolate {
    fn drop(&mut self) {
        self.entries.clear();
        release(&self.shared, &self.context);
    }
}

/// Drops all values of the engine, which ends the process if one of them outlives it.
fn release(shared: &IsolateState, context: &Context) {
    shared.clear();
    context.with(|ctx| drop(ctx.remove_userdata::<Rejected<'_>>()));
}

fn seed(spec: &IsolateSpec) -> Result<[u8; 32], ScriptFailure> {
    match spec.seed {
        Some(seed) => Ok(seed),
        None => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| {
                ScriptFailure::new(RuntimeCode::Exception, format!("no random bytes: {error}"))
            })?;
            Ok(seed)
        }
    }
}

fn engine(
    shared: &Rc<IsolateState>,
    heap: &Arc<HeapQuota>,
) -> Result<(Runtime, Context), ScriptFailure> {
    let out = |_| ScriptFailure::new(RuntimeCode::Memory, "no memory for an engine");
    let runtime = Runtime::new_with_alloc(CountingAllocator(Arc::clone(heap))).map_err(out)?;
    runtime.set_max_stack_size(shared.spec.limits.stack_bytes);
    runtime.set_gc_threshold(COLLECT_AFTER_BYTES);
    let context = Context::custom::<Intrinsics>(&runtime).map_err(out)?;
    // The limit begins after the context exists, which every session needs.
    heap.limit(shared.spec.limits.heap_bytes);
    let (resolver, loader) = modules::loader(shared);
    runtime.set_loader(resolver, loader);
    runtime.set_host_promise_rejection_tracker(Some(Box::new(rejection)));
    let installed = context.with(|ctx| {
        let installed = ctx
            .store_userdata(Rejected::default())
            .map_err(|_| rquickjs::Error::Unknown)
            .and_then(|_| globals::install(&ctx, shared));
        installed.map_err(|error| of_error(&ctx, shared, error))
    });
    if let Err(failure) = installed {
        release(shared, &context);
        return Err(failure);
    }
    let budget = Arc::clone(&shared.budget);
    // The handler is set last, so that the runtime's own scripts take no fuel.
    runtime.set_interrupt_handler(Some(Box::new(move || budget.interrupt())));
    Ok((runtime, context))
}

fn rejection<'js>(ctx: Ctx<'js>, promise: JsValue<'js>, _reason: JsValue<'js>, handled: bool) {
    let Some(list) = ctx.userdata::<Rejected<'js>>() else {
        return;
    };
    let mut list = list.borrow_mut();
    // A handler was added later (ECMA-262, HostPromiseRejectionTracker).
    if handled {
        list.retain(|known| *known != promise);
    } else {
        list.push(promise);
    }
}
