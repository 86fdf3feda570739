//! Our own scripts, compiled once in a process and loaded into each engine from there: without their
//! texts, and without parsing them again for each session.
//!
//! The engine believes whatever bytecode it is given. These are the bytes that it wrote itself, in this process, from
//! texts that are part of the program; bytecode of another origin never comes here.

use std::sync::OnceLock;

use rquickjs::{Ctx, Function, Module, Result, WriteOptions};

/// One of our scripts: its name in stacks, its text, and its code once some engine needed it.
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

    /// The function that the text is.
    pub(super) fn function<'js>(&self, ctx: &Ctx<'js>) -> Result<Function<'js>> {
        let code = match self.code.get() {
            Some(code) => code,
            None => {
                // Another engine may be first: its code is as good.
                let code = self.compiled(ctx)?;
                self.code.get_or_init(|| code)
            }
        };
        // SAFETY: `compiled` had the engine write them; nothing changes them afterwards.
        let module = unsafe { Module::load(ctx.clone(), code) }?;
        let (module, evaluated) = module.eval()?;
        evaluated.finish::<()>()?;
        module.get("default")
    }

    fn compiled(&self, ctx: &Ctx<'_>) -> Result<Vec<u8>> {
        let text = format!("export default {}", self.text);
        let module = Module::declare(ctx.clone(), self.name, text)?;
        module.write(WriteOptions {
            // Lines stay: stacks name them.
            strip_source: true,
            ..WriteOptions::default()
        })
    }
}
