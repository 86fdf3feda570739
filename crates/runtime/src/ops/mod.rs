//! `ops`: the only way from a script to anything outside it.

mod record;
mod replay;
mod secret;
mod test;

use std::rc::Rc;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rquickjs::{
    Ctx, Error, FromJs, Function, Object, Persistent, Result, TypedArray, Value as JsValue,
};
use serde_json::{Value, json};

pub use record::{CallRecorder, RecordedCalls, RecorderCapacity, RecorderTicket};
pub use replay::{RecordedBytes, RecordedCall, Replay};
pub use secret::{OperationSchemas, REDACTED, SecretMarks, redact, tells};
pub use test::{
    CaseExpectation, CaseReport, Percentiles, ScriptTestCase, ScriptTestReport, TEST_SEED,
    TEST_START_MS,
};

use crate::error::{OpError, RuntimeCode};
use crate::host::{ScriptCallOptions, ScriptRegistration};
use crate::isolate::{ENGINE, IsolateState, OfferedOperation, PromiseSettler, read_bytes};
use crate::limits::{REGISTERED, SUBSCRIPTIONS};

/// The id of an operation that a script offers: the BLAKE3 hash of the specification with its
/// members in order, a zero byte, the source, and the engine, whose version decides what the source
/// means.
#[must_use]
pub fn script_id(specification: &Value, source: &str) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    hash.update(canonical(specification).to_string().as_bytes());
    // The text of a JSON value never contains this byte (RFC 8259 section 7), so the source cannot
    // begin inside it.
    hash.update(&[0]);
    hash.update(source.as_bytes());
    hash.update(ENGINE.as_bytes());
    *hash.finalize().as_bytes()
}

/// Beyond this number, a script cannot distinguish all whole numbers.
const SAFE_INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

/// The same value with the members of each object in the order of their names, and whole numbers
/// without a fraction: a script writes `22.0` as `22`.
#[must_use]
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(members) => {
            let sorted: std::collections::BTreeMap<_, _> = members.iter().collect();
            let sorted = sorted
                .into_iter()
                .map(|(name, member)| (name.clone(), canonical(member)));
            Value::Object(sorted.collect())
        }
        Value::Number(number) => whole(number).map_or_else(|| value.clone(), Value::from),
        plain => plain.clone(),
    }
}

/// The integer value of a number whose fraction is zero.
fn whole(number: &serde_json::Number) -> Option<i64> {
    let float = number.as_f64().filter(|_| number.is_f64())?;
    let is_safe = float.fract() == 0.0 && float.abs() <= SAFE_INTEGER_MAX;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is whole, and within the bound"
    )]
    is_safe.then_some(float as i64)
}

/// Adds the functions for `ops` to `native`.
pub(crate) fn install<'js>(
    ctx: &Ctx<'js>,
    native: &Object<'js>,
    shared: &Rc<IsolateState>,
) -> Result<()> {
    let state = Rc::clone(shared);
    let f =
        move |ctx: Ctx<'js>, path: String, input: JsValue<'js>, options: JsValue<'js>, yes, no| {
            let settle = settle(&ctx, &state, yes, no)?;
            call(&ctx, &state, &path, &input, &options, settle)
        };
    native.set("call", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>,
                  path: String,
                  input: JsValue<'js>,
                  bytes: Option<TypedArray<'js, u8>>,
                  map: bool,
                  yes,
                  no| {
        let settle = settle(&ctx, &state, yes, no)?;
        call_with_bytes(&ctx, &state, &path, &input, (bytes, map), settle)
    };
    native.set("callBytes", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let cancel = move |id: JsValue<'js>| {
        // A refused call has no id.
        if let Some(id) = id.as_number() {
            drop(state.pending_calls.borrow_mut().cancel(id as u64));
        }
    };
    native.set("cancel", Function::new(ctx.clone(), cancel)?)?;
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>, path: String, input: JsValue<'js>, options: JsValue<'js>| {
        subscribe(&ctx, &state, &path, &input, &options)
    };
    native.set("subscribe", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>, id: u32, yes, no| {
        in_flight(&ctx, &state)?;
        let settle = settle(&ctx, &state, yes, no)?;
        let pulled = state.pending_calls.borrow_mut().pull(id, settle);
        pulled
            .map(|id| id as f64)
            .map_err(|_| state.raise(&ctx, RuntimeCode::Disposed, "the subscription was closed"))
    };
    native.set("pull", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let unsubscribe = move |id: u32| state.pending_calls.borrow_mut().unsubscribe(id);
    native.set("unsubscribe", Function::new(ctx.clone(), unsubscribe)?)?;
    let state = Rc::clone(shared);
    let list = move |ctx: Ctx<'js>, prefix: String| {
        let listed = serde_json::to_value(state.host.list(&prefix)).unwrap_or_default();
        state.write(&ctx, "the list of operations", &listed)
    };
    native.set("list", Function::new(ctx.clone(), list)?)?;
    let state = Rc::clone(shared);
    let schema = move |ctx: Ctx<'js>, path: String| schema(&ctx, &state, &path);
    native.set("schema", Function::new(ctx.clone(), schema)?)?;
    let state = Rc::clone(shared);
    // The calls nest: a function stays pure until the outermost one ends.
    let pure = move |begins: bool| {
        let depth = state.pure.get();
        state.pure.set(if begins {
            depth + 1
        } else {
            depth.saturating_sub(1)
        });
    };
    native.set("pure", Function::new(ctx.clone(), pure)?)?;
    install_own(ctx, native, shared)
}

/// The functions about operations that the script itself offers.
fn install_own<'js>(ctx: &Ctx<'js>, native: &Object<'js>, shared: &Rc<IsolateState>) -> Result<()> {
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>, spec: JsValue<'js>, handler: Function<'js>, yes, no| {
        let settle = settle(&ctx, &state, yes, no)?;
        register(&ctx, &state, &spec, handler, settle)
    };
    native.set("register", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>, name: String, cases: JsValue<'js>, yes, no| {
        let cases = state.read(&ctx, &cases)?;
        let work = test::begin(&state, name, cases);
        let work = work.map_err(|failure| state.raise_failure(&ctx, &failure))?;
        // This may run a function of the script, which may itself begin a call, so it comes before the borrow below.
        let settle = settle(&ctx, &state, yes, no)?;
        state.pending_calls.borrow_mut().start(settle, work);
        Ok::<(), Error>(())
    };
    native.set("test", Function::new(ctx.clone(), f)?)?;
    let state = Rc::clone(shared);
    let f = move |ctx: Ctx<'js>, entry: f64, item: JsValue<'js>, yes, no| {
        let item = state.read(&ctx, &item)?;
        let taken = state.host.emit(entry as u64, item);
        let work = taken.map(|taken| taken.map(|()| None)).boxed_local();
        // This may run a function of the script, which may itself begin a call, so it comes before the borrow below.
        let settle = settle(&ctx, &state, yes, no)?;
        state.pending_calls.borrow_mut().start(settle, work);
        Ok::<(), Error>(())
    };
    native.set("emit", Function::new(ctx.clone(), f)?)
}

/// Settles a promise that the script has just made. Runs a function of the script if the script prepares its stacks
/// itself.
fn settle<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    resolve: Function<'js>,
    reject: Function<'js>,
) -> Result<PromiseSettler> {
    Ok(PromiseSettler {
        resolve: Persistent::save(ctx, resolve),
        reject: Persistent::save(ctx, reject),
        called_at: shared.here(ctx)?,
    })
}

fn call<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    path: &str,
    input: &JsValue<'js>,
    options: &JsValue<'js>,
    settle: PromiseSettler,
) -> Result<f64> {
    // The values are read before the limits are checked, because reading runs getters, which may
    // make calls themselves.
    let input = shared.read(ctx, input)?;
    let options = read_options(ctx, shared, options)?;
    in_flight(ctx, shared)?;
    count(ctx, shared)?;
    let answer = shared.host.call(path, input, options);
    let path = path.to_owned();
    let work: LocalBoxFuture<'static, _> = answer
        .map(|answer| answer.map(Some).map_err(|error| with_path(error, path)))
        .boxed_local();
    Ok(shared.pending_calls.borrow_mut().start(settle, work) as f64)
}

/// Like `call`, with bytes beside the input; with `map`, the answer may be a file.
fn call_with_bytes<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    path: &str,
    input: &JsValue<'js>,
    (bytes, map): (Option<TypedArray<'js, u8>>, bool),
    settle: PromiseSettler,
) -> Result<()> {
    let input = shared.read(ctx, input)?;
    in_flight(ctx, shared)?;
    count(ctx, shared)?;
    let len = bytes.as_ref().map_or(0, TypedArray::len);
    let limit = shared.spec.limits.external_bytes;
    // The memory is reserved before the bytes are copied, because the copy uses it.
    let Some(reserved) = shared.budget.reserve(len, limit) else {
        let text = "the bytes outside the heap are used up";
        return Err(shared.exhaust(ctx, RuntimeCode::Memory, text));
    };
    let bytes = bytes
        .as_ref()
        .map(read_bytes)
        .transpose()?
        .unwrap_or_default();
    let answer = shared.host.call_with_bytes(path, input, bytes.into(), map);
    let path = path.to_owned();
    let work: LocalBoxFuture<'static, _> = answer
        .map(move |answer| {
            // The copy counts until the host has answered.
            drop(reserved);
            answer.map(Some).map_err(|error| with_path(error, path))
        })
        .boxed_local();
    shared.pending_calls.borrow_mut().start(settle, work);
    Ok(())
}

/// An error without a path is the called operation's own.
fn with_path(mut error: OpError, path: String) -> OpError {
    if error.path.is_empty() {
        error.path = path;
    }
    error
}

fn subscribe<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    path: &str,
    input: &JsValue<'js>,
    options: &JsValue<'js>,
) -> Result<u32> {
    let input = shared.read(ctx, input)?;
    let options = read_options(ctx, shared, options)?;
    count(ctx, shared)?;
    if shared.pending_calls.borrow().subscriptions.len() >= SUBSCRIPTIONS {
        return Err(shared.raise(ctx, RuntimeCode::Quota, "too many subscriptions are open"));
    }
    let items = shared.host.subscribe(path, input, options);
    Ok(shared.pending_calls.borrow_mut().subscribe(items))
}

fn schema<'js>(ctx: &Ctx<'js>, shared: &IsolateState, path: &str) -> Result<JsValue<'js>> {
    let found = shared
        .host
        // The list also has operations whose path only begins with this one.
        .list(path)
        .into_iter()
        .find(|operation| operation.path == path);
    match found {
        Some(operation) => {
            let schema = json!({ "input": operation.input, "output": operation.output });
            shared.write(ctx, "the schema", &schema)
        }
        None => {
            let error = OpError {
                path: path.to_owned(),
                ..OpError::new("NOT_FOUND", "no such operation")
            };
            let error = shared.op_error(ctx, &error, None)?;
            Err(ctx.throw(error))
        }
    }
}

fn register<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    spec: &JsValue<'js>,
    handler: Function<'js>,
    settle: PromiseSettler,
) -> Result<()> {
    let plain = shared.read(ctx, spec)?;
    let registration: ScriptRegistration =
        serde_json::from_value(plain.clone()).map_err(|error| {
            shared.raise(
                ctx,
                RuntimeCode::Limit,
                &format!("not a specification: {error}"),
            )
        })?;
    let name = registration.name.clone();
    if !is_name(&name) {
        let text = "a name has 1 to 128 of a-z, 0-9, - and _, with / between parts";
        return Err(shared.raise(ctx, RuntimeCode::Limit, text));
    }
    if shared.offered.borrow().len() >= REGISTERED && !shared.offered.borrow().contains_key(&name) {
        return Err(shared.raise(
            ctx,
            RuntimeCode::Quota,
            "too many operations are registered",
        ));
    }
    let source = String::from_js(
        ctx,
        ctx.globals()
            .get::<_, Function<'js>>("String")?
            .call((handler.clone(),))?,
    )?;
    let script = script_id(&plain, &source);
    let work = shared.host.register(registration.clone(), script);
    let handler = Persistent::save(ctx, handler);
    // The operation is stored before the host answers, because calls may arrive as soon as the host
    // has accepted it.
    shared.offered.borrow_mut().insert(
        name,
        OfferedOperation {
            registration,
            handler,
        },
    );
    let work = work.map(|done| done.map(|()| None)).boxed_local();
    shared.pending_calls.borrow_mut().start(settle, work);
    Ok(())
}

fn is_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    name.len() <= 128 && name.split('/').all(part)
}

fn read_options<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    options: &JsValue<'js>,
) -> Result<ScriptCallOptions> {
    let plain = shared.read(ctx, options)?;
    serde_json::from_value(plain).map_err(|error| {
        shared.raise(
            ctx,
            RuntimeCode::Limit,
            &format!("not options of a call: {error}"),
        )
    })
}

fn in_flight(ctx: &Ctx<'_>, shared: &IsolateState) -> Result<()> {
    match shared.pending_calls.borrow().len() < shared.spec.limits.calls_in_flight {
        true => Ok(()),
        false => Err(shared.raise(
            ctx,
            RuntimeCode::Quota,
            "too many calls are not answered yet",
        )),
    }
}

fn count(ctx: &Ctx<'_>, shared: &IsolateState) -> Result<()> {
    if shared.pure.get() > 0 {
        return Err(shared.raise(
            ctx,
            RuntimeCode::Denied,
            "what has to be pure calls nothing",
        ));
    }
    if shared.calls.get() >= shared.spec.limits.calls {
        return Err(shared.raise(
            ctx,
            RuntimeCode::Quota,
            "the calls of the session are used up",
        ));
    }
    shared.calls.set(shared.calls.get() + 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_ignores_the_order_of_members_and_nothing_else() {
        let one = script_id(&json!({ "name": "a", "kind": "query" }), "() => 1");
        assert_eq!(
            one,
            script_id(&json!({ "kind": "query", "name": "a" }), "() => 1")
        );
        assert_ne!(
            one,
            script_id(&json!({ "kind": "query", "name": "a" }), "() => 2")
        );
        assert_ne!(
            one,
            script_id(&json!({ "kind": "query", "name": "b" }), "() => 1")
        );
    }

    #[test]
    fn a_whole_number_is_the_same_with_a_fraction_of_zero() {
        for (one, other) in [
            ("22.0", "22"),
            ("-0.0", "0"),
            ("[{\"a\":1e3}]", "[{\"a\":1000}]"),
        ] {
            let [one, other] = [one, other].map(|text| serde_json::from_str(text).expect("JSON"));
            assert_eq!(canonical(&one), canonical(&other));
        }
        for number in [0.5, 1e300, 9_007_199_254_740_992.0] {
            assert_eq!(canonical(&json!(number)), json!(number));
        }
    }

    #[test]
    fn names_are_plain() {
        assert!(["a", "a/b-c", "x_1"].iter().all(|name| is_name(name)));
        assert!(
            !["", "/", "a/", "A", "a b", "../a", "js/\u{e9}"]
                .iter()
                .any(|name| is_name(name))
        );
    }
}
