//! The runtime's own scripts. A process compiles them once and loads the code into each engine, without the texts and
//! without parsing them again for each session.
//!
//! The engine trusts all bytecode. This bytecode was written by the engine itself, in this process, from texts that
//! are part of the program; bytecode of another origin never comes here.

use std::sync::OnceLock;

use rquickjs::{Ctx, Function, Module, Result, WriteOptions};

/// One of the runtime's scripts: its name in stacks, its text, and its code once an engine needed it.
pub(super) struct BuiltinScript {
    name: &'static str,
    text: &'static str,
    code: OnceLock<Vec<u8>>,
}

impl BuiltinScript {
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self {
            name,
            text,
            code: OnceLock::new(),
        }
    }

    /// The function that the text defines.
    pub(super) fn function<'js>(&self, ctx: &Ctx<'js>) -> Result<Function<'js>> {
        let code = match self.code.get() {
            Some(code) => code,
            None => {
                // Another engine may be first, and its code is equivalent.
                let code = self.compiled(ctx)?;
                self.code.get_or_init(|| code)
            }
        };
        // SAFETY: the engine wrote these bytes in `compiled`, and nothing changes them afterwards.
        let module = unsafe { Module::load(ctx.clone(), code) }?;
        let (module, evaluated) = module.eval()?;
        evaluated.finish::<()>()?;
        module.get("default")
    }

    fn compiled(&self, ctx: &Ctx<'_>) -> Result<Vec<u8>> {
        let text = format!("export default {}", self.text);
        let module = Module::declare(ctx.clone(), self.name, text)?;
        module.write(WriteOptions {
            // The line numbers stay, because stacks contain them.
            strip_source: true,
            ..WriteOptions::default()
        })
    }
}
