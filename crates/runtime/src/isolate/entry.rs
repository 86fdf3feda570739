//! One call into an isolate, from its start to its answer.

use std::time::Duration;

use rquickjs::{
    Ctx, Function, Module, Object, Persistent, Promise, Value as JsValue, promise::PromiseState,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{RuntimeCode, ScriptFailure};
use crate::isolate::failure;
use crate::isolate::shared::{EvaluationRoot, IsolateState};
use crate::isolate::spec::SessionMode;
use crate::json;
use crate::typescript::SourceScan;

/// The work of a call.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum IsolateWork {
    /// Evaluates a module. The answer is its default export, or `null` if that is a function.
    Module {
        /// The specifier of the module.
        module: String,
    },
    /// Evaluates a module unless it was evaluated before, and calls one of its exports with
    /// `(input, {signal})`.
    Export {
        /// The specifier of the module.
        module: String,
        /// The name of the function.
        export: String,
        /// The first argument.
        input: Value,
    },
    /// Calls a handler that the script registered.
    Handler {
        /// The name without `js/`.
        name: String,
        /// The first argument.
        input: Value,
    },
    /// Scans the session's own modules without running any. The answer has, for each specifier, the
    /// result of [`scan_source`](crate::scan_source) as `found`, or its failure as `failed`.
    Look,
    /// Runs lines of a REPL. The answer is the value of the last expression.
    Script {
        /// The text of the lines.
        source: String,
    },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutcome {
    /// The id of the call.
    pub entry: u64,
    /// The answer.
    pub result: Result<Value, ScriptFailure>,
    /// The value in the form that a REPL shows.
    pub shown: Option<String>,
    /// The resources that the call used.
    pub stats: EntryStats,
}

/// The resources that a call used. Calls that overlapped share what was used meanwhile.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct EntryStats {
    /// Ticks of fuel.
    pub ticks: u64,
    /// CPU time inside the engine.
    pub cpu: Duration,
    /// The calls that the session has made so far.
    pub calls: u64,
    /// The most bytes outside the heap so far.
    pub external_peak: u64,
}

/// A running call.
#[derive(Debug)]
pub(crate) struct ActiveEntry {
    pub(crate) id: u64,
    stage: EntryStage,
    /// The function that fires the call's `AbortSignal`.
    abort: Option<Persistent<Function<'static>>>,
    signal: Option<Persistent<Object<'static>>>,
    ticks: u64,
    cpu: Duration,
}

#[derive(Debug)]
enum EntryStage {
    /// Waits for a module's evaluation, and then calls the export, if there is one.
    Evaluate(Persistent<Promise<'static>>, Option<(String, Value)>),
    /// Waits for the answer.
    Settle(Persistent<Promise<'static>>),
    /// Waits for the value of a REPL's lines.
    Show(Persistent<Promise<'static>>),
}

/// The value of a call that ended, and the form that a REPL shows.
pub(crate) type EntryResult = Result<(Value, Option<String>), ScriptFailure>;

impl ActiveEntry {
    /// Begins a call: runs the script up to its first wait.
    pub(crate) fn start(
        ctx: &Ctx<'_>,
        shared: &IsolateState,
        id: u64,
        work: IsolateWork,
    ) -> Result<Self, ScriptFailure> {
        let (ticks, cpu) = (shared.budget.ticks(), shared.budget.cpu());
        let mut active = Self {
            id,
            stage: EntryStage::Settle(begin_nothing(ctx, shared)?),
            abort: None,
            signal: None,
            ticks,
            cpu,
        };
        active
            .begin(ctx, shared, work)
            .map_err(|error| failure::of_error(ctx, shared, error))??;
        Ok(active)
    }

    fn begin(
        &mut self,
        ctx: &Ctx<'_>,
        shared: &IsolateState,
        work: IsolateWork,
    ) -> rquickjs::Result<Result<(), ScriptFailure>> {
        let pair: Object<'_> = shared.hook(ctx, "newSignal")?.call((self.id,))?;
        let (abort, signal): (Function<'_>, Object<'_>) = (pair.get("abort")?, pair.get("signal")?);
        self.abort = Some(Persistent::save(ctx, abort));
        self.signal = Some(Persistent::save(ctx, signal));
        match work {
            IsolateWork::Module { module } => self.evaluate(ctx, shared, module, None)?,
            IsolateWork::Export {
                module,
                export,
                input,
            } => {
                self.evaluate(ctx, shared, module, Some((export, input)))?;
            }
            IsolateWork::Handler { name, input } => {
                let offered = shared.offered.borrow().get(&name).cloned();
                let Some(offered) = offered else {
                    let text = format!("no operation js/{name} is registered");
                    return Ok(Err(ScriptFailure::new(RuntimeCode::NotFound, text)));
                };
                let serves =
                    offered.registration.kind == crate::host::ScriptOperationKind::Subscription;
                let handler = offered.handler.restore(ctx)?;
                self.call(ctx, shared, handler, &input, serves)?;
            }
            IsolateWork::Look => {
                // The failure of one module is a part of the answer, so the other modules are
                // scanned as well.
                let scans: serde_json::Map<_, _> =
                    shared.spec.modules.scan_all().map(scan_entry).collect();
                let scans = json::write(ctx, &Value::Object(scans))?;
                // With a resolved promise, `step` ends this call like any other.
                let (promise, resolve, _) = Promise::new(ctx)?;
                resolve.call::<_, ()>((scans,))?;
                self.stage = EntryStage::Settle(Persistent::save(ctx, promise));
            }
            IsolateWork::Script { source } => {
                if shared.spec.mode != SessionMode::Repl {
                    let text = "only a REPL runs scripts; others run modules";
                    return Ok(Err(ScriptFailure::new(RuntimeCode::Denied, text)));
                }
                shared
                    .roots
                    .borrow_mut()
                    .push(EvaluationRoot::Script(source.clone()));
                let mut options = rquickjs::context::EvalOptions::default();
                options.strict = false;
                // With a promise, the lines may use `await` at their top level.
                options.promise = true;
                // The lines have the name of a file in the bundle, so that they can import its
                // neighbours.
                options.filename = Some("./repl".to_owned());
                let promise: Promise<'_> = ctx.eval_with_options(source, options)?;
                quiet(ctx, shared, &promise)?;
                self.stage = EntryStage::Show(Persistent::save(ctx, promise));
            }
        }
        Ok(Ok(()))
    }

    fn evaluate(
        &mut self,
        ctx: &Ctx<'_>,
        shared: &IsolateState,
        module: String,
        then: Option<(String, Value)>,
    ) -> rquickjs::Result<()> {
        shared
            .roots
            .borrow_mut()
            .push(EvaluationRoot::Module(module.clone()));
        let promise = Module::import(ctx, module.as_str())?;
        quiet(ctx, shared, &promise)?;
        self.stage = EntryStage::Evaluate(Persistent::save(ctx, promise), then);
        Ok(())
    }

    /// Calls a function through one of the runtime's scripts, so that the result is always a
    /// promise.
    fn call<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        shared: &IsolateState,
        function: Function<'js>,
        input: &Value,
        serves: bool,
    ) -> rquickjs::Result<()> {
        let input = shared.write(ctx, "the input", input)?;
        let signal = self
            .signal
            .clone()
            .map(|signal| signal.restore(ctx))
            .transpose()?;
        let hook = shared.hook(ctx, if serves { "serve" } else { "invoke" })?;
        let promise: Promise<'js> = hook.call((function, input, signal, self.id))?;
        self.stage = EntryStage::Settle(Persistent::save(ctx, promise));
        Ok(())
    }

    /// Continues the call as far as possible. Returns the answer if there is one.
    pub(crate) fn advance(&mut self, ctx: &Ctx<'_>, shared: &IsolateState) -> Option<EntryResult> {
        self.step(ctx, shared)
            .unwrap_or_else(|error| Some(Err(failure::of_error(ctx, shared, error))))
    }

    fn step(
        &mut self,
        ctx: &Ctx<'_>,
        shared: &IsolateState,
    ) -> rquickjs::Result<Option<EntryResult>> {
        let (EntryStage::Evaluate(promise, _)
        | EntryStage::Settle(promise)
        | EntryStage::Show(promise)) = &self.stage;
        let promise = promise.clone().restore(ctx)?;
        if promise.state() == PromiseState::Pending {
            return Ok(None);
        }
        let value: JsValue<'_> = match promise.result() {
            Some(result) => result?,
            None => return Ok(None),
        };
        // The stage is moved out below, and another stage must take its place.
        let settle = EntryStage::Settle(Persistent::save(ctx, promise));
        match std::mem::replace(&mut self.stage, settle) {
            EntryStage::Evaluate(_, None) => {
                let namespace = value.into_object().ok_or(rquickjs::Error::Unknown)?;
                let default: JsValue<'_> = namespace.get("default")?;
                // A function has no JSON form.
                let default = match default.is_function() {
                    true => Value::Null,
                    false => shared.read(ctx, &default)?,
                };
                Ok(Some(Ok((default, None))))
            }
            EntryStage::Evaluate(_, Some((export, input))) => {
                let namespace = value.into_object().ok_or(rquickjs::Error::Unknown)?;
                let function: JsValue<'_> = namespace.get(export.as_str())?;
                let Some(function) = function.into_function() else {
                    let text = format!("the module exports no function {export:?}");
                    return Ok(Some(Err(ScriptFailure::new(RuntimeCode::NotFound, text))));
                };
                self.call(ctx, shared, function, &input, false)?;
                Ok(None)
            }
            EntryStage::Settle(_) => Ok(Some(Ok((shared.read(ctx, &value)?, None)))),
            EntryStage::Show(_) => {
                let value: JsValue<'_> = value
                    .into_object()
                    .ok_or(rquickjs::Error::Unknown)?
                    .get("value")?;
                let shown: String = shared.hook(ctx, "inspect")?.call((value.clone(),))?;
                // A value without a JSON form is still shown.
                let read = shared.read(ctx, &value).unwrap_or_else(|_| {
                    ctx.catch();
                    Value::Null
                });
                Ok(Some(Ok((read, Some(shown)))))
            }
        }
    }

    /// Fires the signal. Exceptions of the script's listeners are dropped.
    pub(crate) fn abort(&mut self, ctx: &Ctx<'_>) {
        // `take` makes the signal fire only once.
        let Some(abort) = self.abort.take() else {
            return;
        };
        let fired = abort.restore(ctx).and_then(|abort| abort.call::<_, ()>(()));
        if fired.is_err() {
            ctx.catch();
        }
    }

    pub(crate) fn outcome(&self, shared: &IsolateState, answer: EntryResult) -> EntryOutcome {
        let (result, shown) = match answer {
            Ok((value, shown)) => (Ok(value), shown),
            Err(failure) => (Err(failure), None),
        };
        let stats = EntryStats {
            ticks: shared.budget.ticks() - self.ticks,
            cpu: shared.budget.cpu().saturating_sub(self.cpu),
            calls: shared.calls.get(),
            external_peak: shared.budget.external().1,
        };
        EntryOutcome {
            entry: self.id,
            result,
            shown,
            stats,
        }
    }
}

/// The name of a module, and the result of its scan.
fn scan_entry((name, looked): (&str, Result<SourceScan, ScriptFailure>)) -> (String, Value) {
    let scan = match looked {
        Ok(found) => serde_json::json!({ "found": found }),
        Err(failure) => serde_json::json!({ "failed": failure }),
    };
    (name.to_owned(), scan)
}

/// A placeholder promise for a call that has none yet.
fn begin_nothing(
    ctx: &Ctx<'_>,
    shared: &IsolateState,
) -> Result<Persistent<Promise<'static>>, ScriptFailure> {
    let made = Promise::new(ctx).map(|(promise, _, _)| Persistent::save(ctx, promise));
    made.map_err(|error| failure::of_error(ctx, shared, error))
}

/// Makes a rejection of this promise the call's answer, so that it is not reported as a rejection
/// without a handler.
fn quiet<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    promise: &Promise<'js>,
) -> rquickjs::Result<()> {
    shared.hook(ctx, "quiet")?.call((promise.clone(),))
}
