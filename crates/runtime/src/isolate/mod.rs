//! One isolate: an engine with its limits, its globals and the calls that run in it.
//!
//! An isolate belongs to the thread that made it. [`Isolate::next`] is the whole of its life: it
//! runs jobs until none is left, waits for an answer, a timer or a [`Remote`], and hands out each
//! call's [`Outcome`]. Between two turns no script runs and nothing is charged.

mod bytes;
mod drive;
mod entry;
mod failure;
mod flights;
mod gauge;
mod heap;
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
pub(crate) use entry::Active;
pub use entry::{Outcome, Stats, Work};
pub(crate) use failure::of_error;
pub use gauge::Gauge;
use heap::{Counted, Heap};
pub(crate) use shared::{Offered, Root, Settle, Shared, Timer};
pub use spec::{Grants, Mode, Spec};

use crate::error::{Code, Failure};
use crate::globals;
use crate::host::Host;
use crate::modules;

/// What the engine is built with: everything of the language that neither shows time nor the
/// collector. `Eval` has to be there for modules to be compiled; outside of a REPL nothing that a
/// script can reach leads to it.
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

/// Version of the engine: fuel and ids of scripts are the same within one.
pub const ENGINE: &str = "quickjs-ng 0.16";

/// Promises that were rejected while nobody listened.
type Rejected<'js> = RefCell<Vec<JsValue<'js>>>;

/// Bytes that the engine allocates before it looks for cycles.
const COLLECT_AFTER_BYTES: usize = 1 << 20;

/// An engine and the calls that run in it.
pub struct Isolate {
    shared: Rc<Shared>,
    entries: Vec<Active>,
    finished: VecDeque<Outcome>,
    commands: mpsc::UnboundedReceiver<Command>,
    sender: mpsc::UnboundedSender<Command>,
    /// Why it takes no further call.
    closed: Option<Failure>,
    /// Wakes us when the next timer is due.
    sleeping: RefCell<Option<LocalBoxFuture<'static, ()>>>,
    heap: Arc<Heap>,
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

/// What another thread sends in.
#[derive(Debug)]
pub(crate) enum Command {
    Start(u64, Work),
    Abort(u64),
}

/// The handle by which other threads reach an isolate.
#[derive(Clone, Debug)]
pub struct Remote {
    gauge: Arc<Gauge>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Remote {
    /// Begins a call under an id of the caller's choice.
    pub fn start(&self, entry: u64, work: Work) {
        // A closed channel is an isolate that ended; its calls were answered.
        let _ = self.commands.send(Command::Start(entry, work));
    }

    /// Asks one call to end: its `AbortSignal` fires, and it is answered with `E_ABORT`. A script
    /// that computes does not hear it; [`stop`](Self::stop) does the rest.
    pub fn abort(&self, entry: u64) {
        let _ = self.commands.send(Command::Abort(entry));
    }

    /// Ends the isolate at the engine's next question, with `code` as the reason of all its calls.
    pub fn stop(&self, code: Code) {
        self.gauge.stop(code);
    }

    /// What it uses, for heartbeats.
    #[must_use]
    pub fn gauge(&self) -> &Arc<Gauge> {
        &self.gauge
    }
}

impl Isolate {
    /// Makes an engine with the globals of `spec`.
    ///
    /// # Errors
    /// [`Code::Limit`] for limits out of range; [`Code::Memory`] when the heap does not hold the
    /// globals.
    pub fn open(spec: Spec, host: Arc<dyn Host>) -> Result<Self, Failure> {
        Self::open_under(spec, host, None)
    }

    /// The same for a test case, which ends when the session that runs it does.
    pub(crate) fn open_under(
        mut spec: Spec,
        host: Arc<dyn Host>,
        parent: Option<Arc<Gauge>>,
    ) -> Result<Self, Failure> {
        spec.limits = spec.limits.checked()?;
        crate::math::linked();
        let seed = seed(&spec)?;
        let gauge = Gauge::new(parent);
        let shared = Shared::new(spec, host, Arc::clone(&gauge), seed);
        let heap = Heap::new();
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
    pub fn remote(&self) -> Remote {
        Remote {
            gauge: Arc::clone(&self.shared.gauge),
            commands: self.sender.clone(),
        }
    }

    /// Why it takes no further call, if it takes none.
    #[must_use]
    pub const fn closed(&self) -> Option<&Failure> {
        self.closed.as_ref()
    }

    /// Bytes that the engine has allocated now.
    #[must_use]
    pub fn heap_bytes(&self) -> u64 {
        self.heap.used() as u64
    }
}

impl Drop for Isolate {
    fn drop(&mut self) {
        self.entries.clear();
        release(&self.shared, &self.context);
    }
}

/// Lets go of every value of the engine's: it ends the process when one outlives it.
fn release(shared: &Shared, context: &Context) {
    shared.clear();
    context.with(|ctx| drop(ctx.remove_userdata::<Rejected<'_>>()));
}

fn seed(spec: &Spec) -> Result<[u8; 32], Failure> {
    match spec.seed {
        Some(seed) if !(std::env::var("ALKNET_MUTANT").as_deref() == Ok("2154")) => Ok(seed),
        Some(_) => Ok([7; 32]),
        None => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| {
                Failure::new(Code::Exception, format!("no random bytes: {error}"))
            })?;
            Ok(seed)
        }
    }
}

fn engine(shared: &Rc<Shared>, heap: &Arc<Heap>) -> Result<(Runtime, Context), Failure> {
    let out = |_| Failure::new(Code::Memory, "no memory for an engine");
    let runtime = Runtime::new_with_alloc(Counted(Arc::clone(heap))).map_err(out)?;
    let less = if (std::env::var("ALKNET_MUTANT").as_deref() == Ok("2155")) { 16 } else { 1 };
    runtime.set_max_stack_size(shared.spec.limits.stack_bytes / less);
    runtime.set_gc_threshold(COLLECT_AFTER_BYTES);
    let context = Context::custom::<Intrinsics>(&runtime).map_err(out)?;
    if !(std::env::var("ALKNET_MUTANT").as_deref() == Ok("2165")) { heap.limit(shared.spec.limits.heap_bytes); }
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
    let gauge = Arc::clone(&shared.gauge);
    runtime.set_interrupt_handler(Some(Box::new(move || gauge.interrupt())));
    Ok((runtime, context))
}

fn rejection<'js>(ctx: Ctx<'js>, promise: JsValue<'js>, _reason: JsValue<'js>, handled: bool) {
    let Some(list) = ctx.userdata::<Rejected<'js>>() else {
        return;
    };
    let mut list = list.borrow_mut();
    if handled {
        list.retain(|known| *known != promise);
    } else {
        list.push(promise);
    }
}
