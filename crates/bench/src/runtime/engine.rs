//! Engines in this process: ours with everything around it, and the same engine with nothing.

use std::sync::Arc;

use alknet_runtime::{
    ConsoleLevel, EnvOperation, HostFuture, Isolate, IsolateHost, IsolateSpec, IsolateWork, Items,
    ModuleSet, OpError, OpReply, ScriptCallOptions, ScriptRegistration,
};
use rquickjs::{Ctx, Function, Promise, Runtime, Value as JsValue};
use serde_json::{Value, json};

use super::{CALLS, CONTEXTS, RuntimeCase, RuntimeSample, failed, timed};
use alknet_tasks::failure::Result;

/// What our side calls.
const OURS: &str = "
    export const rust = (n) => { for (let i = 0; i < n; i++) Math.random(); return n; };
    export const calls = async (n) => { for (let i = 0; i < n; i++) await ops.call('echo', { a: i }); return n; };";

/// The same for the engine alone.
const ALONE: &str = "
    globalThis.rust = (n) => { for (let i = 0; i < n; i++) random(); return n; };
    globalThis.calls = async (n) => { for (let i = 0; i < n; i++) await call('echo', { a: i }); return n; };";

/// Calls into Rust for each call of an operation: they are that much quicker.
const RUST_FOR_EACH: u32 = 50;

/// Answers everything at once with what was asked.
struct EngineEcho;

impl IsolateHost for EngineEcho {
    fn call(
        &self,
        _: &str,
        input: Value,
        _: ScriptCallOptions,
    ) -> HostFuture<std::result::Result<OpReply, OpError>> {
        Box::pin(std::future::ready(Ok(OpReply::Json(input))))
    }

    fn subscribe(&self, _: &str, _: Value, _: ScriptCallOptions) -> Items {
        Box::pin(futures_util::stream::empty())
    }

    fn list(&self, _: &str) -> Vec<EnvOperation> {
        Vec::new()
    }

    fn register(
        &self,
        _: ScriptRegistration,
        _: [u8; 32],
    ) -> HostFuture<std::result::Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn emit(&self, _: u64, _: Value) -> HostFuture<std::result::Result<(), OpError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn log(&self, _: ConsoleLevel, _: &str) {}

    fn check(&self, _: &Value, _: &Value) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// Every case once, on a thread of its own: the engine wants to be polled where it was made.
pub(super) fn round() -> Result<Vec<(RuntimeCase, RuntimeSample)>> {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(failed("starting a runtime"))?;
        runtime.block_on(async {
            Ok(vec![
                (RuntimeCase::Context, contexts().await?),
                (RuntimeCase::ContextAlone, contexts_alone().await?),
                (
                    RuntimeCase::Rust,
                    ours("rust", CALLS * RUST_FOR_EACH).await?,
                ),
                (
                    RuntimeCase::RustAlone,
                    alone("rust", CALLS * RUST_FOR_EACH).await?,
                ),
                (RuntimeCase::Call, ours("calls", CALLS).await?),
                (RuntimeCase::CallAlone, alone("calls", CALLS).await?),
            ])
        })
    });
    let joined = thread.join();
    joined.map_err(|_| failed("measuring engines")("the thread panicked"))?
}

fn isolate(modules: ModuleSet) -> Result<Isolate> {
    let mut spec = IsolateSpec::new(modules);
    // Never reached, but counted: that is a part of what an engine costs.
    spec.limits.fuel_ticks = u64::MAX;
    spec.limits.cpu = alknet_runtime::limits::CPU_MAX;
    spec.limits.calls = u64::MAX;
    Isolate::open(spec, Arc::new(EngineEcho)).map_err(failed("opening an isolate"))
}

async fn contexts() -> Result<RuntimeSample> {
    // The first of a thread sets up what later ones share.
    drop(isolate(ModuleSet::new())?);
    timed(CONTEXTS, async {
        (0..CONTEXTS).try_for_each(|_| isolate(ModuleSet::new()).map(drop))
    })
    .await
}

async fn contexts_alone() -> Result<RuntimeSample> {
    timed(CONTEXTS, async {
        (0..CONTEXTS).try_for_each(|_| bare().map(drop))
    })
    .await
}

/// An engine as its binding makes it.
fn bare() -> Result<(rquickjs::Context, Runtime)> {
    let runtime = Runtime::new().map_err(failed("making an engine"))?;
    let context = rquickjs::Context::full(&runtime).map_err(failed("making a context"))?;
    Ok((context, runtime))
}

async fn ours(export: &str, count: u32) -> Result<RuntimeSample> {
    let mut modules = ModuleSet::new();
    let inserted = modules.insert("./main.js", OURS);
    inserted.map_err(failed("making a module"))?;
    let mut isolate = isolate(modules)?;
    let work = |n: u32| IsolateWork::Export {
        module: "./main.js".to_owned(),
        export: export.to_owned(),
        input: json!(n),
    };
    // Loads the module: only the calls are timed.
    let result = isolate.run(work(1)).await.result;
    result.map_err(failed("warming up"))?;
    timed(count, async {
        let ran = isolate.run(work(count)).await.result;
        ran.map(drop).map_err(failed("calling out of a script"))
    })
    .await
}

fn answer<'js>(ctx: Ctx<'js>, path: String, input: JsValue<'js>) -> rquickjs::Result<Promise<'js>> {
    std::hint::black_box(path);
    let (promise, resolve, _) = Promise::new(&ctx)?;
    // At once, as `EngineEcho` answers.
    resolve.call::<_, ()>((input,))?;
    Ok(promise)
}

async fn alone(name: &str, count: u32) -> Result<RuntimeSample> {
    let (context, _runtime) = bare()?;
    let prepared = context.with(|ctx| {
        let globals = ctx.globals();
        globals.set("call", Function::new(ctx.clone(), answer)?)?;
        globals.set("random", Function::new(ctx.clone(), || 0.5)?)?;
        ctx.eval::<(), _>(ALONE)
    });
    prepared.map_err(failed("preparing an engine"))?;
    timed(count, async {
        let ran = context.with(|ctx| {
            let function: Function<'_> = ctx.globals().get(name)?;
            let value: JsValue<'_> = function.call((count,))?;
            match value.into_promise() {
                Some(promise) => promise.finish::<u32>(),
                None => Ok(count),
            }
        });
        ran.map(drop).map_err(failed("calling out of an engine"))
    })
    .await
}
