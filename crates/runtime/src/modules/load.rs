//! The engine's view of a [`super::ModuleSet`].

use std::rc::Rc;

use rquickjs::loader::{ImportAttributes, Loader, Resolver};
use rquickjs::module::Declared;
use rquickjs::{Ctx, Module, Result};

use crate::isolate::IsolateState;

/// The resolver and the loader that the engine calls for an `import`.
pub(crate) fn loader(shared: &Rc<IsolateState>) -> (ModuleResolver, ModuleLoader) {
    (
        ModuleResolver(Rc::clone(shared)),
        ModuleLoader(Rc::clone(shared)),
    )
}

pub(crate) struct ModuleResolver(Rc<IsolateState>);
pub(crate) struct ModuleLoader(Rc<IsolateState>);

impl Resolver for ModuleResolver {
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

impl Loader for ModuleLoader {
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
