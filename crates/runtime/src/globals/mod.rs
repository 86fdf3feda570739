//! The objects on `globalThis` that the runtime adds to the language, and those of the language
//! that it removes.
//!
//! The classes are small scripts of the runtime (`prelude/`). Functions of Rust do what scripts
//! cannot; the scripts get them as `native`, which no other script ever sees. A test lists the
//! names of `globalThis` and fails on any change.

mod compiled;
mod native;
mod text;
mod url;

use std::rc::Rc;

use rquickjs::{Ctx, Function, Object, Persistent, Result};

use crate::isolate::{IsolateState, SessionMode};
use crate::ops;
use compiled::BuiltinScript;

/// The runtime's scripts, in the order in which they depend on each other.
static PRELUDE: [BuiltinScript; 5] = [
    BuiltinScript::new("alknet:runtime/errors", include_str!("prelude/errors.js")),
    BuiltinScript::new(
        "alknet:runtime/language",
        include_str!("prelude/language.js"),
    ),
    BuiltinScript::new("alknet:runtime/abort", include_str!("prelude/abort.js")),
    BuiltinScript::new("alknet:runtime/text", include_str!("prelude/text.js")),
    BuiltinScript::new("alknet:runtime/clone", include_str!("prelude/clone.js")),
];
/// Loaded only if the session's grants allow calls.
static OPS: BuiltinScript =
    BuiltinScript::new("alknet:runtime/ops", include_str!("prelude/ops.js"));
/// Loaded with `OPS`: the capabilities of the operation that runs the script.
static CAPABILITIES: BuiltinScript = BuiltinScript::new(
    "alknet:runtime/capabilities",
    include_str!("prelude/capabilities.js"),
);
/// Loaded with `OPS`, `GPU` or `TENSOR`.
static BYTES: BuiltinScript =
    BuiltinScript::new("alknet:runtime/bytes", include_str!("prelude/bytes.js"));
/// Loaded only if the grants allow shaders.
static GPU: BuiltinScript =
    BuiltinScript::new("alknet:runtime/gpu", include_str!("prelude/gpu.js"));
/// Loaded only if the grants allow opening stored tensors.
static TENSOR: BuiltinScript =
    BuiltinScript::new("alknet:runtime/tensor", include_str!("prelude/tensor.js"));

/// Prepares the globals of a fresh engine.
pub(crate) fn install<'js>(ctx: &Ctx<'js>, shared: &Rc<IsolateState>) -> Result<()> {
    let native = Object::new(ctx.clone())?;
    native::install(ctx, &native, shared)?;
    text::install(ctx, &native, shared)?;
    url::install(ctx, &native)?;
    ops::install(ctx, &native, shared)?;
    let hooks = Object::new(ctx.clone())?;
    // The hooks are stored before the first script runs, so that a failure of the next one can be
    // reported.
    *shared.hooks.borrow_mut() = Some(Persistent::save(ctx, hooks.clone()));
    let repl = shared.spec.mode == SessionMode::Repl;
    // The session's grants decide this: a global that is not granted is absent instead of failing
    // when it is used.
    let grants = shared.spec.grants;
    let granted = [
        grants.ops.then_some(&OPS),
        (grants.ops || grants.gpu || grants.tensor).then_some(&BYTES),
        grants.ops.then_some(&CAPABILITIES),
        grants.gpu.then_some(&GPU),
        grants.tensor.then_some(&TENSOR),
    ];
    for own in PRELUDE.iter().chain(granted.into_iter().flatten()) {
        let script = own.function(ctx)?;
        script.call::<_, ()>((native.clone(), hooks.clone(), repl))?;
    }
    // Freezing comes last, because the runtime's scripts change the built-in objects.
    if shared.spec.frozen {
        hooks.get::<_, Function<'js>>("freeze")?.call::<_, ()>(())?;
    }
    Ok(())
}
