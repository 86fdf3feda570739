//! What a script finds on `globalThis` beyond the language, and what of the language it does not.
//!
//! The classes are small scripts of ours (`prelude/`); what they cannot do themselves are functions
//! of Rust, which they get as `native` and no other script ever sees. A test lists the names of
//! `globalThis` and fails on any change.

mod compiled;
mod native;
mod text;
mod url;

use std::rc::Rc;

use rquickjs::{Ctx, Function, Object, Persistent, Result};

use crate::isolate::{IsolateState, SessionMode};
use crate::ops;
use compiled::BuiltinScript;

/// Our own scripts, in the order in which they build on each other.
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
/// Only where the session's grants let it call.
static OPS: BuiltinScript =
    BuiltinScript::new("alknet:runtime/ops", include_str!("prelude/ops.js"));
/// With it: what the operation that runs the script was given.
static CAPABILITIES: BuiltinScript = BuiltinScript::new(
    "alknet:runtime/capabilities",
    include_str!("prelude/capabilities.js"),
);
/// For what comes before and the two that follow.
static BYTES: BuiltinScript =
    BuiltinScript::new("alknet:runtime/bytes", include_str!("prelude/bytes.js"));
/// Only where they let it run shaders.
static GPU: BuiltinScript =
    BuiltinScript::new("alknet:runtime/gpu", include_str!("prelude/gpu.js"));
/// Only where they let it open stored tensors.
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
    // Kept from the first script on, so that a failure of the next can be told.
    *shared.hooks.borrow_mut() = Some(Persistent::save(ctx, hooks.clone()));
    let repl = shared.spec.mode == SessionMode::Repl;
    // What a session's grants decide: a global that is not granted is absent, not broken.
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
    // Last: our own scripts still change the built-in objects.
    if shared.spec.frozen {
        hooks.get::<_, Function<'js>>("freeze")?.call::<_, ()>(())?;
    }
    Ok(())
}
