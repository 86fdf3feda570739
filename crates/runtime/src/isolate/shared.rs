//! The state that an isolate shares with the functions that its scripts call.
//!
//! All of it belongs to one thread. Values of the engine are stored as [`Persistent`]s, which must
//! be dropped before the engine: see [`IsolateState::clear`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng;
use rquickjs::{Ctx, Error, Function, Object, Persistent, Value as JsValue};
use serde_json::Value;

use crate::clock::SessionClock;
use crate::error::{OpError, RuntimeCode, ScriptFailure};
use crate::host::{IsolateHost, ScriptRegistration};
use crate::isolate::heap::HeapQuota;
use crate::isolate::interrupt_budget::InterruptBudget;
use crate::isolate::pending::PendingHostCalls;
use crate::isolate::spec::IsolateSpec;
use crate::json::{self, WriterStop};
use crate::modules::ModuleSet;

pub(crate) type PersistentCell<T> = RefCell<Option<Persistent<T>>>;

/// A waiting timer.
#[derive(Debug)]
pub(crate) struct Timer {
    pub(crate) run: Persistent<Function<'static>>,
}

/// An operation that the script offers.
#[derive(Clone, Debug)]
pub(crate) struct OfferedOperation {
    pub(crate) registration: ScriptRegistration,
    pub(crate) handler: Persistent<Function<'static>>,
}

/// A promise that Rust settles.
#[derive(Debug)]
pub(crate) struct PromiseSettler {
    pub(crate) resolve: Persistent<Function<'static>>,
    pub(crate) reject: Persistent<Function<'static>>,
    /// The script's stack at the moment when it made the promise. An error takes this stack as its own.
    pub(crate) called_at: Option<Persistent<JsValue<'static>>>,
}

/// The state of one isolate, apart from the engine.
pub(crate) struct IsolateState {
    pub(crate) spec: IsolateSpec,
    pub(crate) host: Arc<dyn IsolateHost>,
    pub(crate) budget: Arc<InterruptBudget>,
    pub(crate) heap: Arc<HeapQuota>,
    pub(crate) clock: RefCell<SessionClock>,
    pub(crate) random: RefCell<ChaCha20Rng>,
    pub(crate) bytes: RefCell<ChaCha20Rng>,
    pub(crate) modules: Arc<ModuleSet>,
    pub(crate) pending_calls: RefCell<PendingHostCalls>,
    /// Timers by their due time in milliseconds, then by the order of setting.
    pub(crate) timers: RefCell<BTreeMap<(u64, u32), Timer>>,
    pub(crate) next_timer: Cell<u32>,
    pub(crate) offered: RefCell<BTreeMap<String, OfferedOperation>>,
    pub(crate) calls: Cell<u64>,
    /// The number of running functions that must not call anything.
    pub(crate) pure: Cell<u32>,
    /// The bytes of console output left in the current second, and that second.
    pub(crate) log: Cell<(usize, u64)>,
    /// Functions of the runtime's scripts that Rust calls.
    pub(crate) hooks: PersistentCell<Object<'static>>,
    /// What was evaluated, so that a test case can repeat it.
    pub(crate) roots: RefCell<Vec<EvaluationRoot>>,
}

/// Something that was evaluated at the top level of a session.
#[derive(Clone, Debug)]
pub(crate) enum EvaluationRoot {
    Module(String),
    Script(String),
}

impl IsolateState {
    pub(crate) fn new(
        spec: IsolateSpec,
        host: Arc<dyn IsolateHost>,
        budget: Arc<InterruptBudget>,
        seed: [u8; 32],
    ) -> Rc<Self> {
        let mut bytes = ChaCha20Rng::from_seed(seed);
        // The two streams of one seed are disjoint, so `Math.random` reveals nothing about keys.
        bytes.set_stream(1);
        Rc::new(Self {
            clock: RefCell::new(SessionClock::new(spec.clock)),
            random: RefCell::new(ChaCha20Rng::from_seed(seed)),
            bytes: RefCell::new(bytes),
            modules: Arc::clone(&spec.modules),
            pending_calls: RefCell::new(PendingHostCalls::new(spec.ordered())),
            timers: RefCell::default(),
            next_timer: Cell::new(1),
            offered: RefCell::default(),
            calls: Cell::new(0),
            pure: Cell::new(0),
            log: Cell::new((crate::limits::LOG_BYTES_PER_SECOND, 0)),
            hooks: RefCell::default(),
            roots: RefCell::default(),
            spec,
            host,
            budget,
            heap: HeapQuota::new(),
        })
    }

    /// Drops all values of the engine.
    pub(crate) fn clear(&self) {
        self.timers.borrow_mut().clear();
        self.offered.borrow_mut().clear();
        self.pending_calls.borrow_mut().clear();
        self.hooks.borrow_mut().take();
    }

    /// A function of the runtime's scripts.
    pub(crate) fn hook<'js>(&self, ctx: &Ctx<'js>, name: &str) -> rquickjs::Result<Function<'js>> {
        let hooks = self.hooks.borrow().clone().ok_or(Error::Unknown)?;
        hooks.restore(ctx)?.get(name)
    }

    /// Throws a `RuntimeError` inside the script.
    pub(crate) fn raise(&self, ctx: &Ctx<'_>, code: RuntimeCode, message: &str) -> Error {
        let make = self.hook(ctx, "runtimeError");
        match make.and_then(|make| make.call::<_, JsValue<'_>>((code.name(), message))) {
            Ok(error) => ctx.throw(error),
            // There may be no memory for the error.
            Err(error) => error,
        }
    }

    /// Like `raise`, with the position in a module.
    pub(crate) fn raise_failure(&self, ctx: &Ctx<'_>, failure: &ScriptFailure) -> Error {
        let place = failure.place.as_ref();
        let (module, line) = (
            place.map(|place| place.module.as_str()),
            place.map(|place| place.line),
        );
        let make = self.hook(ctx, "runtimeError");
        let (code, text) = (failure.code.name(), failure.message.as_str());
        match make.and_then(|make| make.call::<_, JsValue<'_>>((code, text, module, line))) {
            Ok(error) => ctx.throw(error),
            Err(error) => error,
        }
    }

    /// Throws a `RuntimeError` and ends the session.
    pub(crate) fn exhaust(&self, ctx: &Ctx<'_>, code: RuntimeCode, message: &str) -> Error {
        self.budget.stop(code);
        self.raise(ctx, code, message)
    }

    /// The script's stack at this moment; `None` if there is no memory for it, or the script prepares none.
    ///
    /// # Errors
    /// The script reached a limit, which ends the call.
    pub(crate) fn here(
        &self,
        ctx: &Ctx<'_>,
    ) -> rquickjs::Result<Option<Persistent<JsValue<'static>>>> {
        let here = self.hook(ctx, "here");
        match here.and_then(|here| here.call::<_, JsValue<'_>>(())) {
            Ok(stack) => Ok(Some(Persistent::save(ctx, stack))),
            Err(error) if self.budget.stopped().is_some() => Err(error),
            Err(_) => {
                ctx.catch();
                Ok(None)
            }
        }
    }

    /// The script's form of an operation's error. It has the stack of `called_at`, else that of this moment.
    pub(crate) fn op_error<'js>(
        &self,
        ctx: &Ctx<'js>,
        error: &OpError,
        called_at: Option<JsValue<'js>>,
    ) -> rquickjs::Result<JsValue<'js>> {
        // Others choose how large they are. Without room for them, the error has none.
        let details = json::write_bounded(ctx, self, &error.details);
        let details = details.unwrap_or_else(|_| JsValue::new_null(ctx.clone()));
        let make = self.hook(ctx, "opError")?;
        make.call((
            error.code.as_str(),
            error.message.as_str(),
            error.retryable,
            details,
            error.path.as_str(),
            called_at,
        ))
    }

    /// The script's form of a value that others chose; `what` says which. Throws `E_QUOTA` for one that is refused: the
    /// session, with the state of a service, goes on.
    pub(crate) fn write<'js>(
        &self,
        ctx: &Ctx<'js>,
        what: &str,
        value: &Value,
    ) -> rquickjs::Result<JsValue<'js>> {
        let text = match json::write_bounded(ctx, self, value) {
            Ok(value) => return Ok(value),
            // The limit is the failure of the call, whatever the exception is.
            Err(WriterStop::Ended) => return Err(ctx.throw(JsValue::new_null(ctx.clone()))),
            Err(WriterStop::Room) => {
                format!("{what} does not fit into what is left of the session's heap")
            }
            Err(why @ WriterStop::Names) => format!("{what} is refused: {why}"),
        };
        Err(self.raise(ctx, RuntimeCode::Quota, &text))
    }

    /// The host's form of a script's value; throws `E_ENCODE` for a value without one.
    pub(crate) fn read<'js>(
        &self,
        ctx: &Ctx<'js>,
        value: &JsValue<'js>,
    ) -> rquickjs::Result<Value> {
        let reader =
            json::ScriptValueReader::new(self.hook(ctx, "fits")?, self.hook(ctx, "isArray")?);
        reader.read(value).map_err(|unfit| match unfit {
            json::ScriptValueError::Threw(error) => error,
            json::ScriptValueError::Encode(text) => self.raise(ctx, RuntimeCode::Encode, &text),
        })
    }
}
