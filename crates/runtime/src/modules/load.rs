//! The engine's view of a [`super::ModuleSet`].

use std::rc::Rc;

use rquickjs::loader::{ImportAttributes, Loader, Resolver};
use rquickjs::module::Declared;
use rquickjs::{Ctx, Module, Result};

use crate::isolate::Shared;

/// What the engine asks when it meets an `import`.
pub(crate) fn loader(shared: &Rc<Shared>) -> (Find, Read) {
    (Find(Rc::clone(shared)), Read(Rc::clone(shared)))
}

pub(crate) struct Find(Rc<Shared>);
pub(crate) struct Read(Rc<Shared>);

impl Resolver for Find {
    fn resolve<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        base: &str,
        name: &str,
        _attributes: Option<ImportAttributes<'js>>,
    ) -> Result<String> {
        let found = self.0.modules.resolve(base, name);
        found.map_err(|failure| self.0.raise_failure(ctx, &failure))
    }
}

impl Loader for Read {
    fn load<'js>(
        &mut self,
        ctx: &Ctx<'js>,
        name: &str,
        _attributes: Option<ImportAttributes<'js>>,
    ) -> Result<Module<'js, Declared>> {
        let source = self.0.modules.source(name);
        let source = source.map_err(|failure| self.0.raise_failure(ctx, &failure))?;
        Module::declare(ctx.clone(), name, source)
    }
}
