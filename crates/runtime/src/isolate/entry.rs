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

/// What a call does.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum IsolateWork {
    /// Evaluates a module; the answer is its default export, or `null` when that is a function.
    Module {
        /// Its specifier.
        module: String,
    },
    /// Evaluates a module unless that was done, and calls one of its exports with
    /// `(input, {signal})`.
    Export {
        /// Its specifier.
        module: String,
        /// Name of the function.
        export: String,
        /// Its first argument.
        input: Value,
    },
    /// Calls a handler that the script registered.
    Handler {
        /// Its name, without `js/`.
        name: String,
        /// Its first argument.
        input: Value,
    },
    /// Looks at the session's own modules without running any; the answer has, by specifier, what
    /// [`scan_source`](crate::scan_source) found as `found`, or how it failed as `failed`.
    Look,
    /// Runs lines of a REPL; the answer is the last expression's value.
    Script {
        /// The text.
        source: String,
    },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryOutcome {
    /// Its id.
    pub entry: u64,
    /// Its answer.
    pub result: Result<Value, ScriptFailure>,
    /// The value as a REPL shows it.
    pub shown: Option<String>,
    /// What it used.
    pub stats: EntryStats,
}

/// What a call used. Calls that overlapped share what was used meanwhile.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct EntryStats {
    /// Ticks of fuel.
    pub ticks: u64,
    /// CPU time inside the engine.
    pub cpu: Duration,
    /// Calls that the session has made so far.
    pub calls: u64,
    /// Most bytes outside the heap so far.
    pub external_peak: u64,
}

/// A call that runs.
#[derive(Debug)]
pub(crate) struct ActiveEntry {
    pub(crate) id: u64,
    stage: EntryStage,
    /// Fires the call's `AbortSignal`.
    abort: Option<Persistent<Function<'static>>>,
    signal: Option<Persistent<Object<'static>>>,
    ticks: u64,
    cpu: Duration,
}

#[derive(Debug)]
enum EntryStage {
    /// Waits for a module's evaluation; then the export is called, if one is named.
    Evaluate(Persistent<Promise<'static>>, Option<(String, Value)>),
    /// Waits for the answer.
    Settle(Persistent<Promise<'static>>),
    /// Waits for the value of a REPL's lines.
    Show(Persistent<Promise<'static>>),
}

/// The value of a call that ended, and how a REPL shows it.
pub(crate) type EntryResult = Result<(Value, Option<String>), ScriptFailure>;

impl ActiveEntry {
    /// Begins: runs the script up to its first wait.
    pub(crate) fn start(
        ctx: &Ctx<'_>,
        shared: &IsolateState,
        id: u64,
        work: IsolateWork,
    ) -> Result<Self, ScriptFailure> {
        let (ticks, cpu) = (shared.gauge.ticks(), shared.gauge.cpu());
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
                let told: serde_json::Map<_, _> =
                    shared.spec.modules.scan_all().map(scan_entry).collect();
                let told = json::write(ctx, &Value::Object(told))?;
                let (promise, resolve, _) = Promise::new(ctx)?;
                resolve.call::<_, ()>((told,))?;
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
                options.promise = true;
                // As a file of the bundle, so that a line can import its neighbours.
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

    /// Our own script calls it, so that whatever it answers is a promise.
    fn call<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        shared: &IsolateState,
        function: Function<'js>,
        input: &Value,
        serves: bool,
    ) -> rquickjs::Result<()> {
        let input = json::write(ctx, input)?;
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

    /// Goes on as far as it can; the answer when there is one.
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
        let settle = EntryStage::Settle(Persistent::save(ctx, promise));
        match std::mem::replace(&mut self.stage, settle) {
            EntryStage::Evaluate(_, None) => {
                let namespace = value.into_object().ok_or(rquickjs::Error::Unknown)?;
                let default: JsValue<'_> = namespace.get("default")?;
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
                // What cannot cross is shown all the same.
                let read = shared.read(ctx, &value).unwrap_or_else(|_| {
                    ctx.catch();
                    Value::Null
                });
                Ok(Some(Ok((read, Some(shown)))))
            }
        }
    }

    /// Fires the signal. What the script then throws is dropped.
    pub(crate) fn abort(&mut self, ctx: &Ctx<'_>) {
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
            ticks: shared.gauge.ticks() - self.ticks,
            cpu: shared.gauge.cpu().saturating_sub(self.cpu),
            calls: shared.calls.get(),
            external_peak: shared.gauge.external().1,
        };
        EntryOutcome {
            entry: self.id,
            result,
            shown,
            stats,
        }
    }
}

/// A module's name, and what was seen of it.
fn scan_entry((name, looked): (&str, Result<SourceScan, ScriptFailure>)) -> (String, Value) {
    let told = match looked {
        Ok(found) => serde_json::json!({ "found": found }),
        Err(failure) => serde_json::json!({ "failed": failure }),
    };
    (name.to_owned(), told)
}

/// A promise that stands for a call until it has its own.
fn begin_nothing(
    ctx: &Ctx<'_>,
    shared: &IsolateState,
) -> Result<Persistent<Promise<'static>>, ScriptFailure> {
    let made = Promise::new(ctx).map(|(promise, _, _)| Persistent::save(ctx, promise));
    made.map_err(|error| failure::of_error(ctx, shared, error))
}

/// A rejection of this promise becomes the call's answer, and is not reported as one without a
/// handler.
fn quiet<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    promise: &Promise<'js>,
) -> rquickjs::Result<()> {
    shared.hook(ctx, "quiet")?.call((promise.clone(),))
}
